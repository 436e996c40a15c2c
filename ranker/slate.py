"""Scores become a slate: the order in which candidates are returned."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.records import RankedItem


def slate(item_ids: Sequence[str], scores: NDArray[np.floating], removed: NDArray[np.bool_], k: int) -> tuple[list[RankedItem], list[int]]:
    """The k best candidates, best first, and each one's place among the candidates; equal scores keep the order of the request.

    scores: float [n]. removed: bool [n], items that were taken down and are never returned.
    """
    order = [int(place) for place in np.argsort(-scores, kind="stable") if not removed[place]][:k]
    return [RankedItem(item_id=item_ids[place], score=float(scores[place])) for place in order], order
