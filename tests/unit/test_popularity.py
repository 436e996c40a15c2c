"""What is shown when nothing can be scored."""

import numpy as np
import pytest

from ranker.reads.popularity import ITEMS_COUNT_MAX, Popularity
from schemas.features import CTR_PRIOR


def scores(*values: float) -> "np.typing.NDArray[np.float32]":
    return np.array(values, dtype=np.float32)


def test_the_snapshot_of_the_bundle_is_known_from_the_start() -> None:
    """Before the first read the bundle's items have their scores, others the prior's."""
    found = Popularity({"a": 0.5, "b": 0.25}).scores(["b", "new", "a"])

    np.testing.assert_array_equal(found, scores(0.25, CTR_PRIOR, 0.5))


def test_nothing_known_is_nothing_said() -> None:
    """Where not one candidate is known there is no order by popularity: the caller keeps the order it was given."""
    assert Popularity({"a": 0.5}).scores(["x", "y"]) is None


def test_what_was_read_last_counts() -> None:
    """A read that succeeded replaces what the snapshot said, and adds items that it did not have."""
    popularity = Popularity({"a": 0.5})
    popularity.learn(["a", "new"], scores(0.125, 0.75))

    np.testing.assert_array_equal(popularity.scores(["a", "new"]), scores(0.125, 0.75))


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the bound the items that came first go, whatever their score."""
    monkeypatch.setattr("ranker.reads.popularity.ITEMS_COUNT_MAX", 3)
    popularity = Popularity({"a": 0.5, "b": 0.5})
    popularity.learn(["c", "d"], scores(0.25, 0.125))

    assert (popularity.scores(["a"]), ITEMS_COUNT_MAX) == (None, 100_000)
