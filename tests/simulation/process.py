"""One ingest process: the real Worker over the real Ingest, on a stand-in for what Faust and Kafka are to it.

The stand-in keeps the promises of streams/transport.py, and no more: batches of a partition say where they were fetched from; one that
was asked for again comes again; what was fetched before may still come, twice, in another order, or not at all.
"""

import asyncio
import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from online_store.ingest import Ingest
from schemas.features import REGISTRY
from schemas.topics import Batch, Source
from streams.agents import BATCHES_AT_ONCE
from streams.app import FOLLOW_S, RIVAL_S
from streams.worker import Worker
from tests.simulation.clock import for_ever
from tests.simulation.store import Connection, Replicas
from tests.worlds import SCHEMA_IDS, SOURCE_TOPICS, Log

#: What a batch may meet between the fetch and the agent.
MISHAPS = ("lost", "twice", "swapped")
#: Records of one batch, at most.
ROWS_MAX = 60


@dataclass(frozen=True, slots=True)
class Letter:
    """What arrived in dead-letters."""

    topic: str
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...]


@dataclass(slots=True)
class Broker:
    """Kafka as all processes share it. calm: whether everything goes fast now. kills: at each step.

    farthest: the end of what was ever delivered of a source. mishaps: of the next deliveries. lost: sources of batches that were
    fetched and never handed on.
    """

    log: Log
    calm: bool = False
    letters: list[Letter] = field(default_factory=list)
    farthest: dict[Source, int] = field(default_factory=dict)
    mishaps: deque[str] = field(default_factory=deque)
    duplicates_delivered: int = 0
    lost: set[Source] = field(default_factory=set)
    kills: Counter[str] = field(default_factory=Counter)

    def delivered(self, batch: Batch) -> None:
        """Count what was delivered before."""
        farthest = self.farthest.get(batch.source, 0)
        self.duplicates_delivered += sum(record.offset < farthest for record in batch.records)
        self.farthest[batch.source] = max(farthest, batch.following)


