"""Scores become an order: best first, ties as asked, removed items never."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ranker.slate import slate


def order(scores: list[float], removed: tuple[int, ...] = (), k: int = 10) -> list[str]:
    names = [f"i{place}" for place in range(len(scores))]
    gone = np.isin(np.arange(len(scores)), removed)
    return [item.item_id for item in slate(names, np.array(scores, np.float32), gone, k)[0]]


def test_the_best_come_first() -> None:
    """Items are returned by score, highest first."""
    assert order([0.1, 0.9, 0.5]) == ["i1", "i2", "i0"]


def test_equal_scores_keep_the_order_of_the_request() -> None:
    """A feed's own order is the tie-break, so a model that says nothing changes nothing."""
    assert order([0.5, 0.7, 0.5, 0.7]) == ["i1", "i3", "i0", "i2"]


def test_k_cuts_the_tail() -> None:
    """No more than k are returned."""
    assert order([0.1, 0.9, 0.5], k=2) == ["i1", "i2"]


def test_k_beyond_the_candidates_returns_all() -> None:
    """Asking for more than there are is no fault."""
    assert order([0.1, 0.9], k=200) == ["i1", "i0"]


def test_removed_items_make_room_for_others() -> None:
    """A removed item is left out before the k best are taken."""
    assert order([0.1, 0.9, 0.5], removed=(1,), k=2) == ["i2", "i0"]


def test_all_removed_is_an_empty_slate() -> None:
    """Nothing to show is an answer."""
    assert order([0.1, 0.9], removed=(0, 1)) == []


def test_scores_and_places_go_with_their_items() -> None:
    """Each returned item carries its own score, and its place says which row of the matrix it was."""
    items, places = slate(["a", "b", "c"], np.array([0.25, 0.75, 0.5], np.float32), np.zeros(3, np.bool_), 3)

    assert ([(item.item_id, item.score) for item in items], places) == ([("b", 0.75), ("c", 0.5), ("a", 0.25)], [1, 2, 0])


@given(st.lists(st.tuples(st.floats(-10, 10, width=32), st.booleans()), max_size=30), st.integers(1, 40))
def test_a_slate_is_the_best_of_what_is_left(rows: list[tuple[float, bool]], k: int) -> None:
    """Of any scores: every returned score is at least every score left out, none is removed, and there are min(k, left) of them."""
    scores = [score for score, _ in rows]
    left = [place for place, (_, gone) in enumerate(rows) if not gone]
    chosen = [int(name[1:]) for name in order(scores, tuple(place for place in range(len(rows)) if place not in left), k)]
    rest = [scores[place] for place in left if place not in chosen]

    assert (len(chosen), set(chosen) <= set(left), all(scores[place] >= other for place in chosen for other in rest)) == (
        min(k, len(left)),
        True,
        True,
    )
