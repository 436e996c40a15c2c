"""A bundle: the folder that holds one trained model and everything needed to trust it.

    model.onnx        the trees
    manifest.json     what the model is, what it was trained on, and the SHA-256 of the other files
    sample.npz        rows of features with the trainer's own scores for them
    popularity.json   item_id -> score, what to show when the model or the store cannot answer

A bundle is written whole or not at all, and never changed. Saving and loading both score the sample again: a model that scores
otherwise than its trainer, here and with this onnxruntime, never comes into service.
"""

import hashlib
import io
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ranker.score import Scorer, open_session
from ranker.training.isotonic import Calibrator
from ranker.training.quality import CalibrationBin
from schemas.errors import BundleError

if TYPE_CHECKING:  # a server that loads bundles needs no xgboost and no onnx
    from ranker.training.fit import Fitted

Decoded = TypeVar("Decoded")

MODEL, MANIFEST, SAMPLE, POPULARITY = "model.onnx", "manifest.json", "sample.npz", "popularity.json"

#: Rows scored again at every load. More would lengthen a worker's start; fewer may leave a tree's branch untried.
SAMPLE_ROWS_MAX = 512

#: Items in the popularity snapshot, which every worker holds in memory. The most popular ones are kept.
POPULARITY_ITEMS_MAX = 10_000

#: Quantile edges of a reference histogram: bins of about 5 % each, the usual grain for a population stability index.
HISTOGRAM_EDGES_MAX = 20

#: A score may differ from its trainer's by this much, or by this share of it. Margins are equal bit by bit; this is room for exp().
SCORE_TOLERANCE = 1e-6


class Histogram(msgspec.Struct, frozen=True):
    """How one feature was distributed in training.

    edges: ascending, at most 20, each a training value; shares[i] is the share of rows in (edges[i - 1], edges[i]], the first bin
    open below, the last open above (len(edges) + 1 shares). missing_share: the share of rows with NaN. All shares sum to 1.
    """

    edges: tuple[float, ...]
    shares: tuple[float, ...]
    missing_share: float


class Manifest(msgspec.Struct, frozen=True):
    """What a bundle is. metrics and calibration are of the validation rows, reference of the training rows, by feature name.

    calibrator: what makes click probabilities of scores, fitted on the validation rows; bundles of before there was one have none.
    """

    model_version: str
    feature_version: str
    feature_names: tuple[str, ...]
    objective: str
    created_at_ms: int
    metrics: dict[str, float]
    calibration: tuple[CalibrationBin, ...]
    reference: dict[str, Histogram]
    sha256: dict[str, str]
    versions: dict[str, str]
    calibrator: Calibrator = Calibrator()


class Sample(NamedTuple):
    """Rows of features float32 [n, F] and the trainer's scores float32 [n] for them."""

    features: NDArray[np.float32]
    scores: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A proven model: its session has scored the sample as the trainer did. popularity: item_id -> score; model: the ONNX file."""

    folder: Path
    manifest: Manifest
    session: onnxruntime.InferenceSession
    popularity: Mapping[str, float]
    model: bytes
    sample: Sample


def save(  # noqa: PLR0913 - one keyword for each thing a bundle holds
    folder: Path,
    *,
    fitted: "Fitted",
    rows_sample: NDArray[np.float32],
    model_version: str,
    feature_version: str,
    feature_names: Sequence[str],
    popularity: Mapping[str, float],
    created_at_ms: int,
    metrics: Mapping[str, float],
) -> Bundle:
    """Prove the model and write it to `folder`, the bundle's own, named after model_version.

    rows_sample: training rows float32 [n, F], as many as the reference histograms should rest on; up to 512 of them, evenly spaced,
    become the sample. popularity: the 10,000 highest scores are kept. Nothing is written unless ONNX Runtime's scores equal the
    trainer's. Raises BundleError, also when the folder is there already.
    """
    _check_free(folder, model_version)
    _check_finite(folder, "metric", metrics)
    _check_finite(folder, "popularity", popularity)
    _check_rows(folder, rows_sample, feature_names)
    features = _spaced(rows_sample)
    sample = Sample(features, fitted.predict(features))
    top = dict(nsmallest(POPULARITY_ITEMS_MAX, popularity.items(), key=lambda item: (-item[1], item[0])))
    files = {MODEL: fitted.to_onnx(feature_names), SAMPLE: _npz(sample), POPULARITY: msgspec.json.encode(top)}
    manifest = Manifest(
        model_version=model_version,
        feature_version=feature_version,
        feature_names=tuple(feature_names),
        objective=fitted.objective,
        created_at_ms=created_at_ms,
        metrics=dict(metrics),
        calibration=fitted.calibration,
        reference={name: histogram(rows_sample[:, column]) for column, name in enumerate(feature_names)},
        sha256={name: _sha256(content) for name, content in files.items()},
        versions={**fitted.versions(), "onnxruntime": onnxruntime.__version__},
        calibrator=fitted.calibrator,
    )
    bundle = _proven(Bundle(folder, manifest, open_session(files[MODEL], folder), top, files[MODEL], sample))
    _write(folder, {**files, MANIFEST: msgspec.json.format(msgspec.json.encode(manifest), indent=1)})
    return bundle


def load(folder: Path, *, feature_version: str | None = None) -> Bundle:
    """Read a bundle, check its hashes and prove its scores again.

    feature_version: refuse a bundle made for another registry. Raises BundleError for a missing or changed file, another
    feature_version, or scores that are not the trainer's.
    """
    manifest = read_manifest(folder)
    if feature_version not in (None, manifest.feature_version):
        raise BundleError(
            f"{folder}: the model was trained on feature_version {manifest.feature_version}, the registry is {feature_version}. "
            "Train a new bundle with `millstream train`, or serve with the registry it was made for."
        )
    model, sample, popularity = (_read_unchanged(folder, name, manifest) for name in (MODEL, SAMPLE, POPULARITY))
    top = _decode(folder, POPULARITY, popularity, dict[str, float])
    return _proven(Bundle(folder, manifest, open_session(model, folder), top, model, _sample(folder, sample)))


def latest(models_dir: Path, feature_version: str | None = None) -> Path:
    """Return the folder with the newest created_at_ms among the bundles of models_dir; raises BundleError if there is none.

    feature_version: only among those of that registry. A folder without a manifest (a copy under way) or with a leading dot (a save under
    way) is no bundle.
    """
    found = {path.parent: read_manifest(path.parent) for path in models_dir.glob(f"[!.]*/{MANIFEST}")}
    fitting = [folder for folder, manifest in found.items() if feature_version in (None, manifest.feature_version)]
    if not fitting:
        raise BundleError(
            f"{models_dir}: no bundle in it{f' of feature_version {feature_version}' if found else ''}. "
            "Train one with `millstream train`, or set MILLSTREAM_MODELS_URI to a folder of bundles."
        )
    return max(fitting, key=lambda folder: (found[folder].created_at_ms, folder.name))


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest alone: nothing else of the bundle is read or checked. Raises BundleError."""
    return _decode(folder, MANIFEST, _read(folder, MANIFEST), Manifest)


