"""Whatever the trees, ONNX Runtime scores as XGBoost does."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xgboost as xgb
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnxruntime import InferenceSession

from ranker.score import open_session
from ranker.training.trees import to_onnx

ROWS_A_GROUP = 8

#: An example trains a booster: few of them, and no deadline, for the first ones also load libraries.
few = settings(max_examples=60, deadline=None)


@dataclass(frozen=True)
class Plan:
    """What a random booster is trained on and how.

    levels: distinct values of a feature; with few of them, rows hit thresholds exactly.
    """

    seed: int
    columns: int
    levels: int
    missing_share: float
    depth: int
    trees: int

    def features(self) -> NDArray[np.float32]:
        """Draw 240 rows, with values around zero and some missing."""
        rng = np.random.default_rng(self.seed)
        features = (rng.integers(0, self.levels, (240, self.columns)) / self.levels - 0.5).astype(np.float32) * 10
        features[rng.random(features.shape) < self.missing_share] = np.nan
        return features

    def train(self, objective: str) -> xgb.Booster:
        """Train on labels that depend on the first column, present or not."""
        features = self.features()
        chance = np.where(np.isnan(features[:, 0]), 0.6, np.where(features[:, 0] > 0, 0.5, 0.1))
        labels = np.random.default_rng(self.seed + 1).random(len(features)) < chance
        rows = xgb.DMatrix(features, label=labels, group=np.full(len(features) // ROWS_A_GROUP, ROWS_A_GROUP), nthread=1)
        parameters = {"objective": objective, "max_depth": self.depth, "min_child_weight": 0, "nthread": 1, "seed": self.seed}
        return xgb.train(parameters, rows, self.trees)


plans = st.builds(
    Plan,
    seed=st.integers(0, 2**31 - 1),
    columns=st.integers(1, 5),
    levels=st.sampled_from([2, 5, 1000]),
    missing_share=st.sampled_from([0.0, 0.3]),
    depth=st.integers(1, 8),
    trees=st.sampled_from([1, 2, 20, 120]),
)


def splits(booster: xgb.Booster) -> list[tuple[int, np.float32]]:
    """Return up to twenty (column, threshold) pairs the booster splits on."""
    trees = json.loads(bytes(booster.save_raw("json")))["learner"]["gradient_booster"]["model"]["trees"]
    found = {
        (column, threshold)
        for tree in trees
        for column, threshold, left in zip(tree["split_indices"], tree["split_conditions"], tree["left_children"], strict=True)
        if left > 0
    }
    return [(column, np.float32(threshold)) for column, threshold in sorted(found)[:20]]


def probes(booster: xgb.Booster, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the rows, and some again with one value at a threshold, at its neighbours in float32, and missing."""
    rows = [features]
    for column, threshold in splits(booster):
        for value in (threshold, np.nextafter(threshold, np.float32(-np.inf)), np.nextafter(threshold, np.float32(np.inf)), np.nan):
            rows.append(features[:40].copy())
            rows[-1][:, column] = value
    return np.concatenate(rows)


def session(booster: xgb.Booster, objective: str) -> InferenceSession:
    """Open the session the ranker would."""
    names = [f"f{column}" for column in range(booster.num_features())]
    return open_session(to_onnx(booster, names, objective=objective).SerializeToString(), Path("bundle"))


@few
@given(plans, st.sampled_from(["rank:ndcg", "rank:pairwise"]))
def test_rank_scores_are_equal_bit_by_bit(plan: Plan, objective: str) -> None:
    """Margins add the same float32 leaves in the same order, so not even the last bit differs."""
    booster = plan.train(objective)
    rows = probes(booster, plan.features())

    (scores,) = session(booster, objective).run(["scores"], {"features": rows})

    np.testing.assert_array_equal(scores, booster.predict(xgb.DMatrix(rows, nthread=1)))


@few
@given(plans)
def test_logistic_scores_are_equal_to_a_millionth(plan: Plan) -> None:
    """Probabilities agree relative to their size, so rare clicks keep their digits; only exp() may differ in its last bit."""
    booster = plan.train("binary:logistic")
    rows = probes(booster, plan.features())

    (scores,) = session(booster, "binary:logistic").run(["scores"], {"features": rows})

    np.testing.assert_allclose(scores, booster.predict(xgb.DMatrix(rows, nthread=1)), rtol=1e-6, atol=0)


@few
@given(plans, st.sampled_from([1, 2, 7, 33, 129]))
def test_a_score_does_not_depend_on_the_rows_beside_it(plan: Plan, batch_rows: int) -> None:
    """Scored in batches of any size, a row has the same bits."""
    booster, rows = plan.train("binary:logistic"), plan.features()
    model = session(booster, "binary:logistic")

    batches = [model.run(["scores"], {"features": rows[start : start + batch_rows]})[0] for start in range(0, len(rows), batch_rows)]

    np.testing.assert_array_equal(np.concatenate(batches), model.run(["scores"], {"features": rows})[0])
