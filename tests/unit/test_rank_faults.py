"""A rank request is answered whatever fails, in time, and without inventing or losing a candidate."""

import asyncio
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from online_store.keys import Generation
from ranker.budgets import BUDGETS
from ranker.kafka.sender import RankSettings, Sender
from ranker.kafka.worker import RankWorker
from ranker.rank import Ranker
from schemas import codec
from schemas.records import Degraded
from schemas.topics import StoredRecord
from tests.rankers import (
    ITEMS,
    Failing,
    Model,
    answer,
    ask,
    away,
    fill,
    hang,
    ids,
    on,
    request,
    response,
    slow,
    spoilt,
    telemetry,
    trained,
)

#: What no test waits for in vain (seconds).
PATIENCE_S = 30.0


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


@pytest.mark.parametrize("fault", [away, hang, spoilt])
async def test_without_the_store_known_items_go_by_popularity(ranker: Ranker, store: Failing, fault: Callable[[], None]) -> None:
    """The bundle's snapshot gives the order where it knows at least one candidate; unknown ones get the prior."""
    store.read_fault = fault
    given = await ask(ranker, "i0", "i1", "i3", deadline_ms=60)

    assert (given.degraded, ids(given)) == (Degraded.POPULARITY, ["i3", "i1", "i0"])


@pytest.mark.parametrize("fault", [away, hang, spoilt])
async def test_without_the_store_unknown_items_stay_in_order(ranker: Ranker, store: Failing, fault: Callable[[], None]) -> None:
    """Where nothing is known of any candidate, they come back as they were given."""
    store.read_fault = fault
    given = await ask(ranker, "x", "c", "m", "c", k=2, deadline_ms=60)

    assert (given.degraded, ids(given)) == (Degraded.INPUT_ORDER, ["x", "c"])


async def test_popularity_follows_what_was_read(ranker: Ranker, store: Failing) -> None:
    """Reads that succeed teach the fallback: of i0 and i2, the one that was clicked leads though the snapshot has neither.

    For each of those who fall back together.
    """
    await ask(ranker, "i0", "i2", request_id="before")
    store.read_fault = away
    given = await asyncio.gather(ask(ranker, "i0", "i2", "x", "y", "z"), ask(ranker, "x", "y", "i2", "z", "i0", request_id="r2"))

    assert [(one.degraded, ids(one)[0]) for one in given] == [(Degraded.POPULARITY, "i2")] * 2


async def test_without_the_store_what_was_read_lately_is_scored(ranker: Ranker, store: Failing) -> None:
    """The model goes on by the near cache: the order and the scores are those of a moment before, without the user's features."""
    before = await ask(ranker, request_id="before", user_id="nobody")
    store.read_fault = away
    given = await ask(ranker)

    assert (given.degraded, ids(given)) == (Degraded.STALE, ids(before))


async def test_what_comes_late_is_near_for_the_next(ranker: Ranker, store: Failing) -> None:
    """A request that a slow store was late for goes by popularity; what was read for it is scored when the store is away after that."""
    store.read_fault = slow
    given = [await ask(ranker, request_id="late")]
    store.read_fault = away
    async with asyncio.timeout(PATIENCE_S):
        while (last := await ask(ranker, request_id=f"r{len(given)}")).degraded != Degraded.STALE:
            given.append(last)
            await asyncio.sleep(0.01)

    assert {one.degraded for one in given} == {Degraded.POPULARITY}


@pytest.mark.parametrize(("read_fault", "keep_fault"), [(hang, hang), (hang, None), (None, hang)])
async def test_a_store_that_hangs_costs_no_more_than_the_deadline(
    ranker: Ranker, store: Failing, read_fault: Callable[[], None] | None, keep_fault: Callable[[], None] | None
) -> None:
    """Whether it hangs when it is read, when it keeps the answer, or both: the answer is there in time."""
    store.read_fault, store.keep_fault = read_fault, keep_fault
    begun_s = time.perf_counter()
    given = await ask(ranker, deadline_ms=300)

    assert (time.perf_counter() - begun_s < 5, given.degraded) == (True, Degraded.POPULARITY if read_fault else Degraded.NONE)


