"""Counts are exact: stream == replay == oracle, whatever happens to workers, batches and the store on the way.

A log is drawn: several partitions of the four source topics, tenants, late events, tombstones, bad records. A life is drawn: who reads
how many rows next, who crashes, who works on without knowing that another took over, when the store comes back empty.
"""

import math
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from online_store.ingest import Ingest
from online_store.keys import Entity, Generation, record_key
from online_store.memory import MemoryStore
from online_store.reading import read
from online_store.record import layouts, pack_field
from online_store.store import Step
from schemas import avro
from schemas.columnar.repeats import REPEAT_OFFSETS
from schemas.errors import StoreAwayError
from schemas.features import FORMULAS, REGISTRY, Feature, Registry, category, number
from schemas.records import Content, User
from schemas.topics import Batch, Source
from schemas.windows import DAY_MS, HOUR_MS, LATENESS_MS, MINUTE_MS
from tests.oracle import Entity as Named
from tests.oracle import Oracle, Windows
from tests.verify import compare
from tests.worlds import NOW_MS, SCHEMA_IDS, WIRES, Log, click, content, dump, dwell, impression, raw, replay, replayed, take, user

USERS, ITEMS, TENANTS, MODELS = ("u1", "u2", "ü:3"), ("i1", "i2", "i3"), ("", "", "acme"), (None, "m1", "m2", "")
BAD_VALUES = (b"", b"noise", b"{}", b'{"user_id": 7}', b"\xc3\x01" + bytes(12), b"\0\0\0\0\x01abc", b"\xff" * 40)

#: When something happened: within the hour, at the edge of tiles, days and weeks late.
AGES_MS = st.one_of(
    st.integers(0, HOUR_MS),
    st.sampled_from([0, 1, 5 * MINUTE_MS, HOUR_MS, 3 * HOUR_MS, DAY_MS, 3 * DAY_MS, 7 * DAY_MS, 30 * DAY_MS]),
    st.integers(0, 45 * DAY_MS),
)
EVENTS = ("impression", "impression", "impression", "click", "click", "dwell", "content", "user", "forget item", "forget user", "bad")


def windows_of(registry: Registry) -> Windows:
    """A registry's windows as the oracle takes them."""
    return {kind: {window.name: (window.span_ms, window.hop_ms) for window in registry.windows(kind)} for kind in registry.kinds}


def oracle_of(log: Log, registry: Registry = REGISTRY, repeat_offsets: int = REPEAT_OFFSETS) -> Oracle:
    """What a log says."""
    schemas = {number_: schema.raw for number_, schema in SCHEMA_IDS.items()}
    return Oracle(log, windows_of(registry), schemas=schemas, repeat_offsets=repeat_offsets)


@st.composite
def logs(draw: st.DrawFn, size_max: int = 40) -> Log:
    """A log of up to size_max records of some sorts; a record's Kafka timestamp is up to a minute off its own time."""
    log = Log(gap=draw(st.sampled_from([0, 0, 1])))
    sorts = draw(st.sampled_from([EVENTS, EVENTS, ("click",), ("impression", "content", "forget item")]))
    new_ids_share = draw(st.sampled_from([1, 1, 4]))
    for number_ in range(draw(st.integers(1, size_max))):
        _append(draw, log, draw(st.sampled_from(sorts)), ("r1", "r2", *[f"new {number_}"] * 2 * new_ids_share))
    return log


