"""Who waits to be ranked, and who is not let in."""

import asyncio

import pytest

from ranker.queue import BATCH_COUNT_MAX, SHARED_COUNT, WAITING_COUNT_MAX, WAITING_S_MAX, WINDOW_S, Gathered, Queue
from ranker.reads.answers import Call
from ranker.reads.reader import Asked
from tests.rankers import request

#: Batches that were measured before; by when a request that comes at 0 is to be ranked.
BATCHES_COUNT, UNTIL_S = 50, 0.065


def call(received_s: float = 0.0, *, is_patient: bool = True) -> Call:
    return Call(Asked(request(), []), b"", received_s, is_patient=is_patient)


def queue(waiting: int, batch_s: float = 0.0) -> Queue:
    """Where so many wait behind a batch that began at 0; those before took so long."""
    found = Queue()
    for _ in range(BATCHES_COUNT):
        found.take(0.0, 0.0)
        found.done(batch_s)
    found.take(0.0, 0.0)
    for _ in range(waiting):
        found.put(call())
    return found


def test_calls_are_taken_in_batches_as_they_came() -> None:
    """The first ones first, and at most so many."""
    calls, found = [call(float(number)) for number in range(BATCH_COUNT_MAX + 1)], Queue()
    for one in calls:
        found.put(one)

    assert [found.take(0.0, 0.0) for _ in range(3)] == [(calls[:-1], []), (calls[-1:], []), ([], [])]


@pytest.mark.parametrize(("read_s", "patient", "impatient", "pause_s"), [
    (WINDOW_S, 0, 1, 0.0),
    (WINDOW_S, 9, 1, 0.0),
    (WINDOW_S, 9, 0, WINDOW_S),
    (WINDOW_S + 0.001, 0, 1, WINDOW_S),
    (WINDOW_S + 0.001, 0, SHARED_COUNT - 1, WINDOW_S),
    (WINDOW_S + 0.001, 0, SHARED_COUNT, 0.0),  # company enough
    (WINDOW_S, SHARED_COUNT, 0, 0.0),
])  # fmt: skip
def test_who_waits_for_company(read_s: float, patient: int, impatient: int, pause_s: float) -> None:
    """The patient, and everybody behind a slow read: from the end of the batch, and until many wait."""
    found, end_s = queue(patient), read_s + 10.0
    for _ in range(impatient):
        found.put(call(is_patient=False))
    found.was_read(read_s)
    found.done(end_s)

    assert [max(found.pause_s(end_s + part * WINDOW_S), 0.0) for part in (0, 1)] == [pytest.approx(pause_s), 0.0]


@pytest.mark.parametrize(("waited_s", "batch_s", "keep_s", "is_late"), [
    (0.050, 0.010, 0.004, False),  # 64 of 65
    (0.050, 0.010, 0.006, True),
    (0.050, 0.016, 0.000, True),
    (WAITING_S_MAX - 0.001, 0.050, 0.030, False),  # it has not waited for long: who knows whether batches still take so long
    (0.066, 0.000, 0.000, True),
])  # fmt: skip
def test_who_waited_too_long_is_not_in_the_batch(waited_s: float, batch_s: float, keep_s: float, *, is_late: bool) -> None:
    """By what a batch takes and what it takes to keep its answers; those beside them are."""
    found = queue(0, batch_s)
    old, new = call(), call(waited_s)
    for one in (old, new):
        one.deadline_s, one.reserve_s = one.received_s + UNTIL_S + 0.015, 0.015
        found.put(one)

    assert found.take(waited_s, keep_s) == (([new], [old]) if is_late else ([old, new], []))


def test_where_nobody_waits_everybody_is_let_in() -> None:
    """However long batches took: with nobody let in nobody would learn that they take less now."""
    assert not queue(0, batch_s=10.0).is_too_long(UNTIL_S, 0.0)


@pytest.mark.parametrize(("waiting", "now_s", "is_too_long"), [
    (WAITING_COUNT_MAX - 1, 0.0, False),
    (WAITING_COUNT_MAX, 0.0, True),
    (1, WAITING_S_MAX - 0.001, False),
    (1, WAITING_S_MAX + 0.001, True),
])  # fmt: skip
def test_no_more_are_let_in_than_may_wait(waiting: int, now_s: float, *, is_too_long: bool) -> None:
    """In number, nor where the first one has waited for as long as may be."""
    assert queue(waiting).is_too_long(UNTIL_S, now_s) == is_too_long


@pytest.mark.parametrize(("waiting", "batch_s", "now_s", "is_too_long"), [
    (1, 0.032, 0.0, False),  # as long for the one under way as for its own, 64 of 65
    (1, 0.033, 0.0, True),
    (SHARED_COUNT, 0.025, 0.0, False),  # 25 + 37.5: it is read while another is ranked, and ranked while the next is read
    (SHARED_COUNT, 0.027, 0.0, True),
    (BATCH_COUNT_MAX - 1, 0.025, 0.0, False),
    (BATCH_COUNT_MAX, 0.025, 0.0, True),
    (BATCH_COUNT_MAX, 0.018, 0.0, False),  # 18 + 45
    (BATCH_COUNT_MAX, 0.018, 0.010, False),  # of the one under way 8 are left
    (BATCH_COUNT_MAX, 0.018, 0.021, True),  # which should have been over, and may be at any time
])  # fmt: skip
def test_who_would_be_ranked_too_late_is_not_let_in(waiting: int, batch_s: float, now_s: float, *, is_too_long: bool) -> None:
    """By what batches take, and by who is before them."""
    assert queue(waiting, batch_s).is_too_long(UNTIL_S, now_s) == is_too_long


def test_one_batch_that_stood_still_turns_nobody_away() -> None:
    """A process that stood still once will not each time."""
    found = queue(1, batch_s=0.003)
    found.done(0.08)
    found.take(1.0, 0.0)
    found.put(call(1.0))

    assert not found.is_too_long(1.0 + UNTIL_S, 1.0)


async def test_what_comes_in_a_round_is_taken_together() -> None:
    """In the next round, so many at a time as a batch has; what comes while the last of them is taken is in the round after."""
    taken: list[list[int]] = []

    def take(batch: list[int]) -> None:
        taken.append(list(batch))
        if batch == [BATCH_COUNT_MAX]:
            gathered.put(-1)

    gathered = Gathered(take)
    for number in range(BATCH_COUNT_MAX + 1):
        gathered.put(number)
    assert taken == []
    await asyncio.sleep(0)
    assert taken == [list(range(BATCH_COUNT_MAX)), [BATCH_COUNT_MAX]]
    await asyncio.sleep(0)

    assert taken[2:] == [[-1]]


async def test_one_that_cannot_be_taken_keeps_no_other() -> None:
    """The loop is told of the fault, of the batch's and of its own; all others are taken, each alone."""
    taken: list[int] = []
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context["exception"]))

    def take(batch: list[int]) -> None:
        if 2 in batch:
            raise ZeroDivisionError
        taken.extend(batch)

    gathered = Gathered(take)
    for number in range(4):
        gathered.put(number)
    for _ in range(4):
        await asyncio.sleep(0)

    assert (taken, list(map(type, faults))) == ([0, 1, 3], [ZeroDivisionError] * 2)
    gathered.put(2)
    for _ in range(4):
        await asyncio.sleep(0)

    assert len(faults) == 3
