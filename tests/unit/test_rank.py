"""A rank request gets the model's own order, and the same answer when it is asked again."""

import asyncio
import dataclasses

import msgspec
import pytest

from online_store.memory import MemoryStore
from ranker.batch import longest_ctr_at
from ranker.rank import Answer, Ranker
from schemas import codec
from schemas.aggregates import ITEM
from schemas.errors import BundleError, DecodeError
from schemas.features import REGISTRY, Registry
from schemas.records import CANDIDATES_COUNT_MAX, Degraded, Reason
from tests.rankers import (
    ITEMS,
    Failing,
    Model,
    answer,
    ask,
    away,
    fill,
    ids,
    matrix,
    on,
    request,
    response,
    telemetry,
    trained,
)
from tests.worlds import NOW_MS


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


@pytest.fixture
async def ranker(store: Failing, model: Model) -> Ranker:
    """A ranker on that store, which knows its generation."""
    return await on(store, model)


async def test_a_full_answer_is_the_trainers_own_order(ranker: Ranker, store: Failing, model: Model) -> None:
    """Candidates come back in the order, and with the scores, that the booster itself gives to their vectors."""
    items = ITEMS[:7]
    scores = model.fitted.predict(await matrix(store, items, NOW_MS + 60_000))
    by_hand = sorted(zip(items, scores.tolist(), strict=True), key=lambda pair: -pair[1])
    given = await ask(ranker, *items)

    assert len(set(scores.tolist())) > 3, "the model must tell these items apart"
    assert (given.degraded, ids(given)) == (Degraded.NONE, [item for item, _ in by_hand])
    assert [item.score for item in given.ranked_items] == pytest.approx([score for _, score in by_hand], rel=1e-6)


async def test_a_response_says_where_it_came_from(ranker: Ranker, model: Model) -> None:
    """Model, registry, generation, the request's own ids and time are on every answer."""
    given = await ask(ranker, tenant="t")
    found = (given.request_id, given.user_id, given.tenant, given.ts_ms, given.model_version, given.feature_version, given.generation)

    assert found == ("r1", "u1", "t", NOW_MS + 60_000, model.bundle.manifest.model_version, REGISTRY.fingerprint, "g1")


async def test_a_candidate_named_twice_is_returned_once(ranker: Ranker) -> None:
    """Duplicates among the candidates are one item."""
    assert sorted(ids(await ask(ranker, "i1", "i2", "i1", "i2", "i2"))) == ["i1", "i2"]


async def test_k_beyond_the_candidates_returns_all(ranker: Ranker) -> None:
    """Asking for more than there are is no fault."""
    assert len(ids(await ask(ranker, "i1", "i2", "i3", k=100))) == 3


async def test_a_removed_item_is_never_returned(ranker: Ranker) -> None:
    """An item that was taken down stays away, though readers who still saw it went on clicking."""
    assert "i7" not in ids(await ask(ranker))


async def test_unknown_users_and_items_are_answered(ranker: Ranker) -> None:
    """Nothing known of anybody is zeros and missing values, not an error."""
    given = await ask(ranker, "nobody-saw-1", "nobody-saw-2", user_id="nobody")

    assert (given.degraded, sorted(ids(given))) == (Degraded.NONE, ["nobody-saw-1", "nobody-saw-2"])


async def test_telemetry_carries_the_vectors_that_were_scored(ranker: Ranker, store: Failing) -> None:
    """Bit for bit what the registry makes of the store, item by item in the order of the slate."""
    given = await answer(ranker, *ITEMS[:7])
    served = telemetry(given).items
    expected = await matrix(store, [item.item_id for item in served], NOW_MS + 60_000)

    assert [(item.position, item.vector) for item in served] == [(place, row.tobytes()) for place, row in enumerate(expected)]


async def test_telemetry_tells_of_the_response(ranker: Ranker) -> None:
    """Its items, scores and origin are the response's."""
    given = await answer(ranker)
    sent, told = response(given.response), telemetry(given)

    assert [(item.item_id, item.score) for item in told.items] == [(item.item_id, item.score) for item in sent.ranked_items]
    assert (told.request_id, told.model_version, told.generation, told.degraded) == ("r1", "m1", "g1", "NONE")


async def test_the_same_request_gets_the_same_bytes(ranker: Ranker) -> None:
    """Asked again, though with other candidates, the first answer comes back, and telemetry is not sent twice."""
    first, again = await answer(ranker), await answer(ranker, "i1")

    assert (again.response == first.response, again.telemetry) == (True, None)


async def test_another_worker_gives_the_same_bytes(ranker: Ranker, store: Failing, model: Model) -> None:
    """The answer is kept in the store: a second worker, or this one after a restart, repeats it."""
    first = await answer(ranker)

    assert await answer(await on(store, model)) == Answer(first.response, None)


