"""A matrix of features becomes scores: by bit vectors where the model is a tree ensemble that fits them, else by ONNX Runtime.

ONNX Runtime is the reference: bit vectors are used only if they score the bundle's sample as it does. One thread, the calling one: a
request's 200 rows take a tenth of a millisecond, so threads inside would only compete with other requests.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime_errors

from ranker.trees import kernel
from ranker.trees.ensemble import Ensemble, take_apart
from schemas.errors import BundleError

if TYPE_CHECKING:  # ranker.bundle imports this module
    from ranker.bundle import Bundle

#: ONNX Runtime has no common root for its errors; these are the ones a model file can cause.
SESSION_ERRORS = (
    onnxruntime_errors.Fail,
    onnxruntime_errors.InvalidArgument,
    onnxruntime_errors.InvalidGraph,
    onnxruntime_errors.InvalidProtobuf,
    onnxruntime_errors.NotImplemented,
    onnxruntime_errors.RuntimeException,
)


#: Scores by bit vectors may differ from ONNX Runtime's by this much: room for another exp(), not for another leaf.
TOLERANCE = 1e-6

Floats = NDArray[np.float32]

log = logging.getLogger("millstream.serve")


class Scorer:
    """Scores matrices with a bundle's model."""

    def __init__(self, bundle: "Bundle", own: Sequence[int] = (), places_count: int = 1) -> None:
        """Use the bundle's session; no second one is opened.

        own: columns in which rows of a request differ; none: nothing is folded. places_count: of rows that come again.
        """
        self._folder = bundle.folder
        self._session = bundle.session
        self._columns = len(bundle.manifest.feature_names)
        self._own = np.array(own, np.int64)
        self._shared = np.setdiff1d(np.arange(self._columns), self._own)
        self._ensemble = self._proven(bundle) if own else None
        self._folded = kernel.room(self._ensemble, self._own, places_count) if self._ensemble else None
        calibrator = bundle.manifest.calibrator
        self._knots = np.array(calibrator.scores), np.array(calibrator.probabilities)

    @property
    def is_folding(self) -> bool:
        """Whether it scores by bit vectors."""
        return self._ensemble is not None

    def score(self, columns: Floats, places: NDArray[np.int64], shared: Floats, starts: NDArray[np.int64]) -> Floats:
        """Return the scores, float32 [n], of n rows of r requests by bit vectors.

        columns: float32 [n, own], NaN is missing. places: int64 [n], of places_count; at the same place a row is the cheaper the more it
        is like the one before it. shared: float32 [r, columns that are not own], a row a request. starts: int64 [r + 1], where each
        request's rows begin.
        """
        assert self._ensemble is not None, "it folds nothing"
        assert self._folded is not None, "it folds nothing"
        assert shared.shape[1] == len(self._shared), shared.shape
        words = kernel.fold(self._ensemble, shared, self._shared)
        return kernel.score(self._ensemble, self._folded, columns, self._own, places, words, starts)

    def by_runtime(self, matrix: Floats) -> Floats:
        """As `score`, by ONNX Runtime; a row's score does not depend on the rows beside it."""
        self._check(matrix)
        try:
            scores: Floats = self._session.run(["scores"], {"features": matrix})[0]
        except SESSION_ERRORS as error:
            raise BundleError(
                f"{self._folder}: ONNX Runtime cannot score a matrix of shape {matrix.shape}: {error}. Train a new one."
            ) from error
        return scores

    def calibrate(self, raw: Floats) -> Floats:
        """Click probabilities, float32 [n], of scores [n]: straight lines between the bundle's knots; the scores where it has none."""
        scores, probabilities = self._knots
        return np.interp(raw, scores, probabilities).astype(np.float32) if len(scores) else raw

    def _check(self, matrix: Floats) -> None:
        if matrix.ndim != 2 or matrix.shape[1] != self._columns:
            raise BundleError(
                f"{self._folder}: the matrix has shape {matrix.shape}, the model takes [n, {self._columns}]. Use its feature_version."
            )

    def _proven(self, bundle: "Bundle") -> Ensemble | None:
        """The model as bit vectors, if they score the bundle's sample as ONNX Runtime does."""
        rows = bundle.sample.features
        if self._columns != rows.shape[1]:
            return None
        ensemble = take_apart(bundle.model, self._columns)
        if ensemble is None:
            log.warning("%s is no ensemble of trees of 64 leaves at most: ONNX Runtime scores it", self._folder)
            return None
        shared, nothing = kernel.fold(ensemble, rows[:, self._shared], self._shared), kernel.room(ensemble, self._own, 1)
        found = kernel.score(
            ensemble, nothing, rows[:, self._own], self._own, np.zeros(len(rows), np.int64), shared, np.arange(len(rows) + 1)
        )
        # Not "over the tolerance": NaN is neither.
        wrong = ~(np.abs(found - self.by_runtime(rows)) <= TOLERANCE)
        if wrong.any():
            log.warning("%s: %d of %d sample rows score otherwise by bit vectors: not used", self._folder, wrong.sum(), len(wrong))
            return None
        return ensemble


def open_session(model: bytes, folder: Path) -> onnxruntime.InferenceSession:
    """Open the session over a serialized model; `folder` is named if it is refused, with BundleError."""
    try:
        return onnxruntime.InferenceSession(model, session_options(), providers=["CPUExecutionProvider"])
    except SESSION_ERRORS as error:
        raise BundleError(
            f"{folder}: onnxruntime {onnxruntime.__version__} refuses the model ({error}). Train a new one with `millstream train`."
        ) from error


def session_options() -> onnxruntime.SessionOptions:
    """Return one thread, in order, all graph optimisations, and no memory kept between calls.

    At 200 rows the arena and the memory pattern save nothing measurable; the one would hold the peak for ever, the other keep a plan
    for each number of rows it has met.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    return options
