"""When a worker takes a batch, when it goes back, and that it never passes records over."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np

from online_store.deltas import NOTHING
from online_store.ingest import Ingest
from online_store.keys import Generation, shard_of
from online_store.memory import MemoryStore
from online_store.store import Move, Step
from schemas.features import REGISTRY
from schemas.topics import Batch, Source
from streams import metrics
from streams.worker import Worker
from tests.worlds import Log, dump, impression, replayed

SOURCE = Source("impressions", 0)
#: What a worker makes in an empty store.
FIRST = Generation(1, REGISTRY.fingerprint)


class Consumer:
    """What a worker asks of its app: where it wants to read again, and which batches it is done with."""

    def __init__(self) -> None:
        self.rewinds: list[int] = []
        self.done_count = 0
        self.end: int | None = None

    def rewind(self, _: Source, offset: int) -> None:
        """Keep what was asked for."""
        self.rewinds.append(offset)

    def done(self, _: Source) -> None:
        """Count it."""
        self.done_count += 1

    async def ends(self, sources: Sequence[Source]) -> dict[Source, int]:
        """Of no source, unless a test says where all end."""
        return {} if self.end is None else dict.fromkeys(sources, self.end)

    def end_offset(self, _: Source) -> None:
        """Not known here."""


class SlowStore(MemoryStore):
    """A store whose next `apply` waits until it may go on, once `held` is cleared."""

    def __init__(self) -> None:
        super().__init__(REGISTRY)
        self.held = asyncio.Event()
        self.held.set()

    async def apply(self, generation: Generation, steps: Sequence[Step]) -> list[list[int]]:
        """As MemoryStore.apply, later."""
        await self.held.wait()
        return await super().apply(generation, steps)


class CountingStore(MemoryStore):
    """A store that keeps what it was asked to apply to the first generation."""

    def __init__(self) -> None:
        super().__init__(REGISTRY)
        self.steps: list[Step] = []

    async def apply(self, generation: Generation, steps: Sequence[Step]) -> list[list[int]]:
        """As MemoryStore.apply."""
        self.steps += steps if generation == FIRST else []
        return await super().apply(generation, steps)


def begun(store: MemoryStore) -> tuple[Worker, Consumer]:
    """A worker with nobody behind it."""
    consumer = Consumer()
    stand_in: Any = consumer
    return Worker(stand_in, Ingest(store, REGISTRY)), consumer


def log(*users: str) -> Log:
    found = Log()
    for number, user in enumerate(users):
        found.add(impression(user, request_id=f"r{number}"))
    return found


def fetch(found: Log, start: int, count: int = 1) -> Batch:
    batch = found.fetch(SOURCE, start, count)
    assert batch is not None
    return batch


async def read_on(worker: Worker, consumer: Consumer, found: Log, position: int) -> None:
    """Hand on what is left as a consumer does: from a position, one record a batch, back wherever the worker asks."""
    seen = len(consumer.rewinds)
    while position < found.end(SOURCE):
        batch = fetch(found, position)
        await worker.take(batch)
        position = batch.following
        if len(consumer.rewinds) > seen:
            seen, position = len(consumer.rewinds), consumer.rewinds[-1]


async def test_batches_that_follow_are_applied() -> None:
    """From the first guard on, batch after batch, without going back."""
    store, found = MemoryStore(REGISTRY), log("a", "b", "c")
    worker, consumer = begun(store)
    await worker.assign([SOURCE])
    await read_on(worker, consumer, found, 0)

    assert (consumer.rewinds, await dump(store)) == ([], await replayed(found))


async def test_repeats_are_counted_once() -> None:
    """The counter tells events that were dropped, the other one those that were not; reading them again after a restart tells nothing."""
    store, found = MemoryStore(REGISTRY), log("a", "b")
    for record in list(found):
        found.append(record)
    before = [metric.labels("impressions")._value.get() for metric in (metrics.EVENTS, metrics.REPEATS)]  # noqa: SLF001  # no other way to read one
    for _ in range(2):
        worker, consumer = begun(store)
        position = (await worker.assign([SOURCE]))[SOURCE]
        await read_on(worker, consumer, found, position)
        await worker.settle()
    after = [metric.labels("impressions")._value.get() for metric in (metrics.EVENTS, metrics.REPEATS)]  # noqa: SLF001  # as above

    assert [now - then for now, then in zip(after, before, strict=True)] == [2, 2]


async def test_a_gap_goes_back_and_applies_nothing() -> None:
    """A batch that begins past the position means that one before it was lost on the way."""
    store, found = MemoryStore(REGISTRY), log("a", "b", "c")
    worker, consumer = begun(store)
    await worker.assign([SOURCE])
    await worker.take(fetch(found, 0))
    before = await dump(store)
    await worker.take(fetch(found, 2))

    assert (consumer.rewinds, await dump(store) == before) == ([1], True)


async def test_batches_that_were_under_way_ask_for_nothing_more() -> None:
    """What was fetched behind a gap is dropped without going back a second time."""
    store, found = MemoryStore(REGISTRY), log("a", "b", "c", "d")
    worker, consumer = begun(store)
    await worker.assign([SOURCE])
    await worker.take(fetch(found, 2))
    await worker.take(fetch(found, 3))

    assert consumer.rewinds == [0]


async def test_what_was_asked_for_and_did_not_come_is_asked_for_again() -> None:
    """The batch that should end a gap may be lost as well: without a second request nothing of its source would ever fit."""
    found = log("a", "b", "c")
    worker, consumer = begun(MemoryStore(REGISTRY))
    await worker.assign([SOURCE])
    await worker.take(fetch(found, 1))
    await worker.check_guards()
    before = list(consumer.rewinds)
    await worker.check_guards()

    assert (before, consumer.rewinds) == ([0], [0, 0])


async def test_every_batch_taken_or_dropped_is_done_with() -> None:
    """A partition is fetched again only when its batch is done: a dropped one counts as well."""
    found = log("a", "b", "c")
    worker, consumer = begun(MemoryStore(REGISTRY))
    await worker.assign([SOURCE])
    for start in (0, 2, 0):
        await worker.take(fetch(found, start))

    assert consumer.done_count == 3


async def test_a_batch_of_a_source_that_is_not_ours_is_dropped() -> None:
    """What was fetched before the partition went to another worker changes nothing and asks for nothing."""
    store, found = MemoryStore(REGISTRY), log("a")
    worker, consumer = begun(store)
    await worker.assign([Source("clicks", 0)])
    await worker.take(fetch(found, 0))

    assert (consumer.rewinds, await dump(store)) == ([], {})


async def test_an_emptied_store_is_noticed_by_the_next_batch() -> None:
    """The guards are back at 0: the batch changes nothing, and the log is read again from there."""
    store, found = MemoryStore(REGISTRY), log("a", "a", "a")
    worker, consumer = begun(store)
    await worker.assign([SOURCE])
    await worker.take(fetch(found, 0, 2))
    await store.clear()
    await worker.take(fetch(found, 2))
    await read_on(worker, consumer, found, consumer.rewinds[0])

    assert (consumer.rewinds, await dump(store)) == ([0], await replayed(found))


async def test_an_emptied_store_is_noticed_though_nothing_comes() -> None:
    """The regular look at the guards goes back, and makes the store's generation anew."""
    store, found = MemoryStore(REGISTRY), log("a", "b")
    worker, consumer = begun(store)
    await worker.assign([SOURCE])
    await worker.take(fetch(found, 0, 2))
    await store.clear()
    await worker.check_guards()
    await read_on(worker, consumer, found, consumer.rewinds[0])

    assert (consumer.rewinds, await dump(store)) == ([0], await replayed(found))


