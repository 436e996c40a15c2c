"""A trained XGBoost booster as an ONNX tree ensemble, written straight from the booster's saved JSON.

A row goes left where `x < threshold` in float32 and, where x is NaN, where the node's default says; leaves are added in tree order
in float32. ONNX Runtime does the same in the same order, so margins are equal bit by bit: the base score is added into the first
tree's leaves for this, because XGBoost starts its sum with it and ONNX Runtime would add it last.
The logistic step is spelled out as 1 / (1 + exp(-x)), one unit in the last place from XGBoost: ONNX Runtime's Sigmoid was 3 % off at
a probability of 2e-6, and its regressor ignores post_transform LOGISTIC (both on 1.32).
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
import onnx
import xgboost as xgb
from onnx import TensorProto, helper, numpy_helper

from schemas.errors import BundleError

LOGISTIC = "binary:logistic"
OBJECTIVES = (LOGISTIC, "rank:ndcg", "rank:pairwise")

#: Old enough for every onnxruntime we allow (1.23 and later read IR 12 and opset 23); from ai.onnx.ml 5 on the node is deprecated.
IR_VERSION, OPSET, OPSET_ML = 8, 17, 3


class _Tree(msgspec.Struct):
    left_children: list[int]
    right_children: list[int]
    split_indices: list[int]
    split_conditions: list[float]
    split_type: list[int]
    default_left: list[int]


class _Forest(msgspec.Struct):
    trees: list[_Tree]
    iteration_indptr: list[int]


class _GradientBooster(msgspec.Struct):
    model: _Forest


class _Parameters(msgspec.Struct):
    base_score: str
    num_class: str
    num_feature: str
    num_target: str


class _Objective(msgspec.Struct):
    name: str


class _Learner(msgspec.Struct):
    attributes: dict[str, str]
    gradient_booster: _GradientBooster
    learner_model_param: _Parameters
    objective: _Objective


class _Saved(msgspec.Struct):
    learner: _Learner


def to_onnx(booster: xgb.Booster, feature_names: Sequence[str], *, objective: str) -> onnx.ModelProto:
    """Return the model: input `features` float32 [n, F] (NaN is missing), output `scores` float32 [n].

    Only trees up to the booster's best iteration count, where it names one. Logistic scores are probabilities, rank scores margins.
    The feature names, in column order, are kept in the metadata. Raises BundleError for a booster that is not one numeric gbtree
    ensemble trained for `objective` on these columns.
    """
    learner = _learner(booster)
    _check(learner, feature_names, objective)
    trees = _used_trees(learner)
    ensemble = _ensemble(trees, _base_margin(learner))
    graph = helper.make_graph(
        [ensemble, *_output_nodes(objective)],
        "ranker",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, len(feature_names)])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [None])],
        [numpy_helper.from_array(np.array([-1], np.int64), "flat"), numpy_helper.from_array(np.array(1, np.float32), "one")],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", OPSET_ML)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="millstream")
    helper.set_model_props(model, {"feature_names": json.dumps(list(feature_names)), "objective": objective})
    onnx.checker.check_model(model)
    return model


def _learner(booster: xgb.Booster) -> _Learner:
    try:
        return msgspec.json.decode(bytes(booster.save_raw("json")), type=_Saved).learner
    except msgspec.ValidationError as error:
        raise BundleError(
            f"the booster does not save as a gbtree ensemble ({error}). Train it with booster='gbtree' and an xgboost of version 3."
        ) from error


def _check(learner: _Learner, feature_names: Sequence[str], objective: str) -> None:
    trained = learner.objective.name
    if trained != objective or objective not in OBJECTIVES:
        raise BundleError(
            f"the booster was trained for {trained!r}, to be written as {objective!r}: both must be one of {', '.join(OBJECTIVES)}."
        )
    columns = int(learner.learner_model_param.num_feature)
    if columns != len(feature_names):
        raise BundleError(
            f"the booster was trained on {columns} columns, {len(feature_names)} names were given. Name the columns in order."
        )
    outputs = max(int(learner.learner_model_param.num_target), int(learner.learner_model_param.num_class))
    if outputs != 1:
        raise BundleError(f"the booster has {outputs} outputs, a ranker has one score. Train it with one label column.")


def _used_trees(learner: _Learner) -> list[_Tree]:
    forest = learner.gradient_booster.model
    best = learner.attributes.get("best_iteration")
    trees = forest.trees if best is None else forest.trees[: forest.iteration_indptr[int(best) + 1]]
    if not trees:
        raise BundleError("the booster has no trees. Train it for at least one round.")
    if any(any(tree.split_type) for tree in trees):
        raise BundleError("the booster splits on categories. Give it numbers: the registry encodes categories before training.")
    return trees


def _base_margin(learner: _Learner) -> np.float32:
    """Return the base score as a margin. XGBoost saves it as text, "[5E-1]" since version 3.1, and for logistic as a probability.

    XGBoost itself turns the probability into a margin, by a booster without trees: it clips to [1e-6, 1 - 1e-6] first, and the
    last bit of its logarithm is its own.
    """
    base = float(learner.learner_model_param.base_score.strip("[]"))
    if learner.objective.name != LOGISTIC:
        return np.float32(base)
    row = xgb.DMatrix(np.zeros((1, 1), np.float32))
    margin: np.float32 = xgb.train({"objective": LOGISTIC, "base_score": base}, row, 0).predict(row, output_margin=True)[0]
    return margin


def _ensemble(trees: list[_Tree], base: np.float32) -> onnx.NodeProto:
    nodes: dict[str, Any] = {}
    for tree_id, tree in enumerate(trees):
        first = base if tree_id == 0 else np.float32(0)
        for name, values in _attributes(tree_id, tree, first).items():
            nodes.setdefault(name, []).extend(values)
    return helper.make_node("TreeEnsembleRegressor", ["features"], ["margins"], domain="ai.onnx.ml", n_targets=1, **nodes)


def _attributes(tree_id: int, tree: _Tree, base: np.float32) -> dict[str, Iterable[Any]]:
    """One tree's share of the node's parallel lists; a leaf's children, feature and threshold are there but not read."""
    left, right = np.array(tree.left_children), np.array(tree.right_children)
    value = np.array(tree.split_conditions, np.float32)
    leaf = left < 0
    return {
        "nodes_treeids": [tree_id] * len(left),
        "nodes_nodeids": range(len(left)),
        "nodes_modes": np.where(leaf, "LEAF", "BRANCH_LT").tolist(),
        "nodes_featureids": tree.split_indices,
        "nodes_values": np.where(leaf, 0, value).tolist(),
        "nodes_truenodeids": np.where(leaf, 0, left).tolist(),
        "nodes_falsenodeids": np.where(leaf, 0, right).tolist(),
        "nodes_missing_value_tracks_true": tree.default_left,
        "target_treeids": [tree_id] * int(leaf.sum()),
        "target_nodeids": np.flatnonzero(leaf).tolist(),
        "target_ids": [0] * int(leaf.sum()),
        "target_weights": (value[leaf] + base).tolist(),
    }


def _output_nodes(objective: str) -> list[onnx.NodeProto]:
    if objective != LOGISTIC:
        return [helper.make_node("Reshape", ["margins", "flat"], ["scores"])]
    return [
        helper.make_node("Reshape", ["margins", "flat"], ["margin"]),
        helper.make_node("Neg", ["margin"], ["negative"]),
        helper.make_node("Exp", ["negative"], ["odds_against"]),
        helper.make_node("Add", ["odds_against", "one"], ["inverse"]),
        helper.make_node("Reciprocal", ["inverse"], ["scores"]),
    ]