def _append(draw: st.DrawFn, log: Log, event: str, request_ids: Sequence[str]) -> None:
    ts_ms = NOW_MS - draw(AGES_MS)
    place = {"partition": draw(st.integers(0, 1)), "timestamp": max(ts_ms + draw(st.sampled_from([0, -60_000, 60_000])), 1)}
    user_id, item_id, tenant = draw(st.sampled_from(USERS)), draw(st.sampled_from(ITEMS)), draw(st.sampled_from(TENANTS))
    wire = draw(st.sampled_from(WIRES))
    request_id = draw(st.sampled_from(request_ids))
    named: dict[str, Any] = {"request_id": request_id, "user_id": user_id, "item_id": item_id, "ts_ms": ts_ms, "tenant": tenant}
    if event == "impression":
        log.add(impression(**named, model_version=draw(st.sampled_from(MODELS))), **place, wire=wire)
    elif event == "click":
        dwell_ms = draw(st.sampled_from([None, 0, 1_500, 86_400_000, 86_400_001]))
        log.add(click(**named, dwell_ms=dwell_ms, model_version=draw(st.sampled_from(MODELS))), **place, wire=wire)
    elif event == "dwell":
        log.add(dwell(**named, dwell_ms=draw(st.integers(-1, 10**7)), model_version=draw(st.sampled_from(MODELS))), **place, wire=wire)
    elif event == "content":
        tags = draw(st.lists(st.sampled_from("abcdef"), max_size=6))
        said = {"quality_score": draw(st.none() | st.sampled_from([0.1, 1e300])), "attributes": {"price": draw(st.floats(-9, 9))}}
        log.add(content(item_id, ts_ms, author_id=draw(st.sampled_from("xyz")), topic_tags=tags, tenant=tenant, **said), **place, wire=wire)
    elif event == "user":
        log.add(user(user_id, ts_ms, created_at_ms=draw(st.sampled_from([0, 5, NOW_MS])), tenant=tenant), **place, wire=wire)
    elif event == "bad":
        topic, value = draw(st.sampled_from(["impressions", "clicks", "content", "users"])), draw(st.sampled_from(BAD_VALUES))
        log.append(raw(value, topic)._replace(partition=place["partition"]))
    else:
        topic, key = ("content", item_id) if event == "forget item" else ("users", user_id)
        log.forget(topic, draw(st.sampled_from([key.encode(), key.encode(), None, b"\xff"])), **place)


class ShakyStore(MemoryStore):
    """A store whose next `apply` may be lost, or done and its answer lost."""

    def __init__(self) -> None:
        super().__init__(REGISTRY)
        self.away = ""

    async def apply(self, generation: Generation, steps: Sequence[Step]) -> list[list[int]]:
        """As MemoryStore.apply, unless it is away."""
        away, self.away = self.away, ""
        if away == "before":
            raise StoreAwayError(away)
        standing = await super().apply(generation, steps)
        if away == "after":
            raise StoreAwayError(away)
        return standing


