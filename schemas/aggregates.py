"""What an event adds to whose counters: the one definition that ingest, replay and training share.

An event becomes updates: a row for the user, the item and the model version it names, each with the event's time and what it
adds to each counter. All sums are integers, so the order of addition cannot matter.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from schemas.records import Click, Dwell, Impression

USER, ITEM, MODEL = "user", "item", "model"
#: Kind of entity -> the event field that holds its id; an event without one (null) updates nothing of that kind.
ENTITY_ID = {USER: "user_id", ITEM: "item_id", MODEL: "model_version"}

COUNTERS = ("impressions", "clicks", "dwell_count", "dwell_sum_ms")
IMPRESSIONS, CLICKS, DWELL_COUNT, DWELL_SUM_MS = range(4)
#: One tile of a ring: its number and its counters. An all-zero slot is empty.
TILE = np.dtype(
    [
        ("tile", "<u4"),
        ("impressions", "<u4"),
        ("clicks", "<u4"),
        ("dwell_count", "<u4"),
        ("dwell_sum_ms", "<u8"),
    ]
)

#: What each record adds, counter by counter; a record without a dwell_ms has it null.
ADDS: dict[str, tuple[pl.Expr, ...]] = {
    Impression.__name__: (pl.lit(1), pl.lit(0), pl.lit(0), pl.lit(0)),
    Click.__name__: (
        pl.lit(0),
        pl.lit(1),
        pl.col("dwell_ms").is_not_null(),
        pl.col("dwell_ms").fill_null(0),
    ),
    Dwell.__name__: (pl.lit(0), pl.lit(0), pl.lit(1), pl.col("dwell_ms")),
}


def updates(events: pl.DataFrame) -> pl.DataFrame:
    """What each event adds, one row an event, before it is known to whom.

    events: columns as schemas.columns gives them, among them `record`. Returns tenant, the ids, ts_ms, offset and COUNTERS (Int64).
    """
    parts = [
        part.with_columns(expr.cast(pl.Int64).alias(name) for name, expr in zip(COUNTERS, ADDS[str(record)], strict=True))
        for (record,), part in events.partition_by("record", as_dict=True).items()
    ] or [events.with_columns(pl.lit(0, pl.Int64).alias(name) for name in COUNTERS)]
    return pl.concat(parts).select("tenant", *ENTITY_ID.values(), "ts_ms", "offset", *COUNTERS)


def entities(rows: pl.DataFrame, kind: str) -> pl.DataFrame:
    """The updates that touch one kind, with the entity's `id`; rows that name none are left out."""
    return rows.rename({ENTITY_ID[kind]: "id"}).drop_nulls("id").select("tenant", "id", "ts_ms", "offset", *COUNTERS)


def tiles(rows: pl.DataFrame, hop_ms: int) -> pl.DataFrame:
    """Updates of one kind summed by entity and tile: tenant, id, tile, COUNTERS and last_ms, the newest event of the tile."""
    return rows.group_by("tenant", "id", (pl.col("ts_ms") // hop_ms).alias("tile")).agg(
        *(pl.col(name).sum() for name in COUNTERS), pl.col("ts_ms").max().alias("last_ms")
    )


@dataclass(slots=True)
class Tiles:
    """What the records of n entities of one kind say as of a moment.

    counts: int64 [n, windows, counters], windows as Registry.windows(kind), counters as schemas.aggregates.COUNTERS.
    statics: one array [n] a static field (hashes: [n, SET_HASHES_MAX]). last_active_ms: int64 [n], 0 is never. known, removed: bool [n].
    exact: bool [n], False where as_of lies further back than the rings hold.
    """

    counts: NDArray[np.int64]
    statics: Mapping[str, NDArray[np.generic]]
    last_active_ms: NDArray[np.int64]
    known: NDArray[np.bool_]
    removed: NDArray[np.bool_]
    exact: NDArray[np.bool_]
