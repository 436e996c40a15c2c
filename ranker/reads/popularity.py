"""What to show when the model or the store cannot answer: items by their click-through rate as it was last seen."""

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.features import CTR_PRIOR

#: Items remembered at most; past it the ones first seen go first.
ITEMS_COUNT_MAX = 100_000
#: Reads that are kept for when somebody asks: nearly always nobody does, and what is in demand is in the next reads again. More would be
#: felt by the first who asks.
READS_COUNT_MAX = 256


class Popularity:
    """Item -> score, begun with a bundle's snapshot and kept fresh by every read that succeeds."""

    def __init__(self, snapshot: Mapping[str, float]) -> None:
        """With a snapshot, item_id -> smoothed CTR."""
        self._scores = dict(snapshot)
        self._reads: deque[tuple[Sequence[str], NDArray[np.float32]]] = deque(maxlen=READS_COUNT_MAX)

    def learn(self, item_ids: Sequence[str], scores: NDArray[np.float32]) -> None:
        """Remember what was just read."""
        self._reads.append((item_ids, scores))

    def _take_in(self) -> None:
        while self._reads:
            item_ids, scores = self._reads.popleft()
            self._scores.update(zip(item_ids, scores.tolist(), strict=True))
        while len(self._scores) > ITEMS_COUNT_MAX:
            del self._scores[next(iter(self._scores))]

    def scores(self, item_ids: Sequence[str]) -> NDArray[np.float32] | None:
        """Scores float32 [n], an unknown item's the prior's; None if not one of them is known."""
        self._take_in()
        found = [self._scores.get(item_id) for item_id in item_ids]
        if all(score is None for score in found):
            return None
        return np.array([CTR_PRIOR if score is None else score for score in found], dtype=np.float32)
