"""How a request came to its slate, item by item: what was scored, what each rule did to it, and where it stands."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranker.slate.rules import reasons
from ranker.slate.slate import Candidates, Slate


def explain(feature_names: Sequence[str], candidates: Candidates, matrix: NDArray[np.float32], slate: Slate) -> dict[str, Any]:
    """Ready for JSON: every candidate, in the request's order. matrix: float32 [n, F], as it was scored.

    place and place_by_score count from 1, place is None for an item that is not returned; rules hold what each one added to the score.
    """
    place_of = {candidate: place for place, candidate in enumerate(slate.order.tolist(), 1)}
    by_score = {candidate: place for place, candidate in enumerate(np.argsort(-candidates.order_by, kind="stable").tolist(), 1)}
    items = []
    for row, item_id in enumerate(candidates.item_ids):
        place = place_of.get(row)
        items.append(
            {
                "item_id": item_id,
                "place": place,
                "place_by_score": by_score[row],
                "raw_score": float(candidates.order_by[row]),
                "calibrated_score": float(candidates.scores[row]),
                "rules": _added(slate, row),
                "reasons": reasons(int(slate.touched[row])),
                "propensity": None if place is None else float(slate.propensities[place - 1]),
                "features": {name: _finite(value) for name, value in zip(feature_names, matrix[row].tolist(), strict=True)},
            }
        )
    return {"items": items}


def _added(slate: Slate, row: int) -> dict[str, float]:
    """What rules added to a score."""
    if slate.adjusted is None:
        return {}
    named = {"cold_start": slate.adjusted.cold_start, "freshness": slate.adjusted.fresh}
    return {name: float(added[row]) for name, added in named.items() if added[row]}


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value