@dataclass(slots=True)
class Life:
    """One store, and the workers that come and go over it.

    workers: the last one is alive; those before it lost their partitions and may not know it yet.
    """

    log: Log
    store: ShakyStore
    repeat_offsets: int
    workers: list[Ingest] = field(default_factory=list)
    positions: list[dict[Source, int]] = field(default_factory=list)
    taken: list[Batch] = field(default_factory=list)

    async def hire(self) -> None:
        """A new worker takes over and reads on from the guards."""
        worker = Ingest(self.store, REGISTRY, SCHEMA_IDS, self.repeat_offsets)
        self.positions.append(await worker.positions(self.log.sources))
        self.workers.append(worker)

    async def read(self, worker: int, source: Source, rows_max: int, skipped: int = 0) -> None:
        """A worker takes what comes next, as streams.worker does; or what comes after that, as Faust gives it after a crash."""
        batch = self.log.fetch(source, self.positions[worker][source] + skipped, rows_max)
        if batch is not None:
            self.taken.append(batch)
            await self.apply(worker, batch)

    async def read_together(self, worker: int, rows_max: int) -> None:
        """A worker takes what comes next of every source in one go."""
        found = [self.log.fetch(source, self.positions[worker][source], rows_max) for source in self.log.sources]
        batches = [batch for batch in found if batch is not None]
        self.taken += batches
        await self.apply(worker, *batches)

    async def apply(self, worker: int, *batches: Batch) -> None:
        """A worker is handed batches, due or not, and tries again if the store does not answer."""
        ingest = self.workers[worker]
        decoded = [ingest.decode(batch) for batch in batches]
        try:
            found = await ingest.apply(decoded)
        except StoreAwayError:
            found = await ingest.apply(decoded)
        self.positions[worker] |= found

    async def break_off(self, worker: int, source: Source, rows_max: int) -> None:
        """A worker's task is cancelled between decode and apply; the worker goes on."""
        batch = self.log.fetch(source, self.positions[worker][source], rows_max)
        if batch is not None:
            self.workers[worker].decode(batch)

    async def lose(self, worker: int, source: Source, when: str) -> None:
        """A worker reads while the store is away for a call."""
        self.store.away = when
        await self.read(worker, source, 2)
        self.store.away = ""

    async def settle(self, worker: int, sources: Sequence[Source]) -> None:
        """A worker moves the guards that lag."""
        self.positions[worker] |= await self.workers[worker].settle(sources)

    async def check(self, worker: int, sources: Sequence[Source]) -> None:
        """A worker looks whether the store still has what it acknowledged."""
        self.positions[worker] |= await self.workers[worker].check(sources)

    async def crash(self, source: Source, rows_max: int) -> None:
        """The living worker ends between decode and apply; another takes over."""
        batch = self.log.fetch(source, self.positions[-1][source], rows_max)
        if batch is not None:
            self.workers[-1].decode(batch)
        await self.hire()

    async def act(self, action: str, pick: random.Random) -> None:
        """One thing happens; where it says no more, to any worker, alive or not."""
        living, worker = len(self.workers) - 1, pick.randrange(len(self.workers))
        source, rows_max = pick.choice(self.log.sources), pick.randint(1, 4)
        some = pick.sample(self.log.sources, pick.randint(1, len(self.log.sources)))
        happens: dict[str, Callable[[], Awaitable[None]]] = {
            "living reads": lambda: self.read(living, source, rows_max),
            "living reads together": lambda: self.read_together(living, rows_max),
            "reads": lambda: self.read(worker, source, rows_max),
            "reads together": lambda: self.read_together(worker, rows_max),
            "skips": lambda: self.read(worker, source, rows_max, pick.randint(1, 2)),
            "is given again": lambda: self.apply(worker, pick.choice(self.taken)) if self.taken else self.hire(),
            "settles": lambda: self.settle(worker, some),
            "checks": lambda: self.check(worker, some),
            "crashes": lambda: self.crash(source, rows_max),
            "is cancelled": lambda: self.break_off(worker, source, rows_max),
            "store does not hear": lambda: self.lose(worker, source, "before"),
            "store is not heard": lambda: self.lose(worker, source, "after"),
            "is replaced": self.hire,
            "store is emptied": self.store.clear,
        }
        await happens[action]()

    async def finish(self, pick: random.Random) -> None:
        """The living worker, or one that replaces it, looks at its guards and reads everything; zombies then try what they still hold."""
        if pick.random() < 0.5:
            await self.hire()
        for source in self.log.sources:
            await self.check(-1, [source])
            for _ in range(READS_MAX):
                await self.read(len(self.workers) - 1, source, pick.randint(1, 4))
            assert self.positions[-1][source] == self.log.end(source)
        for worker in range(len(self.workers) - 1):
            await self.apply(worker, pick.choice(self.taken))


#: No log here needs more reads of a source; a worker that needs them goes round in circles.
READS_MAX = 150
ACTIONS_MAX = 40
ACTIONS = (
    *("living reads",) * 4,
    *("living reads together",) * 2,
    *("reads", "reads together", "skips", "is given again", "settles", "checks", "crashes", "is cancelled", "is replaced"),
    *("store is emptied", "store does not hear", "store is not heard"),
)


async def lived(log: Log, pick: random.Random, repeat_offsets: int = REPEAT_OFFSETS) -> MemoryStore:
    """The store after a life over a log."""
    life = Life(log, ShakyStore(), repeat_offsets)
    await life.hire()
    for action in pick.choices(ACTIONS, k=pick.randint(0, ACTIONS_MAX)):
        await life.act(action, pick)
    await life.finish(pick)
    return life.store


def moments(oracle: Oracle) -> list[int]:
    """When records are asked: as far back as they promise to know, at the newest event, hours to weeks later."""
    newest_ms = max(oracle.newest_ms(), NOW_MS)
    return [newest_ms + after_ms for after_ms in (-LATENESS_MS, 0, 1, 4 * MINUTE_MS, HOUR_MS, DAY_MS, 8 * DAY_MS, 31 * DAY_MS)]


#: One number is one life: it is all that is needed to see it again.
SEEDS = st.integers(0, 2**32)
#: How far back repeats are looked for: nowhere, inside a batch, over a few batches, as shipped.
REACHES = st.sampled_from([0, 1, 4, 7, 16, REPEAT_OFFSETS])


@given(logs(), SEEDS, REACHES)
async def test_a_store_that_lived_through_anything_holds_the_bytes_of_a_replay(log: Log, seed: int, reach: int) -> None:
    """Redelivery, crashes, zombies, overlapping assignments, gaps, an emptied store: once the log is read, nothing of it shows."""
    assert await dump(await lived(log, random.Random(seed), reach)) == await replayed(log, repeat_offsets=reach)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=20), REACHES, st.integers(1, 4), st.integers(0, 1))
