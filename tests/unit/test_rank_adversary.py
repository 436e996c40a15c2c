"""What somebody who wants a request unanswered, late or twice might try, and what comes of it."""

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

from ranker import metrics
from ranker.budgets import Budgets
from ranker.bundle import Sample
from ranker.rank import Ranker
from ranker.reads.breaker import FAILURES_MAX
from schemas.features import REGISTRY
from schemas.records import Degraded
from tests.rankers import ITEMS, Failing, Model, answer, ask, away, fill, hang, ids, on, response, trained


class Session:
    """A model's session that raises when told."""

    def __init__(self, session: Any) -> None:  # noqa: ANN401  # onnxruntime's own
        self._session = session
        self.fault: type[Exception] | None = None
        self.takes_s = 0.0

    def run(self, names: Sequence[str], inputs: dict[str, Any]) -> Any:  # noqa: ANN401  # as above
        """As InferenceSession.run."""
        time.sleep(self.takes_s)
        if self.fault:
            raise self.fault("out of order")
        return self._session.run(names, inputs)


class Counting(Failing):
    """A store that counts calls that keep answers, and keeps what it is told to in their place."""

    def __init__(self) -> None:
        super().__init__()
        self.keeps = 0
        self.garbage: Callable[[bytes], bytes] | None = None

    async def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """As MemoryStore.read, or what stands there is no record."""
        found = await super().read(keys)
        return found if self.garbage is None else [self.garbage(key) for key in keys]

    async def keep_answers(self, answers: Sequence[tuple[bytes, bytes]], ttl_ms: int) -> list[bytes]:
        """As MemoryStore.keep_answers."""
        self.keeps += 1
        return await super().keep_answers(answers, ttl_ms)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A small model over the default registry's features."""
    return trained(tmp_path_factory.mktemp("models"))


@pytest.fixture
async def store() -> Counting:
    """A store that works until told otherwise."""
    found = Counting()
    await fill(found)
    return found


@pytest.fixture
async def ranker(store: Counting, model: Model) -> Ranker:
    """A ranker on that store, which knows its generation."""
    return await on(store, model)


async def by_session(store: Failing, model: Model, budgets: Budgets) -> tuple[Ranker, Session]:
    """A ranker whose model is left to ONNX Runtime, and its session."""
    session = Session(model.bundle.session)
    # A sample of other columns proves no bit vectors.
    other = Sample(model.bundle.sample.features[:, :1], model.bundle.sample.scores)
    ranker = Ranker(store, REGISTRY, dataclasses.replace(model.bundle, session=session, sample=other), budgets)
    await ranker.refresh()
    return ranker, session


def counted(counter: Any, label: str) -> float:  # noqa: ANN401  # prometheus_client's own
    """What a counter stands at."""
    return float(counter.labels(label)._value.get())  # noqa: SLF001  # it has no other way to ask


@pytest.mark.parametrize(("fault", "is_told"), [(RuntimeException, False), (ZeroDivisionError, True)])
async def test_a_model_that_raises_is_answered_without_it(store: Counting, model: Model, fault: type[Exception], is_told: bool) -> None:  # noqa: FBT001  # a case
    """By popularity: at once where ONNX Runtime refuses, inside the deadline where nobody thought of it, and then the loop is told."""
    ranker, session = await by_session(store, model, Budgets())
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    session.fault = fault
    given = await ask(ranker, "x", "i1", "i3", deadline_ms=60)

    assert (given.degraded, sorted(ids(given)), bool(told)) == (Degraded.POPULARITY, ["i1", "i3", "x"], is_told)


async def test_a_model_that_recovers_answers_in_full(store: Counting, model: Model) -> None:
    """The request after its last failure."""
    ranker, session = await by_session(store, model, Budgets())
    session.fault = RuntimeException
    failed = await ask(ranker, request_id="before")
    session.fault = None

    assert (failed.degraded, (await ask(ranker)).degraded) == (Degraded.POPULARITY, Degraded.NONE)


async def test_a_stage_over_its_budget_is_counted(store: Counting, model: Model) -> None:
    """A model cannot be interrupted, and a store is not waited for: both are seen."""
    ranker, session = await by_session(store, model, Budgets(store_ms=1, score_ms=1))
    before = [counted(metrics.OVER_BUDGET, stage) for stage in ("score", "store")]
    session.takes_s = 0.002
    await ask(ranker, request_id="slow")
    store.read_fault = hang
    await ask(ranker, "x")

    assert [counted(metrics.OVER_BUDGET, stage) for stage in ("score", "store")] == [before[0] + 1, before[1] + 1]


