"""Answers are kept one call after the other; a call that is late goes on for nobody, and what comes meanwhile shares the next."""

import asyncio
from collections.abc import Callable, Sequence

import pytest

from ranker.reads import answers as reads
from ranker.reads.answers import KEEP_S_MAX, LAST_SHARE, Answers
from tests.rankers import Failing, hang, slow

KEY, PATIENCE_S = b"answer::r1", 5.0


class Counting(Failing):
    """Notes how many answers each call was to keep."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    async def keep_answers(self, answers: Sequence[tuple[bytes, bytes]], ttl_ms: int) -> list[bytes]:
        """As Failing.keep_answers."""
        self.calls.append(len(answers))
        return await super().keep_answers(answers, ttl_ms)


@pytest.fixture
def store() -> Counting:
    """An empty one."""
    return Counting()


def response(number: int) -> list[tuple[bytes, bytes]]:
    """An answer that is to be kept."""
    return [(b"answer::r%d" % number, b"response %d" % number)]


def told(answers: Answers, ours: Sequence[tuple[bytes, bytes]]) -> "asyncio.Future[Sequence[bytes]]":
    """What holds of answers that are to be kept, once it is known."""
    found: asyncio.Future[Sequence[bytes]] = asyncio.get_running_loop().create_future()
    answers.keep(ours, found.set_result)
    return found


async def over() -> None:
    """Return once nothing is being kept any more."""
    if others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others, timeout=PATIENCE_S)


async def test_what_is_late_is_kept_all_the_same(store: Counting) -> None:
    """What another worker says later does not take its place."""
    store.keep_fault = slow
    given = told(Answers(store), [(KEY, b"ours")])
    await over()
    kept = await store.keep_answers([(KEY, b"theirs")], 1_000)

    assert (given.result(), kept) == ([b"ours"], [b"ours"])


async def test_what_comes_meanwhile_shares_the_next_call(store: Counting) -> None:
    """However many they are, a store has one call of ours at a time."""
    answers = Answers(store)
    given = await asyncio.gather(*(told(answers, response(number)) for number in range(9)))

    assert (given, store.calls) == ([[answer for _, answer in response(number)] for number in range(9)], [9])


async def test_what_comes_beside_a_call_that_is_late_shares_the_next(store: Counting) -> None:
    """What came meanwhile is kept in one call once that is over."""
    store.keep_fault = slow
    answers = Answers(store)
    given = [told(answers, response(0))]
    await asyncio.sleep(0.001)
    given += [told(answers, response(number)) for number in range(1, 4)]
    await over()

    assert [one.result() for one in given] == [[answer for _, answer in response(number)] for number in range(4)]
    assert store.calls == [1, 3]


async def test_a_store_that_hangs_does_not_fill_the_memory(store: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers wait for it up to a bound; more are not kept. Once it answers, all are again."""
    monkeypatch.setattr(reads, "UNKEPT_COUNT_MAX", 2)
    monkeypatch.setattr(reads, "LATE_S", 0.1)
    store.keep_fault = hang
    answers = Answers(store)
    for number in range(5):
        told(answers, response(number))
        await asyncio.sleep(0.001)
    await over()
    hung, store.keep_fault = list(store.calls), None
    given = await told(answers, [(KEY, b"ours")])

    assert (hung, given, await store.keep_answers([(KEY, b"theirs")], 1_000)) == ([1, 2], [b"ours"], [b"ours"])


@pytest.mark.parametrize("fault", [slow, hang])
async def test_how_long_keeping_takes_is_known(store: Counting, fault: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A share of what the last call took, from when it was wanted; of one that hangs no more than its bound."""
    monkeypatch.setattr(reads, "LATE_S", 2 * KEEP_S_MAX)
    answers = Answers(store)
    assert answers.keep_s == 0
    store.keep_fault = fault
    told(answers, response(0))
    await over()
    after_one = answers.keep_s
    store.keep_fault = None
    for number in range(1, 9):
        told(answers, response(number))
        await over()

    assert 0 < after_one <= LAST_SHARE * KEEP_S_MAX
    assert answers.keep_s < after_one
