"""Parity tells which features of whom differ in two generations, and calls nothing different that only is on its way."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from online_store.ingest import Ingest
from online_store.keys import Generation
from online_store.memory import MemoryStore
from replay.files import FileLog
from replay.parity import compare as comparing
from replay.parity import lag
from replay.parity.compare import Question, compare
from replay.parity.logged import against, draw
from replay.parity.report import report, save
from replay.parity.side import Side
from replay.parity.tally import Tally
from schemas.columnar.repeats import REPEAT_OFFSETS
from schemas.features import REGISTRY, Registry, ctr, impressions
from schemas.records import Consent
from schemas.topics import Batch, Source, StoredRecord, Topic
from schemas.windows import DAY_MS, HOUR_MS, Window
from tests.worlds import NOW_MS, Log, batch, click, content, impression, take, user

FIRST, SECOND = 3, 4


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who does not follow is not waited for long."""
    monkeypatch.setattr(lag, "PATIENCE_S", 0.05)
    monkeypatch.setattr(lag, "POLL_S", 0.01)


def history() -> Log:
    """Three users and two items, one click."""
    log = Log()
    log.add(content("i1", quality_score=0.5))
    log.add(content("i2", quality_score=0.8))
    log.add(user("u1"))
    for number in range(6):
        log.add(impression(f"u{number % 3}", f"i{number % 2 + 1}", NOW_MS - number * HOUR_MS, request_id=f"r{number}", model_version="m1"))
    log.add(click("u1", "i2", NOW_MS, dwell_ms=4_000, model_version="m1"))
    return log


def without(log: Log, wanted: Callable[[StoredRecord], bool]) -> Log:
    """A log with some records spoilt: their offsets are applied, and they say nothing."""
    spoilt = {
        source: [record if wanted(record) else record._replace(value=b"spoilt") for record in held]
        for source, held in log.partitions.items()
    }
    return Log(log.gap, spoilt)


async def play(store: MemoryStore, number: int, log: Log, registry: Registry = REGISTRY) -> None:
    """Make a generation of a log."""
    generation = Generation(number, registry.fingerprint)
    await store.register(generation, registry)
    ingest = Ingest(store.of(registry), registry, target=generation)
    await ingest.positions(log.sources)
    for source in log.sources:
        await take(ingest, batch(log.partitions[source], 0))
        await ingest.settle([source])


async def found(store: MemoryStore, log: Log, **asked: Any) -> dict[str, Any]:  # noqa: ANN401  # fields of Question
    """The report on both generations."""
    first, second = (Side(generation, registry) for generation, registry in (await store.generations()).items())
    question = Question(**{"as_of_ms": NOW_MS + 1, "sources": log.sources, **asked})
    return report(first, second, question, NOW_MS, await compare(store, first, second, question, lambda _: None))


async def compared(first: Log, second: Log, ours: Registry = REGISTRY, theirs: Registry = REGISTRY, **asked: Any) -> dict[str, Any]:  # noqa: ANN401  # fields of Question
    """The report on generations of two logs."""
    store = MemoryStore(REGISTRY)
    await play(store, FIRST, first, ours)
    await play(store, SECOND, second, theirs)
    return await found(store, first, **asked)


def line(said: dict[str, Any], name: str) -> dict[str, Any]:
    """What is said of one feature."""
    return next(one for one in said["features"] if one["name"] == name)


def entities(said: dict[str, Any], what: str) -> dict[str, int]:
    """One count by kind, where it is not 0."""
    return {one["kind"]: one[what] for one in said["entities"] if one[what]}


async def test_generations_of_one_log_are_the_same() -> None:
    """Of every entity, every feature: where one has no value, the other has none either."""
    said = await compared(history(), history())

    assert (said["passed"], entities(said, "first"), entities(said, "looked_again")) == (True, {"user": 3, "item": 2, "model": 1}, {})


async def test_a_lost_click_is_told_by_feature_and_entity() -> None:
    """With both values and the relative difference."""
    said = await compared(history(), without(history(), lambda record: record.topic != "clicks"))

    wanted = {"tenant": "", "id": "i2", "first": pytest.approx(2 / 23), "second": pytest.approx(1 / 23)}
    assert (said["passed"], line(said, "ctr_7d")["mismatch"], line(said, "ctr_7d")["worst"]) == (False, 1, [wanted])
    assert line(said, "ctr_7d")["difference_worst"] == pytest.approx(0.5)


