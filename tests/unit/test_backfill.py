"""Items that the store lost are ranked by what a snapshot has of them; nothing that the store says is overruled."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import REGISTRY as METRICS

from online_store.keys import Entity, Generation
from online_store.memory import MemoryStore
from online_store.snapshot import file as snapshots
from online_store.snapshot.file import Made, Snapshot
from ranker.budgets import Budgets
from ranker.rank import Ranker
from schemas.features import REGISTRY
from schemas.records import Degraded
from schemas.topics import CONTENT
from tests.rankers import Failing, Model, answer, ask, away, fill, ids, on, response, snapshot_of, telemetry, trained
from tests.worlds import NOW_MS, Log, content, replay

#: Has no record, in no store: what is said of items is not mixed with what is said of people.
NOBODY = "nobody"
#: A column of vectors that tells items apart.
QUALITY = REGISTRY.feature_names.index("quality")
#: More look-ups than a test makes.
LOOK_UPS = 100


class Slow(Snapshot):
    """A snapshot on a disk that answers so often as it is let."""

    let = threading.Semaphore(0)

    def look_up(self, entities: Sequence[Entity]) -> list[bytes | None]:
        """As Snapshot.look_up."""
        self.let.acquire()
        return super().look_up(entities)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A small model over the default registry's features."""
    return trained(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is late because this machine is busy."""
    monkeypatch.setattr("tests.rankers.BUDGETS", Budgets(backfill_ms=3_000, total_ms=5_000))


@pytest.fixture
async def full() -> MemoryStore:
    """A store with a past."""
    found = MemoryStore(REGISTRY)
    await fill(found)
    return found


@pytest.fixture
async def empty() -> Failing:
    """A store that lost everything, and was begun anew under another number."""
    found = Failing()
    await found.begin(Generation(7, REGISTRY.fingerprint))
    return found


@pytest.fixture
async def snapshot(full: MemoryStore, tmp_path: Path) -> Snapshot:
    """Of the store with a past."""
    return await snapshot_of(full, tmp_path)


async def served(ranker: Ranker, *candidates: str, **rest: object) -> dict[str, NDArray[np.float32]]:
    """What the model was shown of each item."""
    told = telemetry(await answer(ranker, *candidates, user_id=NOBODY, **rest))
    return {item.item_id: np.frombuffer(item.vector, "<f4") for item in told.items}


def backfilled() -> dict[str, float]:
    """How many items were looked up so far, by what came of it."""
    outcomes = ("found", "unknown", "late")
    return {outcome: METRICS.get_sample_value("millstream_rank_backfilled_total", {"outcome": outcome}) or 0.0 for outcome in outcomes}


def more(before: dict[str, float]) -> dict[str, float]:
    """What was counted since."""
    return {outcome: count - before[outcome] for outcome, count in backfilled().items()}


def looked_up() -> float:
    """How often a batch looked into a snapshot so far."""
    return METRICS.get_sample_value("millstream_rank_stage_seconds_count", {"stage": "backfill"}) or 0.0


async def test_what_the_store_lost_is_ranked_as_before(full: MemoryStore, empty: Failing, snapshot: Snapshot, model: Model) -> None:
    """The same vectors as of the same moment, under another generation, with removed items left out."""
    before = await served(await on(full, model))
    after = await served(await on(empty, model, snapshot=snapshot))

    assert list(after) == list(before)
    np.testing.assert_array_equal(list(after.values()), list(before.values()))


async def test_without_a_snapshot_it_is_unknown(full: MemoryStore, empty: Failing, model: Model) -> None:
    """As an item that never was."""
    unknown = await served(await on(full, model), "x")
    found = await served(await on(empty, model), "i5")

    np.testing.assert_array_equal(found["i5"], unknown["x"])


async def test_what_neither_has_is_unknown(empty: Failing, snapshot: Snapshot, model: Model) -> None:
    """And told apart from what the snapshot knew."""
    before = backfilled()
    given = await ask(await on(empty, model, snapshot=snapshot), "i1", "x", "i2")

    assert (given.degraded, sorted(ids(given)), more(before)) == (Degraded.NONE, ["i1", "i2", "x"], {"found": 2, "unknown": 1, "late": 0})


async def test_what_the_store_has_is_not_looked_up(full: MemoryStore, snapshot: Snapshot, model: Model) -> None:
    """Nor is the user, who is in no snapshot."""
    before = looked_up()
    await ask(await on(full, model, snapshot=snapshot), user_id=NOBODY)

    assert looked_up() == before


async def test_an_item_is_looked_up_once_a_batch(empty: Failing, snapshot: Snapshot, model: Model) -> None:
    """It is near from then on, as if the store had had it."""
    ranker = await on(empty, model, snapshot=snapshot)
    before = backfilled()
    await asyncio.gather(*(ask(ranker, "i1", "i2", request_id=f"r{number}") for number in range(5)))
    await ask(ranker, "i2", "i3", request_id="after")

    assert more(before) == {"found": 3, "unknown": 0, "late": 0}


async def test_an_item_that_was_removed_since_stays_removed(snapshot: Snapshot, model: Model) -> None:
    """A tombstone is a record, and the store has it."""
    log = Log()
    log.forget(CONTENT.name, b"i5", NOW_MS + 1)
    store = MemoryStore(REGISTRY)
    await replay(log, store)

    assert sorted(ids(await ask(await on(store, model, snapshot=snapshot), "i4", "i5", "i6"))) == ["i4", "i6"]


async def test_an_item_that_was_written_since_is_not_overruled(snapshot: Snapshot, model: Model) -> None:
    """Though the snapshot knows more of it: the store is read alone, or as long as ingest fills it nothing would add up."""
    log = Log()
    log.add(content("i5", NOW_MS + 1))
    store = MemoryStore(REGISTRY)
    await replay(log, store)

    with_one, without = [await served(await on(store, model, snapshot=found), "i5", request_id=str(found)) for found in (snapshot, None)]

    np.testing.assert_array_equal(with_one["i5"], without["i5"])


@pytest.mark.parametrize("late_ms", [0, 1])
async def test_it_is_asked_no_longer_than_removals_are_remembered(
    full: MemoryStore, empty: Failing, model: Model, tmp_path: Path, late_ms: int
) -> None:
    """Past that an item's tombstone may be gone from the store, and the snapshot still show it."""
    snapshot = await snapshot_of(full, tmp_path)
    before = backfilled()
    await ask(await on(empty, model, snapshot=snapshot), "i1", ts_ms=snapshot.until_ms + late_ms)

    assert more(before)["found"] == 1 - late_ms


async def test_a_snapshot_that_took_the_place_of_another_is_asked_from_the_next_look_on(
    full: MemoryStore, empty: Failing, model: Model, tmp_path: Path
) -> None:
    """Without a restart: what was added to it is found."""
    young = MemoryStore(REGISTRY)
    await young.begin(Generation(1, REGISTRY.fingerprint))
    ranker = await on(empty, model, snapshot=await snapshot_of(young, tmp_path))
    before = await served(ranker, "i5", request_id="before")
    await snapshot_of(full, tmp_path)
    await ranker.refresh()
    after = await served(ranker, "i5", request_id="after", ts_ms=NOW_MS + 120_000)

    assert (np.isnan(before["i5"][QUALITY]), after["i5"][QUALITY]) == (True, 12.5)


async def test_a_snapshot_of_another_registry_changes_nothing(empty: Failing, snapshot: Snapshot, model: Model, tmp_path: Path) -> None:
    """The one before is asked as ever."""
    ranker = await on(empty, model, snapshot=snapshot)
    with snapshots.writing(tmp_path / "items.arrow", Made("g9", "another", NOW_MS)) as write:
        write([b"item::i5"], [b"what"])
    await ranker.refresh()

    assert (await served(ranker, "i5"))["i5"][QUALITY] == 12.5


@pytest.fixture
def slow(snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    """The same snapshot, which does not answer yet."""
    monkeypatch.setattr("tests.rankers.BUDGETS", Budgets(backfill_ms=300, total_ms=5_000))
    monkeypatch.setattr(Slow, "let", threading.Semaphore(0))
    monkeypatch.setattr(snapshots, "Snapshot", Slow)
    found = snapshots.load(tmp_path / "items.arrow", REGISTRY)
    assert isinstance(found, Slow)
    assert found.made == snapshot.made
    yield found
    Slow.let.release(LOOK_UPS)


async def test_what_is_not_found_in_time_is_unknown(full: MemoryStore, empty: Failing, slow: Slow, model: Model) -> None:
    """The request is answered as ever."""
    unknown = await served(await on(full, model), "x")
    before = backfilled()
    late = await answer(await on(empty, model, snapshot=slow), "i5", user_id=NOBODY)

    assert (response(late.response).degraded, more(before)) == (Degraded.NONE, {"found": 0, "unknown": 0, "late": 1})
    np.testing.assert_array_equal(np.frombuffer(telemetry(late).items[0].vector, "<f4"), unknown["x"])


async def test_what_is_found_in_time_counts_though_the_rest_is_late(
    full: MemoryStore, empty: Failing, slow: Slow, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch may want more items than there is time for."""
    monkeypatch.setattr("ranker.reads.backfill.LOOK_UP_COUNT", 2)
    known = await served(await on(full, model), "i1", "i2", "x")
    slow.let.release()
    found = await served(await on(empty, model, snapshot=slow), "i1", "i2", "i3")

    np.testing.assert_array_equal([found[item] for item in ("i1", "i2", "i3")], [known[item] for item in ("i1", "i2", "x")])


async def test_a_disk_that_hangs_makes_nobody_wait_for_others(empty: Failing, slow: Slow, model: Model) -> None:
    """Look-ups behind one that hangs give up in their own time, and none of them is made up for later."""
    ranker = await on(empty, model, snapshot=slow)
    before = backfilled()
    hung = [await ask(ranker, f"i{number}", request_id=f"r{number}") for number in range(3)]
    slow.let.release(LOOK_UPS)
    after = await ask(ranker, "i5", request_id="after")

    assert ({given.degraded for given in (*hung, after)}, more(before)) == ({Degraded.NONE}, {"found": 1, "unknown": 0, "late": 3})


async def test_a_late_look_up_does_not_speak_against_the_store(empty: Failing, slow: Slow, model: Model) -> None:
    """The store answered: it is asked again, however many look-ups were late, and its own failures count from none."""
    ranker = await on(empty, model, snapshot=slow)
    for number in range(4):
        await ask(ranker, f"i{number}", request_id=f"r{number}")
    slow.let.release(LOOK_UPS)
    empty.read_fault = away
    failed = await ask(ranker, "i5", request_id="failed")
    empty.read_fault = None
    given = await ask(ranker, "i6", request_id="after")

    assert (failed.degraded != Degraded.NONE, given.degraded) == (True, Degraded.NONE)
