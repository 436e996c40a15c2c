"""When the store is left alone, and when it is asked again."""

import itertools

from ranker.reads.breaker import FAILURES_MAX, PAUSE_S, PAUSE_S_MAX, Breaker

#: After an outage answers are to be full again within this (seconds).
FULL_AGAIN_S = 2.0
#: What one question may take that is not answered (seconds): the ranker's budget for a read, and as long again.
ASKING_S = 0.05


def failing(times: int) -> Breaker:
    """After so many failures in a row, at 0 s."""
    breaker = Breaker()
    for _ in range(times):
        breaker.failed(0.0)
    return breaker


def test_one_failure_is_a_hiccup() -> None:
    """The next batch asks all the same."""
    assert failing(FAILURES_MAX - 1).allows(0.0)


def test_after_failures_in_a_row_the_store_is_left_alone() -> None:
    """At once, for everybody."""
    assert not failing(FAILURES_MAX).allows(0.0)


def test_after_the_pause_one_asks() -> None:
    """And no other one until it is back."""
    breaker = failing(FAILURES_MAX)

    assert [breaker.allows(PAUSE_S_MAX), breaker.allows(PAUSE_S_MAX)] == [True, False]


def test_an_answer_opens_the_way() -> None:
    """For everybody, and the count begins anew."""
    breaker = failing(FAILURES_MAX)
    breaker.allows(PAUSE_S_MAX)
    breaker.succeeded()

    assert [breaker.allows(PAUSE_S_MAX), breaker.failures] == [True, 0]


def test_a_late_answer_is_no_silence() -> None:
    """Everybody asks again at once, though its silences were many; after the next failure it is left alone for the shortest pause."""
    breaker = failing(50)
    breaker.answered_late()
    at_once = [breaker.allows(0.0), breaker.allows(0.0)]
    breaker.failed(0.0)

    assert (at_once, breaker.allows(0.0), breaker.allows(PAUSE_S)) == ([True, True], False, True)


def test_pauses_grow_to_a_bound() -> None:
    """However long the store is away, it is asked again within the bound."""
    breaker = failing(50)

    assert (breaker.allows(0.4 * PAUSE_S_MAX), breaker.allows(PAUSE_S_MAX)) == (False, True)


def test_a_server_that_is_back_may_miss_several_questions() -> None:
    """Asked through an outage however long, and five times more in vain while it loads what it had, it is asked again in time."""
    breaker, asked_s = failing(FAILURES_MAX), list[float]()
    for now_s in itertools.takewhile(lambda moment: moment < 60 + FULL_AGAIN_S, itertools.count(0.0, 0.001)):
        if breaker.allows(now_s):
            breaker.failed(now_s + ASKING_S)
            asked_s.append(now_s)

    assert len([moment for moment in asked_s if moment >= 60]) > 5