async def test_a_value_that_only_one_has_is_missing_or_extra() -> None:
    """Dwell is known to the first alone, so it is missing; the other way round, extra."""
    full, less = history(), without(history(), lambda record: record.topic != "clicks")
    missing, extra = line(await compared(full, less), "dwell_avg_7d"), line(await compared(less, full), "dwell_avg_7d")

    assert ((missing["missing"], missing["extra"]), (extra["missing"], extra["extra"])) == ((1, 0), (0, 1))


async def test_an_entity_that_only_one_has_fails() -> None:
    """Whichever of them has it."""
    full, less = history(), without(history(), lambda record: record.key != b"u2")
    missing, extra = await compared(full, less), await compared(less, full)

    assert (entities(missing, "missing"), entities(extra, "extra")) == ({"user": 1}, {"user": 1})
    assert not missing["passed"]
    assert not extra["passed"]


async def test_more_than_are_looked_at_again_are_counted_as_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing under way explains so many."""
    monkeypatch.setattr(comparing, "AGAIN_COUNT_MAX", 1)
    full, less = history(), without(history(), lambda record: record.topic != "impressions")
    missing, extra = await compared(full, less), await compared(less, full)

    assert (entities(missing, "missing")["user"], entities(extra, "extra")["user"]) == (2, 2)


async def test_a_difference_up_to_the_tolerance_is_none() -> None:
    """It is relative: half as many clicks, half the CTR."""
    first, second = (Log(), Log())
    for log, quality in ((first, 0.80), (second, 0.81)):
        log.add(content("i1", quality_score=quality))

    assert [(await compared(first, second, tolerance=tolerance))["passed"] for tolerance in (0.0, 0.012, 0.013)] == [False, False, True]


async def test_a_sample_is_the_same_in_both() -> None:
    """So that nobody is missing because of it."""
    log = Log()
    for number in range(400):
        log.add(user(f"u{number}"))
    said = await compared(log, log, sample=0.25)

    assert (said["passed"], 60 < entities(said, "first")["user"] < 140) == (True, True)


async def test_features_of_one_registry_alone_are_listed() -> None:
    """Nothing else is said of them."""
    more = replace(REGISTRY, features=(*REGISTRY.features, impressions("user_impressions_1h", "user", Window("1h", HOUR_MS, HOUR_MS))))
    said = await compared(history(), history(), theirs=more)

    assert (said["passed"], said["only_in_first"], said["only_in_second"]) == (True, [], ["user_impressions_1h"])


async def test_a_feature_that_is_defined_anew_is_compared_and_does_not_count() -> None:
    """It has the name of another one, and nobody expects its values."""
    changed = ctr("user_ctr_7d", "user", Window("1d", DAY_MS, DAY_MS))
    features = tuple(changed if feature.name == changed.name else feature for feature in REGISTRY.features)
    log = history()
    log.add(impression("u1", "i1", NOW_MS - 3 * DAY_MS, request_id="old"))
    said = await compared(log, log, theirs=replace(REGISTRY, features=features))

    assert (said["passed"], line(said, "user_ctr_7d")["same_definition"], line(said, "user_ctr_7d")["mismatch"]) == (True, False, 1)


class Moving(MemoryStore):
    """A store that others write to: before each question for guards the next of these happens."""

    steps: Sequence[tuple[int, Log]] = ()

    async def guards(self, generation: Generation, sources: Sequence[Source]) -> NDArray[np.int64]:
        """As MemoryStore.guards."""
        steps, self.steps = self.steps, ()
        for number, log in steps[:1]:
            await play(self, number, log)
        self.steps = steps[1:]
        return await super().guards(generation, sources)


def early() -> Log:
    """The beginning of each partition."""
    return Log(partitions=defaultdict(list, {source: held[:1] for source, held in history().partitions.items()}))


def grown(log: Log, count: int) -> Log:
    """The same log with so many more impressions."""
    found = Log(partitions=defaultdict(list, {source: list(held) for source, held in log.partitions.items()}))
    for number in range(count):
        found.add(impression("u1", "i2", NOW_MS, request_id=f"more{number}", model_version="m1"))
    return found


async def moving(first: Log, second: Log, *steps: tuple[int, Log]) -> dict[str, Any]:
    """The report on generations that are written to once the first look is done."""
    store = Moving(REGISTRY)
    await play(store, FIRST, first)
    await play(store, SECOND, second)
    store.steps = steps
    return await found(store, first)


async def test_a_second_that_lags_is_waited_for() -> None:
    """What it had not applied at the first look, it has at the second."""
    said = await moving(history(), early(), (FIRST, history()), (SECOND, history()))

    assert (said["passed"], entities(said, "looked_again")["user"] > 0) == (True, True)


async def test_an_entity_that_changes_all_the_time_lies_between_two_readings() -> None:
    """The second has more than the first had before, and less than it has after."""
    later, latest = grown(history(), 1), grown(history(), 2)
    said = await moving(history(), early(), (SECOND, history()), (SECOND, later), (FIRST, latest), (FIRST, latest), (SECOND, latest))

    assert (said["passed"], entities(said, "looked_again")["user"] > 0) == (True, True)


async def test_a_fault_is_told_though_the_entity_changes_meanwhile() -> None:
    """More clicks than either reading of the first has are no lag."""
    wrong = history()
    wrong.add(click("u1", "i2", NOW_MS, request_id="never", model_version="m1"))
    right = without(wrong, lambda record: record.topic != "clicks" or not record.offset)
    steps = [(FIRST, right), (FIRST, right), (FIRST, right), (FIRST, grown(right, 1)), (SECOND, grown(wrong, 1))]
    said = await moving(right, wrong, *steps)

    assert (said["passed"], line(said, "user_ctr_7d")["mismatch"]) == (False, 1)


async def test_a_second_that_is_not_followed_does_not_pass() -> None:
    """Whether it would be the same nobody knows."""
    said = await compared(history(), early())

    assert (said["passed"], entities(said, "unsettled")["user"], line(said, "user_ctr_7d")["mismatch"]) == (False, 3, 0)


async def test_a_record_that_can_have_expired_is_not_missed() -> None:
    """Nothing touched it for as long as the first keeps it; the second was made just now."""
    log = history()
    log.add(user("u9", NOW_MS - 40 * DAY_MS))
    said = await compared(without(log, lambda record: record.key != b"u9"), log)

    assert (said["passed"], entities(said, "expired"), entities(said, "extra")) == (True, {"user": 1}, {})


async def against_log(store: MemoryStore, log: Log, told: Log) -> list[Tally]:
    """What the second generation is against a log. log: which sources there are."""
    second = [Side(generation, registry) for generation, registry in (await store.generations()).items()][-1]
    question = Question(NOW_MS + 1, sources=log.sources)
    return against(Told(told), await draw(store, second, question, 100), question, REPEAT_OFFSETS)


class Told(FileLog):
    """What a test's log says, as an EventLog."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def read(self, topic: Topic, starts: Any = None, batch_rows_max: int = 0) -> Iterator[Batch]:  # noqa: ANN401, ARG002  # as EventLog.read
        """As EventLog.read."""
        return (batch(held, 0) for source, held in self._log.partitions.items() if source.topic == topic.name and held)


