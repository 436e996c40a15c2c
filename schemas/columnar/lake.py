"""The lake's tables: a Delta table a topic, a row a record. What its writer (streams/lake) and its readers agree on.

A row has the record as Kafka had it, then what the record says, null where it cannot be decoded: a bad record is in the lake, too, with its
bytes. A table is partitioned by `day`, UTC: the date of the Kafka timestamp, but never one before that of the record before it in its
partition, and never one that had not begun when it was written. So days follow in the order of offsets, whatever clocks producers have:
who reads day by day reads a partition in order, and retention removes what is oldest in the log.

How far a table reaches stands in its own transactions (Delta's `txn` actions), written with the rows:
    <topic>/<partition>         the offset that comes next
    <topic>/<partition>/day     the day of its last row, in days since 1970
    <topic>                     how many partitions the topic has
    z-order                     the last day whose rows were put in order of LOOKED_UP, in days since 1970
"""

import polars as pl

from schemas.topics import Source, Topic

HEADERS = pl.List(pl.Struct({"name": pl.String, "value": pl.Binary}))
#: A record as Kafka had it.
RAW: dict[str, pl.DataType] = {
    "day": pl.Date(),
    "topic": pl.String(),
    "partition": pl.Int32(),
    "offset": pl.Int64(),
    "timestamp_ms": pl.Int64(),
    "key": pl.Binary(),
    "value": pl.Binary(),
    "headers": HEADERS,
    "value_sha256": pl.Binary(),
}
#: What stands in `record` of a null value, which removes an item or forgets a person: the id is the key.
TOMBSTONE = "Tombstone"

_TEXT, _LONG, _DOUBLE = pl.String(), pl.Int64(), pl.Float64()
_TEXTS, _DOUBLES = pl.List(pl.String()), pl.List(pl.Float64())
_WHO = {"record": _TEXT, "tenant": _TEXT, "ts_ms": _LONG}
_EVENT = {
    **_WHO,
    "request_id": _TEXT,
    "user_id": _TEXT,
    "item_id": _TEXT,
    "position": _LONG,
    "dwell_ms": _LONG,
    "model_version": _TEXT,
}
_ANSWER = {
    **_WHO,
    "request_id": _TEXT,
    "user_id": _TEXT,
    "item_ids": _TEXTS,
    "scores": _DOUBLES,
    "model_version": _TEXT,
    "feature_version": _TEXT,
    "generation": _TEXT,
    "degraded": _TEXT,
    "arm": _TEXT,
}
#: What the records of each topic say, by topic name. `record`: which of the topic's records it is, null where it cannot be decoded.
SAID: dict[str, dict[str, pl.DataType]] = {
    "impressions": _EVENT,
    "clicks": _EVENT,
    "content": {
        **_WHO,
        "item_id": _TEXT,
        "author_id": _TEXT,
        "created_at_ms": _LONG,
        "language": _TEXT,
        "topic_tags": _TEXTS,
        "quality_score": _DOUBLE,
        "safety_labels": _TEXTS,
    },
    "users": {
        **_WHO,
        "user_id": _TEXT,
        "created_at_ms": _LONG,
        "locale": _TEXT,
        "region": _TEXT,
        "personalization": pl.Boolean(),
        "analytics": pl.Boolean(),
    },
    "rank-requests": {**_WHO, "request_id": _TEXT, "user_id": _TEXT, "candidate_item_ids": _TEXTS, "k": _LONG, "deadline_ms": _LONG},
    "rank-responses": {**_ANSWER, "latency_ms": _DOUBLE},
    "rank-telemetry": {**_ANSWER, "staleness_ms": _LONG},
    "dead-letters": {
        "record": _TEXT,
        "source_topic": _TEXT,
        "source_partition": _LONG,
        "source_offset": _LONG,
        "reason": _TEXT,
        "detail": _TEXT,
    },
}
#: By what rows are looked up: days that are over are in its order. The first of these that a topic has.
LOOKED_UP = ("user_id", "item_id", "key")
Z_ORDER = "z-order"


def columns(topic: Topic) -> dict[str, pl.DataType]:
    """Names and types of a table's columns, in order."""
    return RAW | SAID[topic.name]


def looked_up(topic: Topic) -> str:
    """The column that a table's days are put in order of."""
    return next(name for name in LOOKED_UP if name in columns(topic))


def table_uri(lake_uri: str, topic: Topic) -> str:
    """Where a topic's table stands; the topic prefix of Kafka is not part of it."""
    return f"{lake_uri.rstrip('/')}/{topic.name}"


def offset_id(source: Source) -> str:
    """Under which transaction id a table has the offset that comes next in a source."""
    return str(source)


def day_id(source: Source) -> str:
    """Likewise the day of its last row."""
    return f"{source}/day"
