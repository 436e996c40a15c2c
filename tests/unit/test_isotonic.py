"""Calibration rises with the score, stays a probability, and says click rates better than raw scores do."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ranker.training.fit import FitSettings, TrainingRows, fit
from ranker.training.isotonic import KNOTS_COUNT_MAX, ROWS_COUNT_MIN, Calibrator, fit_calibrator, pooled
from ranker.training.quality import CalibrationBin

#: Bins of whole clicks, lowest scores first; few rows each, so that most examples hold violators and ties.
bins = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), min_size=1, max_size=12).map(
    lambda pairs: [CalibrationBin(float(place), min(clicks, rows) / rows, rows) for place, (rows, clicks) in enumerate(pairs)]
)


def by_formula(found: Sequence[CalibrationBin]) -> list[float]:
    """Isotonic regression as its definition has it: the highest, over all beginnings, of the lowest mean, over all ends."""

    def mean(first: int, last: int) -> float:
        part = found[first : last + 1]
        return sum(one.positive_share * one.rows_count for one in part) / sum(one.rows_count for one in part)

    places = range(len(found))
    return [max(min(mean(first, last) for last in places[place:]) for first in places[: place + 1]) for place in places]


def drawn(seed: int, rows: int) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Scores that say something of their labels, in a scale of their own, with ties."""
    draw = np.random.default_rng(seed)
    scores = draw.normal(scale=3, size=rows).round(int(draw.integers(0, 4))).astype(np.float32)
    return draw.random(rows) < 1 / (1 + np.exp(2 - scores * draw.random())), scores


def calibrated(calibrator: Calibrator, scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """As ranker.score has it."""
    return np.interp(scores, calibrator.scores, calibrator.probabilities).astype(np.float32)


def calibration_error(labels: NDArray[np.bool_], told: NDArray[np.floating]) -> float:
    """Expected calibration error: what twenty bins of neighbours are told, against what they did, by their size."""
    parts = np.array_split(np.argsort(told, kind="stable"), 20)
    return sum(len(part) * abs(float(told[part].mean()) - float(labels[part].mean())) for part in parts) / len(labels)


@given(bins)
def test_pooling_is_isotonic_regression(found: list[CalibrationBin]) -> None:
    """Every bin's step has the share that nested loops over the definition give it."""
    steps = pooled(found)
    ends = np.cumsum([step.rows_count for step in steps])
    shares = [
        steps[int(np.searchsorted(ends, row, side="right"))].positive_share
        for row in np.cumsum([0, *(one.rows_count for one in found[:-1])])
    ]

    assert shares == pytest.approx(by_formula(found), abs=1e-12)


@given(bins)
def test_steps_rise_and_hold_every_row(found: list[CalibrationBin]) -> None:
    """Each above the one before, by score and by share."""
    steps = pooled(found)
    rises = [(low.score_mean < high.score_mean, low.positive_share < high.positive_share) for low, high in itertools.pairwise(steps)]

    assert (set(rises) - {(True, True)}, sum(step.rows_count for step in steps)) == (set(), sum(one.rows_count for one in found))


@given(st.integers(0, 2**32), st.integers(ROWS_COUNT_MIN, 3_000))
def test_a_calibrated_score_is_a_probability_that_rises(seed: int, rows: int) -> None:
    """Whatever rows it was fitted on, and whatever scores come later; with 64 knots at most."""
    calibrator = fit_calibrator(*drawn(seed, rows))
    told = calibrated(calibrator, np.linspace(-50, 50, 5_000, dtype=np.float32))

    assert (told.min() >= 0, told.max() <= 1, 0 < len(calibrator.scores) <= KNOTS_COUNT_MAX) == (True, True, True)
    # A line may end one bit above the knot that it leads to.
    assert np.diff(told).min() >= -np.spacing(np.float32(1))


def test_few_rows_leave_scores_as_they_are() -> None:
    """One row less than enough fits nothing."""
    labels, scores = drawn(7, ROWS_COUNT_MIN)

    assert (fit_calibrator(labels[1:], scores[1:]), len(fit_calibrator(labels, scores).scores) > 1) == (Calibrator(), True)


def test_scores_that_say_nothing_become_the_click_rate() -> None:
    """A model that gives all rows one score knows only how often people click."""
    labels = np.arange(ROWS_COUNT_MIN) % 4 == 0

    assert fit_calibrator(labels, np.full(ROWS_COUNT_MIN, 3.5)) == Calibrator((3.5,), (0.25,))


@pytest.mark.parametrize(
    ("scores", "probabilities"),
    [
        ((1.0,), ()),
        ((1.0, 1.0), (0.1, 0.2)),
        ((1.0, 2.0), (0.2, 0.1)),
        ((1.0, 2.0), (-0.1, 0.2)),
        ((1.0, 2.0), (0.1, 1.1)),
        ((float("nan"), 2.0), (0.1, 0.2)),
    ],
)
def test_knots_that_are_no_calibration_are_refused(scores: tuple[float, ...], probabilities: tuple[float, ...]) -> None:
    """Of other lengths, not ascending, or outside of [0, 1]."""
    with pytest.raises(ValueError, match="calibrator: "):
        Calibrator(scores, probabilities)


def clicks(requests: int, seed: int) -> TrainingRows:
    """Requests of ten rows; clicks follow two of three features."""
    draw = np.random.default_rng(seed)
    features = draw.standard_normal((requests * 10, 3), dtype=np.float32)
    labels = draw.random(len(features)) < 1 / (1 + np.exp(2 - features[:, 0] - features[:, 1]))
    return TrainingRows(features, labels, np.repeat(np.arange(requests), 10))


@pytest.mark.parametrize("objective", ["binary:logistic", "rank:ndcg"])
def test_calibration_holds_on_rows_that_it_was_not_fitted_on(objective: str) -> None:
    """The calibration error on held-out rows is no worse than that of the raw score, or of its best guess at a probability."""
    fitted = fit(
        clicks(300, 1), validation=clicks(600, 2), settings=dataclasses.replace(FitSettings(), objective=objective, trees_count_max=60)
    )
    held = clicks(2_000, 3)
    raw = fitted.predict(held.features)
    told = raw if objective == "binary:logistic" else 1 / (1 + np.exp(-raw))

    assert calibration_error(held.labels, calibrated(fitted.calibrator, raw)) <= calibration_error(held.labels, told)
