"""A bundle is written whole, proven, and refused when anything about it has changed."""

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ranker import bundle
from ranker.bundle import Bundle, Histogram, histogram
from ranker.score import Scorer
from ranker.training.fit import FitSettings, Fitted, TrainingRows, fit
from schemas.errors import BundleError, SettingsError

NAMES = ["ctr_7d", "dwell_avg_7d", "freshness"]
SETTINGS = FitSettings(trees_count_max=20)


def rows(requests: int, seed: int) -> TrainingRows:
    """Draw requests of ten rows; clicks follow the first two features, a tenth of all values is missing."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((requests * 10, 3), dtype=np.float32)
    labels = rng.random(len(features)) < 1 / (1 + np.exp(2 - features[:, 0] - features[:, 1]))
    features[rng.random(features.shape) < 0.1] = np.nan
    return TrainingRows(features, labels, np.repeat(np.arange(requests), 10))


TRAIN, VALIDATION = rows(120, seed=1), rows(40, seed=2)


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    return fit(TRAIN, validation=VALIDATION, settings=SETTINGS)


def save(folder: Path, fitted: Fitted, **changes: Any) -> Bundle:  # noqa: ANN401 - any of save's own arguments
    arguments: dict[str, Any] = {
        "rows_sample": TRAIN.features,
        "model_version": folder.name,
        "feature_version": "registry-1",
        "feature_names": NAMES,
        "popularity": {"item-1": 3.0, "item-2": 1.5},
        "created_at_ms": 1_700_000_000_000,
        "metrics": fitted.metrics,
    }
    return bundle.save(folder, fitted=fitted, **(arguments | changes))


@pytest.fixture
def saved(tmp_path: Path, fitted: Fitted) -> Path:
    return save(tmp_path / "v1", fitted).folder


def rewrite(folder: Path, name: str, content: bytes) -> None:
    """Replace a file and its hash in the manifest, as a careful forger would."""
    old = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    manifest = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(manifest.replace(old, hashlib.sha256(content).hexdigest()))
    (folder / name).write_bytes(content)


def npz(features: NDArray[np.float32], scores: NDArray[np.float32]) -> bytes:
    content = io.BytesIO()
    np.savez(content, features=features, scores=scores)
    return content.getvalue()


def test_a_loaded_bundle_scores_bit_equal_to_the_saved_one(tmp_path: Path, fitted: Fitted) -> None:
    """The session after a load is the session before it."""
    before = save(tmp_path / "v1", fitted)
    after = bundle.load(tmp_path / "v1", feature_version="registry-1")

    np.testing.assert_array_equal(Scorer(after).by_runtime(VALIDATION.features), Scorer(before).by_runtime(VALIDATION.features))


def test_a_bundle_scores_as_its_trainer(saved: Path, fitted: Fitted) -> None:
    """ONNX Runtime and XGBoost agree on rows that are not in the sample."""
    scores = Scorer(bundle.load(saved)).by_runtime(VALIDATION.features)

    np.testing.assert_allclose(scores, fitted.predict(VALIDATION.features), rtol=1e-6)


@pytest.mark.parametrize("objective", ["rank:ndcg", "rank:pairwise"])
def test_a_ranking_model_scores_as_its_trainer(tmp_path: Path, objective: str) -> None:
    """A ranking objective goes through the same door as the logistic one."""
    ranker = fit(TRAIN, validation=VALIDATION, settings=replace(SETTINGS, objective=objective))
    save(tmp_path / "v1", ranker)

    scores = Scorer(bundle.load(tmp_path / "v1")).by_runtime(VALIDATION.features)

    np.testing.assert_array_equal(scores, ranker.predict(VALIDATION.features))


def test_the_manifest_comes_back_as_it_was_saved(tmp_path: Path, fitted: Fitted) -> None:
    """Reading the file gives the manifest that was written: versions, metrics, calibration and histograms."""
    manifest = save(tmp_path / "v1", fitted).manifest

    assert bundle.load(tmp_path / "v1").manifest == manifest


def test_calibration_comes_back_as_it_was_fitted(tmp_path: Path) -> None:
    """A loaded bundle makes the same probabilities of scores as the one that was saved, bit by bit."""
    before = save(tmp_path / "v1", fit(TRAIN, validation=TRAIN, settings=SETTINGS))
    after = bundle.load(tmp_path / "v1")
    scores = np.linspace(0, 1, 1_000, dtype=np.float32)

    assert (len(after.manifest.calibrator.scores) > 1, after.manifest.calibrator) == (True, before.manifest.calibrator)
    np.testing.assert_array_equal(Scorer(after).calibrate(scores), Scorer(before).calibrate(scores))


def test_a_bundle_of_before_calibration_leaves_scores_as_they_are(saved: Path) -> None:
    """Its manifest has no such field."""
    manifest = json.loads((saved / "manifest.json").read_text())
    del manifest["calibrator"]
    (saved / "manifest.json").write_text(json.dumps(manifest))
    scores = np.array([-3, 0.25, 7], np.float32)

    np.testing.assert_array_equal(Scorer(bundle.load(saved)).calibrate(scores), scores)


def test_a_calibration_that_falls_is_refused_at_load(saved: Path) -> None:
    """Somebody has edited the manifest."""
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["calibrator"] = {"scores": [0, 1], "probabilities": [0.5, 0.4]}
    (saved / "manifest.json").write_text(json.dumps(manifest))

    with pytest.raises(BundleError, match="probabilities must ascend"):
        bundle.load(saved)


def test_the_same_rows_and_seed_give_the_same_bundle(tmp_path: Path, fitted: Fitted) -> None:
    """Training is deterministic on any number of threads, and nothing in a bundle depends on when it was written."""
    again = fit(TRAIN, validation=VALIDATION, settings=replace(SETTINGS, threads_count=2))
    folders = save(tmp_path / "a" / "v1", fitted).folder, save(tmp_path / "b" / "v1", again).folder

    first, second = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)

    assert first == second


@pytest.mark.parametrize("name", ["model.onnx", "sample.npz", "popularity.json"])
def test_a_changed_byte_is_found(saved: Path, name: str) -> None:
    """One flipped bit in the middle of any file refuses the bundle by hash."""
    content = bytearray((saved / name).read_bytes())
    content[len(content) // 2] ^= 1
    (saved / name).write_bytes(content)

    with pytest.raises(BundleError, match=f"{name} was changed"):
        bundle.load(saved)


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "sample.npz", "popularity.json"])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    """A half-copied bundle does not load."""
    (saved / name).unlink()

    with pytest.raises(BundleError, match=f"v1: {name} cannot be read"):
        bundle.load(saved)


def test_another_feature_version_is_refused(saved: Path) -> None:
    """Columns of another registry would be scored as if they were the model's."""
    with pytest.raises(BundleError, match="feature_version registry-1, the registry is registry-2"):
        bundle.load(saved, feature_version="registry-2")


