"""Fills a generation from a log: the past through the same functions as live ingest, with nobody waiting for it.

    generation's guards -> where to read on from -> many batches at once -> decode -> apply, and so move the guards

Whoever is killed and comes back reads on from the guards; so does whoever finds that another rebuild of the same generation moved them.
A generation that begins later than its log has its guards moved there before anything else, so that they say it for ever.
What is no event is in dead-letters already: here it is only counted. Repeats are dropped, as live ingest drops them.
"""

import asyncio
import heapq
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from online_store.deltas import NOTHING, Deltas
from online_store.ingest import Ingest
from online_store.keys import Generation
from online_store.sources.decoded import Decoded
from online_store.store import Move, OnlineStore, Step
from replay.log import ReadableLog
from schemas.columnar.log import LogColumns, joined
from schemas.errors import GenerationError
from schemas.topics import SOURCES, Batch, Source

#: Events that go to the store together: it touches each record once however often it comes. At 25,000 half a record is touched an event, at
#: 400,000 a quarter, and that is what the store's time goes to. Two calls are in memory, some 800 bytes an event each.
CALL_EVENTS_MAX = 400_000


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


@dataclass(slots=True)
class Filled:
    """What was done. events: applied, profiles among them; dead_letters: records that are none; repeats: events that were sent before."""

    events: int = 0
    dead_letters: int = 0
    repeats: int = 0

    def count(self, decoded: Decoded) -> None:
        """One batch more."""
        self.events += decoded.good_count
        self.dead_letters += decoded.bad_count
        self.repeats += decoded.repeats_count


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
    for source in ends:
        await ingest.settle(source)
    return filled


async def _read(ingest: Ingest, log: ReadableLog, ends: Mapping[Source, int], filled: Filled, shown: Callable[[int, int], None]) -> bool:
    """Read from the guards to the ends. Returns whether it came there."""
    positions = await ingest.positions(list(ends))
    starts = {source: start for source, start in positions.items() if ingest.lowest_guard(source) < ends[source]}
    done, left = 0, sum(ends[source] - start for source, start in starts.items())
    calls = _calls(_in_time(log, {source: starts.get(source, ends[source]) for source in ends}))
    applying: asyncio.Task[bool] | None = None
    try:
        while call := await asyncio.to_thread(_made, ingest, calls):
            if applying and not await applying:
                return False
            done += sum(one.batch.following - one.batch.start for one in call.batches)
            shown(done, max(left - done, 0))
            applying = asyncio.create_task(_apply(ingest, call, filled))
        return applying is None or await applying
    finally:
        if applying:
            applying.cancel()


def _in_time(log: ReadableLog, starts: Mapping[Source, int]) -> Iterator[Batch]:
    """What stands in all topics, the oldest first: what happened together reaches the store together."""
    wanted = [{source.partition: start for source, start in starts.items() if source.topic == topic.name} for topic in SOURCES]
    topics = [log.read(topic, partitions, CALL_EVENTS_MAX) for topic, partitions in zip(SOURCES, wanted, strict=True) if partitions]
    return heapq.merge(*topics, key=lambda batch: batch.records[0].timestamp)


def _calls(batches: Iterator[Batch]) -> Iterator[list[Batch]]:
    """Batches for one call to the store: one a source."""
    call: dict[Source, list[Batch]] = defaultdict(list)
    events_count = 0
    for batch in batches:
        if call and events_count + len(batch.records) > CALL_EVENTS_MAX:
            yield list(map(_joined, call.values()))
            call, events_count = defaultdict(list), 0
        call[batch.source].append(batch)
        events_count += len(batch.records)
    if call:
        yield list(map(_joined, call.values()))


def _joined(batches: list[Batch]) -> Batch:
    """Batches of one source that follow one another, as one."""
    first = batches[0]
    columns = [batch.records for batch in batches if isinstance(batch.records, LogColumns)]
    if len(columns) == len(batches):
        return Batch(first.source, joined(columns), first.start)
    return Batch(first.source, [record for batch in batches for record in batch.records], first.start)


class Call(NamedTuple):
    """One call to the store, made while the store has the one before it."""

    batches: list[Decoded]
    deltas: dict[int, Deltas]


def _made(ingest: Ingest, calls: Iterator[list[Batch]]) -> Call | None:
    """The next call; None behind the last one."""
    batches = [ingest.decode(batch) for batch in next(calls, [])]
    return Call(batches, ingest.ahead(batches)) if batches else None


async def _apply(ingest: Ingest, call: Call, filled: Filled) -> bool:
    """Returns whether all of it was applied by us."""
    positions = await ingest.apply(*call)
    for decoded in call.batches:
        filled.count(decoded)
    return all(positions[decoded.batch.source] == decoded.batch.following for decoded in call.batches)
