"""AUC, NDCG and calibration say what their definitions say, ties included, and a fit is measured by them."""

import itertools
import math
from random import Random

import numpy as np
import pytest
import xgboost as xgb
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ranker.training.fit import CALIBRATION_BINS, FitSettings, TrainingRows, fit
from ranker.training.quality import CalibrationBin, auc, calibration, ndcg_at

Rows = list[tuple[bool, float]]

#: Few distinct scores, so that most examples hold ties.
rows = st.lists(st.tuples(st.booleans(), st.sampled_from([-1.5, 0.0, 0.25, 3.0])), min_size=1, max_size=30)
small_groups = st.lists(
    st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=5), min_size=1, max_size=4
)


def columns(pairs: Rows) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Split rows into labels and scores."""
    return np.array([label for label, _ in pairs]), np.array([score for _, score in pairs], np.float32)


def pairwise_auc(pairs: Rows) -> float:
    """Compare every positive with every negative."""
    positives = [score for label, score in pairs if label]
    negatives = [score for label, score in pairs if not label]
    wins = [1.0 if above > below else 0.5 if above == below else 0.0 for above in positives for below in negatives]
    return sum(wins) / len(wins)


def ndcg_over_orders(k: int, group: Rows) -> float:
    """Average the NDCG of one group over every order that its scores allow."""
    orders = [order for order in itertools.permutations(group) if all(a[1] >= b[1] for a, b in itertools.pairwise(order))]
    gains = [sum(label / math.log2(rank + 2) for rank, (label, _) in enumerate(order[:k])) for order in orders]
    ideal = sum(1 / math.log2(rank + 2) for rank in range(min(k, sum(label for label, _ in group))))
    return sum(gains) / len(gains) / ideal


def test_auc_of_four_rows_by_hand() -> None:
    """Positives at 0.8 and 0.4 against negatives at 0.6 and 0.4 win two pairs of four and tie one."""
    assert auc(np.array([True, False, True, False]), np.array([0.8, 0.6, 0.4, 0.4])) == 0.625


@given(rows.filter(lambda pairs: 0 < sum(label for label, _ in pairs) < len(pairs)))
def test_auc_is_the_share_of_pairs_in_order(pairs: Rows) -> None:
    """The rank formula equals the comparison of every positive with every negative."""
    assert auc(*columns(pairs)) == pytest.approx(pairwise_auc(pairs), abs=1e-12)


def test_auc_of_constant_scores_is_a_half() -> None:
    """A model that cannot tell rows apart is worth a coin, though the positives come first in the input."""
    assert auc(np.arange(100) < 10, np.zeros(100)) == 0.5


@pytest.mark.parametrize("label", [True, False])
def test_auc_of_one_class_is_nan(label: bool) -> None:  # noqa: FBT001 - a parameter of the test, named in its id
    """Without a pair there is nothing to measure."""
    assert math.isnan(auc(np.full(3, label), np.array([1.0, 2.0, 3.0])))


def test_ndcg_of_two_requests_by_hand() -> None:
    """A positive at rank 2 of one request and at rank 1 of another is worth 1 / log2(3) and 1."""
    groups = np.array([7, 7, 7, 4, 4])
    labels = np.array([False, True, False, True, False])

    measured = ndcg_at(10, groups, labels, np.array([3.0, 2.0, 1.0, 9.0, 8.0]))

    assert measured == pytest.approx((1 / math.log2(3) + 1) / 2)


def test_ndcg_stops_at_k() -> None:
    """A positive at rank 3 adds nothing to the first two."""
    assert ndcg_at(2, np.zeros(3, np.int64), np.array([False, False, True]), np.array([3.0, 2.0, 1.0])) == 0.0


def test_ndcg_leaves_out_requests_without_a_positive() -> None:
    """A request nobody clicked neither raises nor lowers the mean."""
    groups = np.array([1, 1, 2, 2])

    assert ndcg_at(10, groups, np.array([True, False, False, False]), np.array([2.0, 1.0, 2.0, 1.0])) == 1.0


def test_ndcg_without_any_positive_is_nan() -> None:
    """There is no request to average over."""
    assert math.isnan(ndcg_at(10, np.array([1, 1]), np.array([False, False]), np.array([2.0, 1.0])))


def test_ndcg_does_not_flatter_constant_scores() -> None:
    """One positive among four tied rows earns the mean discount of four ranks, wherever it stands in the input."""
    measured = ndcg_at(10, np.zeros(4, np.int64), np.array([True, False, False, False]), np.zeros(4))

    assert measured == pytest.approx(sum(1 / math.log2(rank + 1) for rank in (1, 2, 3, 4)) / 4)


@given(small_groups, st.integers(1, 6), st.randoms(use_true_random=False))
def test_ndcg_is_the_mean_over_all_orders_of_tied_rows(requests: list[Rows], k: int, random: Random) -> None:
    """The closed form equals the average over permutations, for rows of several requests in any input order."""
    flat = [(group, label, score) for group, request in enumerate(requests) for label, score in request]
    random.shuffle(flat)
    expected = [ndcg_over_orders(k, request) for request in requests if any(label for label, _ in request)]

    measured = ndcg_at(k, np.array([g for g, _, _ in flat]), *columns([(label, score) for _, label, score in flat]))

    assert measured == pytest.approx(np.mean(expected) if expected else math.nan, abs=1e-9, nan_ok=True)


def test_calibration_bins_neighbouring_scores() -> None:
    """Four rows in two bins: the lower two hold no positive, the upper two one."""
    table = calibration(np.array([True, False, False, False]), np.array([0.75, 0.25, 0.5, 0.0]), bins_count=2)

    assert table == (CalibrationBin(0.125, 0.0, 2), CalibrationBin(0.625, 0.5, 2))


def test_calibration_keeps_tied_rows_together() -> None:
    """Equal scores share a bin, or the input order would make them look unlike."""
    table = calibration(np.array([True, True, False, False]), np.full(4, 0.5), bins_count=2)

    assert table == (CalibrationBin(0.5, 0.5, 4),)


def noisy_rows(seed: int) -> TrainingRows:
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((300, 3), dtype=np.float32)
    return TrainingRows(features, rng.random(300) < 1 / (1 + np.exp(1 - features[:, 0])), np.repeat(np.arange(20), 15))


def test_a_fit_is_measured_on_the_validation_rows() -> None:
    """Its metrics and its calibration are those of its own scores for rows it has not seen."""
    unseen = noisy_rows(seed=2)

    made = fit(noisy_rows(seed=1), validation=unseen, settings=FitSettings(trees_count_max=5))

    scores = made.predict(unseen.features)
    assert made.metrics == {"auc": auc(unseen.labels, scores), "ndcg10": ndcg_at(10, unseen.groups, unseen.labels, scores)}
    assert made.calibration == calibration(unseen.labels, scores, bins_count=CALIBRATION_BINS)


def test_a_logistic_fit_stops_where_the_log_loss_is_least() -> None:
    """Of thirty rounds the best one by log loss on the validation rows is kept."""
    seen, unseen = noisy_rows(seed=1), noisy_rows(seed=2)
    settings = FitSettings(trees_count_max=30, patience_rounds=30)
    booster = xgb.train(settings.parameters(), seen.dmatrix(threads_count=1), 30)
    chances = [booster.predict(unseen.dmatrix(threads_count=1), iteration_range=(0, rounds)) for rounds in range(1, 31)]
    losses = [-np.log(np.where(unseen.labels, chance, 1 - chance)).mean() for chance in chances]

    assert fit(seen, validation=unseen, settings=settings).best_iteration == np.argmin(losses)