async def test_a_restart_at_every_point_counts_no_repeat(requests: list[int], reach: int, rows_max: int, gap: int) -> None:
    """A new worker after every batch: each reads again what it must know, and applies what comes next."""
    log, store = Log(gap), MemoryStore(REGISTRY)
    for request in requests:
        log.add(click(request_id=f"r{request}"))
    for source in log.sources:
        applied = 0
        while applied < log.end(source):
            ingest = Ingest(store, REGISTRY, SCHEMA_IDS, reach)
            position = (await ingest.positions([source]))[source]
            while position <= applied and (batch := log.fetch(source, position, rows_max)):
                position = await take(ingest, batch)
            applied = (await ingest.settle([source]))[source]

    assert await dump(store) == await replayed(log, repeat_offsets=reach)


async def test_what_was_said_and_done_is_not_said_again() -> None:
    """A stretch that is read to know repeats again brings no dead letters, no events and no repeats that were counted before."""
    log = Log()
    log.append(raw(b"noise"))
    for request_id in ("r1", "r1", "r2", "r1"):
        log.add(click(request_id=request_id))
    (source,) = log.sources
    store = MemoryStore(REGISTRY)
    await (await replay(log, store)).settle([source])
    log.append(raw(b"noise"))
    log.add(click(request_id="r2"))
    log.add(click(request_id="r3"))
    ingest = Ingest(store, REGISTRY)
    start = (await ingest.positions([source]))[source]
    batch = log.fetch(source, start, 100)
    assert batch is not None
    decoded = ingest.decode(batch)

    told = ([bad.record.offset for bad in decoded.bad], decoded.good_count, decoded.repeats_count)
    assert (start, told) == (0, ([5], 1, 1))


async def test_profiles_are_read_from_the_guards() -> None:
    """Content and users have no repeats: the newest counts."""
    log = Log()
    for number_ in range(3):
        log.add(content(f"i{number_}"))
    (source,) = log.sources
    store = MemoryStore(REGISTRY)
    await (await replay(log, store)).settle([source])

    assert await Ingest(store, REGISTRY).positions([source]) == {source: 3}


async def clicks_of_one(count: int) -> tuple[Ingest, list[Batch]]:
    """A worker over a store, and clicks of one user on one item, a batch each."""
    log = Log()
    for number_ in range(count):
        log.add(click(request_id=f"r{number_}"))
    (source,) = log.sources
    ingest = Ingest(MemoryStore(REGISTRY), REGISTRY)
    await ingest.positions([source])
    return ingest, [found for offset in range(count) if (found := log.fetch(source, offset, 1))]


async def test_a_worker_goes_back_at_the_next_batch_when_the_store_lost_what_it_had() -> None:
    """The guard that it meets is not the one that it left."""
    ingest, (first, second) = await clicks_of_one(2)
    before = await take(ingest, first)
    assert isinstance(ingest.store, MemoryStore)
    await ingest.store.clear()

    after = await take(ingest, second)

    assert (before, after) == (1, 0)


async def test_a_worker_goes_on_from_where_another_one_was_faster() -> None:
    """Its own batch changes nothing; it reads on behind what the guards hold."""
    ingest, batches = await clicks_of_one(3)
    other = Ingest(ingest.store, REGISTRY)
    await other.positions([batches[0].source])
    for batch in batches[:2]:
        await take(other, batch)
    before = await dump(ingest.store)

    await take(ingest, batches[0])

    assert await dump(ingest.store) == before


async def test_a_batch_that_overlaps_the_guard_is_applied_from_it_on() -> None:
    """The row at the guard is the first that is new."""
    ingest, batches = await clicks_of_one(3)
    await take(ingest, batches[0])
    whole = batches[0]._replace(records=[record for batch in batches for record in batch.records])
    other = Ingest(ingest.store, REGISTRY)
    await other.positions([whole.source])

    await take(other, whole)

    assert await dump(ingest.store) == await replayed_clicks(3)


async def replayed_clicks(count: int) -> dict[bytes, bytes]:
    """The records of clicks_of_one(count), read once."""
    ingest, batches = await clicks_of_one(count)
    for batch in batches:
        await take(ingest, batch)
    return await dump(ingest.store)


