"""Events and what they add as tables, for whoever trains or looks: ingest does without, and without the memory that tables take."""

from typing import Any

import numpy as np
import polars as pl

from schemas.aggregates import COUNTERS, ENTITY_ID, adds
from schemas.columnar.bodies import NONE
from schemas.columnar.events import NUMBERS, RECORDS, WORDS, Events, Ints
from schemas.columnar.words import Buffer

#: The columns of a table of events: the fields, where each stood in the batch, and what the log says of it.
EVENT_COLUMNS = {
    "record": pl.String,
    "row": pl.UInt32,
    "request_id": pl.String,
    "user_id": pl.String,
    "item_id": pl.String,
    "ts_ms": pl.Int64,
    "dwell_ms": pl.Int64,
    "position": pl.Int64,
    "model_version": pl.String,
    "tenant": pl.String,
    "offset": pl.Int64,
    "timestamp": pl.Int64,
}


def event_table(events: Events) -> pl.DataFrame:
    """Events as a table of EVENT_COLUMNS."""
    said: dict[str, Any] = {
        "record": np.array(RECORDS, object)[events.record].tolist(),
        "row": events.row,
        **{name: _nullable(events.number(name)) for name in NUMBERS},
        **{name: strings(events.text, events.word(name)) for name in WORDS},
        "offset": events.offset,
        "timestamp": events.timestamp,
    }
    return pl.DataFrame({name: pl.Series(said[name], dtype=dtype) for name, dtype in EVENT_COLUMNS.items()})


def updates(events: pl.DataFrame) -> pl.DataFrame:
    """What each event adds, one row an event, before it is known to whom.

    events: EVENT_COLUMNS. Returns tenant, the ids, ts_ms, offset and COUNTERS (Int64).
    """
    record = events["record"].replace_strict(RECORDS, range(len(RECORDS)), return_dtype=pl.UInt8).to_numpy()
    added = adds(record, events["dwell_ms"].fill_null(NONE).to_numpy())
    counters = [pl.Series(name, added[:, place]) for place, name in enumerate(COUNTERS)]
    return events.select("tenant", *ENTITY_ID.values(), "ts_ms", "offset", *counters)


def entities(rows: pl.DataFrame, kind: str) -> pl.DataFrame:
    """The updates that touch one kind, with the entity's `id`; rows that name none are left out."""
    return rows.rename({ENTITY_ID[kind]: "id"}).drop_nulls("id").select("tenant", "id", "ts_ms", "offset", *COUNTERS)


def strings(text: Buffer, spans: Ints) -> list[str | None]:
    """Spans as Python strings, None where there is none."""
    raw = text.tobytes()
    starts, ends = spans[:, 0].tolist(), spans.sum(axis=1).tolist()
    return [raw[start:end].decode() if end >= start else None for start, end in zip(starts, ends, strict=True)]


def _nullable(numbers: Ints) -> list[int | None]:
    return [None if number == NONE else number for number in numbers.tolist()]
