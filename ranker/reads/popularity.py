"""What to show when the model or the store cannot answer: items by their click-through rate as it was last seen."""

from collections.abc import Mapping, Sequence

import numba
import numpy as np
from numpy.typing import NDArray

from ranker.reads.near import Ints, Rows
from ranker.reads.reader import VECTOR
from schemas.features import CTR_PRIOR


class Popularity:
    """Item -> score: what the near cache says, and of what it knows no impression of, a bundle's snapshot."""

    def __init__(self, snapshot: Mapping[str, float], ctr_at: int | None) -> None:
        """snapshot: item_id -> smoothed CTR. ctr_at: which column of an item's vector is its CTR; None where there is none."""
        self._snapshot = snapshot
        self._ctr_at = ctr_at

    def scores(self, item_ids: Sequence[str], starts: Ints, near: Rows, rows: Ints) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Scores float32 [n] of r requests' items, an unknown one's the prior's; and of whose items one is known at least, bool [r].

        Where none is, all are 0. starts: int64 [r + 1], where each request's begin. rows: int64 [n], where they stand in near.
        """
        found, is_known = np.full(len(rows), CTR_PRIOR, np.float32), np.ones(len(rows), np.bool_)
        unseen = np.arange(len(rows)) if self._ctr_at is None else _seen(near[VECTOR], self._ctr_at, rows, found)
        is_known[unseen] = False
        told = {row: score for row in unseen.tolist() if (score := self._snapshot.get(item_ids[row])) is not None}
        found[list(told)], is_known[list(told)] = list(told.values()), True
        has_known = np.logical_or.reduceat(is_known, starts[:-1])
        return found * has_known.repeat(np.diff(starts)), has_known


@numba.njit(cache=True, nogil=True)
def _seen(vectors: NDArray[np.float32], ctr_at: int, rows: Ints, found: NDArray[np.float32]) -> Ints:
    """Fill found, which has the prior everywhere, with click-through rates; returns whose still are the prior."""
    unseen, count, prior = np.empty(len(rows), np.int64), 0, np.float32(CTR_PRIOR)
    for row in range(len(rows)):
        found[row] = vectors[rows[row], ctr_at]
        if found[row] == prior:
            unseen[count] = row
            count += 1
    return unseen[:count]