async def test_a_store_emptied_before_the_first_event_gets_its_generation_back() -> None:
    """No guard stands lower than before, yet readers would find no generation."""
    store = MemoryStore(REGISTRY)
    worker, _ = begun(store)
    await worker.assign([SOURCE])
    await store.clear()
    await worker.check_guards()

    assert await store.current() == Generation(1, REGISTRY.fingerprint)


async def test_a_loss_found_while_going_back_goes_back_further() -> None:
    """The store is emptied after a gap was found and before its batch came: reading on from the gap would lose the rest."""
    store, found = MemoryStore(REGISTRY), log("a", "b", "a", "b")
    worker, consumer = begun(store)
    await worker.assign([SOURCE])
    await worker.take(fetch(found, 0, 2))
    await worker.take(fetch(found, 3))
    await store.clear()
    await worker.check_guards()
    await read_on(worker, consumer, found, consumer.rewinds[-1])

    assert (consumer.rewinds, await dump(store)) == ([2, 0], await replayed(found))


async def test_guards_of_idle_shards_catch_up() -> None:
    """After `settle` a restart begins at the end of what was applied, though most shards had no row."""
    store, found = MemoryStore(REGISTRY), log("a", "b")
    worker, _ = begun(store)
    await worker.assign([SOURCE])
    await worker.take(fetch(found, 0, 2))
    await worker.settle()

    assert await Ingest(store, REGISTRY, repeat_offsets=0).positions([SOURCE]) == {SOURCE: 2}


