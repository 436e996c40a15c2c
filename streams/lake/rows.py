"""Records of a topic as rows of its table: what Kafka had, and what they say where they can be decoded.

What is decoded is what ingest would take: an event that it would dead-letter has its bytes here, and nulls beside them.
"""

import hashlib
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import polars as pl
import pyarrow as pa

from schemas import codec
from schemas.columnar.lake import RAW, SAID, TOMBSTONE, looked_up
from schemas.columnar.table import event_table
from schemas.columns import decode_events, decode_profiles
from schemas.errors import DecodeError
from schemas.records import RankedItem, RankResponse, RankTelemetry, Record, ServedItem
from schemas.topics import CLICKS, CONTENT, IMPRESSIONS, USERS, StoredRecord, Topic

HEADERS_ARROW = pa.list_(pa.struct({"name": pa.string(), "value": pa.binary()}))
#: Columns that are not a field of the record of the same name.
OTHERWISE: dict[str, Callable[[Any], Any]] = {
    "record": lambda said: type(said).__name__,
    "personalization": attrgetter("consent.personalization"),
    "analytics": attrgetter("consent.analytics"),
    "item_ids": lambda said: [item.item_id for item in _items(said)],
    "scores": lambda said: [item.score for item in _items(said)],
    "source_topic": attrgetter("topic"),
    "source_partition": attrgetter("partition"),
    "source_offset": attrgetter("offset"),
}


def rows_of(topic: Topic, records: Sequence[StoredRecord], schema_ids: codec.SchemaIds) -> pl.DataFrame:
    """Records of a topic, offsets ascending in each partition, as rows without their `day`."""
    return pl.concat([_raw(topic, records), _said(topic, records, schema_ids)], how="horizontal")


def _raw(topic: Topic, records: Sequence[StoredRecord]) -> pl.DataFrame:
    values = [record.value for record in records]
    found: dict[str, Any] = {
        "topic": pl.repeat(topic.name, len(records), eager=True),
        "partition": [record.partition for record in records],
        "offset": [record.offset for record in records],
        "timestamp_ms": [record.timestamp for record in records],
        "key": [record.key for record in records],
        "value": values,
        "headers": _headers(records),
        "value_sha256": [None if value is None else hashlib.sha256(value).digest() for value in values],
    }
    return pl.DataFrame({name: pl.Series(series, dtype=RAW[name]) for name, series in found.items()})


def _headers(records: Sequence[StoredRecord]) -> pl.Series:
    """Through Arrow: Polars makes a series of its own for each list of structs."""
    lists = [[{"name": name, "value": value} for name, value in record.headers] for record in records]
    return pl.Series(pl.from_arrow(pa.array(lists, HEADERS_ARROW)))


def _said(topic: Topic, records: Sequence[StoredRecord], schema_ids: codec.SchemaIds) -> pl.DataFrame:
    if topic in {IMPRESSIONS, CLICKS}:
        return _events(topic, records, schema_ids)
    fields = [_fields(topic, record, schema_ids) for record in records]
    return pl.DataFrame(fields, schema=SAID[topic.name])


def _events(topic: Topic, records: Sequence[StoredRecord], schema_ids: codec.SchemaIds) -> pl.DataFrame:
    said = event_table(decode_events(topic, records, schema_ids).events).select("row", *SAID[topic.name])
    every = pl.DataFrame({"row": pl.arange(len(records), dtype=pl.UInt32, eager=True)})
    return every.join(said, on="row", how="left", maintain_order="left").drop("row")


def _fields(topic: Topic, record: StoredRecord, schema_ids: codec.SchemaIds) -> dict[str, Any]:
    """What one record says, by column; nothing where it cannot be decoded."""
    try:
        said = _decoded(topic, record, schema_ids)
    except DecodeError:
        return {}
    if said is None:
        return {"record": TOMBSTONE, looked_up(topic): (record.key or b"").decode()}
    return {name: OTHERWISE.get(name, attrgetter(name))(said) for name in SAID[topic.name]}


def _decoded(topic: Topic, record: StoredRecord, schema_ids: codec.SchemaIds) -> Record | None:
    """A record's value; None for a tombstone. Raises DecodeError."""
    if topic not in {CONTENT, USERS}:
        return codec.decode(topic, record.value, record.headers, schema_ids)
    (profiles, bad) = decode_profiles(topic, [record], schema_ids)
    if bad:
        raise DecodeError(bad[0].reason, bad[0].detail)
    return profiles[0].value


def _items(said: RankResponse | RankTelemetry) -> Sequence[RankedItem | ServedItem]:
    return said.ranked_items if isinstance(said, RankResponse) else said.items
