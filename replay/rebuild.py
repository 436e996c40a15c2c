"""Fills a generation from a log: the past through the same functions as live ingest, with nobody waiting for it.

    generation's guards -> where to read on from -> batches, decoded and summed -> a call to the store, which moves the guards

Whoever is killed and comes back reads on from the guards; so does whoever finds that another rebuild of the same generation moved them.
A generation that begins later than its log has its guards moved there before anything else, so that they say it for ever.
What is no event is in dead-letters already: here it is only counted. Repeats are dropped, as live ingest drops them.
"""

import asyncio
import heapq
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NamedTuple

import numpy as np

from online_store.bulk.gathering import Gathered
from online_store.deltas import NOTHING, Deltas
from online_store.ingest import Ingest
from online_store.keys import Generation
from online_store.record import layouts
from online_store.sources.decoded import Decoded
from online_store.store import Move, OnlineStore, Step
from replay.log import ReadableLog
from schemas.errors import GenerationError
from schemas.topics import SOURCES, Batch, Source

#: Records that a call to the store touches. More would touch fewer an event, and take more memory: what a call adds takes some 800 bytes a
#: record, two calls are in memory, and the store does nothing else while it writes a shard's part of them (10 ms for 3,000).
CALL_RECORDS_MAX = 200_000
#: What it adds to them (rows of tiles), and events of one that touches few: what a kill throws away is a few seconds.
CALL_ROWS_MAX = 2_000_000
CALL_EVENTS_MAX = 2_000_000
#: Events that are taken apart together, some 500 bytes each; the first call is as small, so that something is seen at once.
BATCH_EVENTS_MAX = 100_000


class Progress(NamedTuple):
    """How far a rebuild is. done, left: records of the log; seconds: since it was begun or resumed."""

    done: int
    left: int
    seconds: float

    @property
    def events_per_s(self) -> float:
        """So far."""
        return self.done / max(self.seconds, 1e-3)

    @property
    def seconds_left(self) -> float:
        """If it goes on as it went so far."""
        return self.left / max(self.events_per_s, 1.0)

    def __str__(self) -> str:
        """For people."""
        return f"{self.done:,} events, {self.events_per_s:,.0f}/s, {self.left:,} left, {timedelta(seconds=round(self.seconds_left))} to go"


@dataclass(slots=True)
class Filled:
    """What was done. events: applied, profiles among them; dead_letters: records that are none; repeats: events that were sent before."""

    events: int = 0
    dead_letters: int = 0
    repeats: int = 0

    def count(self, decoded: Decoded) -> None:
        """One batch more."""
        self.add(Filled(decoded.good_count, decoded.bad_count, decoded.repeats_count))

    def add(self, other: "Filled") -> None:
        """What was done beside it."""
        self.events += other.events
        self.dead_letters += other.dead_letters
        self.repeats += other.repeats


async def begin_at(store: OnlineStore, generation: Generation, starts: Mapping[Source, int]) -> None:
    """Let a generation begin at these offsets: nothing that stands before them will ever be part of it.

    Again is nothing. Raises GenerationError where it has begun elsewhere.
    """
    sources = list(starts)
    standing = await store.guards(generation, sources)
    wanted = np.array([[starts[source]] for source in sources], np.int64).reshape(len(sources), 1)
    unmoved, shards = (standing == 0) & (wanted > 0), range(generation.shards)
    if unmoved.any() and ((standing != 0) & (standing != wanted)).any():
        raise GenerationError(
            f"{generation.name} has begun at other offsets: it is resumed with the `--from` that it was begun with, or none. "
            "`--generation new` begins another one."
        )
    moves = {shard: [Move(sources[place], 0, starts[sources[place]]) for place in np.flatnonzero(unmoved[:, shard])] for shard in shards}
    await store.apply(generation, [Step(shard, moved, NOTHING) for shard, moved in moves.items() if moved])


async def fill(ingest: Ingest, log: ReadableLog, shown: Callable[[Progress], None] = lambda _: None) -> Filled:
    """Apply what a log holds, up to its end as it is now, to the generation that `ingest` has for its target.

    shown: told how far it is after each call to the store. Raises LogError, StoreError; called again it goes on.
    """
    ends = {Source(topic.name, partition): end for topic in SOURCES for partition, end in log.end_offsets(topic).items()}
    filled, begun_s = Filled(), time.monotonic()

    def told(done: int, left: int) -> None:
        shown(Progress(done, left, time.monotonic() - begun_s))

    while not await _read(ingest, log, ends, filled, told):
        pass  # a guard is not where we left it: they say where to read on from
    await ingest.settle(list(ends))
    return filled


