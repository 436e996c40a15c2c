"""Scores as click probabilities: isotonic calibration, fitted on the validation rows.

Rows stand in bins of neighbouring scores, about equally many in each. Pool adjacent violators (Ayer, Brunk, Ewing, Reid and Silverman,
1955, "An empirical distribution function for sampling with incomplete information") merges neighbours whose click share does not rise,
each weighing as much as it has rows; what is left is the rising step function that is nearest to the shares in weighted squares. Each step
stands at the mean score of its rows, and lines go from one to the next (Oron and Flournoy, 2017, "Centered isotonic regression: point and
interval estimation for dose-response studies"): between the first and the last, another score is another probability.
"""

from collections.abc import Iterable
from itertools import pairwise

import msgspec

from ranker.training import quality
from ranker.training.quality import CalibrationBin, Labels, Scores

#: Knots at most. 64 are finer than a click share can be told from some thousand rows, and are looked up in six steps.
KNOTS_COUNT_MAX = 64

#: With fewer rows scores stay as they are: below about a thousand, isotonic calibration learns the noise (Niculescu-Mizil and Caruana,
#: 2005, "Predicting good probabilities with supervised learning").
ROWS_COUNT_MIN = 1_000


class Calibrator(msgspec.Struct, frozen=True):
    """scores: ascending; probabilities: what they stand for, ascending, in [0, 1]. With none, scores stay as they are.

    Between two scores a line holds, outside of all the nearest one. Raises ValueError for knots that say something else.
    """

    scores: tuple[float, ...] = ()
    probabilities: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """A map that falls somewhere, or leaves [0, 1], is no calibration."""
        bounded = (0.0, *self.probabilities, 1.0)
        if len(self.scores) != len(self.probabilities) or not all(a < b for a, b in pairwise(self.scores)):
            raise ValueError(f"calibrator: {len(self.scores)} scores, which must ascend, for {len(self.probabilities)} probabilities")
        if not all(a <= b for a, b in pairwise(bounded)):
            raise ValueError("calibrator: probabilities must ascend in [0, 1]")


def fit_calibrator(labels: Labels, scores: Scores) -> Calibrator:
    """The calibrator of rows [n], scores without NaN; one that leaves scores as they are if there are too few rows."""
    if len(labels) < ROWS_COUNT_MIN:
        return Calibrator()
    steps = pooled(quality.calibration(labels, scores, bins_count=KNOTS_COUNT_MAX))
    return Calibrator(tuple(step.score_mean for step in steps), tuple(step.positive_share for step in steps))


def pooled(bins: Iterable[CalibrationBin]) -> list[CalibrationBin]:
    """Bins, lowest scores first, merged until each one's share is above that of the one before."""
    steps: list[CalibrationBin] = []
    for found in bins:
        steps.append(found)
        while len(steps) > 1 and steps[-2].positive_share >= steps[-1].positive_share:
            steps[-2:] = [_merged(*steps[-2:])]
    return steps


def _merged(low: CalibrationBin, high: CalibrationBin) -> CalibrationBin:
    rows = low.rows_count + high.rows_count
    return CalibrationBin(
        (low.score_mean * low.rows_count + high.score_mean * high.rows_count) / rows,
        (low.positive_share * low.rows_count + high.positive_share * high.rows_count) / rows,
        rows,
    )
