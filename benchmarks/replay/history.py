"""Two weeks of the benchmarks' feed, in the lake and in Kafka: event times and Kafka timestamps are spread over fourteen days."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import polars as pl

from benchmarks import feed as feeds
from benchmarks import log, wire
from benchmarks.feed import PARTITIONS_COUNT, Feed, Ints
from schemas.columnar.lake import RAW, SAID
from schemas.columnar.log import LogColumns, Spans
from schemas.columnar.table import event_table
from schemas.columns import decode_events
from schemas.topics import CLICKS, IMPRESSIONS, SOURCES, Topic
from schemas.windows import DAY_MS
from streams.lake.table import LakePlace, Table

DAYS = 14
#: Later than any day of a feed.
TODAY = date(2100, 1, 1)


@dataclass(frozen=True, slots=True)
class Part:
    """Some events of one topic, as they were sent. values: as producers send them. offset: int64 [n], in its partition."""

    topic: Topic
    feed: Feed
    values: list[bytes]
    offset: Ints

    def rows(self) -> pl.DataFrame:
        """As the sink of the lake makes them, by columns: its own way takes an object a record, and is not what is measured."""
        keys = wire.user_ids(self.feed.user)
        width = keys.shape[1]
        packed = keys.tobytes()
        raw: dict[str, Any] = {
            "topic": pl.repeat(self.topic.name, len(self.values), eager=True),
            "partition": self.feed.partition,
            "offset": self.offset,
            "timestamp_ms": self.feed.ts_ms,
            "key": [packed[at : at + width] for at in range(0, len(packed), width)],
            "value": self.values,
            "headers": pl.Series([[]], dtype=RAW["headers"]).new_from_index(0, len(self.values)),
            "value_sha256": [hashlib.sha256(value).digest() for value in self.values],
        }
        named = pl.DataFrame({name: pl.Series(column, dtype=RAW[name]) for name, column in raw.items()})
        said = event_table(decode_events(self.topic, self._columns()).events).sort("row").select(*SAID[self.topic.name])
        return pl.concat([named, said], how="horizontal")

    def _columns(self) -> LogColumns:
        lengths = np.fromiter(map(len, self.values), np.int64, len(self.values))
        values = np.stack([np.cumsum(lengths) - lengths, lengths], axis=1)
        keys = np.full_like(values, -1)
        nothing = np.zeros(len(values), np.int64)
        spans = Spans(self.offset, self.feed.ts_ms, np.stack([keys, values]), nothing, nothing.astype(np.bool_))
        return LogColumns(self.topic.name, 0, b"".join(self.values), spans)


def make(events_count: int, seed: int) -> Feed:
    """So many events over fourteen days."""
    return feeds.make(events_count, seed, events_per_s=events_count / (DAYS * DAY_MS / 1000))


def days(feed: Feed) -> Iterator[Part]:
    """Each day's impressions, then its clicks."""
    following = {topic: np.zeros(PARTITIONS_COUNT, np.int64) for topic in (IMPRESSIONS, CLICKS)}
    first = int(feed.ts_ms[0]) // DAY_MS
    edges = np.searchsorted(feed.ts_ms, [(first + day) * DAY_MS for day in range(int(feed.ts_ms[-1]) // DAY_MS - first + 2)])
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        day = feed.rows(start, stop)
        values = wire.values(day)
        for topic, is_of_it in ((IMPRESSIONS, ~day.is_click), (CLICKS, day.is_click)):
            rows = np.flatnonzero(is_of_it)
            if len(rows):
                yield Part(topic, day.take(rows), [values[row] for row in rows.tolist()], _offsets(day.take(rows), following[topic]))


def _offsets(feed: Feed, following: Ints) -> Ints:
    """Offsets in their partitions; moves what follows there."""
    partition = feed.partition
    found = np.zeros(len(feed), np.int64)
    for number in range(PARTITIONS_COUNT):
        rows = np.flatnonzero(partition == number)
        found[rows] = following[number] + np.arange(len(rows))
        following[number] += len(rows)
    return found


def write_lake(feed: Feed, uri: str) -> None:
    """Every day a commit, by the lake's own writer; all topics that a rebuild reads have a table."""
    tables = {topic: Table(LakePlace(uri), topic, PARTITIONS_COUNT) for topic in SOURCES}
    for table in tables.values():
        table.begin(range(PARTITIONS_COUNT))
    for part in days(feed):
        tables[part.topic]._rows.append(part.rows())  # noqa: SLF001  # as `take` leaves them
        tables[part.topic].commit(TODAY)


def send(feed: Feed, kafka_bootstrap: str, prefix: str) -> None:
    """All of it, a day after the other."""
    for part in days(feed):
        log.produce(kafka_bootstrap, prefix, part.feed, part.values)
