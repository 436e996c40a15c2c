"""What an answered request leaves in memory: nothing that only a search for cycles would find, for those are seldom and stop everything."""

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable

import pytest

from ranker.rank import Ranker
from ranker.reads.asking import LATE_S
from tests.rankers import Failing, Model, ask, away, fill, hang, on, request, spoilt, trained

Play = Callable[[Ranker, Failing, str], Awaitable[None]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A small model over the default registry's features."""
    return trained(tmp_path_factory.mktemp("models"))


async def full(ranker: Ranker, _: Failing, name: str) -> None:
    """Some at once, two of them the same."""
    await asyncio.gather(*(ask(ranker, request_id=f"{name}{number % 3}") for number in range(4)))


async def repeated(ranker: Ranker, _: Failing, name: str) -> None:
    """One after its answer."""
    await ask(ranker, request_id=name)
    await ask(ranker, request_id=name)


async def without_store(ranker: Ranker, store: Failing, name: str) -> None:
    """The connection is lost, and nothing is near."""
    store.read_fault = store.keep_fault = away
    await ask(ranker, "x", request_id=name)


async def beside_a_spoilt_record(ranker: Ranker, store: Failing, name: str) -> None:
    """Two that share a read that cannot be used."""
    store.read_fault = spoilt
    await asyncio.gather(*(ask(ranker, "x", request_id=f"{name}{number}") for number in range(2)))


async def past_the_stores_time(ranker: Ranker, store: Failing, name: str) -> None:
    """The store says nothing."""
    store.read_fault = store.keep_fault = hang
    await ask(ranker, request_id=name)


async def past_its_own_time(ranker: Ranker, store: Failing, name: str) -> None:
    """In its read, by its own timer."""
    store.read_fault = hang
    await ask(ranker, request_id=name, deadline_ms=10)


async def cancelled(ranker: Ranker, store: Failing, name: str) -> None:
    """Before its read, in it, and once its answer is being kept."""
    store.read_fault = store.keep_fault = None
    for rounds in (1, 3, 7):
        call = asyncio.create_task(ranker.answer(request(request_id=f"{name}{rounds}"), time.perf_counter()))
        for _ in range(rounds):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])


@pytest.mark.parametrize(
    "play",
    [full, repeated, without_store, beside_a_spoilt_record, past_the_stores_time, past_its_own_time, cancelled],
    ids=lambda play: play.__name__,
)
async def test_an_answered_request_leaves_no_cycle(model: Model, play: Play) -> None:
    """Whether it was answered in full, fell back or was given up: all of it is gone with its last reference."""
    store = Failing()
    await fill(store)
    ranker = await on(store, model)
    await play(ranker, store, "before")
    # What it left under way ends meanwhile.
    await asyncio.sleep(2 * LATE_S)
    gc.collect()
    gc.disable()
    try:
        await play(ranker, store, "again")
        await asyncio.sleep(2 * LATE_S)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = [repr(found)[:200] for found in gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()

    assert left == []
