"""Answers tell click probabilities, in the order of the model's own scores."""

import dataclasses
import time

import msgspec
import numpy as np
import pytest

from ranker.rank import Ranker
from ranker.slate.rules import NO_RULES, ColdStart, Rules
from ranker.training.isotonic import Calibrator
from schemas.records import Degraded
from tests.rankers import ITEMS, Failing, Model, answer, ask, away, fill, ids, matrix, on, response, telemetry, trained
from tests.worlds import NOW_MS

#: Half of what a score is: order and spacing stay, so that each told score names its raw one.
HALF = Calibrator((0.0, 1.0), (0.0, 0.5))
#: All scores are one probability.
FLAT = Calibrator((0.0, 1.0), (0.3, 0.3))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A small model over the default registry's features."""
    return trained(tmp_path_factory.mktemp("models"))


@pytest.fixture
async def store() -> Failing:
    """A store that works until told otherwise."""
    found = Failing()
    await fill(found)
    return found


async def calibrated(store: Failing, model: Model, calibrator: Calibrator, rules: Rules = NO_RULES) -> Ranker:
    """A ranker whose bundle has that calibration."""
    manifest = msgspec.structs.replace(model.bundle.manifest, calibrator=calibrator)
    return await on(store, model._replace(bundle=dataclasses.replace(model.bundle, manifest=manifest)), rules)


async def test_the_score_is_the_calibrated_one(store: Failing, model: Model) -> None:
    """Of the trainer's own scores, line by line."""
    expected = np.sort(model.fitted.predict(await matrix(store, ITEMS[:7], NOW_MS + 60_000)))[::-1] / 2
    given = await ask(await calibrated(store, model, HALF), *ITEMS[:7])

    assert [item.score for item in given.ranked_items] == pytest.approx(expected.tolist(), rel=1e-6)


async def test_one_probability_for_all_changes_no_order(store: Failing, model: Model) -> None:
    """Raw scores decide, though what is told are ties."""
    plain = await ask(await on(store, model), request_id="plain")
    flat = await ask(await calibrated(store, model, FLAT))

    assert (ids(flat), {round(item.score, 6) for item in flat.ranked_items}) == (ids(plain), {0.3})


async def test_rules_weigh_what_is_told(store: Failing, model: Model) -> None:
    """An item that nobody saw is worth three quarters of the model's score of one that was seen: more than this one is told."""
    [seen] = (await ask(await on(store, model), "i1", request_id="plain")).ranked_items
    rules = Rules(cold_start=ColdStart(prior=0.75 * seen.score, weight=1, impressions=1))
    given = await ask(await calibrated(store, model, HALF, rules), "i1", "unseen")

    assert ids(given) == ["unseen", "i1"]


async def test_telemetry_tells_the_same_scores(store: Failing, model: Model) -> None:
    """What is trained on is what was served."""
    given = await answer(await calibrated(store, model, HALF))

    assert [item.score for item in telemetry(given).items] == [item.score for item in response(given.response).ranked_items]


async def test_what_was_read_lately_is_calibrated_too(store: Failing, model: Model) -> None:
    """The model goes on without the store, and so does what its scores mean."""
    ranker = await calibrated(store, model, HALF)
    before = await ask(ranker, request_id="before", user_id="nobody")
    store.read_fault = away
    given = await ask(ranker)

    assert (given.degraded, [item.score for item in given.ranked_items]) == (Degraded.STALE, [item.score for item in before.ranked_items])


async def test_popularity_is_a_click_rate_already(store: Failing, model: Model) -> None:
    """The bundle's snapshot is told as it is."""
    ranker = await calibrated(store, model, HALF)
    store.read_fault = away
    given = await ask(ranker, "i1", "i3", ts_ms=time.time_ns() // 1_000_000 - 3_600_000)

    assert [item.score for item in given.ranked_items] == pytest.approx([0.9, 0.5])
