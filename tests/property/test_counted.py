"""Compiled columns: the same bits as the formulas in numpy that define them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.aggregates import COUNTERS, ITEM, PERSONALIZATION, USER, Tiles
from schemas.columnar import counted
from schemas.features import FORMULAS, REGISTRY
from tests.worlds import NOW_MS

STATICS = {
    "number": lambda random, count: np.where(random.random(count) < 0.3, np.nan, random.random(count)).astype("<f4"),
    "time_ms": lambda random, count: np.where(random.random(count) < 0.3, 0, NOW_MS - random.integers(-1000, 10**10, count)).astype("<i8"),
}


def any_tiles(kind: str, seed: int, count: int) -> Tiles:
    """Entities of the default registry, some of them with nothing counted or missing."""
    random = np.random.default_rng(seed)
    windows = len(REGISTRY.windows(kind))
    counts = random.integers(0, 2**32, (count, windows, len(COUNTERS))) >> random.integers(0, 33, (count, windows, 1))
    statics = {static.name: STATICS[static.form](random, count) for static in REGISTRY.static_fields(kind) if static.form in STATICS}
    if kind == USER:
        statics[PERSONALIZATION] = random.integers(0, 2, count).astype("<f4")
    last_ms = np.where(random.random(count) < 0.3, 0, NOW_MS - random.integers(0, 10**10, count))
    yes = np.ones(count, np.bool_)
    return Tiles(counts, statics, last_ms, yes, ~yes, yes)


@pytest.mark.parametrize("kind", [ITEM, USER])
@given(seed=st.integers(0, 2**32), count=st.integers(0, 50), is_one_moment=st.booleans())
def test_compiled_columns_are_those_of_the_formulas(kind: str, seed: int, count: int, *, is_one_moment: bool) -> None:
    """To the bit, NaN included, as of one moment or each as of its own."""
    tiles = any_tiles(kind, seed, count)
    as_of_ms = NOW_MS if is_one_moment else NOW_MS + np.random.default_rng(seed).integers(-(10**9), 10**9, count)
    said = tiles.without(np.flatnonzero(~tiles.is_personalized)) if kind == USER else tiles
    expected = np.stack([REGISTRY.column(REGISTRY.ranking[place], said, as_of_ms) for place in REGISTRY.places[kind]], axis=1)

    assert REGISTRY.columns(kind, tiles, as_of_ms).tobytes() == expected.tobytes()


def test_what_is_compiled_has_a_formula() -> None:
    """And that says what it means."""
    assert set(counted.COMPILED) <= set(FORMULAS)
