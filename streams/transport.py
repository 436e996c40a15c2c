"""The seam in Faust: all fetched records of one partition become one Faust message, a schemas.topics.Batch.

Stock Faust pays for every record (an asyncio task, a queue entry, an acknowledgement) long before a stream sees it: about 9,000
records/s a core. Folding keeps assignment, rebalance, commit and shutdown Faust's own and pays once a batch.

Every batch says which offset it was fetched from, so that a batch that went missing on the way is seen. Nobody seeks while a
fetch is under way: who wants to go back calls `rewind`, and the next `getmany` does it before it fetches.

This overrides private names of faust-streaming 0.15.3, which is pinned exactly; tests/integration/test_transport.py tests the seam.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

import faust
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import IllegalStateError, KafkaError
from faust.tables.manager import TableManager
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, AgentT, ConsumerMessage

from schemas.errors import LogError
from schemas.topics import Batch, Source
from streams import fetch

#: Where to read each of the newly assigned sources from.
Positions = Callable[[Sequence[Source]], Awaitable[Mapping[Source, int]]]
#: How long the broker may hold back a small answer (milliseconds), so long a live feed's events wait for company. A partition that was not
#: asked for in that request waits as long: Faust's own 1,500 stalls a busy partition beside idle ones. Less is idle polling.
FETCH_WAIT_MS = 30
#: An answer of so many bytes is not held back. Without company each page of impressions is a batch: 0.78 of a core instead of 0.47.
FETCH_BYTES_MIN = 64 << 10
#: Bytes of one answer of the broker, all partitions together, unless one may have more: a worker holds three times as much of it meanwhile.
FETCH_BYTES_MAX = 6 << 20
#: Batches that may be under way: more would wait in memory, taken apart, instead of as the broker sent them.
UNDER_WAY_MAX = 6
#: How often a fetch looks for partitions whose batch is done, while some have one under way (seconds).
BUSY_WAIT_S = 0.01

log = logging.getLogger("millstream.ingest")


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """Faust's thread around aiokafka's consumer, with settings that Faust does not let through."""

    def _create_worker_consumer(self, transport: driver.Transport) -> AIOKafkaConsumer:
        fetch.install()
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS  # noqa: SLF001  # the seam: read when the consumer starts
        consumer._fetch_min_bytes = FETCH_BYTES_MIN  # noqa: SLF001  # as above
        consumer._fetch_max_bytes = max(FETCH_BYTES_MAX, 3 * transport.app.conf.consumer_max_fetch_size // 2)  # noqa: SLF001  # as above
        # What a transactional producer took back was never said: replay and the ranker do not see it either.
        consumer._isolation_level = "read_committed"  # noqa: SLF001  # as above
        return consumer

    async def _fetch_records(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  # Faust's own arguments, passed on
        """Take answers whole: they are bounded by their bytes."""
        return await super()._fetch_records(*args, **{**kwargs, "max_records": None})

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """Commit what is still ours: an assignment may have taken all of it away since, and a commit of nothing ends Faust's consumer."""
        held = {tp: offset for tp, offset in offsets.items() if tp in self.assignment()}
        return bool(held) and await super()._commit(held)


class NoTables(TableManager):
    """Faust's tables, of which we have none: they need not wait a second at every start for somebody to add one."""

    async def on_start(self) -> None:
        """Go on to the assignment, which Faust does here."""
        await self._update_channels()
        await self.recovery.start()


