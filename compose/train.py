"""From a log to a bundle: point-in-time rows, a model, the proof that it scores as it was trained, a folder.

The rows are made from the log by the same updates and the same registry that ingest and ranking use, so the model learns from what
it would have been served.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from ranker import bundle as bundles
from ranker.training.fit import FitSettings, TrainingRows, fit
from replay.history import read_history
from replay.log import EventLog
from replay.rows import Rows, rows
from schemas.aggregates import COUNTERS, ITEM
from schemas.columnar.repeats import REPEAT_OFFSETS
from schemas.columnar.table import entities, updates
from schemas.errors import BundleError
from schemas.features import CTR_PRIOR, CTR_PRIOR_IMPRESSIONS, Registry
from schemas.records import Impression

#: Share of the time span kept from the trees to stop them early: enough requests to tell noise from gain.
VALIDATION_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Split:
    """Moments that part the rows, milliseconds: train in [start, validation), stop early on [validation, stop)."""

    start_ms: int
    validation_ms: int
    stop_ms: int


def train(
    log: EventLog,
    registry: Registry,
    models: Path,
    *,
    now_ms: int,
    objective: str = "binary:logistic",
    split: Split | None = None,
    repeat_offsets: int = REPEAT_OFFSETS,
) -> bundles.Bundle:
    """Train on a log and write a bundle named after now_ms. Raises BundleError where the log has too little to learn from."""
    history = read_history(log, registry, repeat_offsets)
    if history.events.filter(pl.col("record") == Impression.__name__).is_empty():
        raise BundleError("the log has no impressions to learn from. Produce some, for one with `millstream demo`, and train again.")
    found = rows(history.events, history.profiles, registry, history.contexts)
    split = split or last_share(found)
    training = _training_rows(found.between(split.start_ms, split.validation_ms))
    validation = _training_rows(found.between(split.validation_ms, split.stop_ms))
    fitted = fit(training, validation=validation, settings=FitSettings(objective=objective))
    version = f"m{now_ms}"
    return bundles.save(
        models / version,
        fitted=fitted,
        rows_sample=training.features,
        model_version=version,
        feature_version=registry.fingerprint,
        feature_names=registry.feature_names,
        popularity=popularity(history.events.filter(pl.col("ts_ms") < split.stop_ms)),
        created_at_ms=now_ms,
        metrics={**fitted.metrics, "rows": float(len(training.labels))},
    )


def last_share(found: Rows) -> Split:
    """The last part of the time span for validation, all before it for training."""
    first, last = int(found.as_of_ms.min()), int(found.as_of_ms.max())
    return Split(first, last - int((last - first) * VALIDATION_SHARE), last + 1)


def popularity(events: pl.DataFrame) -> dict[str, float]:
    """Each item's smoothed CTR over the whole log."""
    table = entities(updates(events), ITEM).group_by("id").agg(pl.col(name).sum() for name in COUNTERS)
    clicks, impressions = table["clicks"].to_numpy(), table["impressions"].to_numpy()
    scores = (clicks + CTR_PRIOR * CTR_PRIOR_IMPRESSIONS) / (np.maximum(impressions, clicks) + CTR_PRIOR_IMPRESSIONS)
    return dict(zip(table["id"].to_list(), scores.tolist(), strict=True))


def _training_rows(found: Rows) -> TrainingRows:
    return TrainingRows(found.features, found.labels, found.groups)
