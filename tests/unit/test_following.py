"""How an ingest worker goes over to another generation, and what it takes along."""

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest

from online_store.ingest import Ingest
from online_store.keys import Generation, Pointer
from online_store.memory import MemoryStore
from online_store.store import Step
from schemas import codec
from schemas.aggregates import ITEM, USER
from schemas.errors import GenerationError
from schemas.features import REGISTRY, Registry, impressions
from schemas.records import DeadLetter
from schemas.topics import DEAD_LETTERS
from schemas.windows import DAYS_7
from streams.worker import Worker
from tests.unit.test_worker import SOURCE, Consumer, fetch, log, read_on
from tests.worlds import Log, dump, impression, raw, replay

#: Another feed's, with fewer shards.
OTHER = Registry((impressions("impressions_7d", ITEM, DAYS_7), impressions("user_impressions_7d", USER, DAYS_7)))
FIRST, SECOND = Generation(1, REGISTRY.fingerprint), Generation(2, OTHER.fingerprint, shards=8)


class Sending(Consumer):
    """Notes which offsets were sent to dead-letters, besides what was read again."""

    topic_prefix = ""

    def __init__(self) -> None:
        super().__init__()
        self.producer = self
        self.letters: list[int] = []

    async def maybe_start_producer(self) -> None:
        """It stands."""

    async def send_and_wait(self, _: str, __: bytes | None, value: bytes, *rest: Any) -> None:  # noqa: ANN401  # Faust's
        """Take a letter."""
        letter = codec.decode(DEAD_LETTERS, value, rest[-1])
        assert isinstance(letter, DeadLetter)
        self.letters.append(letter.offset)


@pytest.fixture
async def store() -> MemoryStore:
    """A store with two generations, the first one current."""
    found = MemoryStore(REGISTRY)
    await found.begin(FIRST)
    await found.register(SECOND, OTHER)
    return found


def begun(store: MemoryStore, **settings: Any) -> tuple[Worker, Sending]:  # noqa: ANN401  # Ingest's
    consumer = Sending()
    stand_in: Any = consumer
    return Worker(stand_in, Ingest(store, REGISTRY, **settings)), consumer


async def fill(store: MemoryStore, found: Log, count: int, target: Generation = SECOND) -> None:
    """Take a generation to an offset, as whoever keeps it up to date does."""
    ingest = Ingest(store, REGISTRY, target=target)
    position = (await ingest.positions([SOURCE]))[SOURCE]
    await ingest.apply([ingest.decode(fetch(found, position, count - position))])
    await ingest.settle([SOURCE])


async def point(store: MemoryStore, generation: Generation = SECOND) -> None:
    seen = await store.pointer()
    assert await store.point(seen, Pointer(generation.number, generation.feature_version, generation.shards, previous=seen))


async def expected(found: Log) -> dict[bytes, bytes]:
    """What the second generation must hold."""
    alone = MemoryStore(OTHER)
    await alone.begin(SECOND)
    await replay(found, alone, OTHER)
    return await dump(alone)


def with_bad(found: Log, *offsets: int) -> Log:
    """The same log with values that are no events at these offsets."""
    held = found.partitions[SOURCE]
    for offset in offsets:
        held[offset] = raw(b"none", SOURCE.topic, offset)
    return found


@pytest.mark.parametrize("filled", [2, 3, 5])
async def test_a_generation_that_is_up_to_date_is_gone_over_to_without_reading_again(store: MemoryStore, filled: int) -> None:
    """Wherever it stands between us and the end; what it has is not counted twice."""
    found = log("a", "b", "c", "d", "e")
    worker, consumer = begun(store)
    await worker.assign([SOURCE])
    await worker.take(fetch(found, 0, 2))
    await fill(store, found, filled)
    await point(store)
    await worker.follow()
    await read_on(worker, consumer, found, 2)

    assert (consumer.rewinds, await dump(store)) == ([], await expected(found))


async def test_a_generation_that_is_behind_is_read_for_again(store: MemoryStore) -> None:
    """From its own guards on, and events a stretch before them."""
    found = log("a", "b", "c", "d")
    worker, consumer = begun(store)
    await worker.assign([SOURCE])
    await worker.take(fetch(found, 0, 3))
    await fill(store, found, 1)
    await point(store)
    await worker.follow()
    await read_on(worker, consumer, found, consumer.rewinds[0])

    assert (consumer.rewinds, await dump(store)) == ([0], await expected(found))


