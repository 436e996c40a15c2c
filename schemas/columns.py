"""Many events to columns at once, and out of the way the ones that are not events.

Avro bodies of one schema are read field by field, all bodies in one step (schemas/avro.py). A body that is not plainly of its schema
is decoded one by one instead, whatever stands beside it in the batch, and set aside if it is bad. What a good record says is the same
on both ways (tests/property holds them together).
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import polars as pl

from schemas import avro, codec
from schemas.errors import DecodeError
from schemas.records import (
    CLOCK_SKEW_MS_MAX,
    DWELL_MS_MAX,
    ID_BYTES_MAX,
    TS_MS_MAX,
    VALUE_BYTES_MAX,
    Content,
    Reason,
    Record,
    User,
)
from schemas.topics import BadRecord, LogRecord, Topic

#: The fields that updates are made of; a record that lacks one has it null.
EVENT_FIELDS = {
    "request_id": pl.String,
    "user_id": pl.String,
    "item_id": pl.String,
    "ts_ms": pl.Int64,
    "dwell_ms": pl.Int64,
    "model_version": pl.String,
    "tenant": pl.String,
}
#: The columns of decoded events: the fields, where each stood in the batch, and what the log says of it.
EVENT_COLUMNS = {
    "record": pl.String,
    "row": pl.UInt32,
    **EVENT_FIELDS,
    "offset": pl.Int64,
    "timestamp": pl.Int64,
}

_ids = [pl.col(name) for name in codec.ID_FIELDS]
_keys = [pl.col(name) for name in codec.KEY_FIELDS]
#: What no schema can say of an event, in the order in which faults are named; `codec.check` says the same of other records.
FAULTS: tuple[tuple[Reason, str, pl.Expr], ...] = (
    (Reason.MISSING_ID, "an id is empty", pl.any_horizontal(*(column == "" for column in _ids))),
    (
        Reason.OVERSIZE,
        f"an id is longer than {ID_BYTES_MAX} bytes",
        pl.any_horizontal(*(column.str.len_bytes() > ID_BYTES_MAX for column in _keys)),
    ),
    (
        Reason.MALFORMED,
        "the tenant has a colon, which parts keys",
        pl.col("tenant").str.contains(":", literal=True),
    ),
    (
        Reason.OUT_OF_RANGE,
        "ts_ms is not a time since 1970 in milliseconds",
        ~pl.col("ts_ms").is_between(1, TS_MS_MAX),
    ),
    (
        Reason.OUT_OF_RANGE,
        f"dwell_ms is not in 0 to {DWELL_MS_MAX}",
        ~pl.col("dwell_ms").is_between(0, DWELL_MS_MAX),
    ),
    (
        Reason.FUTURE_DATED,
        f"ts_ms is more than {CLOCK_SKEW_MS_MAX} ms ahead of the record's timestamp",
        pl.col("ts_ms") - pl.col("timestamp") > CLOCK_SKEW_MS_MAX,
    ),
)
_fault = pl.coalesce(
    *(pl.when(broken).then(pl.lit(number, pl.UInt8)) for number, (_, _, broken) in enumerate(FAULTS)),
    pl.lit(None, pl.UInt8),
)


class Events(NamedTuple):
    """A decoded batch. frame: EVENT_COLUMNS, good records only, in no particular order; bad: the others."""

    frame: pl.DataFrame
    bad: list[BadRecord]


class Profile(NamedTuple):
    """A decoded content or user record. value: None is a tombstone."""

    record: LogRecord
    value: Content | User | None


def decode_events(topic: Topic, records: Sequence[LogRecord], schema_ids: codec.SchemaIds | None = None) -> Events:
    """Decode and check a batch of impressions or of clicks; never raises for what a record holds."""
    frames: list[pl.DataFrame] = []
    bad: list[BadRecord] = []
    for schema, rows, skip in _groups(topic, records, {} if schema_ids is None else schema_ids):
        odd = rows
        if schema is not None:
            frame, odd = _decode_block(schema, records, rows, skip)
            frames.append(frame)
        if odd:
            frame, faults = _decode_each(topic, records, odd, {} if schema_ids is None else schema_ids)
            frames.append(frame)
            bad += faults
    return _checked(_with_log_columns(pl.concat(frames), records), records, bad)


def decode_profiles(
    topic: Topic, records: Sequence[LogRecord], schema_ids: codec.SchemaIds | None = None
) -> tuple[list[Profile], list[BadRecord]]:
    """Decode and check a batch of content or of users, one by one: there are few of them."""
    profiles: list[Profile] = []
    bad: list[BadRecord] = []
    for record in records:
        try:
            profiles.append(Profile(record, _profile(topic, record, schema_ids)))
        except DecodeError as error:
            bad.append(BadRecord(record, error.reason, error.detail))
    return profiles, bad


def _profile(topic: Topic, record: LogRecord, schema_ids: codec.SchemaIds | None) -> Content | User | None:
    if record.value is None:
        if not record.key:
            raise DecodeError(Reason.MISSING_ID, "a tombstone without a key")
        if len(record.key) > ID_BYTES_MAX:
            raise DecodeError(Reason.OVERSIZE, f"the key is longer than {ID_BYTES_MAX} bytes")
        if not 0 < record.timestamp <= TS_MS_MAX:
            raise DecodeError(Reason.OUT_OF_RANGE, f"a tombstone's timestamp {record.timestamp} is not a time since 1970 in milliseconds")
        try:
            record.key.decode()
        except UnicodeDecodeError as error:
            raise DecodeError(Reason.MALFORMED, f"the key of a tombstone is not UTF-8: {error}") from error
        return None
    value = codec.decode(topic, record.value, record.headers, schema_ids)
    assert isinstance(value, (Content, User)), value
    codec.check(value, record.timestamp)
    return value


class _Group(NamedTuple):
    """Rows of one batch that share a framing. schema: None where they must be decoded one by one; skip: bytes before the body."""

    schema: avro.Schema | None
    rows: list[int]
    skip: int


def _groups(topic: Topic, records: Sequence[LogRecord], schema_ids: codec.SchemaIds) -> Iterator[_Group]:
    by_prefix: dict[bytes, list[int]] = defaultdict(list)
    for row, record in enumerate(records):
        by_prefix[_prefix(record)].append(row)
    for prefix, rows in by_prefix.items():
        yield _Group(_block_schema(topic, prefix, schema_ids), rows, len(prefix))


def _prefix(record: LogRecord) -> bytes:
    """The bytes before an Avro body; empty where the record must be looked at on its own."""
    value = record.value
    if not value or len(value) > VALUE_BYTES_MAX or (record.headers and _has_schema_id(record)):
        return b""
    if value.startswith(codec.SINGLE_OBJECT):
        return value[:10]
    return value[:5] if value.startswith(codec.CONFLUENT) else b""


def _has_schema_id(record: LogRecord) -> bool:
    return any(name == codec.SCHEMA_ID_HEADER for name, _ in record.headers)


def _block_schema(topic: Topic, prefix: bytes, schema_ids: codec.SchemaIds) -> avro.Schema | None:
    """The writer's schema, if its bodies can be read as a block into this topic's columns."""
    if len(prefix) == 10:
        schema = avro.BY_FINGERPRINT.get(prefix[2:])
    else:
        schema = schema_ids.get(int.from_bytes(prefix[1:])) if len(prefix) == 5 else None
    if schema is None or avro.RECORDS.get(schema.name) not in topic.records or not avro.has_columns(schema):
        return None
    return schema if not avro.unreadable(schema.raw, avro.NEWEST[schema.name].raw) else None


def _decode_block(schema: avro.Schema, records: Sequence[LogRecord], rows: list[int], skip: int) -> tuple[pl.DataFrame, list[int]]:
    """The columns of a group, and the rows of it that must be decoded one by one."""
    bodies = [(records[row].value or b"")[skip:] for row in rows]
    written = {field["name"] for field in schema.raw["fields"]}
    columns, odd = avro.read_columns(schema, bodies, [name for name in EVENT_FIELDS if name in written])
    frame = _event_frame(schema.name, rows, columns)
    if not odd.any():
        return frame, []
    return frame.filter(pl.Series(~odd)), [rows[place] for place in odd.nonzero()[0]]


def _decode_each(
    topic: Topic, records: Sequence[LogRecord], rows: list[int], schema_ids: codec.SchemaIds
) -> tuple[pl.DataFrame, list[BadRecord]]:
    bad: list[BadRecord] = []
    good: dict[str, list[tuple[int, Record]]] = {record.__name__: [] for record in topic.records}
    for row in rows:
        record = records[row]
        try:
            value = codec.decode(topic, record.value, record.headers, schema_ids)
        except DecodeError as error:
            bad.append(BadRecord(record, error.reason, error.detail))
        else:
            good[type(value).__name__].append((row, value))
    frames = [
        _event_frame(
            name,
            [row for row, _ in found],
            {field: [getattr(value, field, None) for _, value in found] for field in EVENT_FIELDS},
        )
        for name, found in good.items()
    ]
    return pl.concat(frames), bad


def _event_frame(name: str, rows: list[int], columns: dict[str, Any]) -> pl.DataFrame:
    """One record's events with every event column but the log's; a field the writer did not know takes its default."""
    defaults = {"tenant": ""}
    fields = {
        field: pl.Series(field, columns[field]).cast(dtype)
        if field in columns
        else pl.repeat(defaults.get(field), len(rows), dtype=dtype, eager=True)
        for field, dtype in EVENT_FIELDS.items()
    }
    record = pl.repeat(name, len(rows), dtype=pl.String, eager=True)
    return pl.DataFrame({"record": record, "row": pl.Series(rows, dtype=pl.UInt32), **fields})


def _with_log_columns(frame: pl.DataFrame, records: Sequence[LogRecord]) -> pl.DataFrame:
    rows = frame["row"]
    offsets = pl.Series("offset", [record.offset for record in records], dtype=pl.Int64)
    timestamps = pl.Series("timestamp", [record.timestamp for record in records], dtype=pl.Int64)
    return frame.with_columns(offsets.gather(rows), timestamps.gather(rows))


def _checked(frame: pl.DataFrame, records: Sequence[LogRecord], bad: list[BadRecord]) -> Events:
    faults = frame.select(_fault.alias("fault")).to_series()
    if faults.null_count() == len(frame):
        return Events(frame, bad)
    broken = faults.is_not_null()
    for row, fault in zip(frame["row"].filter(broken), faults.filter(broken), strict=True):
        reason, detail, _ = FAULTS[fault]
        bad.append(BadRecord(records[row], reason, detail))
    return Events(frame.filter(~broken), bad)
