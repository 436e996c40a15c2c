"""Train the ranker: gradient-boosted trees over served rows, stopped early on rows it has not seen.

The same rows, settings and seed give the same booster, byte for byte, on any number of threads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import xgboost as xgb
from numpy.typing import NDArray

from ranker.training import quality, trees
from ranker.training.isotonic import Calibrator, fit_calibrator
from ranker.training.quality import CalibrationBin
from schemas.errors import BundleError, SettingsError

#: What decides when to stop, by objective: the log loss of probabilities, the order of the first ten rows of a ranking.
STOPPING_METRIC = {"binary:logistic": "logloss", "rank:ndcg": "ndcg@10", "rank:pairwise": "ndcg@10"}

#: Bins of the calibration table. More make a bin of a small validation split too noisy to read.
CALIBRATION_BINS = 10


@dataclass(frozen=True, slots=True)
class FitSettings:
    """Settings of a training run; the names are XGBoost's where they are its parameters.

    trees_count_max: rounds at most; patience_rounds: stop when the stopping metric has not improved for this many.
    min_child_weight: sum of hessians in a leaf at least. subsample, colsample_bytree: shares of rows and columns a tree sees.
    threads_count: speed only, the result does not depend on it. One, because threads wait for one another each round: two on two idle
    cores train 1.8 times faster, on two busy cores 3 to 7 times slower. Raises SettingsError for an unknown objective.
    """

    objective: str = "binary:logistic"
    trees_count_max: int = 400
    patience_rounds: int = 20
    max_depth: int = 6
    learning_rate: float = 0.1
    min_child_weight: float = 1.0
    subsample: float = 0.8
    colsample_bytree: float = 0.8
    seed: int = 0
    threads_count: int = 1

    def __post_init__(self) -> None:
        """Refuse what could be trained but not served."""
        if self.objective not in trees.OBJECTIVES:
            raise SettingsError(f"objective is {self.objective!r}. Use one of {', '.join(trees.OBJECTIVES)}.")

    def parameters(self) -> dict[str, Any]:
        """Return the parameters as `xgboost.train` takes them."""
        return {
            "objective": self.objective,
            "eval_metric": STOPPING_METRIC[self.objective],
            "tree_method": "hist",
            "max_depth": self.max_depth,
            "learning_rate": self.learning_rate,
            "min_child_weight": self.min_child_weight,
            "subsample": self.subsample,
            "colsample_bytree": self.colsample_bytree,
            "seed": self.seed,
            "nthread": self.threads_count,
        }


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Served rows with their labels.

    features: float32 [n, F], NaN is missing. labels: bool [n]. groups: int64 [n], one id a request; the rows of a request stand
    together. Raises BundleError for lengths that differ, scattered requests, infinite features, or labels of one kind only.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.bool_]
    groups: NDArray[np.int64]

    def __post_init__(self) -> None:
        """Check what XGBoost would refuse with less to go by, or accept and learn nothing from."""
        if not len(self.features) == len(self.labels) == len(self.groups):
            raise BundleError(
                f"{len(self.features)} rows of features, {len(self.labels)} labels, {len(self.groups)} groups: give each row all three."
            )
        if np.isinf(self.features).any():
            columns = np.flatnonzero(np.isinf(self.features).any(axis=0)).tolist()
            raise BundleError(f"infinite values in feature columns {columns}. Write NaN where a value is missing.")
        positives = int(self.labels.sum())
        if positives in (0, len(self.labels)):
            raise BundleError(f"{positives} of {len(self.labels)} rows are positive: nothing to tell apart. Take rows over a longer time.")
        if len(self.group_sizes()) != len(np.unique(self.groups)):
            raise BundleError(
                f"{len(np.unique(self.groups))} requests in {len(self.group_sizes())} runs of rows. Sort the rows by request."
            )

    def group_sizes(self) -> NDArray[np.int64]:
        """Return the number of rows of each request, in row order: int64 [requests]."""
        starts = np.flatnonzero(np.diff(self.groups, prepend=self.groups[:1] - 1))
        return np.diff(starts, append=len(self.groups))

    def dmatrix(self, *, threads_count: int) -> xgb.DMatrix:
        """Return the rows as XGBoost reads them, grouped by request."""
        return xgb.DMatrix(self.features, label=self.labels, group=self.group_sizes(), nthread=threads_count)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained model.

    booster: only the trees up to best_iteration. metrics: `auc` and `ndcg10` on the validation rows, and calibration on the same.
    """

    booster: xgb.Booster
    objective: str
    best_iteration: int
    metrics: dict[str, float]
    calibration: tuple[CalibrationBin, ...]
    calibrator: Calibrator

    def predict(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the trainer's own scores, float32 [n], of features float32 [n, F]: probabilities if logistic, else margins."""
        return predict(self.booster, features)

    def to_onnx(self, feature_names: Sequence[str]) -> bytes:
        """Return the model as serialized ONNX; see `trees.to_onnx`, which raises BundleError."""
        model: bytes = trees.to_onnx(self.booster, feature_names, objective=self.objective).SerializeToString()
        return model

    def versions(self) -> dict[str, str]:
        """Return the versions of the libraries that made the model."""
        return {"xgboost": xgb.__version__, "onnx": onnx.__version__}


def fit(rows: TrainingRows, *, validation: TrainingRows, settings: FitSettings = FitSettings()) -> Fitted:
    """Train on `rows`, stop early on `validation`, measure on `validation`. Deterministic for one seed."""
    trained = xgb.train(
        settings.parameters(),
        rows.dmatrix(threads_count=settings.threads_count),
        settings.trees_count_max,
        evals=[(validation.dmatrix(threads_count=settings.threads_count), "validation")],
        early_stopping_rounds=settings.patience_rounds,
        verbose_eval=False,
    )
    booster = trained[: trained.best_iteration + 1]
    scores = predict(booster, validation.features)
    return Fitted(
        booster=booster,
        objective=settings.objective,
        best_iteration=trained.best_iteration,
        metrics={
            "auc": quality.auc(validation.labels, scores),
            "ndcg10": quality.ndcg_at(10, validation.groups, validation.labels, scores),
        },
        calibration=quality.calibration(validation.labels, scores, bins_count=CALIBRATION_BINS),
        calibrator=fit_calibrator(validation.labels, scores),
    )


def predict(booster: xgb.Booster, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the booster's scores, float32 [n], over all its trees."""
    scores: NDArray[np.float32] = booster.predict(xgb.DMatrix(features, nthread=1))
    return scores