async def test_who_keeps_a_generation_up_to_date_is_waited_for(store: MemoryStore) -> None:
    """It stands a little behind us, as it always does: once it has passed, nothing is read again."""
    found = log("a", "b", "c", "d")
    worker, consumer = begun(store, patience_s=5.0)
    await worker.assign([SOURCE])
    await worker.take(fetch(found, 0, 3))
    await fill(store, found, 1)
    await point(store)
    following = asyncio.create_task(worker.follow())
    await asyncio.sleep(0.01)
    await fill(store, found, 3)
    await following
    await read_on(worker, consumer, found, 3)

    assert (consumer.rewinds, await dump(store)) == ([], await expected(found))


async def test_the_way_back_is_the_same(store: MemoryStore) -> None:
    """A rollback to a generation that was kept up to date reads nothing again; both end the same as if they were never left."""
    found = log("a", "b", "c", "d", "e", "f")
    worker, consumer = begun(store)
    await worker.assign([SOURCE])
    await worker.take(fetch(found, 0, 2))
    await fill(store, found, 2)
    await point(store)
    await worker.follow()
    await worker.take(fetch(found, 2, 2))
    second = await dump(store)
    await fill(store, found, 4, FIRST)
    await point(store, FIRST)
    await worker.follow()
    await read_on(worker, consumer, found, 4)
    alone = MemoryStore(REGISTRY)
    await replay(found, alone)
    found.partitions[SOURCE] = found.partitions[SOURCE][:4]

    assert (consumer.rewinds, await dump(store), second) == ([], await dump(alone), await expected(found))


async def test_what_was_sent_before_is_known_in_the_other_generation(store: MemoryStore) -> None:
    """A repeat of an event that came before the switch is dropped behind it, though nothing is read again."""
    found = log("a", "b", "c")
    found.append(next(iter(found)))
    worker, consumer = begun(store)
    await worker.assign([SOURCE])
    await worker.take(fetch(found, 0, 2))
    await fill(store, found, 2)
    await point(store)
    await worker.follow()
    await read_on(worker, consumer, found, 2)

    assert (consumer.rewinds, await dump(store)) == ([], await expected(found))


async def test_a_worker_that_knows_less_than_it_must_reads_again(store: MemoryStore) -> None:
    """It began at later guards than the other generation has, and what came before those it never read."""
    found = log("a", "b", "c")
    found.append(list(found)[1])
    first, _ = begun(store, repeat_offsets=2)
    await first.assign([SOURCE])
    await first.take(fetch(found, 0, 4))
    await first.settle()
    worker, consumer = begun(store, repeat_offsets=2)
    await worker.assign([SOURCE])
    await fill(store, found, 3)
    await point(store)
    await worker.follow()
    await read_on(worker, consumer, found, consumer.rewinds[0] if consumer.rewinds else 2)

    assert (consumer.rewinds, await dump(store)) == ([1], await expected(found))


@pytest.mark.parametrize("filled", [1, 2, 4])
async def test_a_dead_letter_is_sent_once_across_a_switch(store: MemoryStore, filled: int) -> None:
    """Whether its offset comes before or behind us, and before or behind what the other generation has."""
    found = with_bad(log("a", "b", "c", "d", "e"), 1, 2, 4)
    worker, consumer = begun(store)
    await worker.assign([SOURCE])
    await worker.take(fetch(found, 0, 2))
    await fill(store, found, filled)
    await point(store)
    await worker.follow()
    await read_on(worker, consumer, found, consumer.rewinds[0] if consumer.rewinds else 2)

    assert consumer.letters == [1, 2, 4]


async def test_a_dead_letter_is_not_lost_where_the_worker_ends_at_the_switch(store: MemoryStore) -> None:
    """The other generation is past it, and whoever filled that sent none: the next worker reads from where letters are lacking."""
    found = with_bad(log("a", "b", "c", "d", "e"), 1, 3)
    worker, before = begun(store)
    await worker.assign([SOURCE])
    await worker.take(fetch(found, 0, 2))
    await worker.settle()
    await fill(store, found, 5)
    await point(store)
    worker, consumer = begun(store, repeat_offsets=0)
    position = (await worker.assign([SOURCE]))[SOURCE]
    await read_on(worker, consumer, found, position)

    assert (before.letters, consumer.letters, await dump(store)) == ([1], [3], await expected(found))


