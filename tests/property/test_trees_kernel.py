"""Bit vectors score as the trees do, whatever the trees are."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import xgboost as xgb
from hypothesis import given
from hypothesis import strategies as st

from ranker.score import open_session
from ranker.training.trees import to_onnx
from ranker.trees import kernel
from ranker.trees.ensemble import STEP, take_apart

FEATURES = 5


def model(seed: int, depth: int, objective: str, trees: int = 12, levels: int = 1_000) -> bytes:
    """A model of noise: every feature splits somewhere, NaN goes both ways. levels: how many values a feature has."""
    draw = np.random.default_rng(seed)
    rows = matrix(draw, 600, levels)
    labels = (np.nan_to_num(rows[:, 0]) * np.nan_to_num(rows[:, 1]) + draw.normal(size=600) > 0).astype(float)
    data = xgb.DMatrix(rows, labels, qid=np.repeat(np.arange(60), 10) if objective.startswith("rank") else None)
    booster = xgb.train({"objective": objective, "max_depth": depth, "nthread": 1, "seed": seed, "min_child_weight": 0}, data, trees)
    return bytes(to_onnx(booster, [f"f{number}" for number in range(FEATURES)], objective=objective).SerializeToString())


def matrix(draw: np.random.Generator, count: int, levels: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Rows of features, a fifth of them missing; values repeat, so that many stand right at a threshold."""
    rows = (draw.integers(-levels, levels, (count, FEATURES)) / 7).astype(np.float32)
    rows[draw.random(rows.shape) < 0.2] = np.nan
    return rows


@given(
    st.integers(0, 2**31),
    st.sampled_from([(1, 3), (3, 3), (6, 40), (6, 1_000)]),
    st.sampled_from(["binary:logistic", "rank:ndcg"]),
    st.lists(st.integers(0, 20), min_size=1, max_size=4),
    st.lists(st.booleans(), min_size=FEATURES, max_size=FEATURES),
)
def test_bit_vectors_score_as_onnx_runtime(
    seed: int, shape: tuple[int, int], objective: str, counts: list[int], is_shared: list[bool]
) -> None:
    """Any trees of up to 64 leaves, any requests, an empty one too, whatever columns their rows share, thresholds met exactly."""
    depth, levels = shape
    saved = model(seed, depth, objective, levels=levels)
    ensemble = take_apart(saved, FEATURES)
    assert ensemble is not None
    starts = np.cumsum([0, *counts])
    draw = np.random.default_rng(seed + 1)
    rows, users = matrix(draw, int(starts[-1]), levels), matrix(draw, len(counts), levels)
    shared, own = np.flatnonzero(is_shared), np.flatnonzero(~np.array(is_shared))
    rows[:, shared] = np.repeat(users, counts, axis=0)[:, shared]
    folded, places = kernel.room(ensemble, own, len(rows)), np.arange(len(rows))
    found = kernel.score(ensemble, folded, rows[:, own], own, places, kernel.fold(ensemble, users[:, shared], shared), starts)
    expected = open_session(saved, Path()).run(["scores"], {"features": rows})[0]

    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@given(
    st.integers(0, 2**31),
    st.sampled_from([(1, 3), (6, 40), (6, 1_000)]),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.sampled_from([1, 5, 80]),
)
def test_what_stood_at_a_place_changes_no_score(seed: int, shape: tuple[int, int], moved: float, places_count: int) -> None:
    """Whatever of it is the same, missing, or passes the same tests; and however many rows share a place."""
    depth, levels = shape
    ensemble = take_apart(model(seed, depth, "binary:logistic", levels=levels), FEATURES)
    assert ensemble is not None
    draw = np.random.default_rng(seed + 1)
    own, nothing, starts = np.arange(FEATURES), np.full((2, len(ensemble.leaves)), kernel.ALL), np.array([0, 30, 50])
    rows, folded = matrix(draw, 50, levels), kernel.room(ensemble, own, places_count)
    for _ in range(3):
        rows = np.where(draw.random(rows.shape) < moved, matrix(draw, 50, levels), rows)
        places = draw.permutation(80)[:50] % places_count
        found = kernel.score(ensemble, folded, rows, own, places, nothing, starts)
        expected = kernel.score(ensemble, kernel.room(ensemble, own, 50), rows, own, np.arange(50), nothing, starts)

        assert np.array_equal(found, expected)


def test_a_feature_of_many_thresholds_has_masks_put_together() -> None:
    """Else the test above would never look at one."""
    ensemble = take_apart(model(1, 6, "binary:logistic", trees=30), FEATURES)

    assert ensemble is not None
    assert np.diff(ensemble.first).min() > 2 * STEP


def test_a_tree_of_more_leaves_than_bits_is_declined() -> None:
    """ONNX Runtime scores it."""
    assert take_apart(model(1, 9, "binary:logistic"), FEATURES) is None


@pytest.mark.parametrize("change", ["operator", "mode", "tensor", "empty"])
def test_what_is_not_understood_is_declined(change: str) -> None:
    """Another operator behind the trees, tests of another kind, thresholds said in another way, no trees at all."""
    changed = onnx.load_model_from_string(model(1, 3, "binary:logistic"))
    if change == "operator":
        changed.graph.node[2].op_type = "Abs"
    elif change == "empty":
        del changed.graph.node[:]
    elif change == "tensor":
        next(attribute for attribute in changed.graph.node[0].attribute if attribute.name == "nodes_values").name = "nodes_values_as_tensor"
    else:
        modes = next(attribute for attribute in changed.graph.node[0].attribute if attribute.name == "nodes_modes")
        modes.strings[:] = [b"BRANCH_GT" if mode != b"LEAF" else mode for mode in modes.strings]

    assert take_apart(changed.SerializeToString(), FEATURES) is None


def test_trees_may_be_numbered_as_they_like() -> None:
    """Other writers than ours leave numbers out, and begin their nodes anywhere."""
    saved = model(1, 4, "binary:logistic")
    changed = onnx.load_model_from_string(saved)
    for attribute in changed.graph.node[0].attribute:
        if attribute.name in ("nodes_treeids", "target_treeids"):
            attribute.ints[:] = [3 * number + 5 for number in attribute.ints]
        elif attribute.name in ("nodes_nodeids", "nodes_truenodeids", "nodes_falsenodeids", "target_nodeids"):
            attribute.ints[:] = [number + 7 for number in attribute.ints]
    ensembles = [take_apart(one, FEATURES) for one in (saved, changed.SerializeToString())]

    assert ensembles[0] is not None
    assert ensembles[1] is not None
    assert np.array_equal(ensembles[0].leaves, ensembles[1].leaves)
    assert np.array_equal(ensembles[0].blocks, ensembles[1].blocks)
