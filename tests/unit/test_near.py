"""The near cache: how long an entry holds, and what goes when there are too many."""

import numpy as np
import pytest

from ranker.reads.lacking import lacking
from ranker.reads.near import NEVER, WAYS, Near, names_of
from ranker.reads.reader import VECTOR

#: The fact of an item of which nothing is known.
UNKNOWN = -9
ROW = np.dtype([(VECTOR, "<f4", (1,)), ("fact", "<i8")], align=True)


def rows(*values: int) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    """Items whose vector and fact are one number each."""
    found = np.zeros(len(values), ROW)
    found[VECTOR][:, 0] = found["fact"] = values
    return found


def put(near: Near, tenant: str, values: dict[str, int], now_ms: int = 0, as_of_ms: int = 0) -> None:
    """Have these items read, as of one moment."""
    count = len(values)
    near.put(names_of([(tenant, list(values))]), np.arange(count), rows(*values.values()), now_ms, np.full(count, as_of_ms))


def taken(near: Near, tenant: str, *item_ids: str) -> list[int]:
    """Their facts."""
    found = rows(*[0] * len(item_ids))
    near.take(names_of([(tenant, item_ids)]), 0, np.zeros(len(item_ids), np.int64), NEVER - 1, found)
    return [int(fact) for fact in found["fact"]]


def test_what_was_put_is_found() -> None:
    """By tenant and id, in any order, beside what is not there."""
    near = Near(rows(UNKNOWN), WAYS)
    put(near, "", {"a": 1})
    put(near, "t", {"ä": 2, "b": 3})

    assert taken(near, "t", "b", "a", "ä") == [3, UNKNOWN, 2]


def test_what_was_put_is_found_where_it_stands() -> None:
    """However old; what is not there is where an unknown item's row is."""
    near = Near(rows(UNKNOWN), WAYS)
    put(near, "", {"a": 1})
    put(near, "t", {"b": 3})
    put(near, "t", {"b": 4})

    assert near.rows["fact"][near.places(names_of([("t", ["a", "b"]), ("", ["a"])]))].tolist() == [UNKNOWN, 4, 1]


def test_whoever_puts_or_takes_is_told_where() -> None:
    """An item stays at its place; what is not here, or too old, is where an unknown item's row is."""
    near, names = Near(rows(UNKNOWN), WAYS), names_of([("", ["a", "b", "c"])])
    first = near.put(names, np.array([1, 0]), rows(2, 1), 0, np.zeros(2, np.int64))
    again = near.put(names, np.array([0]), rows(3), 700, np.zeros(1, np.int64))
    _, found = near.take(names, 700, np.zeros(3, np.int64), 500, rows(0, 0, 0))

    assert near.rows["fact"][first].tolist() == [2, 3]
    assert again.tolist() == first[1:].tolist() == found[:1].tolist()
    assert near.rows["fact"][found].tolist() == [3, UNKNOWN, UNKNOWN]


def test_some_of_the_names_can_be_put() -> None:
    """What was read is a part of what was asked for."""
    near = Near(rows(UNKNOWN), WAYS)
    near.put(names_of([("", ["a"]), ("t", ["b", "c"])]), np.array([2, 0]), rows(3, 1), 0, np.zeros(2, np.int64))

    assert (taken(near, "", "a"), taken(near, "t", "b", "c")) == ([1], [UNKNOWN, 3])


@pytest.mark.parametrize(("now_ms", "as_of_ms", "age"), [(107, 10, 7), (100, 31, 21), (105, 4, 6), (100, 10, 0)])
def test_an_entry_ages_by_the_clock_and_by_the_moment(now_ms: int, as_of_ms: int, age: int) -> None:
    """Whichever is further away; a moment may lie before it, too."""
    near = Near(rows(UNKNOWN), WAYS)
    put(near, "", {"a": 1}, 100, 10)

    ages, _ = near.take(names_of([("", ["a", "b"])]), now_ms, np.full(2, as_of_ms), 500, rows(0, 0))

    assert ages.tolist() == [age, NEVER]


def test_an_entry_that_is_too_old_is_not_taken() -> None:
    """Its row is that of an unknown item."""
    near, found = Near(rows(UNKNOWN), WAYS), rows(7)
    put(near, "", {"a": 1}, 100)
    near.take(names_of([("", ["a"])]), 601, np.zeros(1, np.int64), 500, found)

    assert found["fact"].tolist() == [UNKNOWN]


def test_the_first_to_be_read_goes_first() -> None:
    """And what is put again keeps its place, with what it says now."""
    near = Near(rows(UNKNOWN), WAYS)
    put(near, "", {str(number): number for number in range(WAYS)}, now_ms=1)
    put(near, "", {"0": 100}, now_ms=2)
    put(near, "", {"more": 200}, now_ms=3)

    assert taken(near, "", "0", "1", "2", "more") == [100, UNKNOWN, 2, 200]


def test_names_of_one_hash_are_told_apart() -> None:
    """One takes the other's place, and is never taken for it."""
    first, second = "item-00000000-1", "y5b3PLPw~Sm<5Xi"
    near = Near(rows(UNKNOWN), WAYS)
    put(near, "", {first: 1})
    before = taken(near, "", first, second)
    put(near, "", {second: 2})

    assert (before, taken(near, "", first, second)) == ([1, UNKNOWN], [UNKNOWN, 2])
    assert near.rows["fact"][near.places(names_of([("", [first, second])]))].tolist() == [UNKNOWN, 2]


@pytest.mark.parametrize("odd", ["b", "a\0b", "\0", "ä:\0"])
def test_names_are_told_apart_whatever_is_in_them(odd: str) -> None:
    """A zero byte stands before each name, and may stand in one."""
    names = names_of([("", ["a", odd]), ("t", [odd, "c"])])

    assert names.of(np.arange(4)) == [b":a", f":{odd}".encode(), f"t:{odd}".encode(), b"t:c"]


def test_what_is_lacking_is_wanted_once() -> None:
    """By all who want it as of about the same moment; of what is near, the oldest of each request is told."""
    names = names_of([("", ["a", "b", "c"]), ("", ["b", "a"]), ("t", ["b"])])
    as_of_ms = np.array([1_000, 1_000, 1_000, 1_499, 1_500, 1_000])
    found = lacking(names, np.array([0, 3, 5, 6]), as_of_ms, np.array([NEVER, 501, 7, 600, NEVER, 500]), 500)

    assert [part.tolist() for part in found] == [[0, 1, 3, 4], [0, 1, 4], [0, 1, 1, 2], [7, 0, 500]]
