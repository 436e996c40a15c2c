"""Features that are numbers, or arithmetic on counts and times, of many entities in one compiled loop.

What each formula means is said in schemas.features.FORMULAS, in numpy. A rank request would wait longer for numpy's many calls than for its
sums, so they are said here again; both give the same bits, which a test holds.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from schemas.windows import DAY_MS, HOUR_MS, Window

if TYPE_CHECKING:  # both import this module, or what imports it
    from schemas.aggregates import Tiles
    from schemas.features import Feature

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

#: Formulas that are compiled, by their place: of a window's counters, then two of a time, and the last of a static number.
COMPILED = ("ctr", "dwell_avg_s", "dwell_per_impression_s", "impressions", "age_days", "idle_hours", "number")
CTR, DWELL_AVG_S, DWELL_PER_IMPRESSION_S, COUNT_OF_IMPRESSIONS, AGE_DAYS, IDLE_HOURS, NUMBER = range(len(COMPILED))
#: Counters of a window, as schemas.aggregates.COUNTERS.
IMPRESSIONS, CLICKS, DWELL_COUNT, DWELL_SUM_MS = range(4)
NAN = math.nan


def ratio(above: NDArray[np.float64], below: NDArray[np.int64]) -> Floats:
    """The quotient, NaN where nothing was counted."""
    found: NDArray[np.float64] = np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)
    return found.astype(np.float32)


def since(then_ms: NDArray[np.generic], as_of_ms: int | NDArray[np.int64], unit_ms: int) -> Floats:
    """Time since then in units, never negative, NaN where then is 0 (missing)."""
    then = then_ms.astype(np.int64)
    return np.where(then == 0, np.nan, np.maximum(as_of_ms - then, 0) / unit_ms).astype(np.float32)


class Plan(NamedTuple):
    """How columns of one kind are filled. others: columns whose formula is not compiled.

    steps: int64 [s, 3], which column, by which formula, of which window, time or number. times, numbers: the static fields that are; among
    times "" is the newest event.
    """

    steps: Ints
    times: list[str]
    numbers: list[str]
    others: list[int]


def plan(features: Sequence["Feature"], windows: Sequence[Window]) -> Plan:
    """Of these features, one a column."""
    times = sorted({_static(feature) for feature in features if feature.formula in ("age_days", "idle_hours")})
    numbers = sorted({_static(feature) for feature in features if feature.formula == "number"})

    def place_of(feature: "Feature") -> int:
        if feature.window:
            return windows.index(feature.window)
        return (numbers if feature.formula == "number" else times).index(_static(feature))

    steps = [
        (column, COMPILED.index(feature.formula), place_of(feature))
        for column, feature in enumerate(features)
        if feature.formula in COMPILED
    ]
    others = [column for column, feature in enumerate(features) if feature.formula not in COMPILED]
    return Plan(np.array(steps, np.int64).reshape(-1, 3), times, numbers, others)


def _static(feature: "Feature") -> str:
    return feature.static.name if feature.static else ""


def fill(of: Plan, tiles: "Tiles", as_of_ms: Ints, prior: tuple[float, int], columns: Floats) -> None:
    """Fill the columns of n entities that are compiled, float32 [n, features].

    as_of_ms: int64 [n]. prior: clicks and impressions that every CTR begins with.
    """
    times_ms = np.empty((len(of.times), len(columns)), np.int64)
    for place, name in enumerate(of.times):
        times_ms[place] = tiles.statics[name] if name else tiles.last_active_ms
    numbers = np.empty((len(of.numbers), len(columns)), np.float32)
    for place, name in enumerate(of.numbers):
        numbers[place] = tiles.statics[name]
    _fill(np.ascontiguousarray(tiles.counts), times_ms, numbers, as_of_ms, of.steps, prior, columns)


@numba.njit(cache=True, nogil=True)
def _fill(counts: Ints, times_ms: Ints, numbers: Floats, as_of_ms: Ints, steps: Ints, prior: tuple[float, int], columns: Floats) -> None:
    """counts: int64 [n, windows, counters]. times_ms: int64 [times, n], 0 is missing. numbers: float32 [numbers, n]."""
    for row in range(len(as_of_ms)):
        for step in range(len(steps)):
            column, formula, place = steps[step]
            if formula == NUMBER:
                columns[row, column] = numbers[place, row]
            elif formula >= AGE_DAYS:
                columns[row, column] = _since(times_ms[place, row], as_of_ms[row], DAY_MS if formula == AGE_DAYS else HOUR_MS)
            else:
                columns[row, column] = _counted(counts[row, place], formula, prior)


@numba.njit(cache=True, inline="always")
def _counted(window: Ints, formula: int, prior: tuple[float, int]) -> float:
    if formula == CTR:
        return float((window[CLICKS] + prior[0]) / (window[IMPRESSIONS] + prior[1]))
    if formula == COUNT_OF_IMPRESSIONS:
        return float(window[IMPRESSIONS])
    below = window[DWELL_COUNT] if formula == DWELL_AVG_S else window[IMPRESSIONS]
    return (window[DWELL_SUM_MS] / 1000) / below if below > 0 else NAN


@numba.njit(cache=True, inline="always")
def _since(then_ms: int, as_of_ms: int, unit_ms: int) -> float:
    return max(as_of_ms - then_ms, 0) / unit_ms if then_ms else NAN