def test_scores_other_than_the_trainers_are_refused_at_load(saved: Path) -> None:
    """With hashes in order, the model must still reproduce the stored scores: 2e-6 off is too far."""
    with np.load(saved / "sample.npz") as sample:
        features, scores = sample["features"], sample["scores"]
    scores[7] += np.float32(4e-6)
    rewrite(saved, "sample.npz", npz(features, scores))

    with pytest.raises(BundleError, match="1 of 512 sample rows score otherwise than in training, row 7"):
        bundle.load(saved)


def test_a_trainer_that_disagrees_with_its_model_writes_nothing(tmp_path: Path, fitted: Fitted) -> None:
    """The proof comes before the first byte: scores of other trees leave no folder behind."""

    class Disagreeing(Fitted):
        def predict(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
            return fitted.predict(features) * np.float32(1.00001)

    wrong = Disagreeing(fitted.booster, fitted.objective, fitted.best_iteration, fitted.metrics, fitted.calibration, fitted.calibrator)

    with pytest.raises(BundleError, match="score otherwise"):
        save(tmp_path / "v1", wrong)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("model.onnx", b"not a model", "refuses the model"),
        ("sample.npz", b"", "sample.npz holds something else"),
        ("sample.npz", b"not arrays", "sample.npz holds something else"),
        ("sample.npz", npz(np.zeros((3, 3), np.float32), np.zeros(2, np.float32)), "cannot score its sample"),
        ("sample.npz", npz(np.zeros((3, 4), np.float32), np.zeros(3, np.float32)), "the model takes"),
        ("popularity.json", b"[1]", "popularity.json holds something else"),
    ],
)
def test_a_file_of_another_kind_is_refused(saved: Path, name: str, content: bytes, reason: str) -> None:
    """A file that matches its hash but is something else is an error of the bundle, not of a library."""
    rewrite(saved, name, content)

    with pytest.raises(BundleError, match=reason):
        bundle.load(saved)


def test_an_existing_folder_is_refused(saved: Path, fitted: Fitted) -> None:
    """A bundle is never changed: the same model_version cannot be saved twice."""
    with pytest.raises(BundleError, match="there already"):
        save(saved, fitted)


def test_a_folder_is_named_after_its_version(tmp_path: Path, fitted: Fitted) -> None:
    """One version, one folder, so that a version cannot mean two models."""
    with pytest.raises(BundleError, match="not named after the model_version"):
        save(tmp_path / "v1", fitted, model_version="v2")


def test_a_metric_that_is_not_a_number_is_refused(tmp_path: Path, fitted: Fitted) -> None:
    """An unmeasured model is not saved."""
    with pytest.raises(BundleError, match="'auc' is nan"):
        save(tmp_path / "v1", fitted, metrics={"auc": float("nan")})