def histogram(values: NDArray[np.float32]) -> Histogram:
    """Return the histogram of one feature's training values [n], n > 0; NaN is missing, repeated quantiles are one edge."""
    present = values[~np.isnan(values)]
    levels = np.arange(1, HISTOGRAM_EDGES_MAX + 1) / (HISTOGRAM_EDGES_MAX + 1)
    edges = np.unique(np.quantile(present, levels, method="inverted_cdf")) if len(present) else present
    counts = np.bincount(np.searchsorted(edges, present), minlength=len(edges) + 1)
    shares = counts / len(values)
    return Histogram(tuple(edges.tolist()), tuple(shares.tolist()), 1 - len(present) / len(values))


def _proven(bundle: Bundle) -> Bundle:
    """Return the bundle if its session scores the sample as the trainer did."""
    sample = bundle.sample
    try:
        found = Scorer(bundle).by_runtime(sample.features)
        wrong = np.flatnonzero(~np.isclose(found, sample.scores, rtol=SCORE_TOLERANCE, atol=SCORE_TOLERANCE))
    except ValueError as error:
        raise BundleError(f"{bundle.folder}: the model cannot score its sample ({error}). Train a new one.") from error
    if len(wrong):
        row = int(wrong[0])
        raise BundleError(
            f"{bundle.folder}: {len(wrong)} of {len(found)} sample rows score otherwise than in training, row {row} {found[row]!s} for "
            f"{sample.scores[row]!s}. onnxruntime is {onnxruntime.__version__}, the bundle was made with {bundle.manifest.versions}: "
            "install that one, or train a new bundle with `millstream train`."
        )
    return bundle


def _check_free(folder: Path, model_version: str) -> None:
    if folder.name != model_version:
        raise BundleError(f"{folder}: not named after the model_version, {model_version!r}. Save to {folder / model_version}.")
    if folder.exists():
        raise BundleError(f"{folder}: there already, and a bundle is never changed. Choose another model_version.")


def _check_finite(folder: Path, kind: str, numbers: Mapping[str, float]) -> None:
    """JSON has no NaN and no infinity."""
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise BundleError(f"{folder}: {kind} {name!r} is {number}. Measure it on rows that hold both labels.")


def _check_rows(folder: Path, rows: NDArray[np.float32], feature_names: Sequence[str]) -> None:
    if rows.shape != (max(1, len(rows)), len(feature_names)):
        raise BundleError(
            f"{folder}: rows_sample has shape {rows.shape}, the model has {len(feature_names)} features. Give training rows, one at least."
        )


def _spaced(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), SAMPLE_ROWS_MAX), dtype=np.intp)]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _npz(sample: Sample) -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, features=sample.features, scores=sample.scores)
    return content.getvalue()


def _sample(folder: Path, content: bytes) -> Sample:
    try:
        with np.load(io.BytesIO(content)) as arrays:
            return Sample(arrays["features"], arrays["scores"])
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise BundleError(f"{folder}: {SAMPLE} holds something else ({error}). Copy the bundle again, or train a new one.") from error


def _decode(folder: Path, name: str, content: bytes, kind: type[Decoded]) -> Decoded:
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.DecodeError as error:
        raise BundleError(f"{folder}: {name} holds something else ({error}). Copy the bundle again, or train a new one.") from error


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise BundleError(f"{folder}: {name} cannot be read ({error.strerror}). Copy the bundle again, or train a new one.") from error


def _read_unchanged(folder: Path, name: str, manifest: Manifest) -> bytes:
    content = _read(folder, name)
    found, expected = _sha256(content), manifest.sha256.get(name)
    if found != expected:
        raise BundleError(f"{folder}: {name} was changed, SHA-256 {found}, not {expected}. Copy the bundle again, or train a new one.")
    return content


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write all files to a folder beside, then rename it: a reader sees the whole bundle or none."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".", dir=folder.parent) as beside:
        partial = Path(beside) / folder.name
        partial.mkdir()
        for name, content in files.items():
            _write_through(partial / name, content)
        try:
            partial.rename(folder)
        except OSError as error:
            raise BundleError(
                f"{folder}: cannot be put in place ({error.strerror}). If another save made it, choose another model_version."
            ) from error


def _write_through(path: Path, content: bytes) -> None:
    """To the disk itself: the rename must not outlive a power cut that the content does not."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