async def test_a_batch_is_timed_once_a_stage(ranker: Ranker) -> None:
    """Not each of its requests."""
    stages = [metrics.QUEUE, metrics.STORE, metrics.VECTOR, metrics.SCORE, metrics.CALIBRATE, metrics.SLATE, metrics.ENCODE, metrics.KEEP]

    def observed() -> list[float]:
        return [sum(bucket.get() for bucket in stage._buckets) for stage in stages]  # noqa: SLF001  # it has no other way to ask

    before = observed()
    await asyncio.gather(*(ask(ranker, request_id=f"r{number}") for number in range(20)))

    assert [after - first for first, after in zip(before, observed(), strict=True)] == [1] * len(stages)


@given(st.binary(max_size=600), st.booleans())
def test_records_of_garbage_are_answered(model: Model, garbage: bytes, is_long: bool) -> None:  # noqa: FBT001  # a case
    """Bytes of any sort under every key, also where they are as long as a record and begin like one."""

    async def answered() -> list[str]:
        store = Counting()
        await fill(store)
        plain = next(iter((await store.read([key async for key in store.records(await store.begin(None))])) or [b""])) or b""  # type: ignore[arg-type]  # it has begun
        forged = plain[:1] + (garbage * (len(plain) // max(len(garbage), 1) + 1))[: len(plain) - 1]
        ranker = await on(store, model)
        store.garbage = lambda _: forged if is_long else garbage
        return ids(await ask(ranker, *ITEMS))

    assert set(asyncio.run(answered())) <= set(ITEMS)


async def test_a_kept_answer_that_is_none_is_not_repeated(ranker: Ranker, store: Counting) -> None:
    """Something else wrote under the request's key: the answer is ours."""
    await store.keep_answers([(b"answer::r1", b"not an answer")], 1_000)
    given = await answer(ranker)

    assert (response(given.response).request_id, given.telemetry is not None) == ("r1", True)


async def test_telemetry_goes_to_the_one_who_stays(ranker: Ranker) -> None:
    """The first of two who wait for one answer gives up: what the other one is served is still told."""
    calls = [asyncio.create_task(answer(ranker)) for _ in range(2)]
    await asyncio.sleep(0)
    calls[0].cancel()

    assert (await calls[1]).telemetry is not None


async def test_who_asks_again_after_giving_up_is_answered(ranker: Ranker) -> None:
    """Though the call that was given up still stands in the queue, and however short the time is."""
    call = asyncio.create_task(answer(ranker))
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])

    assert (await ask(ranker, deadline_ms=1)).request_id == "r1"


@pytest.mark.parametrize("rounds", range(1, 3))
async def test_who_gives_up_while_the_store_reads_leaves_no_answer(ranker: Ranker, store: Counting, rounds: int) -> None:
    """Nothing is encoded or kept for nobody."""
    call = asyncio.create_task(answer(ranker))
    for _ in range(rounds):
        await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])
    await asyncio.sleep(0.01)

    assert (store.keeps, ranker._calls) == (0, {})  # noqa: SLF001  # what it still holds is not to be seen from outside


async def test_ten_thousand_at_once_are_answered(ranker: Ranker, store: Counting) -> None:
    """Each of them; the store is not asked to keep them one by one, and nothing of them stays under way."""
    count = 10_000
    given = await asyncio.gather(*(answer(ranker, "i1", "i2", request_id=f"r{number}", deadline_ms=80) for number in range(count)))
    names = {response(one.response).request_id for one in given}

    assert (len(names), store.keeps < count / 20, ranker._calls) == (count, True, {})  # noqa: SLF001  # as above


async def test_a_store_that_is_left_alone_still_says_what_was_answered(ranker: Ranker, store: Counting, model: Model) -> None:
    """Another worker, which could not read for it, gives the first answer's bytes."""
    first = await answer(ranker, request_id="first")
    other = await on(store, model)
    store.read_fault = away
    for number in range(FAILURES_MAX):
        await ask(other, request_id=f"r{number}")
    again = await answer(other, request_id="first")

    assert (again.response, again.telemetry) == (first.response, None)