class BatchConsumer(driver.Consumer):
    """A Faust consumer whose messages are batches."""

    app: "App"

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  # Faust's own arguments, passed on
        """As Faust makes it."""
        super().__init__(*args, **kwargs)
        self._next: dict[TP, int] = {}
        self._rewinds: dict[TP, int] = {}
        self._under_way: set[TP] = set()

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def rewind(self, source: Source, offset: int) -> None:
        """Fetch a source again from an offset; what was fetched before and not yet yielded is dropped."""
        self._rewinds[self.app.partition_of(source)] = offset

    async def perform_seek(self) -> None:
        """After an assignment, read on from where the store's guards stand: Kafka's committed offsets are a hint for lag tools."""
        await super().perform_seek()
        partitions = {self.app.source_of(tp): tp for tp in self.assignment() if self.app.is_source(tp)}
        positions = await self.app.positions(list(partitions))
        self._next = {partitions[source]: offset for source, offset in positions.items()}
        self._rewinds = dict(self._next)
        self._under_way.clear()

    @property
    def is_idle(self) -> bool:
        """Whether no batch is under way."""
        return not self._under_way

    def done(self, source: Source) -> None:
        """A batch of a source was taken or dropped: the source may be fetched again."""
        self._under_way.discard(self.app.partition_of(source))

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:  # noqa: ANN401, ASYNC109  # Faust's signature
        """Fetch the partitions that have no batch under way: what arrives meanwhile becomes one larger batch, not many that queue."""
        if not self._under_way:
            return await super()._getmany(active_partitions, timeout)
        free = (active_partitions or set()) - self._under_way
        if free and len(self._under_way) < UNDER_WAY_MAX:
            return await super()._getmany(free, BUSY_WAIT_S)
        await asyncio.sleep(BUSY_WAIT_S)
        return {}

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, ConsumerMessage]]:  # noqa: ASYNC109  # Faust's signature
        """One message a partition that has records: all of them, as a Batch."""
        if not self.flow_active:
            await self.wait(self.can_resume_flow)  # type: ignore[arg-type]  # mode's hints forget asyncio's own event
        await self._seek_back()
        records, _ = await self._wait_next_records(timeout)
        for tp, found in (records or {}).items():
            if found and self._is_wanted(tp):
                yield tp, self._message(tp, self._batch(tp, found))

    async def ends(self, sources: Sequence[Source]) -> Mapping[Source, int]:
        """Where sources end now. Raises LogError where Kafka does not say."""
        partitions = {self.app.partition_of(source): source for source in sources}
        try:
            ends = await self.highwaters(*partitions) if partitions else {}
        except KafkaError as error:
            raise LogError(f"Kafka does not say where {len(partitions)} partitions end: {error!r}. Is it up?") from error
        return {partitions[tp]: end for tp, end in ends.items()}

    def end_offset(self, source: Source) -> int | None:
        """Where a source ended when it was last fetched; None if it is not ours, or not ours any more."""
        tp = self.app.partition_of(source)
        return self.highwater(tp) if tp in self.assignment() else None

    async def _seek_back(self) -> None:
        wanted = {tp: offset for tp, offset in self._rewinds.items() if tp in self._next}
        self._rewinds.clear()
        if not wanted:
            return
        self._next.update(wanted)
        try:
            await self.seek_wait(wanted)
        except IllegalStateError:
            log.info("partitions were taken away before they could be read again: the next assignment says where to begin")

    def _is_wanted(self, tp: TP) -> bool:
        """Whether what was just fetched is handed on; else it is fetched again, for Kafka's position is behind it by now."""
        if tp in self._next and not self.flow_active:
            self._rewinds.setdefault(tp, self._next[tp])
        return tp in self._next and tp not in self._rewinds

    def _batch(self, tp: TP, found: Sequence[Any]) -> Batch:
        batch = Batch(self.app.source_of(tp), found, self._next[tp])
        if found[0].offset < batch.start:
            raise LogError(
                f"{tp.topic}/{tp.partition} was asked for offset {batch.start} and begins again at {found[0].offset}: the topic was made "
                "anew, or lost its end, while the store still counts the old one. Rebuild into a new generation from the log that is there."
            )
        self._next[tp] = batch.following
        self._under_way.add(tp)
        # Faust drops a message that lies before its read offset and tracks gaps from it: both are our own business.
        self._read_offset[tp] = None
        return batch

    def _message(self, tp: TP, batch: Batch) -> ConsumerMessage:
        last = batch.records[-1]
        value: Any = batch
        return ConsumerMessage(
            topic=tp.topic,
            partition=tp.partition,
            offset=last.offset,
            timestamp=last.timestamp / 1000,
            timestamp_type=0,
            headers=None,
            key=None,
            value=value,
            checksum=None,
            tp=tp,
            generation_id=self.app.consumer_generation_id,
        )

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """A batch acknowledges its last offset only; what lies between is not a gap."""

    def _new_offset(self, tp: TP) -> int | None:
        """The offset to commit: behind the newest acknowledged batch; batches of a partition are acknowledged in order."""
        acked = self._acked[tp]
        if not acked:
            return None
        newest = max(acked)
        acked.clear()
        self._acked_index[tp].clear()
        return int(newest) + 1


class Transport(driver.Transport):
    """Faust's Kafka transport with our consumer."""

    Consumer = BatchConsumer


class App(faust.App):
    """A Faust app that reads sources in batches from where `positions` says.

    topic_prefix: what stands before every topic's name in Kafka. positions: where to read newly assigned sources from.
    """

    def __init__(self, *args: Any, topic_prefix: str, **kwargs: Any) -> None:  # noqa: ANN401  # Faust's own
        """As Faust's. `positions` must be set before the start."""
        self.topic_prefix = topic_prefix
        self.positions: Positions
        self.source_topics: set[str] = set()
        self.agent_failure: BaseException | None = None
        super().__init__(*args, TableManager=NoTables, **kwargs)

    def _new_transport(self) -> Transport:
        return Transport(self.conf.broker_consumer, self, asyncio.get_event_loop())

    async def _on_agent_error(self, agent: AgentT[Any], exc: BaseException) -> None:  # noqa: ARG002  # Faust's signature
        """An agent crashed: the process is done for, though Faust would restart the agent."""
        self.agent_failure = exc

    def rewind(self, source: Source, offset: int) -> None:
        """Fetch a source again from an offset."""
        cast("BatchConsumer", self.consumer).rewind(source, offset)

    def done(self, source: Source) -> None:
        """A batch of a source was taken or dropped."""
        cast("BatchConsumer", self.consumer).done(source)

    async def ends(self, sources: Sequence[Source]) -> Mapping[Source, int]:
        """Where sources end now, asked of Kafka. Raises LogError."""
        return await cast("BatchConsumer", self.consumer).ends(sources)

    def end_offset(self, source: Source) -> int | None:
        """Where a source ended when it was last fetched, if it is ours."""
        return cast("BatchConsumer", self.consumer).end_offset(source)

    def is_source(self, tp: TP) -> bool:
        """Whether a partition is one that agents read."""
        return tp.topic in self.source_topics

    @property
    def is_idle(self) -> bool:
        """Whether no batch is under way."""
        return cast("BatchConsumer", self.consumer).is_idle

    def source_of(self, tp: TP) -> Source:
        """A Kafka partition as the store knows it: without the prefix."""
        return Source(tp.topic.removeprefix(self.topic_prefix), tp.partition)

    def partition_of(self, source: Source) -> TP:
        """A source as Kafka knows it: with the prefix."""
        return TP(self.topic_prefix + source.topic, source.partition)