def test_rows_of_another_width_are_refused(tmp_path: Path, fitted: Fitted) -> None:
    """A sample must have the model's columns, or it proves nothing."""
    with pytest.raises(BundleError, match="rows_sample has shape"):
        save(tmp_path / "v1", fitted, rows_sample=TRAIN.features[:, :2])


def test_popularity_keeps_the_highest_scores(tmp_path: Path, fitted: Fitted) -> None:
    """Of 10,001 items the least popular one is left out."""
    popularity = {f"item-{number}": float(number) for number in range(10_001)}

    kept = save(tmp_path / "v1", fitted, popularity=popularity).popularity

    assert set(popularity) - set(kept) == {"item-0"}


def test_the_sample_is_bounded(tmp_path: Path, fitted: Fitted) -> None:
    """Of 1,200 rows 512 are scored at every load."""
    save(tmp_path / "v1", fitted)

    with np.load(tmp_path / "v1" / "sample.npz") as sample:
        assert sample["features"].shape == (512, 3)


def test_the_latest_bundle_is_the_newest_made(tmp_path: Path, fitted: Fitted) -> None:
    """created_at_ms decides, not the name; folders that are no bundles do not count."""
    save(tmp_path / "v9", fitted, created_at_ms=1)
    save(tmp_path / "v10", fitted, created_at_ms=2)
    (tmp_path / "zz").mkdir()

    assert bundle.latest(tmp_path) == tmp_path / "v10"


def test_a_folder_without_bundles_says_how_to_make_one(tmp_path: Path) -> None:
    """The message carries the next step."""
    with pytest.raises(BundleError, match="millstream train"):
        bundle.latest(tmp_path / "nowhere")


def test_a_wrong_number_of_columns_is_refused(saved: Path) -> None:
    """The scorer names the shape it got and the one it takes."""
    with pytest.raises(BundleError, match=r"shape \(2, 4\), the model takes \[n, 3\]"):
        Scorer(bundle.load(saved)).by_runtime(np.zeros((2, 4), np.float32))


def test_no_rows_have_no_scores(saved: Path) -> None:
    """A request whose candidates were all filtered out is not an error."""
    assert Scorer(bundle.load(saved)).by_runtime(np.zeros((0, 3), np.float32)).shape == (0,)


def test_a_histogram_counts_every_row_once() -> None:
    """Shares and the missing share sum to one, and each edge closes its own bin."""
    values = np.array([1, 1, 1, 2, 3, np.nan, np.nan, np.nan], np.float32)

    assert histogram(values) == Histogram(edges=(1.0, 2.0, 3.0), shares=(0.375, 0.125, 0.125, 0.0), missing_share=0.375)


def test_a_histogram_of_many_values_has_equal_bins() -> None:
    """Twenty edges part 21,000 distinct values into 21 bins of a thousand."""
    made = histogram(np.arange(21_000, dtype=np.float32))

    np.testing.assert_allclose(made.shares, np.full(21, 1 / 21))


def test_a_histogram_of_nothing_is_all_missing() -> None:
    """A feature nobody has yet has no edges and one empty bin."""
    assert histogram(np.full(4, np.nan, np.float32)) == Histogram(edges=(), shares=(0.0,), missing_share=1.0)


def test_training_stops_early() -> None:
    """Rows with nothing to learn stop after the patience, and only trees up to the best iteration are kept."""
    noise = replace(VALIDATION, features=rows(40, seed=3).features)

    made = fit(noise, validation=rows(40, seed=4), settings=replace(SETTINGS, trees_count_max=200, patience_rounds=5))

    assert made.booster.num_boosted_rounds() == made.best_iteration + 1 < 195


def test_an_unknown_objective_is_refused() -> None:
    """What could be trained but not served is refused before training."""
    with pytest.raises(SettingsError, match="objective is 'reg:squarederror'"):
        FitSettings(objective="reg:squarederror")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"labels": TRAIN.labels[1:]}, "1200 rows of features, 1199 labels"),
        ({"features": np.where(TRAIN.features > 2, np.inf, TRAIN.features)}, r"infinite values in feature columns \[0, 1, 2\]"),
        ({"labels": np.zeros(1200, np.bool_)}, "0 of 1200 rows are positive"),
        ({"groups": np.arange(1200) % 120}, "120 requests in 1200 runs"),
    ],
    ids=["lengths", "infinite", "one label", "scattered requests"],
)
def test_rows_that_cannot_be_trained_on_are_refused(changes: dict[str, Any], reason: str) -> None:
    """Faulty rows are named before XGBoost sees them."""
    with pytest.raises(BundleError, match=reason):
        replace(TRAIN, **changes)
