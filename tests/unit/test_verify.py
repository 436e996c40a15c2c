"""What a ranker served is held against the log: equal, on its way, or skewed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from online_store.ingest import Ingest
from online_store.memory import MemoryStore
from ranker.rank import Ranker
from ranker.reads import near
from replay.files import FileLog
from replay.log import Message
from replay.served import verify as verifying
from replay.served.verify import NEAR_MS, lines, sample, verify
from schemas import codec
from schemas.aggregates import Tiles
from schemas.columnar import counted
from schemas.features import REGISTRY
from schemas.records import RankTelemetry, Record
from schemas.topics import RANK_TELEMETRY, SOURCES
from tests.rankers import Model, answer, on, telemetry, trained
from tests.worlds import NOW_MS, click, content, dwell, impression, take, topic_of, user

ASKED_MS = NOW_MS + 60_000
PAST: tuple[Record, ...] = (
    *(content(f"i{number}", NOW_MS, quality_score=number * 2.5) for number in range(4)),
    user("u1", NOW_MS),
    *(impression("u1", f"i{number % 4}", NOW_MS + number, request_id=f"r{number}") for number in range(9)),
    click("u1", "i2", NOW_MS + 20, dwell_ms=4_000),
    dwell("u1", "i2", NOW_MS + 30),
)
MORE: tuple[Record, ...] = (
    impression("u1", "i1", NOW_MS + 40, request_id="more"),
    click("u1", "i1", NOW_MS + 50, request_id="more", dwell_ms=70_000),
    content("i1", NOW_MS + 60, quality_score=9.0),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A small model over the default registry's features."""
    return trained(tmp_path_factory.mktemp("models"))


class World:
    """A log, a store that follows it when told to, and a ranker that looks when told to."""

    def __init__(self, folder: Path, ranker: Ranker, store: MemoryStore) -> None:
        self.log = FileLog(folder, 2)
        self.ranker, self.store = ranker, store

    @classmethod
    async def begun(cls, folder: Path, model: Model) -> "World":
        """With a past that the store has and the ranker knows of."""
        store = MemoryStore(REGISTRY)
        await Ingest(store, REGISTRY).start()
        world = cls(folder, await on(store, model), store)
        world.happen(PAST)
        await world.follow()
        await world.look()
        return world

    def happen(self, records: Sequence[Record]) -> None:
        """Append to the log."""
        for record in records:
            topic = topic_of(record)
            self.log.append(topic, [Message(topic.key_of(record), codec.encode(record), record.ts_ms)])  # type: ignore[union-attr]  # all have one

    async def follow(self) -> None:
        """Apply what the store lacks."""
        ingest = Ingest(self.store, REGISTRY)
        for topic in SOURCES:
            for batch in self.log.read(topic):
                await ingest.positions([batch.source])
                await take(ingest, batch)
                await ingest.settle([batch.source])

    async def look(self) -> None:
        """What was applied at the first look is told from the second on."""
        await self.ranker.refresh()
        await self.ranker.refresh()

    async def serve(self, request_id: str, ts_ms: int = ASKED_MS) -> RankTelemetry:
        """Rank, and log the telemetry."""
        given = await answer(self.ranker, "i0", "i1", "i2", "i9", request_id=request_id, ts_ms=ts_ms)
        assert given.telemetry
        self.log.append(RANK_TELEMETRY, [Message(request_id.encode(), given.telemetry, ts_ms)])
        return telemetry(given)

    def verdicts(self) -> dict[str, list[str]]:
        """The features that have any, by verdict."""
        told, _ = sample(self.log, REGISTRY, 100)
        found = lines(verify(self.log, REGISTRY, told, lambda _: None))
        return {verdict: [line["name"] for line in found if line[verdict]] for verdict in ("equal", "lag", "skew", "undecided")}


@pytest.fixture
async def world(tmp_path: Path, model: Model) -> World:
    return await World.begun(tmp_path / "log", model)


ALL = sorted(REGISTRY.feature_names)


async def test_offsets_are_those_of_the_look_before(world: World) -> None:
    """What a near item was read from is never older."""
    first = await world.serve("r1")
    world.happen(MORE)
    await world.follow()
    await world.ranker.refresh()
    second = await world.serve("r2")
    await world.ranker.refresh()
    third = await world.serve("r3")

    ends = {f"{topic.name}/{partition}": end for topic in SOURCES for partition, end in world.log.end_offsets(topic).items() if end}
    assert (second.store_offsets, third.store_offsets) == (first.store_offsets, ends)


async def test_what_was_served_of_the_same_offsets_is_equal(world: World) -> None:
    """Every feature of every item, bit for bit; of an unknown one, too."""
    await world.serve("r1")
    found = world.verdicts()

    assert (sorted(found["equal"]), found["lag"], found["skew"]) == (ALL, [], [])


