"""Features: what each formula computes, and what follows from a registry's lines."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from online_store.reading import read
from online_store.record import layouts
from schemas.aggregates import COUNTERS, Tiles
from schemas.errors import SettingsError
from schemas.features import (
    FEATURES,
    FORMULAS,
    REGISTRY,
    STATICS,
    Feature,
    Registry,
    age_days,
    category,
    context_category,
    context_number,
    context_value,
    ctr,
    dwell_avg,
    dwell_per_impression,
    idle_hours,
    impressions,
    number,
)
from schemas.windows import DAY_MS, DAYS_7, HOUR_1, HOUR_MS, HOURS_24
from tests.worlds import NOW_MS


def tiles(counts: tuple[int, int, int, int] = (0, 0, 0, 0), last_active_ms: int = 0, **statics: object) -> Tiles:
    """One entity with these counters in each of four windows."""
    return Tiles(
        counts=np.tile(np.array(counts, dtype=np.int64), (1, 4, 1)),
        statics={name: np.array([value]) for name, value in statics.items()},
        last_active_ms=np.array([last_active_ms]),
        known=np.array([True]),
        removed=np.array([False]),
        exact=np.array([True]),
    )


def value_of(feature: Feature, said: Tiles, as_of_ms: int = NOW_MS) -> float:
    """A registry of one feature, computed for one entity."""
    return float(Registry((feature,)).column(feature, said, as_of_ms)[0])


COUNTED = tiles((100, 7, 4, 10_000))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (ctr, (7 + 1) / (100 + 20)),
        (impressions, 100.0),
        (dwell_avg, 2.5),
        (dwell_per_impression, 0.1),
    ],
)
def test_a_formula_of_counts(make: Callable[..., Feature], expected: float) -> None:
    """100 impressions, 7 clicks, 4 dwells of 10 s together."""
    assert value_of(make("f", "item", HOUR_1), COUNTED) == np.float32(expected)


def test_the_ctr_of_nothing_is_the_prior() -> None:
    """An item that nobody saw is neither the best nor the worst."""
    assert value_of(ctr("f", "item", HOUR_1), tiles()) == np.float32(0.05)


@pytest.mark.parametrize("make", [dwell_avg, dwell_per_impression])
def test_a_mean_of_nothing_is_missing(make: Callable[..., Feature]) -> None:
    """Not zero: that would be a reader who left at once."""
    assert math.isnan(value_of(make("f", "item", HOUR_1), tiles()))


def test_an_age_is_counted_in_days_as_of_the_moment() -> None:
    """Three and a half days."""
    assert value_of(age_days("f", "item", "created_at_ms"), tiles(created_at_ms=NOW_MS - 3.5 * DAY_MS)) == 3.5


def test_an_age_before_its_beginning_is_zero() -> None:
    """A request as of before an item was made."""
    assert value_of(age_days("f", "item", "created_at_ms"), tiles(created_at_ms=NOW_MS + 1)) == 0.0


def test_an_age_from_a_missing_time_is_missing() -> None:
    """Zero stands for no time."""
    assert math.isnan(value_of(age_days("f", "item", "created_at_ms"), tiles(created_at_ms=0)))


def test_idleness_is_counted_in_hours() -> None:
    """From the newest event."""
    assert value_of(idle_hours("f", "user"), tiles(last_active_ms=NOW_MS - 90 * 60_000)) == 1.5


def test_who_was_never_active_has_no_idleness() -> None:
    """Missing, not thousands of hours."""
    assert math.isnan(value_of(idle_hours("f", "user"), tiles()))


def test_an_attribute_is_a_number_under_its_own_name() -> None:
    """number("price", ..., "attributes.price") reads the static field price."""
    assert value_of(number("f", "item", "attributes.price"), tiles(price=2.5)) == 2.5


def test_a_category_is_its_place_in_the_vocabulary() -> None:
    """As the record holds it."""
    assert value_of(category("f", "item", "language", ("en", "de")), tiles(language=2)) == 2.0


@pytest.mark.parametrize(
    ("context", "expected"),
    [({"tab": "home"}, 1.0), ({"tab": "search"}, 2.0), ({"tab": "unheard of"}, 0.0), ({}, math.nan)],
    ids=repr,
)
def test_a_word_of_the_context_is_its_place_in_the_vocabulary(context: dict[str, str], expected: float) -> None:
    """Counted from 1; 0 is a word we do not know, NaN none at all."""
    found = context_value(context_category("f", "tab", ("home", "search")), context)

    assert found == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(("context", "expected"), [({"n": "2.5"}, 2.5), ({"n": "much"}, math.nan), ({}, math.nan)], ids=repr)
def test_a_number_of_the_context_is_read_as_one(context: dict[str, str], expected: float) -> None:
    """NaN where it is none."""
    assert context_value(context_number("f", "n"), context) == pytest.approx(expected, nan_ok=True)


def test_the_matrix_has_a_row_an_item_and_a_column_a_ranking_feature() -> None:
    """In the order of the lines, contiguous, float32; features of models are not among them."""
    found = layouts(REGISTRY)
    items, user = read(found["item"], [None] * 3, NOW_MS), read(found["user"], [None], NOW_MS)

    matrix = REGISTRY.vector(items, user, {}, NOW_MS)

    ranking = [feature.name for feature in FEATURES if feature.kind != "model"]
    assert [matrix.shape, matrix.dtype, matrix.flags.c_contiguous, list(REGISTRY.feature_names)] == [(3, 21), np.float32, True, ranking]


def test_each_column_of_the_matrix_is_its_feature() -> None:
    """Items vary by row, the user and the request are the same in all of them."""
    registry = Registry((impressions("a", "item", HOUR_1), impressions("b", "user", HOUR_1), context_number("c", "n")))
    items = replace(tiles(), counts=np.array([[[1, 0, 0, 0]], [[2, 0, 0, 0]]]), known=np.array([True, True]))

    matrix = registry.vector(items, tiles((9, 0, 0, 0)), {"n": "5"}, NOW_MS)

    assert matrix.tolist() == [[1, 9, 5], [2, 9, 5]]


def test_names_of_features_are_their_own() -> None:
    """A column is found by its name."""
    names = [feature.name for feature in FEATURES]

    assert len(names) == len(set(names))


def test_every_formula_of_the_default_registry_is_known() -> None:
    """A misspelt one would be found at the first request."""
    assert {feature.formula for feature in FEATURES} <= set(FORMULAS)


def test_a_registry_has_the_windows_that_its_features_name() -> None:
    """Each once, the shortest first; a kind without any has none."""
    registry = Registry((ctr("a", "item", DAYS_7), ctr("b", "item", HOUR_1), impressions("c", "item", DAYS_7), idle_hours("d", "user")))

    assert (registry.windows("item"), registry.windows("user")) == ((HOUR_1, DAYS_7), ())


def test_updates_are_summed_by_the_longest_tile_that_every_window_is_made_of() -> None:
    """5 min for items of the default registry, 3 h for its users."""
    assert [REGISTRY.tile_ms(kind) for kind in ("item", "user")] == [5 * 60_000, 3 * HOUR_MS]


def test_kinds_stand_in_a_fixed_order() -> None:
    """However the lines are written: the order is part of the stored bytes."""
    registries = [Registry(FEATURES, STATICS), Registry(FEATURES[::-1], STATICS)]

    assert [registry.kinds for registry in registries] == [("user", "item", "model")] * 2


EDITS: dict[str, Registry] = {
    "another name": Registry((replace(FEATURES[0], name="x"), *FEATURES[1:]), STATICS),
    "another window": Registry((replace(FEATURES[0], window=HOURS_24), *FEATURES[1:]), STATICS),
    "another formula": Registry((replace(FEATURES[0], formula="impressions"), *FEATURES[1:]), STATICS),
    "another order": Registry((FEATURES[1], FEATURES[0], *FEATURES[2:]), STATICS),
    "a feature less": Registry(FEATURES[1:], STATICS),
    "no kept statics": Registry(FEATURES),
}


@pytest.mark.parametrize("edit", EDITS)
def test_any_edit_changes_the_fingerprint(edit: str) -> None:
    """It names the records and the models that fit."""
    assert EDITS[edit].fingerprint != REGISTRY.fingerprint


def test_the_fingerprint_is_the_same_in_every_process() -> None:
    """It hangs on the lines alone."""
    assert Registry(FEATURES, dict(STATICS)).fingerprint == REGISTRY.fingerprint


def test_the_default_windows_are_those_of_the_design() -> None:
    """Items 1 h / 5 min, 24 h / 3 h, 7 d / 1 d, 30 d / 3 d; users 24 h / 3 h and 7 d / 1 d."""
    found = {kind: [(window.span_ms // HOUR_MS, window.hop_ms // 60_000) for window in REGISTRY.windows(kind)] for kind in ("item", "user")}

    assert found == {"item": [(1, 5), (24, 180), (168, 1_440), (720, 4_320)], "user": [(24, 180), (168, 1_440)]}


def test_windows_of_a_kind_differ_in_span_or_hop() -> None:
    """Otherwise two rings would hold the same."""
    shapes = [(window.span_ms, window.hop_ms) for window in REGISTRY.windows("item")]

    assert all(before < after for before, after in pairwise(shapes))


def test_counters_are_those_of_the_design() -> None:
    """Integers all: counts and milliseconds."""
    assert COUNTERS == ("impressions", "clicks", "dwell_count", "dwell_sum_ms")


def test_two_static_fields_of_a_name_are_refused() -> None:
    """A record has one place for each name."""
    with pytest.raises(SettingsError, match="named market"):
        Registry((category("a", "user", "market", ("DE",)),), STATICS)
