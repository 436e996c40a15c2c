"""The lake as a log to read (replay.log.ReadableLog): `Lake(lake_uri, storage_options)`, over the tables that `millstream lake` writes.

Day by day, and in a day source by source in the order of offsets: days follow in that order, too (schemas/columnar/lake.py), while the
rows of a day stand in any. A batch's records are columns (schemas.columnar.log.LogColumns): no object is made for a record. A day is
sorted in memory; one that is larger than DAY_BYTES_MAX is first dealt into files of a temporary folder, a stretch of offsets each.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError
from numpy.typing import NDArray
from polars.exceptions import PolarsError

from replay.log import BATCH_ROWS_MAX
from schemas.codec import SCHEMA_ID_HEADER
from schemas.columnar.lake import offset_id, table_uri
from schemas.columnar.log import LogColumns, Spans
from schemas.errors import LogError
from schemas.topics import Batch, Source, Topic

#: What a day's files may hold (bytes, compressed) to be sorted in memory, where they take some three times as much. More takes more memory;
#: a larger day is written and read once more.
DAY_BYTES_MAX = 128 << 20
#: Above every offset: with it, one number sorts by partition first. It leaves room for 2^15 partitions.
OFFSETS_MAX = 1 << 48
Ints = NDArray[np.int64]
#: The columns that make a record.
READ = ("partition", "offset", "timestamp_ms", "key", "value", "headers")


class Lake:
    """The tables under one URI, for reading."""

    def __init__(self, lake_uri: str, storage_options: Mapping[str, str] | None = None) -> None:
        """lake_uri: a folder, or what deltalake takes (s3://bucket/path). storage_options: of its object store, by deltalake's names."""
        self._uri = lake_uri
        self._options = dict(storage_options or {})

    def end_offsets(self, topic: Topic) -> dict[int, int]:
        """As ReadableLog says: the offset that comes next in each partition, 0 where the lake has none of it."""
        table = self._table(topic)
        return {} if table is None else _ends(table, topic)

    def offsets_at(self, topic: Topic, moment_ms: int) -> dict[int, int]:
        """As ReadableLog says."""
        table = self._table(topic)
        if table is None:
            return {}
        late = pl.scan_delta(table).filter(pl.col("timestamp_ms") >= moment_ms)
        found = late.group_by("partition").agg(pl.min("offset")).collect()
        return _ends(table, topic) | dict(found.iter_rows())

    def read(self, topic: Topic, starts: Mapping[int, int] | None = None, batch_rows_max: int = BATCH_ROWS_MAX) -> Iterator[Batch]:
        """As ReadableLog says. What retention removed is passed over: the first batch says so by its `start`."""
        table = self._table(topic)
        return iter(()) if table is None else self._read(table, topic, dict(starts or {}), batch_rows_max)

    def _table(self, topic: Topic) -> DeltaTable | None:
        """None where the topic has no table. Raises LogError."""
        uri = table_uri(self._uri, topic)
        with _readable(uri):
            try:
                return DeltaTable(uri, storage_options=self._options)
            except TableNotFoundError:
                return None

    def _read(self, table: DeltaTable, topic: Topic, following: dict[int, int], rows_max: int) -> Iterator[Batch]:
        uri = table_uri(self._uri, topic)
        with _readable(uri):
            for rows in _days(table, dict(following)):
                for partition, part in _sources(rows, rows_max):
                    records = _records(topic, partition, part)
                    start, first = following.get(partition, 0), int(records.spans.offset[0])
                    if first < start:
                        raise LogError(_out_of_order(uri, partition, first, start))
                    yield Batch(Source(topic.name, partition), records, start)
                    following[partition] = int(records.spans.offset[-1]) + 1
                # Else this day would be held while the next one is read.
                del rows


@contextmanager
def _readable(uri: str) -> Iterator[None]:
    """Whatever a table does not give becomes a LogError that names it."""
    try:
        yield
    except (DeltaError, PolarsError, OSError) as error:
        raise LogError(f"the lake's table {uri} cannot be read: {error}. Mend lake_uri, lake_storage_options or the table.") from error


def _out_of_order(uri: str, partition: int, offset: int, following: int) -> str:
    where = f"{uri}: offset {offset} of partition {partition} stands behind offset {following - 1}"
    return f"{where}. Something else than the sink wrote there: move the table away, and let the sink write it anew."


def _ends(table: DeltaTable, topic: Topic) -> dict[int, int]:
    partitions = table.transaction_version(topic.name) or 0
    return {partition: table.transaction_version(offset_id(Source(topic.name, partition))) or 0 for partition in range(partitions)}


def _days(table: DeltaTable, starts: Mapping[int, int]) -> Iterator[pl.DataFrame]:
    """A table's rows from `starts` on, day by day in any order; those of a large day in parts that follow one another in each partition."""
    files = pl.DataFrame(table.get_add_actions(flatten=True)).select("partition.day", "num_records", "size_bytes")
    days = files.group_by("partition.day").sum().sort("partition.day")
    rows = pl.scan_delta(table).filter(_wanted(starts)) if starts else pl.scan_delta(table)
    for day, rows_count, bytes_count in days.iter_rows():
        of_day = rows.filter(pl.col("day") == day).select(READ)
        if bytes_count <= DAY_BYTES_MAX:
            yield of_day.collect()
        else:
            yield from _dealt(of_day, max(DAY_BYTES_MAX * rows_count // bytes_count, 1))


def _wanted(starts: Mapping[int, int]) -> pl.Expr:
    return pl.col("offset") >= pl.col("partition").replace_strict(starts, default=0, return_dtype=pl.Int64)


def _dealt(rows: pl.LazyFrame, offsets_count: int) -> Iterator[pl.DataFrame]:
    """Rows a stretch of so many offsets after the other, through files."""
    with tempfile.TemporaryDirectory(prefix="millstream-lake-") as folder:
        keys = {"source": pl.col("partition"), "stretch": pl.col("offset") // offsets_count}
        rows.sink_ipc(pl.PartitionBy(folder, key=keys, include_key=False), mkdir=True)
        for stretch in sorted(Path(folder).glob("*/*"), key=lambda path: int(path.name.partition("=")[2])):
            yield pl.read_ipc(stretch / "*.ipc")


def _sources(rows: pl.DataFrame, rows_max: int) -> Iterator[tuple[int, pl.DataFrame]]:
    """Rows source by source, each in the order of offsets, at most rows_max at once."""
    # Taking rows out of a frame of many chunks looks for the chunk of each.
    rows = rows.rechunk()
    order = (rows["partition"].cast(pl.Int64) * OFFSETS_MAX + rows["offset"]).arg_sort()
    start = 0
    for partition, count in rows["partition"].value_counts().sort("partition").iter_rows():
        for first in range(start, start + count, rows_max):
            yield partition, rows[order.slice(first, min(rows_max, start + count - first))]
        start += count


def _records(topic: Topic, partition: int, rows: pl.DataFrame) -> LogColumns:
    """Rows as a log's columns. Their text: keys, values, then headers in Kafka's form; the first byte is that of no headers at all."""
    keys, key_spans = _spans(rows["key"], 1)
    values, value_spans = _spans(rows["value"], 1 + len(keys))
    headers, header_starts, named = _headers(rows["headers"], 1 + len(keys) + len(values))
    spans = Spans(rows["offset"].to_numpy(), rows["timestamp_ms"].to_numpy(), np.stack([key_spans, value_spans]), header_starts, named)
    return LogColumns(topic.name, partition, b"".join((b"\0", keys, values, headers)), spans)


def _spans(words: pl.Series, start: int) -> tuple[memoryview, Ints]:
    """The bytes of a column one after the other, and where each word stands if they begin at `start`; length -1 for null."""
    array = words.to_arrow()
    array = array if isinstance(array, pa.LargeBinaryArray) else array.cast(pa.large_binary())
    _, ends, data = array.buffers()
    ends = np.frombuffer(ends, np.int64)[array.offset : array.offset + len(array) + 1]
    spans = np.stack([ends[:-1] - ends[0] + start, np.diff(ends)], axis=1)
    if array.null_count:
        spans[words.is_null().to_numpy(), 1] = -1
    return memoryview(data or b"")[ends[0] : ends[-1]], spans


def _headers(headers: pl.Series, start: int) -> tuple[bytes, Ints, NDArray[np.bool_]]:
    """Headers in Kafka's form, where those of each record begin, and whether one of them names a schema."""
    starts, named = np.zeros(len(headers), np.int64), np.zeros(len(headers), np.bool_)
    text = bytearray()
    for row in np.flatnonzero(headers.list.len().to_numpy()).tolist():
        starts[row] = start + len(text)
        found = [(header["name"], header["value"]) for header in headers[row]]
        named[row] = any(name == SCHEMA_ID_HEADER for name, _ in found)
        text += _varint(len(found))
        for name, value in found:
            text += _varint(len(name.encode())) + name.encode() + _varint(len(value)) + value
    return bytes(text), starts, named


def _varint(number: int) -> bytes:
    """A number that is not negative as schemas.columnar.log reads it: zig-zag, seven bits a byte, low ones first."""
    left, out = number << 1, bytearray()
    while left > 0x7F:
        out.append(left & 0x7F | 0x80)
        left >>= 7
    out.append(left)
    return bytes(out)
