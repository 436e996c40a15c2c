"""A tree ensemble in ONNX, taken apart into what the kernel scores with.

After QuickScorer (Lucchese et al., SIGIR 2015): a tree's leaves are bits of a word, from left to right. A test that fails takes away
the leaves on its true side, whatever the other tests say; when every failed test has done so, the leftmost bit that is left is the leaf.
For one feature those that fail are the ones with the lowest thresholds, so their masks are put together beforehand, every STEP of them.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

#: Bits of a word. A tree of depth 6 has as many leaves; one with more is left to ONNX Runtime.
LEAVES_MAX = 64
#: Thresholds between two masks put together beforehand. 8, 16 and 32 took the same time; fewer take more memory.
STEP = 16
ALL = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
#: What stands behind the trees: margins as they are, or 1 / (1 + exp(-margin)).
PLAIN, LOGISTIC = ["Reshape"], ["Reshape", "Neg", "Exp", "Add", "Reciprocal"]
#: What such a node says as plain lists; one that says it in tensors is left to ONNX Runtime.
NEEDED = {f"nodes_{name}" for name in ("treeids", "nodeids", "modes", "featureids", "values", "truenodeids", "falsenodeids")}
NEEDED |= {"target_treeids", "target_nodeids", "target_weights"}
#: By mode: whether a test holds for a value that equals its threshold.
HOLDS_AT = {b"BRANCH_LT": False, b"BRANCH_LEQ": True}


class Ensemble(NamedTuple):
    """T trees over F features, as the kernel wants them; nodes by feature, thresholds ascending.

    first: int64 [F + 1], where each feature's nodes begin. threshold: float32 [N]. tree: int32 [N]. mask: uint64 [N], the leaves that
    are left where the node's test fails. block_first: int64 [F + 1]; blocks: uint64 [B, T], what is left of each tree after every STEP
    failed tests of a feature, none at first, and as each feature's last one where it is missing; the very last of all is of no feature and
    leaves all. leaves: float32 [T, LEAVES_MAX]. holds_at: bool, whether a test holds at its threshold. is_logistic: whether scores are
    probabilities.
    """

    first: NDArray[np.int64]
    threshold: NDArray[np.float32]
    tree: NDArray[np.int32]
    mask: NDArray[np.uint64]
    block_first: NDArray[np.int64]
    blocks: NDArray[np.uint64]
    leaves: NDArray[np.float32]
    holds_at: bool
    is_logistic: bool


class _Test(NamedTuple):
    """One inner node. mask: the leaves left where it fails; holds_missing: whether it holds for a missing value."""

    feature: int
    threshold: np.float32
    tree: int
    mask: int
    holds_missing: bool


def take_apart(model: bytes, features_count: int) -> Ensemble | None:
    """The ensemble of a serialized model; None for a model that is no such ensemble, or one that a word a tree cannot hold."""
    nodes = onnx.load_model_from_string(model).graph.node
    tail = [one.op_type for one in nodes[1:]]
    if not nodes or nodes[0].op_type != "TreeEnsembleRegressor" or tail not in (PLAIN, LOGISTIC):
        return None
    said = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in nodes[0].attribute}
    if not set(said) >= NEEDED:
        return None
    modes = set(said["nodes_modes"]) - {b"LEAF"}
    if said.get("n_targets", 1) != 1 or len(modes) > 1 or not modes <= set(HOLDS_AT) or said.get("base_values"):
        return None
    if said.get("aggregate_function", b"SUM") != b"SUM" or said.get("post_transform", b"NONE") != b"NONE":
        return None
    trees = list(_trees(said))
    if any(len(values) > LEAVES_MAX for _, values in trees):
        return None
    holds_at = HOLDS_AT[modes.pop()] if modes else False
    return _put_together(trees, features_count, holds_at=holds_at, is_logistic=tail == LOGISTIC)


def _trees(said: Mapping[str, Any]) -> Iterator[tuple[list[_Test], list[float]]]:
    """Each tree's tests and its leaves' values, from left (the true side) to right."""
    ids = np.array(said["nodes_treeids"])
    weights = dict(zip(zip(said["target_treeids"], said["target_nodeids"], strict=True), said["target_weights"], strict=True))
    missing = said.get("nodes_missing_value_tracks_true") or [0] * len(ids)
    for place, tree in enumerate(np.unique(ids).tolist()):
        rows = {int(said["nodes_nodeids"][row]): int(row) for row in np.flatnonzero(ids == tree)}
        tests: list[_Test] = []
        values: list[float] = []
        of_leaf = {node: weights.get((tree, node), 0.0) for node in rows}
        _walk(said, missing, of_leaf, rows, next(iter(rows)), place, tests, values)
        yield tests, values


def _walk(  # noqa: PLR0913  # one step of a recursion over ONNX's parallel lists
    said: Mapping[str, Any],
    missing: list[int],
    of_leaf: Mapping[int, float],
    rows: Mapping[int, int],
    node: int,
    tree: int,
    tests: list[_Test],
    values: list[float],
) -> None:
    row = rows[node]
    if said["nodes_modes"][row] == b"LEAF":
        values.append(of_leaf[node])
        return
    begin = len(values)
    place = len(tests)
    tests.append(_Test(said["nodes_featureids"][row], np.float32(said["nodes_values"][row]), tree, 0, bool(missing[row])))
    _walk(said, missing, of_leaf, rows, said["nodes_truenodeids"][row], tree, tests, values)
    gone = ((1 << len(values)) - 1) ^ ((1 << begin) - 1)
    tests[place] = tests[place]._replace(mask=int(ALL) & ~gone)
    _walk(said, missing, of_leaf, rows, said["nodes_falsenodeids"][row], tree, tests, values)


def _put_together(trees: list[tuple[list[_Test], list[float]]], features_count: int, *, holds_at: bool, is_logistic: bool) -> Ensemble:
    tests = sorted((test for of_tree, _ in trees for test in of_tree), key=lambda test: (test.feature, test.threshold))
    first = np.searchsorted([test.feature for test in tests], range(features_count + 1)).astype(np.int64)
    leaves = np.zeros((len(trees), LEAVES_MAX), np.float32)
    for tree, (_, values) in enumerate(trees):
        leaves[tree, : len(values)] = values
    blocks: list[NDArray[np.uint64]] = []
    block_first = [0]
    for feature in range(features_count):
        left, missing = np.full((2, len(trees)), ALL)
        for place, test in enumerate(tests[first[feature] : first[feature + 1]]):
            if place % STEP == 0:
                blocks.append(left.copy())
            left[test.tree] &= np.uint64(test.mask)
            if not test.holds_missing:
                missing[test.tree] &= np.uint64(test.mask)
        blocks += [left, missing]
        block_first.append(len(blocks))
    return Ensemble(
        first,
        np.array([test.threshold for test in tests], np.float32),
        np.array([test.tree for test in tests], np.int32),
        np.array([test.mask for test in tests], np.uint64),
        np.array(block_first, np.int64),
        np.stack([*blocks, np.full(len(trees), ALL)]),
        leaves,
        holds_at,
        is_logistic,
    )
