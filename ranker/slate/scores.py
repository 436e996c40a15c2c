"""What rules make of scores before candidates are put in order: the age of an item, and how little is known of it."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ranker.slate.rules import ColdStart, Freshness, Rules, Touch
from schemas.windows import HOUR_MS

Floats = NDArray[np.float64]
#: A score is said to be touched by its age if that raised it by this share at least: less moves no item by a place that anyone sees.
FRESH_SHARE_MIN = 0.01


class Adjusted(NamedTuple):
    """fresh, cold_start: what each rule added to the scores, float64 [n]; values: the scores with it; touched: int64 [n]."""

    values: Floats
    fresh: Floats
    cold_start: Floats
    touched: NDArray[np.int64]


def adjust(rules: Rules, scores: NDArray[np.floating], facts: dict[str, NDArray[np.generic]], as_of_ms: int) -> Adjusted:
    """Scores [n] with what the rules add: first what is not known of an item, then its age."""
    values, nothing = scores.astype(np.float64), np.zeros(len(scores))
    cold_start = _cold_start(rules.cold_start, values, facts["impressions"]) if rules.cold_start else nothing
    fresh = _fresh(rules.freshness, values + cold_start, facts["created_at_ms"], as_of_ms) if rules.freshness else nothing
    touched = np.where(cold_start != 0, Touch.COLD_START, 0) | np.where(fresh > FRESH_SHARE_MIN * values, Touch.FRESH, 0)
    return Adjusted(values + cold_start + fresh, fresh, cold_start, touched.astype(np.int64))


def _cold_start(rule: ColdStart, scores: Floats, impressions: NDArray[np.generic]) -> Floats:
    unknown = np.clip(1 - impressions.astype(np.float64) / rule.impressions, 0, 1)
    return rule.weight * unknown * (rule.prior - scores)


def _fresh(rule: Freshness, scores: Floats, created_at_ms: NDArray[np.generic], as_of_ms: int) -> Floats:
    """What is dated ahead is new; what has no date is old."""
    created = created_at_ms.astype(np.int64)
    age_hours = np.maximum(as_of_ms - created, 0) / HOUR_MS
    return np.where(created > 0, np.abs(scores) * rule.boost * np.exp2(-age_hours / rule.half_life_hours), 0.0)