async def taken_from_two(store: MemoryStore) -> tuple[Worker, Consumer, Log]:
    """A worker that has taken an event of each of two partitions, the others of which no shard has heard."""
    found = Log()
    for partition in (0, 1):
        found.add(impression("a", request_id=f"r{partition}"), partition=partition)
    worker, consumer = begun(store)
    await worker.assign(found.sources)
    for source in found.sources:
        batch = found.fetch(source, 0, 1)
        assert batch is not None
        await worker.take(batch)
    return worker, consumer, found


async def test_all_sources_of_a_shard_catch_up_in_one_step() -> None:
    """A round costs a step a shard, however many sources there are."""
    store = CountingStore()
    worker, _, found = await taken_from_two(store)
    store.steps = []
    await worker.settle()

    assert [len(step.moves) for step in store.steps] == [2] * len({step.shard for step in store.steps})
    assert await Ingest(store, REGISTRY, repeat_offsets=0).positions(found.sources) == dict.fromkeys(found.sources, 1)


async def test_a_guard_that_a_rival_moved_sends_its_source_back_and_no_other() -> None:
    """Both are in one step; the other keeps its place, and its guards catch up with the next round."""
    store = MemoryStore(REGISTRY)
    worker, consumer, found = await taken_from_two(store)
    first, second = found.sources
    (shard, *_) = np.flatnonzero((await store.guards(FIRST, [first]))[0] == 0).tolist()
    assert await store.apply(FIRST, [Step(shard, [Move(first, 0, 5)], NOTHING)]) == [[5]]
    await worker.settle()
    await worker.settle()

    assert (consumer.rewinds, worker.ingest.lowest_guard(second)) == ([], 0)
    assert await store.applied(FIRST) == {first: 1, second: 1}


async def test_what_is_busy_does_not_keep_what_is_idle_from_catching_up() -> None:
    """The idle source's guards have moved while a batch of the other is still under way."""
    store = SlowStore()
    worker, _, found = await taken_from_two(store)
    first, second = found.sources
    async with worker._locks[first]:  # noqa: SLF001  # a batch under way, for as long as we like
        settling = asyncio.create_task(worker.settle())
        await asyncio.sleep(0.01)
        applied = await store.applied(FIRST)
    await settling

    assert (applied[second], await store.applied(FIRST)) == (1, {first: 1, second: 1})


async def test_a_step_that_lands_after_a_new_assignment_hides_no_loss() -> None:
    """A batch under way when the store is emptied and partitions are assigned anew must not carry the position past what was lost."""
    first, other = "a", next(name for name in "bcdefgh" if shard_of("", name, 64) != shard_of("", "a", 64))
    store, found = SlowStore(), Log()
    for number, user in enumerate((first, first, other, first)):
        found.add(impression(user, request_id=f"r{number}", model_version=None, item_id=user))
    worker, consumer = begun(store)
    await worker.assign([SOURCE])
    await worker.take(fetch(found, 0, 2))
    store.held.clear()
    late = asyncio.create_task(worker.take(fetch(found, 2)))
    await asyncio.sleep(0)
    await store.clear()
    position = (await worker.assign([SOURCE]))[SOURCE]
    store.held.set()
    await late
    await read_on(worker, consumer, found, position)

    assert await dump(store) == await replayed(found)
