"""A booster becomes an ONNX model that scores as it does, or is refused."""

import json
from typing import Any

import numpy as np
import onnxruntime
import pytest
import xgboost as xgb
from numpy.typing import NDArray

from ranker.training.trees import to_onnx
from schemas.errors import BundleError

NAN = float("nan")
NAMES = ["ctr_7d", "dwell_avg_7d"]


def train(rounds: int = 3, **parameters: Any) -> xgb.Booster:  # noqa: ANN401 - XGBoost's own parameters
    """Train on 200 rows of two features from 0 to 9, the label a step of the first with some noise."""
    rng = np.random.default_rng(0)
    features = rng.integers(0, 10, (200, 2)).astype(np.float32)
    labels = features[:, 0] + rng.standard_normal(200) > 6
    if parameters.get("num_target"):
        labels = np.stack([labels, ~labels], axis=1)
    rows = xgb.DMatrix(features, label=labels, **parameters.pop("columns", {}))
    return xgb.train({"objective": "binary:logistic", "max_depth": 2, "nthread": 1, **parameters}, rows, rounds)


def stump(*, threshold: float, missing_goes_left: bool) -> xgb.Booster:
    """Make a ranking booster of one split on the first feature: -1 left, +2 right, base score 0.5."""
    booster = train(1, objective="rank:pairwise", max_depth=1, columns={"group": [200]})
    saved = json.loads(bytes(booster.save_raw("json")))
    saved["learner"]["learner_model_param"]["base_score"] = "[5E-1]"
    tree = saved["learner"]["gradient_booster"]["model"]["trees"][0]
    tree |= {
        "split_conditions": [threshold, -1.0, 2.0],
        "split_indices": [0, 0, 0],
        "default_left": [int(missing_goes_left), 0, 0],
    }
    edited = xgb.Booster()
    edited.load_model(bytearray(json.dumps(saved).encode()))
    return edited


def onnx_scores(booster: xgb.Booster, features: NDArray[np.float32], objective: str = "binary:logistic") -> NDArray[np.float32]:
    """Score with ONNX Runtime, as a bundle's session would."""
    model = to_onnx(booster, NAMES, objective=objective)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    scores: NDArray[np.float32] = session.run(["scores"], {"features": features})[0]
    return scores


def test_a_value_at_the_threshold_goes_right() -> None:
    """XGBoost splits on x < threshold: equality goes right, the float32 just below goes left."""
    below = np.nextafter(np.float32(0.3), np.float32(0))
    features = np.array([[below, 0], [np.float32(0.3), 0]], np.float32)

    scores = onnx_scores(stump(threshold=0.3, missing_goes_left=True), features, "rank:pairwise")

    assert scores.tolist() == [-0.5, 2.5]


@pytest.mark.parametrize(("missing_goes_left", "score"), [(True, -0.5), (False, 2.5)])
def test_a_missing_value_takes_the_default_direction(missing_goes_left: bool, score: float) -> None:  # noqa: FBT001 - named in the test's id
    """NaN follows the node's default, left or right."""
    booster = stump(threshold=0.3, missing_goes_left=missing_goes_left)

    assert onnx_scores(booster, np.array([[NAN, 0]], np.float32), "rank:pairwise").tolist() == [score]


def test_a_tree_that_is_only_a_leaf_adds_its_weight() -> None:
    """With a gain no split reaches, each tree is one leaf, and every row scores the same."""
    booster = train(2, gamma=1e9)
    features = np.array([[0.1, 0.2], [0.9, NAN]], np.float32)

    np.testing.assert_allclose(onnx_scores(booster, features), booster.predict(xgb.DMatrix(features)), rtol=1e-6)


def test_only_trees_up_to_the_best_iteration_score() -> None:
    """A booster that stopped early names its best iteration; later trees are left out."""
    booster = train(10)
    booster.set_attr(best_iteration="3")
    features = np.random.default_rng(1).random((50, 2), dtype=np.float32) * 10

    expected = booster.predict(xgb.DMatrix(features), iteration_range=(0, 4))

    np.testing.assert_allclose(onnx_scores(booster, features), expected, rtol=1e-6)


def test_the_smallest_probabilities_keep_their_digits() -> None:
    """Rare clicks: a probability of 2e-6 is right to one part in a million, not only to 1e-6 in all."""
    booster = train(1, base_score=2e-6)
    features = np.random.default_rng(1).random((50, 2), dtype=np.float32) * 10

    np.testing.assert_allclose(onnx_scores(booster, features), booster.predict(xgb.DMatrix(features)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("base_score", [0.0, 1e-9, 0.48449895, 0.7084995, 1.0])
def test_the_base_score_becomes_xgboosts_own_margin(base_score: float) -> None:
    """Clipped at both ends, and equal in its last bit where another logarithm would round otherwise."""
    booster = train(1, base_score=base_score, gamma=1e9)
    first_row = xgb.DMatrix(np.zeros((1, 2), np.float32))

    model = to_onnx(booster, NAMES, objective="binary:logistic")

    weights = next(attribute.floats for attribute in model.graph.node[0].attribute if attribute.name == "target_weights")
    assert list(weights) == booster.predict(first_row, output_margin=True).tolist()


def test_the_model_names_its_columns() -> None:
    """The feature names stand in the model's metadata, in column order."""
    model = to_onnx(train(), NAMES, objective="binary:logistic")

    assert {entry.key: entry.value for entry in model.metadata_props}["feature_names"] == json.dumps(NAMES)


def test_another_number_of_names_is_refused() -> None:
    """A name too few would shift every column after it."""
    with pytest.raises(BundleError, match="trained on 2 columns, 1 names"):
        to_onnx(train(), NAMES[:1], objective="binary:logistic")


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"objective": "reg:squarederror"}, "trained for 'reg:squarederror'"),
        ({"booster": "dart"}, "does not save as a gbtree ensemble"),
        ({"booster": "gblinear", "max_depth": None}, "does not save as a gbtree ensemble"),
        ({"num_target": 2}, "has 2 outputs"),
        ({"rounds": 0}, "has no trees"),
        ({"columns": {"feature_types": ["c", "q"], "enable_categorical": True}}, "splits on categories"),
    ],
    ids=["objective", "dart", "linear", "two outputs", "no trees", "categories"],
)
def test_a_booster_that_cannot_be_written_is_refused(parameters: dict[str, Any], reason: str) -> None:
    """What the model's form cannot hold is an error, not another model."""
    booster = train(**parameters)

    with pytest.raises(BundleError, match=reason):
        to_onnx(booster, NAMES, objective="binary:logistic")