async def test_a_batch_behind_a_gap_is_not_taken() -> None:
    """The position stays, so that the missing batch is read again."""
    ingest, batches = await clicks_of_one(3)
    await take(ingest, batches[0])

    position = await take(ingest, batches[2])

    assert position == 1


async def test_a_gap_forgets_nothing() -> None:
    """The missing batch is taken when it comes, without reading again what came before it."""
    ingest, batches = await clicks_of_one(3)
    await take(ingest, batches[0])
    await take(ingest, batches[2])

    assert [await take(ingest, batch) for batch in batches[1:]] == [2, 3]


@given(logs(), SEEDS, REACHES)
async def test_every_record_says_what_the_oracle_says(log: Log, seed: int, reach: int) -> None:
    """Every entity, both ways: windows at several moments, activity, removal, every static field; repeats dropped by both."""
    store, oracle = await lived(log, random.Random(seed), reach), oracle_of(log, repeat_offsets=reach)
    generation = await store.current()
    assert generation is not None

    assert await compare(store, REGISTRY, generation, oracle, moments(oracle)) == []


@given(logs())
async def test_exactly_the_bad_records_are_set_aside(log: Log) -> None:
    """The oracle and the product name the same dead letters."""
    ingest = Ingest(MemoryStore(REGISTRY), REGISTRY, SCHEMA_IDS)
    await ingest.positions(log.sources)
    decoded = [ingest.decode(Batch(source, records, 0)) for source, records in log.partitions.items()]

    dead = {(bad.record.topic, bad.record.partition, bad.record.offset) for batch in decoded for bad in batch.bad}
    assert dead == oracle_of(log).bad


@given(logs(), SEEDS)
async def test_the_order_in_which_partitions_are_read_changes_nothing(log: Log, seed: int) -> None:
    """Batches of all partitions in any order of the partitions, of any length, give the same bytes."""
    pick = random.Random(seed)
    store = MemoryStore(REGISTRY)
    ingest = Ingest(store, REGISTRY, SCHEMA_IDS)
    positions = await ingest.positions(log.sources)
    for source in pick.sample(log.sources * READS_MAX, len(log.sources) * READS_MAX):
        batch = log.fetch(source, positions[source], pick.randint(1, 5))
        if batch is not None:
            positions[source] = await take(ingest, batch)

    assert await dump(store) == await replayed(log)


@given(logs(), SEEDS)
async def test_the_order_of_delivery_changes_no_count(log: Log, seed: int) -> None:
    """The same events, content and tombstones in another order, on other partitions: the same windows and activity.

    What is a repeat depends on the order, so here every event counts.
    """
    pick = random.Random(seed)
    shuffled = Log()
    records = list(log)
    pick.shuffle(records)
    for record in records:
        shuffled.append(record._replace(partition=pick.randint(0, 2)))
    one, other = oracle_of(log, repeat_offsets=0), oracle_of(shuffled, repeat_offsets=0)
    store = MemoryStore(REGISTRY)
    await replay(shuffled, store, repeat_offsets=0)
    generation = await store.current()
    assert generation is not None

    told = await compare(store, REGISTRY, generation, other, moments(one))

    as_of_ms = moments(one)[1]
    assert (told, counts(other, as_of_ms)) == ([], counts(one, as_of_ms))


def counts(oracle: Oracle, as_of_ms: int) -> dict[Named, object]:
    """Every entity's windows and activity."""
    return {entity: (oracle.counts(entity, as_of_ms), oracle.last_active_ms(entity)) for entity in oracle.entities}


@given(logs(), SEEDS)
async def test_a_second_reading_of_everything_changes_nothing(log: Log, seed: int) -> None:
    """Every batch delivered again, from any offset on."""
    pick = random.Random(seed)
    store = MemoryStore(REGISTRY)
    ingest = await replay(log, store)
    before = await dump(store)
    for source in log.sources:
        batch = log.fetch(source, pick.randint(0, log.end(source) - 1), 100)
        assert batch is not None
        await take(ingest, batch)

    assert await dump(store) == before