async def test_a_generation_is_what_the_log_says() -> None:
    """Recomputed event by event, of users and items, tombstones and profiles."""
    log = history()
    log.forget("content", b"i1", NOW_MS - 3 * HOUR_MS)
    log.add(content("i1", NOW_MS - 2 * HOUR_MS, quality_score=0.7))
    store = MemoryStore(REGISTRY)
    await play(store, SECOND, log)
    found = await against_log(store, log, log)

    assert ([tally.is_within for tally in found], [int(tally.compared.max()) for tally in found]) == ([True, True], [3, 2])


async def test_a_generation_that_is_not_what_the_log_says_is_told() -> None:
    """Though the other generation may have the same fault."""
    store = MemoryStore(REGISTRY)
    await play(store, SECOND, without(history(), lambda record: record.topic != "clicks"))
    users, items = await against_log(store, history(), history())

    assert {line["name"] for tally in (users, items) for line in tally.lines() if line["mismatch"]} >= {"user_ctr_7d", "ctr_7d"}


async def test_what_the_log_has_behind_the_guards_is_not_expected() -> None:
    """The generation has not got there."""
    store = MemoryStore(REGISTRY)
    await play(store, SECOND, history())

    assert all(tally.is_within for tally in await against_log(store, history(), grown(history(), 3)))


async def test_a_report_is_written_with_its_page(tmp_path: Path) -> None:
    """The page names what the file says."""
    said = await compared(history(), without(history(), lambda record: record.topic != "clicks"))
    file = save(tmp_path / "parity", said)
    page = file.with_suffix(".html").read_text()

    assert (json.loads(file.read_text()), file.name, "did not pass" in page, "<td>ctr_7d</td>" in page) == (said, "g3-g4.json", True, True)


async def test_who_has_no_consent_is_compared_as_ranking_knows_them() -> None:
    """As nobody, whatever was counted."""
    log = history()
    log.add(user("u1", NOW_MS + 1, consent=Consent(personalization=False)))
    said = await compared(log, without(log, lambda record: record.topic != "clicks"))

    assert (line(said, "user_ctr_7d")["mismatch"], line(said, "ctr_7d")["mismatch"]) == (0, 1)
