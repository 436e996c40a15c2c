"""How good a ranking is: AUC over all rows, NDCG over requests, and what a score means as a rate.

Rows with equal scores have no order of their own, so no measure here lets the order of the input decide: a pair counts half,
a gain is averaged over every order of its tied rows. A model that gives all rows one score is worth a coin, not its luck.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.bool_]
Scores = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Rows of neighbouring scores: their mean score, the share of them that is positive, and how many they are."""

    score_mean: float
    positive_share: float
    rows_count: int


def auc(labels: Labels, scores: Scores) -> float:
    """Return the chance that a positive row scores above a negative one; a tie counts half, nan when one class is absent.

    labels, scores: [n], scores without NaN. The Mann-Whitney U of the positives' mean ranks over the number of pairs.
    """
    positives = int(labels.sum())
    pairs = positives * (len(labels) - positives)
    if pairs == 0:
        return float("nan")
    above = _ranks_mean(scores)[labels].sum() - positives * (positives + 1) / 2
    return float(above / pairs)


def _ranks_mean(scores: Scores) -> NDArray[np.float64]:
    """Rank from 1, lowest first; tied rows share the mean of their ranks."""
    _, tie, tie_rows = np.unique(scores, return_inverse=True, return_counts=True)
    mean: NDArray[np.float64] = (np.cumsum(tie_rows) - (tie_rows - 1) / 2)[tie]
    return mean


def ndcg_at(k: int, groups: NDArray[np.int64], labels: Labels, scores: Scores) -> float:
    """Return the mean NDCG of the first k rows over the groups that hold a positive; nan when none does.

    groups, labels, scores: [n], rows in any order, scores without NaN; a group is one request. The gain is 1 for a positive, the
    discount at rank r is 1 / log2(r + 1). Tied rows each get the mean discount of the ranks they share: the expected DCG over all
    orders of the tied rows (McSherry and Najork, 2008, "Computing information retrieval performance measures efficiently in the
    presence of tied scores").
    """
    if not labels.any():
        return float("nan")
    order = np.lexsort((-scores, groups))
    group = np.unique(groups[order], return_inverse=True)[1]
    discount = _discount(k, group)
    gain = np.where(labels[order], _tie_mean(discount, group, scores[order]), 0.0)
    ideal = np.where(np.arange(len(group)) < _ideal_end(group, labels[order]), discount, 0.0)
    dcg, dcg_ideal = np.bincount(group, gain), np.bincount(group, ideal)
    return float((dcg[dcg_ideal > 0] / dcg_ideal[dcg_ideal > 0]).mean())


def _discount(k: int, group: NDArray[np.intp]) -> NDArray[np.float64]:
    """1 / log2(rank + 1) of each row's place in its group, 0 beyond rank k; group is ascending."""
    rank = np.arange(1, len(group) + 1) - np.searchsorted(group, group)
    return np.where(rank <= k, 1.0 / np.log2(rank + 1), 0.0)


def _tie_mean(discount: NDArray[np.float64], group: NDArray[np.intp], scores: Scores) -> NDArray[np.float64]:
    """Mean discount over the run of rows with the same group and score that a row stands in."""
    starts = np.ones(len(group), dtype=np.bool_)
    starts[1:] = (np.diff(group) != 0) | (scores[1:] != scores[:-1])
    tie = np.cumsum(starts) - 1
    mean: NDArray[np.float64] = (np.bincount(tie, discount) / np.bincount(tie))[tie]
    return mean


def _ideal_end(group: NDArray[np.intp], labels: Labels) -> NDArray[np.intp]:
    """For each row, the index after the last positive of its group if the group's positives came first."""
    positives = np.bincount(group, labels).astype(np.intp)
    end: NDArray[np.intp] = np.searchsorted(group, group) + positives[group]
    return end


def calibration(labels: Labels, scores: Scores, *, bins_count: int) -> tuple[CalibrationBin, ...]:
    """Return up to bins_count bins of about equally many rows, lowest scores first; tied rows share a bin.

    labels, scores: [n], scores without NaN. For a logistic model the two columns agree when it is calibrated; for a ranking model
    they say what click rate a score stood for.
    """
    _, tie, tie_rows = np.unique(scores, return_inverse=True, return_counts=True)
    rows_below = np.cumsum(tie_rows) - tie_rows
    bin_of_row = (rows_below * bins_count // max(len(scores), 1))[tie]
    _, bin_of_row, rows = np.unique(bin_of_row, return_inverse=True, return_counts=True)
    score_mean, positive_share = np.bincount(bin_of_row, scores) / rows, np.bincount(bin_of_row, labels) / rows
    return tuple(map(CalibrationBin, score_mean.tolist(), positive_share.tolist(), rows.tolist()))
