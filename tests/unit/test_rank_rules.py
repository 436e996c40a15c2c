"""Rules and consent on the whole way from a request to its answer."""

import numpy as np
import pytest

from online_store.record import direction
from ranker.slate.rules import Cap, Diversity, Exploration, Rules, Safety
from schemas.aggregates import USER
from schemas.features import REGISTRY
from schemas.records import Consent, Degraded
from tests.rankers import GENERATION, ITEMS, Failing, Model, answer, ask, away, fill, ids, matrix, on, request, response, telemetry, trained
from tests.worlds import NOW_MS, Log, content, replay, user


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A small model over the default registry's features."""
    return trained(tmp_path_factory.mktemp("models"))


async def filled(*more: object) -> Failing:
    """The store of tests/rankers.py, with more records behind."""
    store, log = Failing(), Log()
    await fill(store)
    for record in more:
        log.add(record, partition=1)  # type: ignore[arg-type]  # content and users, all of them
    await replay(log, store)
    return store


async def test_a_cap_reaches_the_answer(model: Model) -> None:
    """All items are of one author: two stand first, the cap is given up for the rest, and each says so."""
    ranker = await on(await filled(), model, Rules(caps=(Cap(of="author", count=2, window=4),)))
    given = await ask(ranker, k=4)

    assert [item.reasons for item in given.ranked_items] == [[], [], ["CAP_RELAXED"], ["CAP_RELAXED"]]


async def test_unsafe_items_stay_out_of_fallbacks_too(model: Model) -> None:
    """An item whose label is known from before is not shown while the store is away either."""
    store = await filled(content("i3", NOW_MS + 1, safety_labels=["nsfw"]))
    ranker = await on(store, model, Rules(safety=Safety(labels={"*": ("nsfw",)})))
    before = ids(await ask(ranker))
    store.read_fault = away
    stale, unread = await ask(ranker, request_id="r2"), await ask(ranker, "i3", "x1", "x2", "x3", request_id="r3")

    assert "i3" not in before
    assert (stale.degraded, "i3" in ids(stale)) == (Degraded.STALE, False)
    assert (unread.degraded, sorted(ids(unread))) == (Degraded.POPULARITY, ["x1", "x2", "x3"])


async def test_who_wants_no_personalization_is_nobody(model: Model) -> None:
    """The same scores as for a stranger, though the store knows them; every item says so, and telemetry has the vector that was scored."""
    store = await filled(user("u1", NOW_MS + 1, consent=Consent(personalization=False)))
    ranker = await on(store, model)
    given, stranger = await answer(ranker, *ITEMS[:3]), await ask(ranker, *ITEMS[:3], request_id="r2", user_id="stranger")
    said = response(given.response)
    of_user = np.frombuffer(telemetry(given).items[0].vector, "<f4")[REGISTRY.places[USER]]
    expected = (await matrix(store, ITEMS[:1], NOW_MS + 60_000, "stranger"))[0, REGISTRY.places[USER]]

    assert [(item.item_id, item.score) for item in said.ranked_items] == [(item.item_id, item.score) for item in stranger.ranked_items]
    assert {tuple(item.reasons) for item in said.ranked_items} == {("UNPERSONALIZED",)}
    assert of_user.tobytes() == expected.tobytes()


async def test_propensities_are_logged(model: Model) -> None:
    """Telemetry says how likely each place was."""
    ranker = await on(await filled(), model, Rules(exploration=Exploration(epsilon=0.5, first=2)))
    told = telemetry(await answer(ranker, *ITEMS[:4]))

    assert [item.propensity < 1 for item in told.items] == [True, True, False, False]


async def test_embeddings_come_from_content(model: Model) -> None:
    """Diversity works by what content records say."""
    vectors = {"i0": [1.0, 0.0], "i1": [1.0, 0.1], "i2": [0.0, 1.0], "i3": [1.0, 0.05]}
    store = await filled(*(content(item, NOW_MS + 1, content_embedding=vector) for item, vector in vectors.items()))
    ranker = await on(store, model, Rules(diversity=Diversity(weight=1.0, first=2)))
    given = await ask(ranker, *vectors)

    assert "i2" in ids(given)[:2]


async def test_an_explanation_is_what_would_be_answered(model: Model) -> None:
    """Places, scores and reasons as the answer has them."""
    ranker = await on(await filled(), model, Rules(caps=(Cap(of="author", count=1, window=3),)))
    asked = request(request_id="r9", k=5)
    told = await ranker.explain(asked)
    given = await ask(ranker, request_id="r9", k=5)
    placed = sorted((item["place"], item["item_id"], list(item["reasons"])) for item in told["items"] if item["place"])

    assert placed == [(place, item.item_id, item.reasons) for place, item in enumerate(given.ranked_items, 1)]
    assert told["generation"] == GENERATION.name


def test_a_long_embedding_keeps_its_likeness() -> None:
    """Folded to what a record keeps, alike stays alike and unlike unlike; what is no direction is none."""
    random = np.random.default_rng(5)
    one, other = random.normal(size=768), random.normal(size=768)
    near = one + 0.2 * random.normal(size=768)

    def likeness(left: np.ndarray, right: np.ndarray) -> float:
        return float(direction(left.tolist()).astype(int) @ direction(right.tolist()).astype(int)) / 127**2

    assert likeness(one, near) > 0.9
    assert abs(likeness(one, other)) < 0.4
    assert not direction([float("nan"), 1.0]).any()
