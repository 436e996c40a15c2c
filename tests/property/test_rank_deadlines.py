"""Every rank request is answered inside its own deadline, whatever the store does and whoever gives up: in virtual time, to the bit."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranker.rank import KEEP_MS_MIN, Answer, Ranker
from schemas.errors import StoreAwayError, StoreError
from schemas.records import Degraded
from tests.rankers import ITEMS, Failing, fill, ids, on, request, response, trained
from tests.simulation.clock import VirtualLoop, run_virtual

#: Deadlines from here on are held (milliseconds): a shorter one may be late by what keeping an answer is given at least.
DEADLINE_MS_MIN = 16
#: Virtual time is exact but for the rounding of sums (seconds).
EXACT_S = 1e-6
FOR_EVER_MS = 3_600_000


class Fault(NamedTuple):
    """What a call to the store comes to. blocks_ms: how long the whole process stands still in it."""

    takes_ms: int = 0
    error: type[StoreError] | None = None
    blocks_ms: int = 0


class Wish(NamedTuple):
    """One who asks. gives_up_ms: after how long, None for one who waits."""

    at_ms: int
    request_id: str
    items: tuple[str, ...]
    deadline_ms: int | None
    gives_up_ms: int | None = None


class Got(NamedTuple):
    """Their answer, and how long before their deadline it was there; None for one who gave up."""

    wish: Wish
    answer: Answer | None
    left_s: float


class Moody(Failing):
    """A store of which each call goes by the next fault of a list, and by the last one from then on."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[Fault] = []
        self.blocked_s = 0.0

    async def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """As MemoryStore.read."""
        await self._suffer()
        return await super().read(keys)

    async def keep_answers(self, answers: Sequence[tuple[bytes, bytes]], ttl_ms: int) -> list[bytes]:
        """As MemoryStore.keep_answers."""
        await self._suffer()
        return await super().keep_answers(answers, ttl_ms)

    async def _suffer(self) -> None:
        fault = (self.faults.pop(0) if len(self.faults) > 1 else self.faults[0]) if self.faults else Fault()
        await asyncio.sleep(fault.takes_ms / 1000)
        if fault.blocks_ms:
            stand_still(fault.blocks_ms)
            self.blocked_s += fault.blocks_ms / 1000
            await asyncio.sleep(0)
        if fault.error:
            raise fault.error("as told")