async def test_two_workers_at_once_give_the_same_bytes(ranker: Ranker, store: Failing, model: Model) -> None:
    """Whoever keeps the answer first decides; the other sends that one, and no telemetry of its own."""
    first, second = await asyncio.gather(answer(ranker), answer(await on(store, model)))

    assert (first.response == second.response, [first.telemetry, second.telemetry].count(None)) == (True, 1)


async def test_one_request_twice_at_once_is_ranked_once(ranker: Ranker, store: Failing) -> None:
    """Two deliveries that arrive together get the same bytes, even with no store to agree on."""
    store.read_fault = store.keep_fault = away
    first, second = await asyncio.gather(answer(ranker), answer(ranker))

    assert (first.response == second.response, second.telemetry) == (True, None)


async def test_the_same_bytes_come_back_while_the_store_is_away(ranker: Ranker, store: Failing) -> None:
    """A worker remembers what it answered."""
    first = await answer(ranker)
    store.read_fault = store.keep_fault = away

    assert (await answer(ranker)).response == first.response


async def test_a_fallback_too_is_answered_the_same_again(ranker: Ranker, store: Failing) -> None:
    """An answer given without the store stands, though the store is back."""
    store.read_fault = store.keep_fault = away
    first = await answer(ranker)
    store.read_fault = store.keep_fault = None

    assert (await answer(ranker)).response == first.response


async def test_tenants_do_not_share_answers(ranker: Ranker) -> None:
    """One request_id of two tenants is two requests."""
    assert [(await ask(ranker, tenant=tenant)).tenant for tenant in ("a", "b")] == ["a", "b"]


async def test_answers_remembered_are_bounded(ranker: Ranker, store: Failing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the bound the oldest answer is forgotten here: the store still has it."""
    monkeypatch.setattr("ranker.reads.answers.ANSWERS_COUNT_MAX", 2)
    for number in range(3):
        await answer(ranker, request_id=f"r{number}")
    store.read_fault = store.keep_fault = away

    assert [(await ask(ranker, request_id=f"r{number}")).degraded for number in (2, 1, 0)] == ["NONE", "NONE", "STALE"]


def test_a_bundle_of_another_registry_is_refused(model: Model) -> None:
    """Its columns would be scored as if they were the model's."""
    other = Registry(REGISTRY.features[:-1], REGISTRY.statics)
    with pytest.raises(BundleError, match=f"was trained on registry {REGISTRY.fingerprint}, ours is {other.fingerprint}"):
        Ranker(MemoryStore(other), other, model.bundle)


def test_a_bundle_that_cannot_score_is_refused(model: Model) -> None:
    """Before the first request, not by it."""
    manifest = msgspec.structs.replace(model.bundle.manifest, feature_names=("one",))
    with pytest.raises(BundleError, match=r"the model takes \[n, 1\]"):
        Ranker(MemoryStore(REGISTRY), REGISTRY, dataclasses.replace(model.bundle, manifest=manifest))


def test_popularity_is_the_ctr_of_the_longest_window() -> None:
    """Of all item CTRs, that over 30 days; a registry without one teaches nothing."""
    at = longest_ctr_at(REGISTRY)

    assert (REGISTRY.ranking[REGISTRY.places[ITEM][at or 0]].name, longest_ctr_at(Registry(()))) == ("ctr_global_30d", None)


@pytest.mark.parametrize(
    ("fields", "reason", "detail"),
    [
        ({"candidate_item_ids": []}, Reason.OUT_OF_RANGE, "candidate_item_ids has 0 entries, 1 to 200"),
        ({"candidate_item_ids": ["i"] * 201}, Reason.OUT_OF_RANGE, "candidate_item_ids has 201 entries"),
        ({"k": 0}, Reason.OUT_OF_RANGE, "k is 0"),
        ({"k": -1}, Reason.OUT_OF_RANGE, "k is -1"),
        ({"deadline_ms": 0}, Reason.OUT_OF_RANGE, "deadline_ms 0"),
        ({"candidate_item_ids": ["i1", ""]}, Reason.MISSING_ID, "an empty id"),
        ({"candidate_item_ids": ["i" * 129]}, Reason.OVERSIZE, "longer than 128 bytes"),
        ({"candidate_item_ids": ["é" * 65]}, Reason.OVERSIZE, "longer than 128 bytes"),
    ],
)
def test_a_request_that_cannot_be_answered_says_why(fields: dict[str, object], reason: Reason, detail: str) -> None:
    """Its reason and the value at fault go to dead-letters."""
    with pytest.raises(DecodeError, match=detail) as refused:
        codec.check_request(msgspec.structs.replace(request(), **fields))

    assert refused.value.reason == reason


def test_the_largest_request_is_accepted() -> None:
    """200 candidates of 128 bytes, and no deadline of its own."""
    codec.check_request(request(*["i" * 128] * CANDIDATES_COUNT_MAX, deadline_ms=None))