async def test_events_that_the_store_had_not_yet_are_nothing(world: World) -> None:
    """They stand in the log behind the offsets, and nothing of them was served."""
    world.happen(MORE)
    await world.serve("r1")

    assert (world.verdicts()["lag"], world.verdicts()["skew"]) == ([], [])


async def test_events_that_the_store_had_already_are_lag(world: World) -> None:
    """They came after the last look: the difference ends at a later position of the log."""
    world.happen(MORE)
    await world.follow()
    await world.serve("r1")
    found = world.verdicts()

    assert ({"ctr_7d", "quality", "user_ctr_7d"} <= set(found["lag"]), found["skew"], found["undecided"]) == (True, [], [])


async def test_a_store_in_the_middle_of_a_log_is_lag(world: World) -> None:
    """It had the impression and not yet the click."""
    world.happen(MORE[:1])
    await world.follow()
    await world.serve("r1")
    world.happen(MORE[1:])
    found = world.verdicts()

    assert ("impressions_7d" in found["lag"], found["skew"]) == (True, [])


async def test_a_near_item_is_lag(world: World) -> None:
    """It was read as of a moment shortly before, and its age is that moment's."""
    await world.serve("r1", ASKED_MS)
    await world.serve("r2", ASKED_MS + NEAR_MS - 1)
    found = world.verdicts()

    assert (found["lag"], found["skew"]) == (["freshness_days"], [])


def skew(ranking: pytest.MonkeyPatch, change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> None:
    """Let the compiled loop, which ranking asks and nobody else, have another idea of a CTR."""
    right = counted.fill

    def wrong(of: counted.Plan, tiles: Tiles, as_of_ms: NDArray[np.int64], prior: tuple[float, int], columns: NDArray[np.float32]) -> None:
        right(of, tiles, as_of_ms, prior, columns)
        places = of.steps[of.steps[:, 1] == counted.CTR, 0]
        columns[:, places] = change(columns[:, places])

    ranking.setattr(counted, "fill", wrong)


CTRS = sorted(feature.name for feature in REGISTRY.ranking if feature.formula == "ctr")


async def test_a_formula_that_the_ranker_has_otherwise_is_skew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its features are named, and no other."""
    with monkeypatch.context() as ranking:
        skew(ranking, lambda ctr: ctr * np.float32(0.5))
        await world.serve("r1")

    assert sorted(world.verdicts()["skew"]) == CTRS


async def test_a_small_skew_is_told_from_lag(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rounding more, while events are under way."""
    world.happen(MORE)
    await world.follow()
    with monkeypatch.context() as ranking:
        skew(ranking, lambda ctr: np.nextafter(ctr, np.float32(1)))
        await world.serve("r1")

    assert sorted(world.verdicts()["skew"]) == CTRS


async def test_an_event_that_the_store_lost_is_skew(world: World) -> None:
    """Its offsets say that it has it."""
    world.happen(MORE)
    await world.look()
    told = await world.serve("r1")
    ends = {f"{topic.name}/{partition}": end for topic in SOURCES for partition, end in world.log.end_offsets(topic).items()}
    lost = codec.encode(
        RankTelemetry(**{name: getattr(told, name) for name in told.__struct_fields__} | {"request_id": "r2", "store_offsets": ends})
    )
    world.log.append(RANK_TELEMETRY, [Message(b"r2", lost, ASKED_MS)])

    assert "impressions_7d" in world.verdicts()["skew"]


async def test_more_positions_than_are_tried_are_undecided(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is accused without proof."""
    monkeypatch.setattr(verifying, "POSITIONS_MAX", 1)
    world.happen(MORE)
    await world.follow()
    await world.serve("r1")
    found = world.verdicts()

    assert ("ctr_7d" in found["undecided"], found["skew"]) == (True, [])


@pytest.mark.parametrize(
    ("why", "said"),
    [("another_registry", {"feature_version": "another"}), ("degraded", {"degraded": "STALE"}), ("no_offsets", {"store_offsets": {}})],
)
async def test_what_proves_nothing_is_left_out_and_counted(world: World, why: str, said: dict[str, Any]) -> None:
    """By why it does not."""
    told = await world.serve("r1")
    other = codec.encode(RankTelemetry(**{name: getattr(told, name) for name in told.__struct_fields__} | {"request_id": "r2"} | said))
    world.log.append(RANK_TELEMETRY, [Message(b"r2", other, ASKED_MS)])
    drawn, left_out = sample(world.log, REGISTRY, 100)

    assert ([one.telemetry.request_id for one in drawn], left_out) == (["r1"], {why: 1})


async def test_a_sample_has_so_many_requests(world: World) -> None:
    """Whatever the log holds."""
    for number in range(5):
        await world.serve(f"r{number}")

    assert len(sample(world.log, REGISTRY, 3)[0]) == 3


def test_both_know_how_near_is_near() -> None:
    """Replay cannot import the ranker's number."""
    assert near.NEAR_MS == NEAR_MS
