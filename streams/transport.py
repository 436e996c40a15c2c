"""The seam in Faust: all fetched records of one partition become one Faust message, a schemas.topics.Batch.

Stock Faust pays for every record (an asyncio task, a queue entry, an acknowledgement) long before a stream sees it: about 9,000
records/s a core. Folding keeps assignment, rebalance, commit and shutdown Faust's own and pays once a batch.

Every batch says which offset it was fetched from, so that a batch that went missing on the way is seen. Nobody seeks while a
fetch is under way: who wants to go back calls `rewind`, and the next `getmany` does it before it fetches.

This overrides private names of faust-streaming 0.15.3, which is pinned exactly; tests/integration/test_transport.py tests the seam.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

import faust
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, AgentT, ConsumerMessage

from schemas.topics import Batch, Source

#: Where to read each of the newly assigned sources from.
Positions = Callable[[Sequence[Source]], Awaitable[Mapping[Source, int]]]


class BatchConsumer(driver.Consumer):
    """A Faust consumer whose messages are batches."""

    app: "App"

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  # Faust's own arguments, passed on
        """As Faust makes it."""
        super().__init__(*args, **kwargs)
        self._next: dict[TP, int] = {}
        self._rewinds: dict[TP, int] = {}
        self._assignments_count = 0

    def rewind(self, source: Source, offset: int) -> None:
        """Fetch a source again from an offset; what was fetched before and not yet yielded is dropped."""
        self._rewinds[self.app.partition_of(source)] = offset

    async def perform_seek(self) -> None:
        """After an assignment, read on from where the store's guards stand: Kafka's committed offsets are a hint for lag tools."""
        await super().perform_seek()
        partitions = {self.app.source_of(tp): tp for tp in self.assignment() if self.app.is_source(tp)}
        positions = await self.app.positions(list(partitions))
        self._assignments_count += 1
        self._rewinds.clear()
        self._next = {partitions[source]: offset for source, offset in positions.items()}
        if self._next:
            await self.seek_wait(self._next)

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, ConsumerMessage]]:  # noqa: ASYNC109  # Faust's signature
        """One message a partition that has records: all of them, as a Batch."""
        await self._seek_back()
        before = self._assignments_count
        records, _ = await self._wait_next_records(timeout)
        for tp, found in (records or {}).items():
            if self.should_stop or not self.flow_active or before != self._assignments_count:
                return
            if found and tp in self._next and tp not in self._rewinds:
                self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
                batch = Batch(self.app.source_of(tp), found, self._next[tp])
                self._next[tp] = batch.following
                # Faust drops a message that lies before its read offset and tracks gaps from it: both are our own business.
                self._read_offset[tp] = None
                yield tp, self._message(tp, batch)

    async def _seek_back(self) -> None:
        while self._rewinds:
            tp, offset = self._rewinds.popitem()
            if tp in self._next:
                self._next[tp] = offset
                await self.seek_wait({tp: offset})

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
        super().__init__(*args, **kwargs)

    def _new_transport(self) -> Transport:
        return Transport(self.conf.broker_consumer, self, asyncio.get_event_loop())

    async def _on_agent_error(self, agent: AgentT[Any], exc: BaseException) -> None:  # noqa: ARG002  # Faust's signature
        """An agent crashed: the process is done for, though Faust would restart the agent."""
        self.agent_failure = exc

    def rewind(self, source: Source, offset: int) -> None:
        """Fetch a source again from an offset."""
        cast("BatchConsumer", self.consumer).rewind(source, offset)

    def is_source(self, tp: TP) -> bool:
        """Whether a partition is one that agents read."""
        return tp.topic in self.source_topics

    def source_of(self, tp: TP) -> Source:
        """A Kafka partition as the store knows it: without the prefix."""
        return Source(tp.topic.removeprefix(self.topic_prefix), tp.partition)

    def partition_of(self, source: Source) -> TP:
        """A source as Kafka knows it: with the prefix."""
        return TP(self.topic_prefix + source.topic, source.partition)