async def test_letters_of_a_log_that_was_made_anew_are_sent(store: MemoryStore) -> None:
    """What was sent of another log, which went further, says nothing of this one."""
    found = with_bad(log("a", "b", "c", "d"), 3)
    worker, _ = begun(store)
    await worker.assign([SOURCE])
    await worker.take(fetch(found, 0, 4))
    await worker.settle()
    await point(store)
    anew = with_bad(log("a", "b"), 1)
    worker, consumer = begun(store)
    consumer.end = 2
    position = (await worker.assign([SOURCE]))[SOURCE]
    await read_on(worker, consumer, anew, position)

    assert consumer.letters == [1]


async def test_a_target_is_worked_on_whatever_is_current(store: MemoryStore) -> None:
    """And sends nothing to dead-letters: that is done where the current one is."""
    found = with_bad(log("a", "b", "c"), 1)
    worker, consumer = begun(store, target=SECOND)
    position = (await worker.assign([SOURCE]))[SOURCE]
    await worker.follow()
    await read_on(worker, consumer, found, position)
    await point(store)

    assert (consumer.letters, await dump(store)) == ([], await expected(found))


async def test_a_generation_without_a_registry_is_not_worked_on() -> None:
    """Nobody could lay out its records."""
    store = MemoryStore(REGISTRY)
    await store.begin(Generation(1, "another"))

    with pytest.raises(GenerationError, match="g1 of registry another is not registered"):
        await Ingest(store, REGISTRY).start()


async def test_a_generation_that_is_dropped_is_left(store: MemoryStore) -> None:
    """It would grow again."""
    ingest = Ingest(store, REGISTRY, target=SECOND)
    await ingest.positions([SOURCE])
    await store.drop(SECOND.number)

    with pytest.raises(GenerationError, match="g2 was dropped"):
        await ingest.positions([SOURCE])


async def test_an_older_store_gets_its_registration(store: MemoryStore) -> None:
    """From before there were any."""
    store._generations.clear()  # noqa: SLF001  # what an older version left
    await Ingest(store, REGISTRY).start()

    assert await store.generations() == {FIRST: REGISTRY}


class Slow(MemoryStore):
    """A store that takes a moment for each call, so that two writers come between each other."""

    async def apply(self, generation: Generation, steps: Sequence[Step]) -> list[list[int]]:
        """As MemoryStore.apply, later."""
        await asyncio.sleep(0.001)
        return await super().apply(generation, steps)


async def test_two_writers_on_one_generation_do_not_send_each_other_back_and_forth() -> None:
    """For some seconds behind a cutover there are two: who was slower lets the other pass, and does not read a stretch again each time."""
    random, store, found = Random(7), Slow(REGISTRY), Log()
    for number in range(3_000):
        found.add(impression(f"u{random.randrange(50)}", f"i{random.randrange(50)}", request_id=f"r{number}"))
    await store.begin(FIRST)
    writers = [begun(store, patience_s=0.5), begun(store, patience_s=2.0, target=FIRST)]
    await asyncio.gather(*(write(worker, consumer, found, random) for worker, consumer in writers))
    alone = MemoryStore(REGISTRY)
    await replay(found, alone)

    assert (await dump(store), sum(len(consumer.rewinds) for _, consumer in writers) < 25) == (await dump(alone), True)


async def write(worker: Worker, consumer: Consumer, found: Log, random: Random) -> None:
    """Read a log to its end as a worker does, guards settled now and then."""
    position, seen = (await worker.assign([SOURCE]))[SOURCE], 0

    async def settle() -> None:
        while True:
            await asyncio.sleep(0.02)
            await worker.settle()

    settling = asyncio.create_task(settle())
    while position < found.end(SOURCE):
        batch = fetch(found, position, random.randrange(1, 60))
        await worker.take(batch)
        position = batch.following
        if len(consumer.rewinds) > seen:
            seen, position = len(consumer.rewinds), consumer.rewinds[-1]
    settling.cancel()
