"""What is shown when nothing can be scored."""

from collections.abc import Mapping

import numpy as np
import pytest

from ranker.reads.popularity import Popularity
from ranker.reads.reader import VECTOR
from schemas.features import CTR_PRIOR

#: A vector's second number is the CTR.
ROW, CTR_AT = np.dtype([(VECTOR, "<f4", (2,))]), 1
#: Where an item stands in `near` that is not there.
UNKNOWN = -1


def found(snapshot: Mapping[str, float], near: Mapping[str, float], *item_ids: str, ctr_at: int | None = CTR_AT) -> list[float] | None:
    """Scores, where these items are near with these CTRs."""
    rows = np.zeros(len(near) + 1, ROW)
    rows[VECTOR][:, CTR_AT] = [*near.values(), CTR_PRIOR]
    places = np.array([list(near).index(item_id) if item_id in near else UNKNOWN for item_id in item_ids])
    # Beside a request of which nothing is known.
    starts, both = np.array([0, 1, 1 + len(item_ids)]), ["strange", *item_ids]
    scores, is_known = Popularity(snapshot, ctr_at).scores(both, starts, rows, np.append(UNKNOWN, places))
    assert (scores[0], is_known[0]) == (0, False)
    if not is_known[1]:
        assert not scores.any()
        return None
    return scores[1:].tolist()  # type: ignore[no-any-return]  # numpy's is any


def test_the_snapshot_of_the_bundle_is_known_from_the_start() -> None:
    """Before the first read the bundle's items have their scores, others the prior's."""
    assert found({"a": 0.5, "b": 0.25}, {}, "b", "new", "a") == pytest.approx([0.25, CTR_PRIOR, 0.5])


def test_nothing_known_is_nothing_said() -> None:
    """Where not one candidate is known there is no order by popularity: all are 0, and come in the order they were given."""
    assert found({"a": 0.5}, {}, "x", "y") is None


def test_what_was_read_last_counts() -> None:
    """It stands before what the snapshot said, and says something of items that it did not have."""
    assert found({"a": 0.5}, {"a": 0.125, "new": 0.75}, "a", "new") == [0.125, 0.75]


def test_an_item_that_nobody_saw_goes_by_the_snapshot() -> None:
    """A store that is being filled, or replays another time, knows no impression of it yet."""
    assert found({"a": 0.5}, {"a": CTR_PRIOR, "b": 0.75}, "a", "b") == [0.5, 0.75]


def test_without_a_click_rate_among_the_features_the_snapshot_counts() -> None:
    """Whatever else stands in the vectors."""
    assert found({"a": 0.5}, {"a": 0.125}, "a", "b", ctr_at=None) == pytest.approx([0.5, CTR_PRIOR])
