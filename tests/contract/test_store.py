"""What every online store does: the memory store and a real server pass one suite, and hold the same bytes."""

import asyncio
import re
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from redis import asyncio as client

from compose.stack.local import store_answers, store_command
from online_store.bulk.stores import BulkMemoryStore, BulkRedisStore
from online_store.deltas import NOTHING, Deltas
from online_store.keys import Entity, Generation, Keys, Pointer, answer_key, guard_key, record_key, shard_of
from online_store.memory import MemoryStore
from online_store.reading import read
from online_store.record import ROW, layouts
from online_store.redis import RedisStore
from online_store.store import Move, OnlineStore, Step
from replay.kuairand import REGISTRY as KUAIRAND_REGISTRY
from schemas.aggregates import ITEM
from schemas.errors import GenerationError, SettingsError, StoreAwayError, StoreError
from schemas.features import REGISTRY, Registry
from schemas.features import impressions as impressions_in
from schemas.topics import Source
from schemas.windows import DAYS_7
from tests.servers import plain_client
from tests.services import free_port
from tests.worlds import NOW_MS, content, dump

GENERATION = Generation(3, REGISTRY.fingerprint)
SOURCE = Source("clicks", 5)
BESIDE = Source("clicks", 2)
LAYOUTS = layouts(REGISTRY)
KINDS = list(LAYOUTS)
#: Another feed's: its records are laid out otherwise.
OTHER = Registry((impressions_in("impressions_7d", ITEM, DAYS_7),))
OTHERS = Generation(4, OTHER.fingerprint, shards=8)
SERVERS = ["valkey", "redis-7.0", "cluster", "sentinel"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test of stores runs on each sort of store, one of servers on each sort of server."""
    if "empty_url" in metafunc.fixturenames:
        sorts = ["memory", *SERVERS] if "store" in metafunc.fixturenames else SERVERS
        metafunc.parametrize("empty_url", sorts, indirect=True)


@pytest.fixture(params=["merged there", "merged here"])
def is_bulk(request: pytest.FixtureRequest) -> bool:
    """Whether steps are merged by the store or by its caller."""
    return bool(request.param == "merged here")


def redis_of(url: str, *, is_bulk: bool = False, timeout_s: float = 5.0) -> RedisStore:
    """A store on servers; one that merges here does so however few records there are."""
    return BulkRedisStore(url, REGISTRY, timeout_s, keys_min=0) if is_bulk else RedisStore(url, REGISTRY, timeout_s)


@pytest.fixture
async def store(empty_url: str, is_bulk: bool) -> AsyncIterator[OnlineStore]:  # noqa: FBT001  # pytest hands fixtures over by name
    """An empty store of each sort."""
    memory: type[MemoryStore] = BulkMemoryStore if is_bulk else MemoryStore
    made: OnlineStore = redis_of(empty_url, is_bulk=is_bulk) if empty_url else memory(REGISTRY)
    yield made
    await made.close()


@pytest.fixture
async def redis_store(empty_url: str, is_bulk: bool) -> AsyncIterator[RedisStore]:  # noqa: FBT001  # as above
    """An empty store on servers of each sort."""
    made = redis_of(empty_url, is_bulk=is_bulk)
    yield made
    await made.close()


@pytest.fixture
async def server(empty_url: str) -> AsyncIterator[Any]:
    """redis-py's client of the servers behind redis_store: for looking, and for breaking what stands there."""
    made = plain_client(empty_url)
    yield made
    await made.aclose()


@contextmanager
def own_server(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server of this test's own, which it may stop: its URL and process."""
    port = free_port()
    process = subprocess.Popen(store_command(folder / "valkey.conf", port), stdout=subprocess.DEVNULL)  # noqa: S603  # our own settings
    try:
        while not store_answers(port):
            assert process.poll() is None
        yield f"redis://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait()


def key(entity_id: str, kind: str = "item", generation: Generation = GENERATION, shard: int = 1) -> bytes:
    """The key of one record, as if its id belonged to this shard: a step's keys live in one slot."""
    return re.sub(rb"\.\d+}", b".%d}" % shard, record_key(generation, Entity("", kind, entity_id)), count=1)


def rows(*adds: tuple[int, int, tuple[int, int, int, int]], kind: str = "item") -> NDArray[Any]:
    """Rows of deltas: place of the record, event time, what it adds."""
    return np.array([(place, ts_ms // LAYOUTS[kind].tile_ms, *counts, ts_ms) for place, ts_ms, counts in adds], ROW)


def impressions(*entity_ids: str, shard: int = 1) -> Deltas:
    """One impression now for each of these items."""
    added = rows(*((place, NOW_MS, (1, 0, 0, 0)) for place in range(len(entity_ids))))
    return Deltas([key(entity_id, shard=shard) for entity_id in entity_ids], bytes([KINDS.index("item")]) * len(entity_ids), added, [])


def random_deltas(random: Random, count: int) -> Deltas:
    """Records of every kind with late and early rows, content of several ages, tombstones."""
    kinds = [random.choice(KINDS) for _ in range(count)]
    added, sections = [], []
    for place, kind in enumerate(kinds):
        for _ in range(random.randrange(6)):
            ts_ms = NOW_MS - int(random.random() ** 4 * 50 * 86_400_000)
            counts = (1 + random.randrange(3), random.randrange(4), random.randrange(4))
            added.append((place, ts_ms // LAYOUTS[kind].tile_ms, *counts, random.randrange(2**40), ts_ms))
        for _ in range(random.randrange(3)):
            value = content(quality_score=random.random(), author_id=f"a{random.randrange(3)}") if random.random() < 0.7 else None
            if kind == "item" or value is None:
                ts_ms = NOW_MS - random.choice([0, 1, random.randrange(40 * 86_400_000)])
                sections.append((place, LAYOUTS[kind].pack_static(value, random.randrange(3), ts_ms, random.randrange(5))))
    random.shuffle(added)
    keys = [key(str(random.randrange(30)), kind) + b":%d" % place for place, kind in enumerate(kinds)]
    return Deltas(keys, bytes(KINDS.index(kind) for kind in kinds), np.array(added, ROW), sections)


def step(shard: int, expected: int, deltas: Deltas, following: int = 10) -> Step:
    """A step of one source."""
    return Step(shard, [Move(SOURCE, expected, following)], deltas)


async def apply(store: OnlineStore, deltas: Deltas, expected: int = 0, following: int = 10, shard: int = 1) -> int:
    """One step, and the guard after it."""
    ((standing,),) = await store.apply(GENERATION, [step(shard, expected, deltas, following)])
    return standing


async def guard(store: OnlineStore, shard: int = 1) -> int:
    """Where one shard's guard stands."""
    return int((await store.guards(GENERATION, [SOURCE]))[0, shard])


async def counted(store: OnlineStore, entity_id: str, shard: int = 1) -> int:
    """Impressions of one item in the shortest window."""
    return int(read(LAYOUTS["item"], await store.read([key(entity_id, shard=shard)]), NOW_MS).counts[0, 0, 0])


async def test_a_step_writes_its_records_and_moves_the_guard(store: OnlineStore) -> None:
    """Both or neither; here both."""
    moved = await apply(store, impressions("a", "b"))

    assert (moved, await guard(store), await counted(store, "a"), await counted(store, "b")) == (10, 10, 1, 1)


async def test_a_step_without_records_moves_the_guard(store: OnlineStore) -> None:
    """A shard that a batch has nothing for has applied it all the same."""
    moved = await apply(store, NOTHING)

    assert (moved, await guard(store)) == (10, 10)


async def test_a_step_adds_to_what_stands(store: OnlineStore) -> None:
    """From one batch to the next."""
    await apply(store, impressions("a"))
    await apply(store, impressions("a", "a2"), 10, 20)

    assert (await counted(store, "a"), await counted(store, "a2"), await guard(store)) == (2, 1, 20)


@pytest.mark.parametrize("expected", [0, 9, 11])
async def test_a_step_with_the_wrong_guard_changes_nothing_and_tells_what_stands(store: OnlineStore, expected: int) -> None:
    """Delivered again, from a zombie, or ahead of its turn."""
    await apply(store, impressions("a"))
    before = await store.read([key("a"), key("b")])

    told = await apply(store, impressions("a", "b"), expected, 30)

    assert (told, await guard(store), await store.read([key("a"), key("b")])) == (10, 10, before)


async def test_each_step_of_a_call_stands_for_itself(store: OnlineStore) -> None:
    """One shard is ahead, the other is not."""
    await apply(store, impressions("a"), shard=1)

    told = await store.apply(GENERATION, [step(1, 0, impressions("a")), step(2, 0, impressions("b", shard=2))])

    assert (told, await counted(store, "a"), await counted(store, "b", shard=2)) == ([[10], [10]], 1, 1)


async def test_a_step_of_several_sources_moves_all_their_guards(store: OnlineStore) -> None:
    """What they add to one record is added at once."""
    moves = [Move(SOURCE, 0, 10), Move(BESIDE, 0, 7)]

    told = await store.apply(GENERATION, [Step(1, moves, impressions("a"))])

    assert (told, (await store.guards(GENERATION, [SOURCE, BESIDE]))[:, 1].tolist(), await counted(store, "a")) == ([[10, 7]], [10, 7], 1)


@pytest.mark.parametrize("expected", [(0, 7), (10, 0), (10, 8)])
async def test_a_step_of_several_sources_needs_all_their_guards(store: OnlineStore, expected: tuple[int, int]) -> None:
    """One that is not where it is thought to be holds all of it back, and all are told."""
    await store.apply(GENERATION, [Step(1, [Move(SOURCE, 0, 10), Move(BESIDE, 0, 7)], NOTHING)])

    told = await store.apply(GENERATION, [Step(1, [Move(SOURCE, expected[0], 20), Move(BESIDE, expected[1], 20)], impressions("a"))])

    assert (told, (await store.guards(GENERATION, [SOURCE, BESIDE]))[:, 1].tolist(), await counted(store, "a")) == ([[10, 7]], [10, 7], 0)


async def test_a_step_that_moves_no_guard_is_refused(store: OnlineStore) -> None:
    """It could be applied again and again."""
    with pytest.raises(StoreError, match="moves no guard"):
        await store.apply(GENERATION, [Step(1, [], impressions("a"))])

    assert await counted(store, "a") == 0


async def test_a_call_without_steps_does_nothing(store: OnlineStore) -> None:
    """A batch may touch no shard."""
    assert await store.apply(GENERATION, []) == []


async def test_guards_of_sources_and_generations_are_their_own(store: OnlineStore) -> None:
    """Another partition, another topic, another generation: each counts by itself."""
    await apply(store, NOTHING)
    others = [Source("clicks", 6), Source("impressions", 5)]

    here, there = await store.guards(GENERATION, [SOURCE, *others]), await store.guards(Generation(4, ""), [SOURCE])

    assert (here[:, 1].tolist(), there.max()) == ([10, 0, 0], 0)


async def test_guards_are_a_table_of_sources_and_shards(store: OnlineStore) -> None:
    """int64 [sources, shards], 0 where none stands."""
    await apply(store, NOTHING, shard=63)

    found = await store.guards(GENERATION, [Source("users", 0), SOURCE])

    assert [found.shape, found.dtype, found.sum(), found[1, 63]] == [(2, 64), np.int64, 10, 10]


async def test_no_sources_have_no_guards(store: OnlineStore) -> None:
    """A worker without partitions."""
    assert (await store.guards(GENERATION, [])).shape == (0, 64)


async def test_what_every_shard_has_applied_is_told_by_source(store: OnlineStore) -> None:
    """The lowest guard of each source that any shard knows: 0 where another shard knows nothing of it."""
    for shard in range(64):
        await apply(store, NOTHING, shard=shard)
    await store.apply(GENERATION, [Step(0, [Move(Source("users", 3), 0, 7)], NOTHING)])

    assert (await store.applied(GENERATION), await store.applied(Generation(4, ""))) == ({SOURCE: 10, Source("users", 3): 0}, {})


async def test_an_offset_may_be_large(store: OnlineStore) -> None:
    """Past what a float of 32 bits, and an int of 32 bits, can hold."""
    following = 2**52 + 1

    assert (await apply(store, NOTHING, following=following), await guard(store)) == (following, following)


async def test_values_are_read_in_the_order_of_their_keys(store: OnlineStore) -> None:
    """None where there is none; a key may be asked for twice."""
    await apply(store, impressions("a", "b"))

    a, missing, b, again = await store.read([key("a"), key("missing"), key("b"), key("a")])

    assert (missing, a is not None, a == again, b is not None) == (None, True, True, True)


async def test_many_keys_are_read_in_parts(store: OnlineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many parts they come to, values stand in the order of their keys."""
    monkeypatch.setattr("online_store.redis.READ_KEYS_COUNT", 2)
    monkeypatch.setattr("online_store.redis.READ_CALLS_COUNT_MAX", 3)
    added = rows((0, NOW_MS, (1, 0, 0, 0)), (1, NOW_MS, (2, 0, 0, 0)))
    await apply(store, Deltas([key("a"), key("b")], bytes([KINDS.index("item")]) * 2, added, []))
    a, b = await store.read([key("a"), key("b")])
    keys = [key(entity_id) for entity_id in ("a", "none", "b", "b", "none", "a", "a", "b", "none")]
    found = [await store.read(Keys(*joined(keys[:count]))) for count in range(10)]

    assert (found, a == b) == ([[a, None, b, b, None, a, a, b, None][:count] for count in range(10)], False)


def joined(keys: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """As Keys takes them."""
    return np.frombuffer(b"".join(keys), np.uint8), np.cumsum([0, *map(len, keys)])


async def test_reading_no_keys_gives_no_values(store: OnlineStore) -> None:
    """A request without candidates."""
    assert await store.read([]) == []


async def test_an_empty_store_has_no_generation(store: OnlineStore) -> None:
    """Readers must say so, not read nothing for ever."""
    assert await store.current() is None


async def test_the_first_generation_that_begins_is_current(store: OnlineStore) -> None:
    """A second one is told which stands."""
    begun = [await store.begin(GENERATION), await store.begin(Generation(4, "other"))]

    assert (begun, await store.current()) == ([GENERATION, GENERATION], GENERATION)


async def test_a_generation_that_begins_is_registered(store: OnlineStore) -> None:
    """With the registry that its records are laid out by."""
    await store.begin(GENERATION)

    assert await store.generations() == {GENERATION: REGISTRY}


@pytest.mark.parametrize("registry", [REGISTRY, KUAIRAND_REGISTRY, OTHER], ids=["ours", "kuairand", "other"])
async def test_a_registered_registry_is_the_same_one(store: OnlineStore, registry: Registry) -> None:
    """Its fingerprint too, by which models and records find each other."""
    await store.register(Generation(5, registry.fingerprint), registry)

    found = (await store.generations())[Generation(5, registry.fingerprint)]

    assert (found, found.fingerprint, found.feature_names) == (registry, registry.fingerprint, registry.feature_names)


async def test_generations_are_listed_by_number(store: OnlineStore) -> None:
    """However they came."""
    for number in (10, 2, 9):
        await store.register(Generation(number, REGISTRY.fingerprint), REGISTRY)

    assert [generation.number for generation in await store.generations()] == [2, 9, 10]


async def test_a_number_belongs_to_one_generation(store: OnlineStore) -> None:
    """Whoever registers it first; the same one again is nothing."""
    await store.register(OTHERS, OTHER)
    await store.register(OTHERS, OTHER)

    with pytest.raises(GenerationError, match="g4 is taken"):
        await store.register(Generation(4, REGISTRY.fingerprint), REGISTRY)

    assert await store.generations() == {OTHERS: OTHER}


async def test_a_store_of_another_registry_is_the_same_store(store: OnlineStore) -> None:
    """What either writes both read, and records are laid out by the registry of the one that writes."""
    other, layout = store.of(OTHER), layouts(OTHER)["item"]
    row = np.array([(0, NOW_MS // layout.tile_ms, 1, 0, 0, 0, NOW_MS)], ROW)
    await apply(store, impressions("a"))
    await other.apply(OTHERS, [step(1, 0, Deltas([key("a", generation=OTHERS)], b"\0", row, []), 7)])

    found = await store.read([key("a", generation=OTHERS)])
    assert (int(read(layout, found, NOW_MS).counts[0, 0, 0]), await counted(other, "a")) == (1, 1)


async def test_a_pointer_moves_from_where_it_was_seen(store: OnlineStore) -> None:
    """And current is what it names, without the model that ranks."""
    await store.begin(GENERATION)
    seen = await store.pointer()
    wanted = Pointer(4, OTHER.fingerprint, 8, "m-7", previous=seen)

    moved = await store.point(seen, wanted)

    assert (moved, await store.pointer(), await store.current()) == (True, wanted, OTHERS)


async def test_a_pointer_that_somebody_else_moved_stays(store: OnlineStore) -> None:
    """To them it is where they put it."""
    await store.begin(GENERATION)
    seen = await store.pointer()
    theirs, ours = Pointer(4, OTHER.fingerprint, 8), Pointer(5, OTHER.fingerprint, 8)
    await store.point(seen, theirs)

    told = [await store.point(seen, ours), await store.point(None, ours)]

    assert (told, await store.pointer()) == ([False, False], theirs)


async def test_an_empty_store_has_no_pointer_and_takes_one(store: OnlineStore) -> None:
    """None is where it was seen."""
    told = [await store.pointer(), await store.point(None, Pointer(4, OTHER.fingerprint, 8))]

    assert (told, await store.current()) == ([None, True], OTHERS)


async def test_one_of_many_moves_the_pointer(store: OnlineStore) -> None:
    """The first; all others saw what is no longer there."""
    await store.begin(GENERATION)
    seen = await store.pointer()

    told = await asyncio.gather(*(store.point(seen, Pointer(number, REGISTRY.fingerprint)) for number in range(4, 24)))

    assert sum(told) == 1


async def test_a_dropped_generation_leaves_nothing(store: OnlineStore) -> None:
    """Neither records nor guards nor its registration; whoever looks is told how many records are gone, and another generation stands."""
    await store.begin(OTHERS)
    await store.register(OTHERS, OTHER)
    await store.register(GENERATION, REGISTRY)
    names = [f"item-{number}" for number in range(3_000)]
    await apply(store, impressions(*names))
    other = impressions("a")
    await store.apply(OTHERS, [step(1, 0, Deltas([key("a", generation=OTHERS)], other.kinds, other.rows, []), 7)])
    shown: list[int] = []

    count = await store.drop(GENERATION.number, shown.append)

    left = [name async for name in store.records(GENERATION)]
    others = [name async for name in store.records(OTHERS)]
    assert (count, shown[-1], left, await guard(store), await store.generations()) == (3_000, 3_000, [], 0, {OTHERS: OTHER})
    assert (others, (await store.guards(OTHERS, [SOURCE])).max()) == ([key("a", generation=OTHERS)], 7)


async def test_the_current_generation_is_not_dropped(store: OnlineStore) -> None:
    """Everybody reads it."""
    await store.begin(GENERATION)
    await apply(store, impressions("a"))

    with pytest.raises(GenerationError, match="g3 is current"):
        await store.drop(GENERATION.number)

    assert (await counted(store, "a"), await store.generations()) == (1, {GENERATION: REGISTRY})


async def test_a_generation_that_is_not_there_is_not_dropped(store: OnlineStore) -> None:
    """A wrong number is told."""
    with pytest.raises(GenerationError, match="g3 is not registered"):
        await store.drop(GENERATION.number)


async def test_a_drop_that_was_cut_off_goes_on(redis_store: RedisStore) -> None:
    """Meanwhile nobody works on that generation: it is not listed, and its number is not free."""
    await redis_store.begin(OTHERS)
    await redis_store.register(GENERATION, REGISTRY)
    await apply(redis_store, impressions("a", "b"))

    def cut_off(_: int) -> None:
        raise StoreAwayError("cut off")

    with pytest.raises(StoreAwayError):
        await redis_store.drop(GENERATION.number, cut_off)
    between = await redis_store.generations()
    with pytest.raises(GenerationError, match="being dropped"):
        await redis_store.register(GENERATION, REGISTRY)
    await apply(redis_store, impressions("c"), 10, 20)

    await redis_store.drop(GENERATION.number)
    assert (between, await listed(redis_store), await guard(redis_store), await redis_store.generations()) == ({}, [], 0, {})


async def test_a_registration_that_another_version_wrote_is_told(redis_store: RedisStore, server: Any) -> None:  # noqa: ANN401  # untyped client
    """Whose registry would read its records otherwise than they were written."""
    await redis_store.register(OTHERS, OTHER)
    raw = await server.hget("millstream:generations", "g4")
    await server.hset("millstream:generations", "g4", raw.replace(b"impressions_7d", b"impressions_8d"))

    with pytest.raises(StoreError, match=f"g4 is of registry {OTHER.fingerprint}"):
        await redis_store.generations()


async def test_records_are_listed_each_once(store: OnlineStore) -> None:
    """Of this generation only; guards, answers and the pointer are no records, whatever their names hold."""
    await store.begin(GENERATION)
    await apply(store, impressions("a", "x:features:{g4.1}:y", "b"))
    other = Deltas(
        [key("x:features:{g3.1}:y", generation=Generation(4, ""))], bytes([KINDS.index("item")]), rows((0, NOW_MS, (1, 0, 0, 0))), []
    )
    await store.apply(Generation(4, ""), [step(1, 0, other)])
    await store.keep_answers([(answer_key("", "x:features:{g3.1}:y"), b"answer")], 60_000)

    found = sorted([name async for name in store.records(GENERATION)])

    assert found == sorted([key("a"), key("b"), key("x:features:{g4.1}:y")])


async def test_records_of_one_kind_are_listed(store: OnlineStore) -> None:
    """Whatever the ids of others hold."""
    users = [key(entity_id, "user") for entity_id in ("a", "item:features:{g3.1}:y")]
    added = Deltas([key("a"), *users], bytes(KINDS.index(kind) for kind in ("item", "user", "user")), rows(), [])
    await apply(store, added)

    assert [name async for name in store.records(GENERATION, "item")] == [key("a")]


async def test_many_records_are_listed_completely(store: OnlineStore) -> None:
    """More than one look at the key space."""
    entity_ids = [str(number) for number in range(3_000)]
    await apply(store, impressions(*entity_ids))

    found = [name async for name in store.records(GENERATION)]

    assert (len(found), set(found)) == (3_000, {key(entity_id) for entity_id in entity_ids})


async def test_the_first_answer_is_kept(store: OnlineStore) -> None:
    """A repeated request gets the same bytes."""
    kept = [await store.keep_answers([(answer_key("t", "r"), answer)], 60_000) for answer in (b"first", b"second")]

    assert kept == [[b"first"], [b"first"]]


async def test_an_emptied_store_has_neither_guards_nor_records(store: OnlineStore, empty_url: str) -> None:
    """The offset lives with the data and goes with it: a step that expects more is refused."""
    await apply(store, impressions("a"))
    await emptied(store, empty_url)

    told = await apply(store, impressions("a"), 10, 20)

    assert (told, await guard(store), await store.read([key("a")]), await store.current()) == (0, 0, [None], None)


async def emptied(store: OnlineStore, url: str) -> None:
    """Lose everything, as a store does that comes back without its disk."""
    if isinstance(store, MemoryStore):
        await store.clear()
        return
    plain = plain_client(url)
    await plain.flushdb()
    await plain.aclose()


MALFORMED: dict[str, Deltas] = {
    "a kind too few": Deltas([key("a"), key("b")], bytes([KINDS.index("item")]), rows((0, NOW_MS, (1, 0, 0, 0))), []),
    "a kind that is none": Deltas([key("a")], b"\x09", rows((0, NOW_MS, (1, 0, 0, 0))), []),
    "a row for a record outside": Deltas(
        [key("a")], bytes([KINDS.index("item")]), rows((0, NOW_MS, (1, 0, 0, 0)), (1, NOW_MS, (1, 0, 0, 0))), []
    ),
    "a section for a record outside": Deltas(
        [key("a")], bytes([KINDS.index("item")]), rows((0, NOW_MS, (1, 0, 0, 0))), [(7, LAYOUTS["item"].pack_static(None, 0, NOW_MS, 1))]
    ),
}


@pytest.mark.parametrize("fault", MALFORMED)
async def test_deltas_that_do_not_fit_change_nothing(store: OnlineStore, fault: str) -> None:
    """All is checked before the first write: the store does not undo half a step."""
    await apply(store, impressions("a"))
    before = await store.read([key("a"), key("b")])

    with pytest.raises(StoreError):
        await apply(store, MALFORMED[fault], 10, 20)

    assert (await store.read([key("a"), key("b")]), await guard(store)) == (before, 10)


@pytest.mark.parametrize("cut", [1, 3, 4, 20])
async def test_a_static_section_that_is_cut_changes_nothing(redis_store: RedisStore, cut: int) -> None:
    """As bytes that were lost on the way would be."""
    section = LAYOUTS["item"].pack_static(content(), 0, NOW_MS, 1)
    whole = impressions("a")
    short = Deltas(whole.keys, whole.kinds, whole.rows, [(0, np.frombuffer(section.tobytes()[:-cut], np.uint8))])

    with pytest.raises(StoreError):
        await apply(redis_store, short)

    assert (await redis_store.read([key("a")]), await guard(redis_store)) == ([None], 0)


@pytest.mark.parametrize("value", [b"", b"\1short", b"\1" + LAYOUTS["item"].blank[1:], LAYOUTS["item"].blank + b"\0"])
async def test_a_value_that_is_no_record_is_not_overwritten(redis_store: RedisStore, server: Any, value: bytes) -> None:  # noqa: ANN401  # untyped client
    """It was written for another registry or version: the step fails, the record before it is not written either."""
    await server.set(key("b"), value)

    with pytest.raises(StoreError):
        await apply(redis_store, impressions("a", "b", "c"))

    assert (await redis_store.read([key("a"), key("b"), key("c")]), await guard(redis_store)) == ([None, value, None], 0)


async def test_a_pointer_that_names_no_generation_is_told(redis_store: RedisStore, server: Any) -> None:  # noqa: ANN401  # untyped client
    """With what stands there: somebody else writes to this store."""
    await server.set("millstream:current", b"{}")

    with pytest.raises(StoreError, match=r"millstream:current holds b'\{\}', no generation"):
        await redis_store.current()


async def test_a_key_of_another_type_changes_nothing(redis_store: RedisStore, server: Any) -> None:  # noqa: ANN401  # untyped client
    """Somebody else's list under our name."""
    await server.rpush(key("b"), b"x")

    with pytest.raises(StoreError):
        await apply(redis_store, impressions("a", "b"))

    assert (await server.exists(key("a")), await guard(redis_store)) == (0, 0)


@pytest.mark.parametrize("seed", range(4))
async def test_both_stores_hold_the_same_bytes(redis_store: RedisStore, seed: int) -> None:
    """The script on the server and its statement in Python agree after the same deltas, whatever they are."""
    random, memory = Random(seed), MemoryStore(REGISTRY)
    await memory.begin(GENERATION)
    await redis_store.begin(GENERATION)
    batches = [random_deltas(random, 40) for _ in range(10)]

    for store in (memory, redis_store):
        for number, deltas in enumerate(batches):
            await apply(store, deltas, number * 10, number * 10 + 10)

    assert await dump(memory) == await dump(redis_store)


class Overtaken(BulkRedisStore):
    """One that somebody else gets ahead of when it has read what it merges."""

    def __init__(self, url: str, rival: Step) -> None:
        super().__init__(url, REGISTRY, keys_min=0)
        self.rival = rival

    async def _records_of(self, deltas: Sequence[Deltas]) -> list[list[bytes | None]]:
        found = await super()._records_of(deltas)
        await RedisStore.apply(self, GENERATION, [self.rival])
        return found


async def test_what_others_write_after_records_were_read_is_not_overwritten(empty_url: str) -> None:
    """Of whatever source: they moved a guard of the shard, and the step is done by the script."""
    store = Overtaken(empty_url, Step(1, [Move(BESIDE, 0, 7)], impressions("a")))

    moved = await apply(store, impressions("a", "b"))

    assert (moved, await counted(store, "a"), await counted(store, "b")) == (10, 2, 1)
    await store.close()


async def test_a_step_that_others_did_after_its_records_were_read_is_not_done_again(empty_url: str) -> None:
    """Two rebuilds of one generation: the guards say that it is done."""
    store = Overtaken(empty_url, step(1, 0, impressions("a")))

    moved = await apply(store, impressions("a"))

    assert (moved, await counted(store, "a")) == (10, 1)
    await store.close()


async def test_concurrent_writers_apply_a_batch_once(redis_store: RedisStore) -> None:
    """Twenty of them, one guard."""
    told = await asyncio.gather(*(apply(redis_store, impressions("a")) for _ in range(20)))

    assert (set(told), await counted(redis_store, "a")) == ({10}, 1)


async def test_a_time_to_live_never_cuts_a_window_short(redis_store: RedisStore, server: Any) -> None:  # noqa: ANN401  # untyped client
    """The lowest of 10,000 is over the longest window; they are spread, so that what was written together does not expire together."""
    await apply(redis_store, impressions(*(f"item-{number}" for number in range(10_000))))
    pipeline = server.pipeline(transaction=False)
    for number in range(10_000):
        pipeline.pttl(key(f"item-{number}"))

    left_ms = await pipeline.execute()

    longest_ms = max(window.span_ms for window in LAYOUTS["item"].windows)
    assert (min(left_ms) > longest_ms, max(left_ms) / min(left_ms) > 1.3, len(set(left_ms)) > 5_000) == (True, True, True)


async def test_a_new_tile_draws_a_new_time_to_live(redis_store: RedisStore, server: Any) -> None:  # noqa: ANN401  # untyped client
    """Records that are written together again and again drift apart; a tile's later events leave it as it is."""
    left_ms = []
    for number in range(5):
        opened = rows((0, NOW_MS + number * 300_000, (1, 0, 0, 0)))
        await apply(redis_store, Deltas([key("a")], bytes([KINDS.index("item")]), opened, []), number * 10, number * 10 + 10)
        left_ms.append(await server.pttl(key("a")))

    assert max(left_ms) - min(left_ms) > 60_000


async def test_guards_do_not_expire(redis_store: RedisStore, server: Any) -> None:  # noqa: ANN401  # untyped client
    """A partition may be quiet for a year."""
    await apply(redis_store, impressions("a"))

    assert await server.pttl(guard_key(GENERATION, 1)) == -1


async def test_an_answer_expires(redis_store: RedisStore, server: Any) -> None:  # noqa: ANN401  # untyped client
    """After the time it was kept for."""
    await redis_store.keep_answers([(answer_key("", "r"), b"x")], 60_000)

    assert 0 < await server.pttl(answer_key("", "r")) <= 60_000


async def test_a_server_that_forgot_the_script_gets_it_again(redis_store: RedisStore, server: Any) -> None:  # noqa: ANN401  # untyped client
    """A restart or SCRIPT FLUSH costs one round trip."""
    await apply(redis_store, impressions("a"))
    await server.script_flush()

    moved = await apply(redis_store, impressions("a"), 10, 20)

    assert (moved, await counted(redis_store, "a")) == (20, 2)


async def test_a_stopped_server_is_away_in_every_call(tmp_path: Path) -> None:
    """Worth another try, says the error; it is neither a crash nor a wait without end."""
    with own_server(tmp_path) as (url, process):
        store = RedisStore(url, REGISTRY, timeout_s=1.0)
        await apply(store, impressions("a"))
        process.kill()
        process.wait()

        calls = {
            "apply": apply(store, impressions("a"), 10, 20),
            "guards": store.guards(GENERATION, [SOURCE]),
            "read": store.read([key("a")]),
            "current": store.current(),
            "begin": store.begin(GENERATION),
            "pointer": store.pointer(),
            "point": store.point(None, Pointer(4, OTHER.fingerprint)),
            "register": store.register(OTHERS, OTHER),
            "generations": store.generations(),
            "drop": store.drop(4),
            "keep_answers": store.keep_answers([(b"answer", b"x")], 1_000),
            "records": listed(store),
        }
        async with asyncio.timeout(60):
            answers: Sequence[object] = await asyncio.gather(*calls.values(), return_exceptions=True)
        await store.close()

    assert {name: type(answer) for name, answer in zip(calls, answers, strict=True)} == dict.fromkeys(calls, StoreAwayError)


async def listed(store: OnlineStore) -> list[bytes]:
    """Every record's key."""
    return [name async for name in store.records(GENERATION)]


async def test_a_store_that_is_full_is_away_and_changes_nothing(tmp_path: Path) -> None:
    """An operator can make room: the batch is tried again, and counts once."""
    with own_server(tmp_path) as (url, _):
        store, plain = RedisStore(url, REGISTRY), client.Redis.from_url(url)
        await plain.config_set("maxmemory", "1mb")
        with pytest.raises(StoreAwayError):
            await apply(store, impressions(*map(str, range(1_000))))
        await plain.config_set("maxmemory", "0")

        moved = await apply(store, impressions("1"))

        assert (moved, await counted(store, "1"), await counted(store, "2")) == (10, 1, 0)
        await plain.aclose()
        await store.close()


@pytest.mark.parametrize("url", ["localhost:6379", "http://localhost", "redis://localhost:port"])
def test_a_url_that_is_none_is_a_wrong_setting(url: str) -> None:
    """Named with its value, before the first call."""
    with pytest.raises(SettingsError, match=url):
        RedisStore(url, REGISTRY)


def test_the_shard_of_an_entity_is_one_of_the_generations() -> None:
    """Whatever their number."""
    assert {shard_of("", str(number), 4) for number in range(200)} == {0, 1, 2, 3}