async def test_a_request_that_waited_past_its_deadline_is_not_read_for(ranker: Ranker, store: Failing) -> None:
    """In a backlog the fallback answers at once, and the answer is kept all the same."""
    late = await ranker.answer(request(deadline_ms=None), time.perf_counter() - BUDGETS.total_ms / 1_000)
    [kept] = await store.keep_answers([(b"answer::r1", b"")], 1_000)

    assert (response(late.response).degraded, late.response == kept) == (Degraded.POPULARITY, True)


async def test_a_fallback_has_no_vectors(ranker: Ranker, store: Failing) -> None:
    """Nothing was scored, so nothing may be learnt from: the telemetry says so by empty vectors and why."""
    store.read_fault = away
    told = telemetry(await answer(ranker))

    assert (told.degraded, {item.vector for item in told.items}) == (Degraded.POPULARITY, {b""})


@pytest.mark.parametrize("current", [None, Generation(2, "another registry")])
async def test_without_a_generation_of_ours_nothing_is_read(model: Model, current: Generation | None) -> None:
    """An empty store, or one whose records are laid out for another registry, is answered from the snapshot."""
    store = Failing()
    if current:
        await store.begin(current)

    assert (await ask(await on(store, model), "i1", "i3")).degraded == Degraded.POPULARITY


async def test_a_generation_that_begins_later_is_found(model: Model) -> None:
    """A ranker that started before the first event serves full answers once ingest has begun."""
    store = Failing()
    ranker = await on(store, model)
    await fill(store)
    await ranker.refresh()

    assert (await ask(ranker)).degraded == Degraded.NONE


async def test_a_store_that_is_away_does_not_lose_the_generation(ranker: Ranker, store: Failing) -> None:
    """What was known stays known: once the store is back, full answers are."""
    store.read_fault = away
    await ranker.refresh()
    store.read_fault = None

    assert (await ask(ranker)).degraded == Degraded.NONE


@given(
    st.lists(st.sampled_from([*ITEMS[:7], "new-1", "new-2"]), min_size=1, max_size=12),
    st.integers(1, 15),
    st.sampled_from([None, away, spoilt]),
)
def test_no_candidate_is_invented_or_lost(model: Model, candidates: list[str], k: int, fault: Callable[[], None] | None) -> None:
    """Whatever fails, the slate is min(k, distinct candidates) of the candidates, each once."""

    async def slate() -> list[str]:
        store = Failing()
        await fill(store)
        ranker = await on(store, model)
        store.read_fault = fault
        return ids(await ask(ranker, *candidates, k=k))

    given = asyncio.run(slate())

    assert (len(given), len(set(given)), set(given) <= set(candidates)) == (min(k, len(set(candidates))),) * 2 + (True,)


async def test_of_a_batch_by_kafka_each_is_sent_when_it_is_answered(
    ranker: Ranker, store: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has more time than the other holds that one up by nothing. Kafka is not there: what it would get is looked at."""
    sent: list[int] = []
    is_sent = asyncio.Event()

    def reply(_: Sender, record: StoredRecord, *__: object) -> None:
        sent.append(record.offset)
        is_sent.set()

    monkeypatch.setattr(Sender, "reply", reply)
    store.keep_fault = hang
    worker = RankWorker(RankSettings("127.0.0.1:1", "g"), ranker)
    asked = [request("i1", request_id=f"r{number}", deadline_ms=deadline_ms) for number, deadline_ms in enumerate((60_000, 100))]
    records = [StoredRecord("rank-requests", 0, row, one.ts_ms, None, codec.encode(one)) for row, one in enumerate(asked)]
    batch = asyncio.create_task(worker._answer(records, time.perf_counter()))  # noqa: SLF001  # the rest of it is Kafka
    await asyncio.wait_for(is_sent.wait(), PATIENCE_S)
    batch.cancel()

    assert sent == [1]