@dataclass
class World:
    """A ranker on a moody store."""

    store: Moody
    ranker: Ranker

    async def ask(self, wish: Wish) -> Got:
        """Ask as somebody wishes."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(wish.at_ms / 1000)
        begun_s = loop.time()
        asked = request(*wish.items, request_id=wish.request_id, deadline_ms=wish.deadline_ms)
        try:
            async with asyncio.timeout(None if wish.gives_up_ms is None else wish.gives_up_ms / 1000):
                answer = await self.ranker.answer(asked, begun_s)
        except TimeoutError:
            return Got(wish, None, 0.0)
        return Got(wish, answer, (wish.deadline_ms or 80) / 1000 - (loop.time() - begun_s))

    async def all_of(self, *wishes: Wish) -> list[Got]:
        """What everybody got."""
        return await asyncio.gather(*map(self.ask, wishes))


def stand_still(ms: int) -> None:
    """The process does something else for so long."""
    cast("VirtualLoop", asyncio.get_running_loop())._idle.now_s += ms / 1000  # noqa: SLF001  # the tests' own loop


#: Faults of the store, and what happens in a world that has them; gives what that gives.
Play = Callable[[Sequence[Fault], Callable[[World], Awaitable[Any]]], Any]


@contextmanager
def virtual_clocks() -> Iterator[None]:
    """The ranker's clocks are the loop's."""

    def now_s() -> float:
        return asyncio.get_running_loop().time()

    clock = SimpleNamespace(perf_counter=now_s, monotonic=now_s, time_ns=lambda: int(now_s() * 1e9))
    with pytest.MonkeyPatch.context() as patch:
        for module in ("rank", "batch", "reads.reader"):
            patch.setattr(f"ranker.{module}.time", clock)
        yield


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Play:
    """What comes of a ranker whose store goes by some faults once it has started."""
    model = trained(tmp_path_factory.mktemp("models"))

    def played(faults: Sequence[Fault], then: Callable[[World], Awaitable[Any]]) -> Any:  # noqa: ANN401  # what `then` returns
        async def main() -> Any:  # noqa: ANN401  # as above
            store = Moody()
            await fill(store)
            world = World(store, await on(store, model))
            store.faults = list(faults)
            return await then(world)

        with virtual_clocks():
            return run_virtual(main())

    return played


faults = st.builds(
    Fault,
    st.sampled_from([0, 0, 1, 5, 24, 26, 40, 200, FOR_EVER_MS]),
    st.sampled_from([None, None, None, StoreAwayError, StoreError]),
    st.just(0),
)
wishes = st.builds(
    Wish,
    st.integers(0, 120),
    st.sampled_from([f"r{number}" for number in range(12)]),
    st.lists(st.sampled_from([*ITEMS[:7], "new"]), min_size=1, max_size=6).map(tuple),
    st.one_of(st.none(), st.integers(DEADLINE_MS_MIN, 200)),
    st.one_of(st.none(), st.none(), st.integers(0, 60)),
)


@given(st.lists(faults, max_size=12), st.lists(wishes, min_size=1, max_size=30))
def test_everybody_is_answered_in_time(play: Play, moods: list[Fault], asked: list[Wish]) -> None:
    """Who does not give up: by their own deadline, with candidates of the request that was ranked, the same bytes for one request_id."""

    async def then(world: World) -> tuple[list[Got], int]:
        got = await world.all_of(*asked)
        await asyncio.sleep(1)
        return got, len(world.ranker._calls)  # noqa: SLF001  # what it still holds is not to be seen from outside

    got, under_way = play(moods, then)
    served = [one for one in got if one.answer is not None]
    late = [one.wish for one in served if one.left_s < -EXACT_S]
    by_id = {
        one.wish.request_id: {other.answer.response for other in served if other.wish.request_id == one.wish.request_id} for one in served
    }
    foreign = [one.wish for one in served if not set(ids(response(one.answer.response))) <= {item for each in asked for item in each.items}]

    assert (late, [found for found in by_id.values() if len(found) != 1], foreign, under_way) == ([], [], [], 0)


@given(st.lists(faults, max_size=12), st.lists(wishes, min_size=1, max_size=30))
def test_what_is_served_is_told_at_most_once(play: Play, moods: list[Fault], asked: list[Wish]) -> None:
    """One of those who were served an answer has its telemetry, unless everybody had given up when it was made."""

    async def then(world: World) -> list[Got]:
        return await world.all_of(*asked)

    served = [one for one in play(moods, then) if one.answer is not None]
    told = [one.wish.request_id for one in served if one.answer.telemetry is not None]
    waited = {
        one.wish.request_id for one in served if all(each.gives_up_ms is None for each in asked if each.request_id == one.wish.request_id)
    }

    assert (len(told), waited - set(told)) == (len(set(told)), set())


@given(st.integers(1, 400), st.integers(DEADLINE_MS_MIN, 200))
def test_a_process_that_stands_still_is_late_by_no_more(play: Play, blocks_ms: int, deadline_ms: int) -> None:
    """What it did not get to do in time it does as soon as it can."""
    fault = Fault(blocks_ms=blocks_ms)
    (got,) = play([fault], lambda world: world.all_of(Wish(0, "r", ITEMS[:3], deadline_ms)))

    assert got.left_s >= -2 * blocks_ms / 1000 - EXACT_S


@pytest.mark.parametrize(("deadline_ms", "reserve_ms"), [(None, 15), (200, 15), (40, 7.5)])
def test_what_is_not_kept_goes_out_soon_after_others_fall_back(play: Play, deadline_ms: int | None, reserve_ms: float) -> None:
    """Its slate is there at once, but the store never says what holds: what is left then is for a loop that is late, and for the way."""
    (got,) = play([Fault(), Fault(FOR_EVER_MS)], lambda world: world.all_of(Wish(0, "r", ITEMS[:3], deadline_ms)))

    assert (got.left_s, response(got.answer.response).degraded) == (pytest.approx((reserve_ms - KEEP_MS_MIN) / 1000), Degraded.NONE)


def test_the_second_of_two_is_not_held_up_by_the_first(play: Play) -> None:
    """They wait for one answer, and the shorter deadline of both holds."""
    first, second = play(
        [Fault(FOR_EVER_MS)],
        lambda world: world.all_of(Wish(0, "r", ITEMS[:3], 5_000), Wish(2, "r", ITEMS[:3], 20)),
    )

    assert (second.left_s >= 0, first.answer.response == second.answer.response) == (True, True)


def test_a_process_that_stood_still_does_not_blame_the_store(play: Play) -> None:
    """Reads that ran out of time because this loop was busy elsewhere count for nothing: the store is asked again at once."""

    async def then(world: World) -> list[str]:
        degraded = []
        for number in range(4):
            world.store.faults = [Fault(FOR_EVER_MS) if number < 3 else Fault()]
            asking = asyncio.create_task(world.ask(Wish(0, f"r{number}", ("x",), 500)))
            await asyncio.sleep(0.01)
            if number < 3:
                stand_still(60)
            got = await asking
            assert got.answer is not None
            degraded.append(response(got.answer.response).degraded)
        return degraded

    assert play([], then) == [Degraded.INPUT_ORDER] * 3 + [Degraded.NONE]
