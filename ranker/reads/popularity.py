"""What to show when the model or the store cannot answer: items by their click-through rate as it was last seen."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ranker.reads.near import Rows
from ranker.reads.reader import VECTOR
from schemas.features import CTR_PRIOR


class Popularity:
    """Item -> score: what the near cache says, and of what it knows no impression of, a bundle's snapshot."""

    def __init__(self, snapshot: Mapping[str, float], ctr_at: int | None) -> None:
        """snapshot: item_id -> smoothed CTR. ctr_at: which column of an item's vector is its CTR; None where there is none."""
        self._snapshot = snapshot
        self._ctr_at = ctr_at

    def scores(self, item_ids: Sequence[str], near: Rows, rows: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """Scores float32 [n], an unknown item's the prior's; None if not one is known. rows: int64 [n], where they stand in near."""
        if self._ctr_at is None:
            found = np.full(len(rows), CTR_PRIOR, np.float32)
        else:
            found = near[VECTOR][rows, self._ctr_at]
        unseen = np.flatnonzero(found == np.float32(CTR_PRIOR)).tolist()
        told = [self._snapshot.get(item_ids[row]) for row in unseen]
        if len(told) == len(found) and all(score is None for score in told):
            return None
        found[unseen] = [CTR_PRIOR if score is None else score for score in told]
        return found
