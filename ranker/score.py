"""A matrix of features becomes scores: one ONNX Runtime session, on the calling thread.

A request's 200 rows take well under a millisecond on one core, so threads inside the session would only compete with other requests.
`InferenceSession.run` may be called from several threads at once; so may `Scorer.score`.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime_errors

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


class Scorer:
    """Scores matrices with a bundle's model."""

    def __init__(self, bundle: "Bundle") -> None:
        """Use the bundle's session; no second one is opened."""
        self._folder = bundle.folder
        self._session = bundle.session
        self._columns = len(bundle.manifest.feature_names)

    def score(self, matrix: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the scores, float32 [n], of a matrix float32 [n, F]; n may be 0, NaN is missing.

        A row's score does not depend on the rows beside it. Raises BundleError when F is not the model's number of columns.
        """
        if matrix.ndim != 2 or matrix.shape[1] != self._columns:
            raise BundleError(
                f"{self._folder}: the matrix has shape {matrix.shape}, the model takes [n, {self._columns}]. Use its feature_version."
            )
        scores: NDArray[np.float32] = self._session.run(["scores"], {"features": matrix})[0]
        return scores


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