class Process:
    """A worker process from its start to its end.

    number: its name. repeat_offsets: as Ingest's. armed: the step at which it is killed, and how often it passes it before.
    failure: what ended it by itself. left: whether it told its group goodbye.
    """

    def __init__(self, number: int, pick: random.Random, broker: Broker, replicas: Replicas, repeat_offsets: int) -> None:
        """Not started, and not of the group."""
        self.number = number
        self.pick = pick
        self.dead = self.left = False
        self.failure: BaseException | None = None
        self.armed: tuple[str, int] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._running = asyncio.Event()
        self._running.set()
        self._assigning = asyncio.Lock()
        self.consumer = Consumer(self, broker)
        stand_in: Any = self.consumer
        ingest = Ingest(Connection(replicas, self.passed), REGISTRY, SCHEMA_IDS, repeat_offsets, patience_s=RIVAL_S)
        self.worker = Worker(stand_in, ingest)

    def start(self) -> None:
        """Fetch and apply whatever is assigned; look after the guards now and then."""
        settle_s, check_s = self.pick.choice((0.25, 0.5, 2.0)), self.pick.choice((1.0, 3.0, 5.0))
        self.spawn(self.consumer.fetch())
        for topic in SOURCE_TOPICS * BATCHES_AT_ONCE:
            self.spawn(self.consumer.agent(topic))
        self.spawn(self._every(settle_s, self.worker.settle))
        self.spawn(self._every(check_s, self.worker.check_guards))
        self.spawn(self._every(FOLLOW_S, self.worker.follow))

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do this until the process dies; what it raises ends the process, as in streams/app.py."""
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    async def assign(self, sources: Sequence[Source]) -> None:
        """Take over sources: the seek behind an assignment."""
        async with self._assigning:
            self.consumer.pause()
            await self.passed("in assignment")
            positions = await self.worker.assign(sources)
            await self.passed("in seek")
            self.consumer.seek(positions)

    async def leave(self) -> None:
        """An orderly stop: nothing more is fetched; the batches under way may or may not be done with."""
        self.consumer.pause()
        await self.passed("in shutdown")
        await asyncio.sleep(self.pick.random())
        self.left = True
        self.kill()

    def kill(self) -> None:
        """No step after this one."""
        self.dead = True
        for task in self._tasks:
            task.cancel()

    def stop(self) -> None:
        """SIGSTOP."""
        self._running.clear()

    def go_on(self) -> None:
        """SIGCONT."""
        self._running.set()

    @property
    def stopped(self) -> bool:
        """Between SIGSTOP and SIGCONT."""
        return not self._running.is_set()

    async def passed(self, step: str) -> None:
        """Come to a step: it may take a while, be where the process is stopped, or be where it is killed."""
        if not self.consumer.broker.calm and self.pick.random() < 0.2:
            await asyncio.sleep(self.pick.random() ** 3)
        if not self._running.is_set():
            await self._running.wait()
        if self.armed and self.armed[0] == step:
            self.armed = (step, self.armed[1] - 1)
            if self.armed[1] < 0 and not self.dead:
                self.consumer.broker.kills[step] += 1
                self.kill()
        if self.dead:
            await for_ever()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception():
            self.failure = self.failure or task.exception()
            self.kill()

    async def _every(self, pause_s: float, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            await asyncio.sleep(pause_s)
            await self.passed("timer")
            await work()


class Consumer:
    """What a Worker asks of streams.transport.App, and what feeds it. depth: batches of a source that may be under way at once."""

    topic_prefix = ""

    def __init__(self, process: Process, broker: Broker) -> None:
        """Nothing is assigned."""
        self.process = process
        self.broker = broker
        self.producer = self
        self.depth = process.pick.choice((1, 1, 2, 3))
        self.rows_max = process.pick.choice((5, 20, ROWS_MAX))
        self._fetching = False
        self._next: dict[Source, int] = {}
        self._rewinds: dict[Source, int] = {}
        self._under_way: dict[Source, int] = {}
        self._queues: dict[str, deque[Batch]] = {topic: deque() for topic in SOURCE_TOPICS}
        self._arrived = {topic: asyncio.Event() for topic in SOURCE_TOPICS}
        self._in_order: dict[Source, asyncio.Lock] = defaultdict(asyncio.Lock)

    def pause(self) -> None:
        """A rebalance begins: nothing is fetched until it is over."""
        self._fetching = False

    def seek(self, positions: Mapping[Source, int]) -> None:
        """A rebalance is over; batches fetched before may be left behind."""
        self._next, self._rewinds, self._under_way = dict(positions), {}, {}
        if self.process.pick.random() < 0.7:
            for queue in self._queues.values():
                queue.clear()
        self._fetching = True

    def rewind(self, source: Source, offset: int) -> None:
        """As App.rewind."""
        self._rewinds[source] = offset

    def done(self, source: Source) -> None:
        """As App.done."""
        self._under_way[source] = max(self._under_way.get(source, 0) - 1, 0)

    def end_offset(self, source: Source) -> int | None:
        """As App.end_offset."""
        return self.broker.log.end(source) if source in self._next else None

    async def ends(self, sources: Sequence[Source]) -> Mapping[Source, int]:
        """As App.ends."""
        await self.process.passed("ends")
        log = self.broker.log
        return {source: log.end(source) if source in log.partitions else 0 for source in sources}

    async def maybe_start_producer(self) -> None:
        """As faust.App's."""

    async def send_and_wait(
        self, topic: str, key: bytes | None, value: bytes, partition: None, timestamp: None, headers: Sequence[tuple[str, bytes]]
    ) -> None:
        """As a Faust producer's."""
        del partition, timestamp
        await self.process.passed("before a dead letter")
        self.broker.letters.append(Letter(topic, key, value, tuple(headers)))
        await self.process.passed("after a dead letter")

    async def agent(self, topic: str) -> None:
        """Hand on a topic's batches, one after another, as streams/agents.py does."""
        queue, arrived = self._queues[topic], self._arrived[topic]
        while True:
            while not queue:
                arrived.clear()
                await arrived.wait()
            batch = queue.popleft()
            # In the order in which they were fetched, unless a mishap changed it.
            async with self._in_order[batch.source]:
                await self.process.passed("before take")
                self.broker.delivered(batch)
                await self.process.worker.take(batch)
                await self.process.passed("after take")

    async def fetch(self) -> None:
        """Read on from where the partitions stand, again and again."""
        while True:
            await asyncio.sleep(0.2 + 0.6 * self.process.pick.random())
            await self.process.passed("fetch")
            if self._fetching:
                self._fetch()

    def _fetch(self) -> None:
        for source, offset in self._rewinds.items():
            if source in self._next:
                self._next[source] = offset
        self._rewinds.clear()
        for source, position in list(self._next.items()):
            if self._under_way.get(source, 0) < self.depth and source in self.broker.log.partitions:
                batch = self.broker.log.fetch(source, position, self._rows())
                if batch is not None:
                    self._next[source] = batch.following
                    self._deliver(batch)

    def _rows(self) -> int:
        return ROWS_MAX if self.broker.calm else self.process.pick.randint(1, self.rows_max)

    def _deliver(self, batch: Batch) -> None:
        self._under_way[batch.source] = self._under_way.get(batch.source, 0) + 1
        queue = self._queues[batch.source.topic]
        mishap = self.broker.mishaps.popleft() if self.broker.mishaps else None
        if mishap == "lost":
            self.broker.lost.add(batch.source)
            self.done(batch.source)
            return
        queue.append(batch)
        if mishap == "twice":
            queue.append(batch)
        elif mishap == "swapped" and len(queue) > 1:
            queue[-1], queue[-2] = queue[-2], queue[-1]
        self._arrived[batch.source.topic].set()