@given(logs())
async def test_every_feature_is_what_its_definition_says_of_the_oracles_counts(log: Log) -> None:
    """Each column of every entity, by a formula of the test's own."""
    store, oracle = MemoryStore(REGISTRY), oracle_of(log)
    await replay(log, store)
    generation = await store.current()
    assert generation is not None
    as_of_ms = moments(oracle)[1]

    wrong = []
    for tenant, kind, entity_id in sorted(oracle.entities):
        raws = await store.read([record_key(generation, Entity(tenant, kind, entity_id))])
        tiles = read(layouts(REGISTRY)[kind], raws, as_of_ms)
        for feature in (feature for feature in REGISTRY.features if feature.kind == kind):
            computed = REGISTRY.column(feature, tiles, as_of_ms)[0]
            expected = np.float32(expected_value(feature, oracle, (tenant, kind, entity_id), as_of_ms))
            if not np.array_equal(computed, expected, equal_nan=True):
                wrong.append(f"{feature.name} of {entity_id} is {computed}, not {expected}")

    assert wrong == []


def expected_value(feature: Feature, oracle: Oracle, entity: Named, as_of_ms: int) -> float:
    """One feature of one entity, from what the oracle counted and what the log's own bytes said."""
    windows = oracle.counts(entity, as_of_ms)
    seen, clicks, dwells, dwell_ms = windows[feature.window.name] if feature.window else (0, 0, 0, 0)
    last_ms, profile = oracle.last_active_ms(entity), oracle.profile(entity)
    said = (profile.fields if profile else None) or {}
    score, made_ms = said.get("quality_score"), said.get("created_at_ms")
    return {
        "ctr": (clicks + 1) / (seen + 20),
        "impressions": float(seen),
        "dwell_avg_s": dwell_ms / 1_000 / dwells if dwells else math.nan,
        "dwell_per_impression_s": dwell_ms / 1_000 / seen if seen else math.nan,
        "number": math.nan if score is None or abs(score) > 3.4e38 else score,
        "age_days": max(as_of_ms - made_ms, 0) / 86_400_000 if made_ms else math.nan,
        "idle_hours": max(as_of_ms - last_ms, 0) / 3_600_000 if last_ms else math.nan,
    }[feature.formula]


def test_every_formula_has_a_definition_here() -> None:
    """A new formula brings its second wording."""
    oracle = Oracle([], windows_of(REGISTRY))

    for formula in FORMULAS:
        expected_value(Feature("f", "item", formula), oracle, ("", "item", "i"), NOW_MS)


@pytest.mark.parametrize("kind", ["user", "item"])
@given(log=logs(size_max=15))
async def test_a_registry_of_one_kind_is_exact_too(kind: str, log: Log) -> None:
    """A feed may have no user features: users' records are then no records of the store, and no worker stops at them."""
    registry = Registry(tuple(feature for feature in REGISTRY.features if feature.kind == kind))
    store, oracle = MemoryStore(registry), oracle_of(log, registry)
    await replay(log, store, registry)
    generation = await store.current()
    assert generation is not None

    assert await compare(store, registry, generation, oracle, moments(oracle)) == []


OWN = Registry((number("price", "item", "attributes.price"), category("lang", "item", "language", ("en", "de"))))


@given(st.lists(st.tuples(st.floats(-9, 9), st.sampled_from(["en", "de", "fr", ""]), AGES_MS), min_size=1, max_size=8))
async def test_attributes_and_categories_of_a_registry_of_ones_own_are_kept(written: list[tuple[float, str, int]]) -> None:
    """Price and language of the newest content record, whatever came in between."""
    log = Log()
    for price, language, age_ms in written:
        log.add(content(ts_ms=NOW_MS - age_ms, attributes={"price": price}, language=language))
    store, oracle = MemoryStore(OWN), oracle_of(log, OWN)
    await replay(log, store, OWN)
    generation = await store.current()
    assert generation is not None

    assert await compare(store, OWN, generation, oracle, [NOW_MS]) == []


def test_the_oracle_reads_the_same_registered_schemas() -> None:
    """By number and by GUID, as the log of these tests names them."""
    assert {schema.name for schema in SCHEMA_IDS.values()} == set(avro.NEWEST)


def test_a_static_of_nothing_is_packed_as_missing() -> None:
    """What compare() takes for the fields of an entity that no profile named."""
    nothing: Mapping[str, Content | User | None] = {"item": None}

    packed = [pack_field(static, nothing["item"]) for static in layouts(REGISTRY)["item"].statics if static.form == "time_ms"]

    assert packed == [0]
