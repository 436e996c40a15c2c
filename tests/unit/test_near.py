"""The near cache: how long an entry holds, and what goes when there are too many."""

import numpy as np
import pytest

from ranker.reads.near import NOWHERE, Columns, Near


def columns(*values: float) -> Columns:
    """Items whose vector and fact are one number each."""
    found = np.array(values, np.float32)
    return Columns(found[:, None], {"fact": found.astype(np.int64)})


def moments(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(values, np.int64)


def test_what_was_put_is_found() -> None:
    """By tenant and id, in any order, beside what is not there."""
    near = Near(4)
    near.put([("", "a"), ("t", "a")], columns(1, 2), 0.0, moments(10, 10))
    places = near.find("t", ["b", "a"])

    assert (places[0], near.take(places[1:]).facts["fact"].tolist()) == (NOWHERE, [2])


@pytest.mark.parametrize(("now_ms", "as_of_ms", "age"), [(107.0, 10, 7), (100.0, 31, 21), (105.0, 4, 6), (100.0, 10, 0)])
def test_an_entry_ages_by_the_clock_and_by_the_moment(now_ms: float, as_of_ms: int, age: float) -> None:
    """Whichever is further away; a moment may lie before it, too."""
    near = Near(4)
    near.put([("", "a")], columns(1), 100.0, moments(10))

    assert near.ages(near.find("", ["a", "b"]), now_ms, moments(as_of_ms, as_of_ms)).tolist() == [age, np.inf]


def test_the_first_to_come_goes_first() -> None:
    """And what is put again keeps its place, with what it says now."""
    near = Near(2)
    near.put([("", "a"), ("", "b")], columns(1, 2), 0.0, moments(0, 0))
    near.put([("", "a"), ("", "c")], columns(3, 4), 0.0, moments(0, 0))
    places = near.find("", ["a", "b", "c"])

    assert ((places == NOWHERE).tolist(), near.take(places[1:]).vectors[1].tolist()) == ([True, False, False], [4.0])