async def _read(ingest: Ingest, log: ReadableLog, ends: Mapping[Source, int], filled: Filled, shown: Callable[[int, int], None]) -> bool:
    """Read from the guards to the ends. Returns whether it came there."""
    positions = await ingest.positions(list(ends))
    starts = {source: start for source, start in positions.items() if ingest.lowest_guard(source) < ends[source]}
    done, left = 0, sum(ends[source] - start for source, start in starts.items())
    in_time = _in_time(log, {source: starts.get(source, ends[source]) for source in ends})
    # What came since to a source that had everything follows on nothing that was read here.
    batches = (batch for batch in in_time if batch.source in starts)
    assert ingest.generation is not None, "positions() took it on"
    gathered, events_max = Gathered(layouts(ingest.registry), ingest.generation), min(BATCH_EVENTS_MAX, CALL_EVENTS_MAX)
    applying: asyncio.Task[bool] | None = None
    # One thread: a log is let go of where it was read, behind what is being read of it. Its clients may have a loop of their own, which
    # cannot end where ours runs.
    reading, loop = ThreadPoolExecutor(1), asyncio.get_running_loop()
    try:
        while call := await loop.run_in_executor(reading, _gathered, ingest, gathered, batches, events_max):
            if applying and not await applying:
                return False
            done, events_max = done + call.offsets_count, min(2 * events_max, CALL_EVENTS_MAX)
            shown(done, max(left - done, 0))
            applying = asyncio.create_task(_apply(ingest, call, filled))
        return applying is None or await applying
    finally:
        if applying:
            applying.cancel()
        await loop.run_in_executor(reading, in_time.close)
        reading.shutdown(wait=False)


def _in_time(log: ReadableLog, starts: Mapping[Source, int]) -> Generator[Batch]:
    """What stands in all topics, the oldest first: what happened together reaches the store together."""
    wanted = [{source.partition: start for source, start in starts.items() if source.topic == topic.name} for topic in SOURCES]
    topics = [log.read(topic, partitions, BATCH_EVENTS_MAX) for topic, partitions in zip(SOURCES, wanted, strict=True) if partitions]
    return heapq.merge(*topics, key=lambda batch: batch.records[0].timestamp)


@dataclass(slots=True)
class Call:
    """One call to the store, made while the store has the one before it.

    followings, deltas: of events. profiles: what else there was. filled: what it counts for. is_whole: whether each batch followed the one
    before it.
    """

    followings: dict[Source, int] = field(default_factory=dict)
    deltas: dict[int, Deltas] = field(default_factory=dict)
    profiles: list[Decoded] = field(default_factory=list)
    filled: Filled = field(default_factory=Filled)
    offsets_count: int = 0
    is_whole: bool = True


def _gathered(ingest: Ingest, gathered: Gathered, batches: Iterator[Batch], events_max: int) -> Call | None:
    """The next call; None behind the last one."""
    call = Call()
    for batch in batches:
        _take(call, ingest.decode(batch), gathered)
        is_large = gathered.entities_count >= CALL_RECORDS_MAX or gathered.rows_count >= CALL_ROWS_MAX
        if is_large or call.offsets_count >= events_max or not call.is_whole:
            break
    call.deltas = gathered.deltas()
    gathered.clear()
    return call if call.offsets_count else None


def _take(call: Call, decoded: Decoded, gathered: Gathered) -> None:
    """One batch more. What its events add is gathered, so they need not be held."""
    call.offsets_count += decoded.batch.following - decoded.batch.start
    if decoded.reading is None:
        call.is_whole = False
    elif decoded.events is None:
        call.profiles.append(decoded)
    else:
        gathered.add(decoded.events, decoded.reading.guards)
        call.followings[decoded.batch.source] = decoded.batch.following
        call.filled.count(decoded)


async def _apply(ingest: Ingest, call: Call, filled: Filled) -> bool:
    """Returns whether all of it was applied by us."""
    is_done = await ingest.step(call.followings, call.deltas) == call.followings and call.is_whole
    filled.add(call.filled)
    for decoded in call.profiles:
        positions = await ingest.apply([decoded])
        filled.count(decoded)
        is_done = is_done and positions[decoded.batch.source] == decoded.batch.following
    return is_done
