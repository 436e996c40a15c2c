"""One topic's table, as its writer sees it: rows are appended together with the offsets that they reach, or not at all.

Delta refuses a commit if another one that its snapshot does not know has written under one of its transaction ids. Here the ids are the
sources, so of two writers of the same rows one is refused, however late it comes: before each commit the snapshot itself must say what
this writer believes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from typing import NamedTuple

import polars as pl
from deltalake import ColumnProperties, CommitProperties, DeltaTable, Transaction, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError

from schemas.codec import SchemaIds
from schemas.columnar.lake import columns, day_id, offset_id, table_uri
from schemas.errors import LogError
from schemas.topics import Source, StoredRecord, Topic
from schemas.windows import DAY_MS
from streams import metrics
from streams.lake.rows import rows_of

EPOCH = date(1970, 1, 1)
#: Rows of a row group: what a reader decodes at least for one row of it, and holds at once.
GROUP_ROWS = 131_072
_UNIQUE = ColumnProperties(dictionary_enabled=False)
#: How files are written. A dictionary of what never repeats is built for nothing, and thrown away at every page.
WRITTEN = WriterProperties(
    compression="ZSTD",
    compression_level=1,
    max_row_group_size=GROUP_ROWS,
    column_properties=dict.fromkeys(("offset", "value", "value_sha256", "request_id"), _UNIQUE),
)
#: Arrow's types of old in the files: not every reader knows Polars' own, views of strings.
PLAIN = pl.CompatLevel.oldest()
#: How long `_delta_log` keeps the commits that a checkpoint holds (Delta's interval): how far back a table can be read as it was.
LOG_KEPT = "interval 7 days"


class LakePlace(NamedTuple):
    """Where the lake is. uri: a folder, or what deltalake takes (s3://bucket/path). options: of its object store, by deltalake's names."""

    uri: str
    options: Mapping[str, str] = {}


class Reached(NamedTuple):
    """How far a table reaches in one source: the offset that comes next, and the day of the last row."""

    offset: int
    day: int


class Table:
    """The table of one topic, open for one writer."""

    def __init__(self, lake: LakePlace, topic: Topic, partitions_count: int, schema_ids: SchemaIds | None = None) -> None:
        """partitions_count: how many the topic has in Kafka. The table is made where there is none. Raises LogError."""
        self.topic = topic
        self.uri = table_uri(lake.uri, topic)
        self.pending_bytes = 0
        self._schema_ids = {} if schema_ids is None else schema_ids
        self._reached: dict[int, Reached] = {}
        self._taken: dict[int, int] = {}
        self._rows: list[pl.DataFrame] = []
        self._partitions_count = Transaction(topic.name, partitions_count)
        with trouble(self.uri):
            self._delta = DeltaTable.create(
                self.uri,
                pl.DataFrame(schema=columns(topic)).to_arrow().schema,
                mode="ignore",
                partition_by=["day"],
                configuration={"delta.logRetentionDuration": LOG_KEPT},
                storage_options=dict(lake.options),
                commit_properties=CommitProperties(app_transactions=[self._partitions_count]),
            )

    def begin(self, partitions: Iterable[int]) -> dict[int, int | None]:
        """Take over partitions, and forget all that is pending. Returns the offset to read each from, None where it has no row yet."""
        self._forget()
        with trouble(self.uri):
            self._delta.update_incremental()
        found = {partition: self._standing(partition) for partition in partitions}
        # A topic may get partitions while a sink runs.
        self._partitions_count = Transaction(self.topic.name, max(self._partitions_count.version, 1 + max(found, default=0)))
        self._reached = {partition: reached or Reached(0, 0) for partition, reached in found.items()}
        self._taken = {partition: reached.offset for partition, reached in self._reached.items()}
        return {partition: reached and reached.offset for partition, reached in found.items()}

    def take(self, records: Sequence[StoredRecord]) -> None:
        """Keep records for the next commit; each partition's ascending, following what was taken before. What the table has is left out."""
        new = [record for record in records if record.offset >= self._taken[record.partition]]
        if not new:
            return
        rows = rows_of(self.topic, new, self._schema_ids)
        self._rows.append(rows)
        self.pending_bytes += int(rows.estimated_size())
        self._taken |= {record.partition: record.offset + 1 for record in new}

    def commit(self, today: date) -> dict[int, int]:
        """Write what is pending. Returns the offset that each partition reaches now.

        today: no row stands in a later day. Raises LogError where another writer wrote the same partitions, or the table takes nothing: the
        table is then as it was, and whoever begins again goes on from there.
        """
        if not self._rows:
            return {}
        self._check()
        rows = _dated(pl.concat(self._rows), self._reached, (today - EPOCH).days)
        reached = {
            partition: Reached(offset + 1, (day - EPOCH).days)
            for partition, offset, day in rows.group_by("partition").agg(pl.max("offset", "day")).iter_rows()
        }
        written = [*self._transactions(reached), *self._counted()]
        with trouble(self.uri), metrics.LAKE_COMMIT.labels(self.topic.name).time():
            write_deltalake(
                self._delta,
                rows.select(*columns(self.topic)).to_arrow(compat_level=PLAIN),
                mode="append",
                schema_mode="merge",  # a column that is new gets into older tables
                writer_properties=WRITTEN,
                commit_properties=CommitProperties(app_transactions=written),
            )
        metrics.LAKE_ROWS.labels(self.topic.name).inc(len(rows))
        self._forget()
        self._reached |= reached
        return {partition: to.offset for partition, to in reached.items()}

    def reached(self, partition: int) -> int:
        """The offset that comes next in one of the partitions that were taken over."""
        return self._reached[partition].offset

    def _forget(self) -> None:
        self._rows.clear()
        self.pending_bytes = 0

    def _standing(self, partition: int) -> Reached | None:
        source = Source(self.topic.name, partition)
        offset = self._delta.transaction_version(offset_id(source))
        return None if offset is None else Reached(offset, self._delta.transaction_version(day_id(source)) or 0)

    def _check(self) -> None:
        """Raise LogError unless the snapshot that the commit rests on says what we believe."""
        for partition, reached in self._reached.items():
            standing = self._standing(partition) or Reached(0, 0)
            if standing != reached:
                raise LogError(_another(self.uri, f"partition {partition} reaches offset {standing.offset}, not {reached.offset}"))

    def _transactions(self, reached: Mapping[int, Reached]) -> Iterator[Transaction]:
        for partition, to in reached.items():
            source = Source(self.topic.name, partition)
            yield Transaction(offset_id(source), to.offset)
            yield Transaction(day_id(source), to.day)

    def _counted(self) -> list[Transaction]:
        """Written only where it is new: writers of other partitions would be refused for it."""
        known = self._delta.transaction_version(self.topic.name)
        return [] if known == self._partitions_count.version else [self._partitions_count]


@contextmanager
def trouble(uri: str) -> Iterator[None]:
    """Whatever a table does not take becomes a LogError that names it."""
    try:
        yield
    except CommitFailedError as error:
        raise LogError(_another(uri, str(error))) from error
    except (DeltaError, OSError) as error:
        raise LogError(f"the lake's table {uri} cannot be written: {error}. Look after its disk or its store; nothing is lost.") from error


def _another(uri: str, why: str) -> str:
    return f"another writer changed the lake's table {uri} meanwhile: {why}. Run its sinks in one consumer group, and start this one again."


def _dated(rows: pl.DataFrame, reached: Mapping[int, Reached], today: int) -> pl.DataFrame:
    """Rows with their day: that of the timestamp, not before that of the row before it in its partition, not after today."""
    own = (pl.col("timestamp_ms") // DAY_MS).clip(0, today).cum_max().over("partition")
    last = pl.col("partition").replace_strict({partition: to.day for partition, to in reached.items()}, return_dtype=pl.Int64)
    return rows.with_columns(pl.max_horizontal(own, last).cast(pl.Int32).cast(pl.Date).alias("day"))
