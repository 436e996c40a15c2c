"""Requests that come together are ranked together, and none of them at the cost of another."""

import asyncio
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from online_store.keys import Entity, record_key
from ranker.batch import Pipeline
from ranker.budgets import BUDGETS
from ranker.queue import BATCH_COUNT_MAX, SHARED_COUNT
from ranker.rank import Answer, Ranker
from ranker.reads import breaker
from ranker.reads.asking import LATE_S
from ranker.reads.breaker import FAILURES_MAX
from ranker.reads.near import NEAR_MS
from schemas.records import Degraded
from schemas.windows import MINUTE_MS
from tests.rankers import (
    GENERATION,
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
    stand_still,
    trained,
)
from tests.worlds import NOW_MS

ITEM_KEY = b"item:"
#: Longer than anything here takes (seconds).
PATIENCE_S = 10.0
#: Candidates, and what else a request says.
Wish = tuple[tuple[str, ...], dict[str, object]]


class Watched(Failing):
    """A store that notes the keys of each read, and takes some for no record of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[list[bytes]] = []
        self.spoilt: bytes | None = None

    async def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """As MemoryStore.read."""
        self.reads.append(list(keys))
        return [b"spoilt" if key == self.spoilt else found for key, found in zip(keys, await super().read(keys), strict=True)]

    @property
    def items_read(self) -> list[bytes]:
        """The items' keys of all reads."""
        return [key for keys in self.reads for key in keys if key.startswith(ITEM_KEY)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A small model over the default registry's features."""
    return trained(tmp_path_factory.mktemp("models"))


@pytest.fixture
async def store() -> Watched:
    """A store with a past."""
    found = Watched()
    await fill(found)
    return found


@pytest.fixture
async def ranker(store: Watched, model: Model) -> Ranker:
    """A ranker on that store, which knows its generation and has read what is popular."""
    found = await on(store, model)
    store.reads.clear()
    return found


async def all_of(ranker: Ranker, *requests: Wish) -> list[Answer]:
    """The answers of requests that come at once."""
    now_s = time.perf_counter()
    calls = [ranker.answer(request(*items, **{"request_id": f"r{number}", **rest}), now_s) for number, (items, rest) in enumerate(requests)]
    return await asyncio.gather(*calls)


async def test_requests_that_come_at_once_share_a_read(ranker: Ranker, store: Watched) -> None:
    """And what several of them want is read once."""
    wishes: list[Wish] = [(("i1", "i2"), {"user_id": f"u{number}"}) for number in range(20)]
    await all_of(ranker, *wishes)

    assert (len(store.reads), len(store.items_read)) == (1, 2)


async def test_requests_behind_a_slow_read_share_the_next(ranker: Ranker, store: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that come one after the other: many small ones would not make the store quicker."""
    # The window behind it lasts through what this machine may stand still for; what is slow stays below a read that hangs.
    monkeypatch.setattr("ranker.queue.WINDOW_S", 0.5)
    monkeypatch.setattr("ranker.queue.WAITING_S_MAX", 5.0)
    store.read_fault = hang
    await ask(ranker, "i1", request_id="slow")
    store.read_fault = None
    monkeypatch.setattr("ranker.queue.WINDOW_S", BUDGETS.store_ms / 2_000)
    asked = []
    for number in range(3):
        asked.append(asyncio.create_task(ask(ranker, "i1", user_id=f"u{number}", request_id=f"r{number}")))
        await asyncio.sleep(0.002)
    await asyncio.gather(*asked)

    assert [sum(not key.startswith(ITEM_KEY) for key in keys) for keys in store.reads] == [1, 3]


@pytest.mark.parametrize("is_patient", [True, False])
async def test_who_is_asked_for_twice_is_as_patient_as_either(ranker: Ranker, *, is_patient: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody waits for it on a connection, whoever else does not mind."""
    monkeypatch.setattr("ranker.queue.WINDOW_S", 3_600.0)
    monkeypatch.setattr("ranker.queue.WAITING_S_MAX", 10.0)
    await ask(ranker, "i1", request_id="before")
    answers: asyncio.Queue[Answer] = asyncio.Queue()
    for patience in (True, is_patient):
        ranker.ask(request("i1", deadline_ms=400), time.perf_counter(), answers.put_nowait, is_patient=patience)

    assert response((await answers.get()).response).degraded == (Degraded.POPULARITY if is_patient else Degraded.NONE)


async def test_many_who_wait_are_read_for_at_once(ranker: Ranker, store: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """However patient they are: company is there."""
    monkeypatch.setattr("ranker.queue.WINDOW_S", 3_600.0)
    await ask(ranker, "i1", request_id="before")
    answers: asyncio.Queue[Answer] = asyncio.Queue()
    for number in range(SHARED_COUNT):
        ranker.ask(request("i1", user_id=f"u{number}", request_id=f"r{number}"), time.perf_counter(), answers.put_nowait, is_patient=True)

    assert {response((await answers.get()).response).degraded for _ in range(SHARED_COUNT)} == {Degraded.NONE}
    assert [sum(not key.startswith(ITEM_KEY) for key in keys) for keys in store.reads] == [1, SHARED_COUNT]


async def test_where_many_wait_the_store_is_asked_for_the_next_before_a_batch_is_ranked(
    ranker: Ranker, store: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads for those while these are ranked."""
    happened: list[str] = []

    def noted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*args: object) -> object:
            happened.append(name)
            return call(*args)

        return noting

    monkeypatch.setattr(store, "read", noted("read", store.read))
    monkeypatch.setattr(Pipeline, "rank", noted("rank", Pipeline.rank))
    wishes: list[Wish] = [(("i1",), {"user_id": f"u{number}"}) for number in range(BATCH_COUNT_MAX + SHARED_COUNT)]
    await all_of(ranker, *wishes)

    assert happened == ["read", "read", "rank", "rank"]


async def test_each_request_gets_its_own_slate(ranker: Ranker) -> None:
    """What a batch answers is what each request would be answered alone."""
    asked: list[Wish] = [(("i1", "i2", "i3"), {"user_id": "u1"}), (("i3",), {}), (("i5", "i4", "i1"), {"user_id": "u2", "k": 2})]
    together = [response(answer.response).ranked_items for answer in await all_of(ranker, *asked)]
    alone = [(await ask(ranker, *items, **rest, request_id=f"a{number}")).ranked_items for number, (items, rest) in enumerate(asked)]

    assert together == alone


async def test_each_request_falls_back_as_far_as_it_must(ranker: Ranker, store: Watched) -> None:
    """What a batch answers without the store is what each request would be answered alone, be little, much or all of it near."""
    await ask(ranker, "i1", "i2", "i3", request_id="before")
    store.read_fault = away
    asked: list[Wish] = [(("i3", "i1", "i2"), {}), (("x", "y", "i1"), {}), (("x", "i2", "i1"), {"k": 2}), (("x", "y"), {})]
    together = [response(answer.response) for answer in await all_of(ranker, *asked)]
    alone = [await ask(ranker, *items, **rest, request_id=f"a{number}") for number, (items, rest) in enumerate(asked)]

    assert [one.degraded for one in together] == ["STALE", "POPULARITY", "STALE", "INPUT_ORDER"]
    assert [one.ranked_items for one in together] == [one.ranked_items for one in alone]


async def test_what_was_read_just_now_is_not_read_again(ranker: Ranker, store: Watched) -> None:
    """Of the second request only the user and the item that is new."""
    await ask(ranker, "i1", "i2", request_id="before")
    await ask(ranker, "i1", "i2", "i3")

    assert [len(keys) for keys in store.reads] == [3, 2]


async def test_what_is_read_again_is_scored_anew(ranker: Ranker, store: Watched, model: Model) -> None:
    """Where an item is not what it was, as by a ranker that reads it for the first time: an hour after they were shown, and before that."""
    past, now = NOW_MS + 50 * MINUTE_MS, NOW_MS + 61 * MINUTE_MS
    before = await ask(ranker, *reversed(ITEMS), ts_ms=past, request_id="before")
    again = await ask(ranker, "new", *ITEMS, ts_ms=now, request_id="again")
    anew = await ask(await on(store, model), "new", *ITEMS, ts_ms=now, request_id="anew")

    assert again.ranked_items == anew.ranked_items
    assert before.ranked_items[1].item_id == again.ranked_items[2].item_id == "i5"


@pytest.mark.parametrize(("spoilt", "again"), [(None, ["x"]), ("i2", ["i1", "i2", "x"])])
async def test_what_came_late_is_not_read_again(ranker: Ranker, store: Watched, spoilt: str | None, again: list[str]) -> None:
    """What was there, that is, and if all of it was a record: who reads the others in time sees to them."""
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    store.read_fault = slow
    store.spoilt = record_key(GENERATION, Entity("", "item", spoilt)) if spoilt else None
    await ask(ranker, "i1", "i2", "x", request_id="late")
    await asyncio.sleep(LATE_S)
    store.read_fault = store.spoilt = None
    store.reads.clear()
    await ask(ranker, "i1", "i2", "x")

    assert (store.items_read, faults) == ([record_key(GENERATION, Entity("", "item", item)) for item in again], [])


async def test_what_came_while_this_process_stood_still_is_in_time(ranker: Ranker, store: Watched) -> None:
    """When the loop finds that a read's time is over, its answer may lie in a socket that nobody had a look at."""
    store.read_fault = stand_still

    assert (await ask(ranker, "i1")).degraded == Degraded.NONE


async def test_what_is_asked_as_of_another_moment_is_read_again(ranker: Ranker, store: Watched) -> None:
    """Windows move on with the request's own time, whatever the clock says."""
    await ask(ranker, "i1", request_id="before")
    await ask(ranker, "i1", ts_ms=NOW_MS + 60_000 + NEAR_MS + 1)

    assert len(store.items_read) == 2


async def test_a_spoilt_record_costs_those_alone_that_ask_for_it(ranker: Ranker, store: Watched) -> None:
    """The others of its batch are answered in full."""
    store.spoilt = record_key(GENERATION, Entity("", "item", "i2"))
    answers = await all_of(ranker, (("i1",), {}), (("i1", "i2", "i3"), {}), (("i3",), {}))

    assert [response(answer.response).degraded for answer in answers] == [Degraded.NONE, Degraded.POPULARITY, Degraded.NONE]


async def test_a_caller_who_is_gone_is_not_read_for(ranker: Ranker, store: Watched) -> None:
    """One who leaves before the read leaves nothing behind."""
    told: list[Answer] = []
    ranker.ask(request("i1"), time.perf_counter(), told.append)()
    given = await ask(ranker, "i3", request_id="after")

    assert (len(store.items_read), given.degraded, told) == (1, Degraded.NONE, [])


async def test_who_cancels_leaves(ranker: Ranker, store: Watched) -> None:
    """One that was ahead of it in the queue is read for, it is not."""
    first = asyncio.create_task(ask(ranker, "i1", request_id="first"))
    await asyncio.sleep(0)
    call = asyncio.create_task(ranker.answer(request("i2"), time.perf_counter()))
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([first, call])
    await ask(ranker, "i3", request_id="after")

    assert len(store.items_read) == 2


async def test_a_caller_who_is_gone_costs_another_one_nothing(ranker: Ranker) -> None:
    """Of two who wait for one answer, the one who stays gets it."""
    calls = [asyncio.create_task(ranker.answer(request("i1"), time.perf_counter())) for _ in range(2)]
    await asyncio.sleep(0)
    calls[0].cancel()

    assert response((await calls[1]).response).degraded == Degraded.NONE


async def test_a_front_end_that_fails_costs_another_one_nothing(ranker: Ranker) -> None:
    """Of two whose answers are kept in one call, the one behind is told when its time is over."""
    told: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def fail(_: Answer) -> None:
        raise ZeroDivisionError

    ranker.ask(request("i1", request_id="fails"), time.perf_counter(), fail)
    ranker.ask(request("i2", request_id="behind", deadline_ms=200), time.perf_counter(), told.set_result)
    given = await asyncio.wait_for(told, PATIENCE_S)

    assert response(given.response).degraded == Degraded.NONE


async def test_a_full_queue_sheds_to_the_fallback(ranker: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not to an error, and not those who wait already."""
    monkeypatch.setattr("ranker.queue.WAITING_COUNT_MAX", 2)
    answers = await all_of(ranker, (("i1",), {}), (("i2",), {}), (("i3", "x"), {}), (("i1", "i4", "i3"), {}))
    given = [response(answer.response) for answer in answers]

    assert [one.degraded for one in given] == ["NONE", "NONE", "POPULARITY", "POPULARITY"]
    assert [ids(one) for one in given] == [["i1"], ["i2"], ["i3", "x"], ["i3", "i1", "i4"]]


async def test_who_gave_up_in_the_queue_is_not_answered(ranker: Ranker, store: Watched) -> None:
    """Nor is an answer kept that nobody got, when its time is over: asked again, it is ranked."""
    store.read_fault = hang
    first = asyncio.create_task(ask(ranker, "i1", request_id="first"))
    await asyncio.sleep(0.001)
    leaving = asyncio.create_task(ask(ranker, "i2", request_id="left", deadline_ms=10))
    await asyncio.sleep(0.001)
    leaving.cancel()
    await first

    assert await store.keep_answers([(b"answer::left", b"another")], 1_000) == [b"another"]


async def test_who_is_turned_away_waits_for_nobody(ranker: Ranker, store: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only for the store, which may have another answer; asked again, it is the same one."""
    monkeypatch.setattr("ranker.queue.WAITING_COUNT_MAX", 1)
    store.read_fault = hang
    first = asyncio.create_task(ask(ranker, "i1", request_id="first", deadline_ms=3_600_000))
    asking = asyncio.create_task(ranker.answer(request("i3", deadline_ms=3_600_000), time.perf_counter()))
    turned_away = await asyncio.wait_for(asking, PATIENCE_S)
    is_first_done = first.done()
    first.cancel()

    assert (response(turned_away.response).degraded, is_first_done) == (Degraded.POPULARITY, False)
    assert await ranker.answer(request("i3"), time.perf_counter()) == Answer(turned_away.response, None)


async def test_who_is_turned_away_repeats_what_another_worker_answered(
    ranker: Ranker, store: Watched, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backlog that is read again after a crash is more than can be ranked in time, and was answered already."""
    before = await answer(ranker, "i3", "i2")
    other = await on(store, model)
    monkeypatch.setattr("ranker.queue.WAITING_COUNT_MAX", 1)
    store.keep_fault = slow
    _, given = await all_of(other, (("i1",), {"request_id": "first"}), (("i3", "i2"), {"request_id": "r1", "deadline_ms": 3_600_000}))

    assert given == Answer(before.response, None)


async def test_who_waited_too_long_is_turned_away_unread(ranker: Ranker, store: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, not when its deadline is near."""
    monkeypatch.setattr("ranker.queue.Queue._is_late", lambda *_: True)
    async with asyncio.timeout(PATIENCE_S):
        given = await ask(ranker, "i1", "i2", deadline_ms=int(10_000 * PATIENCE_S))

    assert (given.degraded, store.reads) == (Degraded.POPULARITY, [])


async def test_what_it_takes_to_keep_answers_counts(ranker: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes while another one waits is turned away where the store would take longer than there is time; so is who waited for it."""
    monkeypatch.setattr(ranker._answers, "keep_s", 60.0)  # noqa: SLF001  # what a slow store would make it
    first = await all_of(ranker, *[(("i1",), {})] * 2)
    monkeypatch.setattr("ranker.queue.WAITING_S_MAX", -1.0)
    waited = await ask(ranker, "i1", request_id="r2")

    assert [response(answer.response).degraded for answer in first] == ["NONE", "POPULARITY"]
    assert waited.degraded == Degraded.POPULARITY


async def test_a_queue_that_does_not_get_on_sheds_to_the_fallback(ranker: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
    """However short it is: who came first has waited for too long, and so would they."""
    monkeypatch.setattr("ranker.queue.WAITING_S_MAX", -1.0)
    answers = await all_of(ranker, *[(("i1",), {})] * 3)

    assert [response(answer.response).degraded for answer in answers] == ["NONE", "POPULARITY", "POPULARITY"]


async def test_a_store_that_fails_is_left_alone(ranker: Ranker, store: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """After failures in a row nobody waits for it; each of them was one try and one more."""
    monkeypatch.setattr(breaker, "random", SimpleNamespace(uniform=lambda *_: 1_000.0))  # no pause ends, on however slow a machine
    store.read_fault = away
    for number in range(FAILURES_MAX + 3):
        await ask(ranker, request_id=f"r{number}")

    assert len(store.reads) == 2 * FAILURES_MAX
