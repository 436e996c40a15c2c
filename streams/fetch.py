"""What the broker sent, read as columns: aiokafka makes two objects a record, which costs more than all that is done with it.

Batches of Kafka's format v2 that are plain data are read in one compiled loop (schemas/columnar/log.py). An older format, a transaction or
whatever does not look as it should is left to aiokafka, which knows and says what it is.

This replaces two names in aiokafka.consumer.fetcher of 0.14.0, which is pinned exactly; tests/unit/test_fetch.py tests the seam.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from aiokafka import codec
from aiokafka.consumer import fetcher
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c

from schemas.codec import SCHEMA_ID_HEADER
from schemas.columnar.log import LogColumns, RecordBatch, read_batches

#: baseOffset, batchLength, partitionLeaderEpoch, magic, crc, attributes, lastOffsetDelta, baseTimestamp, maxTimestamp, producerId,
#: producerEpoch, baseSequence, records count (Apache Kafka documentation, "Record Batch").
HEADER = struct.Struct(">qiibIhiqqqhii")
#: Bytes before what batchLength counts, and before what the checksum covers.
LENGTH_END, CRC_END = 12, 21
MAGIC = 2
COMPRESSION, LOG_APPEND_TIME, TRANSACTIONAL, CONTROL = 0x07, 0x08, 0x10, 0x20
#: By number: whether it can be read here, and how.
CODECS: dict[int, tuple[Callable[[], bool], Callable[[Any], bytes]]] = {
    1: (codec.has_gzip, codec.gzip_decode),
    2: (codec.has_snappy, codec.snappy_decode),
    3: (codec.has_lz4, codec.lz4_decode),
    4: (codec.has_zstd, codec.zstd_decode),
}


class Fetched(NamedTuple):
    """Records of one answer, and the offset behind its last batch: compaction may have taken the last record."""

    records: LogColumns
    following: int


class RawRecords(MemoryRecords):  # type: ignore[misc]  # aiokafka has no types
    """aiokafka's reader of an answer, which also keeps the answer."""

    def __init__(self, raw: bytes) -> None:
        """As aiokafka's."""
        super().__init__(raw)
        self.raw = raw


class FetchResult(fetcher.FetchResult):  # type: ignore[misc]  # as above
    """An answer about one partition, handed on whole."""

    _partition_records: Any

    def getall(self, max_records: int | None = None) -> Sequence[Any]:
        """All its records. max_records: for what aiokafka reads one by one."""
        if not self.check_assignment(self._topic_partition) or not self.has_more():
            return []
        records = self._partition_records
        found = read(self._topic_partition, records._records.raw, records.next_fetch_offset)  # noqa: SLF001  # the seam
        if found is None:
            return super().getall(max_records)  # type: ignore[no-any-return]  # aiokafka has no types
        records.next_fetch_offset = found.following
        self._update_position()
        # It and its iterator refer to one another: the answer would stay until somebody looks for cycles.
        records._records_iterator = None  # noqa: SLF001  # the seam
        self._partition_records = None
        return found.records


def install() -> None:
    """From now on aiokafka hands answers on as columns."""
    fetcher.MemoryRecords = RawRecords
    fetcher.FetchResult = FetchResult


def read(tp: Any, raw: bytes, first_offset: int) -> Fetched | None:  # noqa: ANN401  # aiokafka's TopicPartition
    """The records of an answer from an offset on; None where aiokafka must read it."""
    batches: list[RecordBatch] = []
    parts: list[bytes] = []
    following, filled = first_offset, 0
    for header in _headers(raw):
        records = _plain(raw, header)
        if records is None:
            return None
        append_ms = header.max_timestamp if header.attributes & LOG_APPEND_TIME else -1
        batches.append(
            RecordBatch(filled, filled + len(records), header.records_count, header.base_offset, header.base_timestamp, append_ms)
        )
        parts.append(records)
        filled += len(records)
        following = header.base_offset + header.last_offset_delta + 1
    text = b"".join(parts)
    spans = read_batches(text, batches, first_offset, SCHEMA_ID_HEADER.encode())
    return None if spans is None else Fetched(LogColumns(tp.topic, tp.partition, text, spans), following)


class _Header(NamedTuple):
    """One batch's header. at: where the batch begins; the rest as in HEADER."""

    at: int
    base_offset: int
    length: int
    leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    base_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    records_count: int


def _headers(raw: bytes) -> Iterator[_Header]:
    """The batches of an answer; the last may be cut off, and then is none."""
    at = 0
    while at + HEADER.size <= len(raw):
        header = _Header(at, *HEADER.unpack_from(raw, at))
        at += LENGTH_END + header.length
        if at > len(raw):
            return
        yield header


def _plain(raw: bytes, header: _Header) -> bytes | None:
    """The bytes of a batch's records; None where they are not plain data in the format that we read."""
    covered = memoryview(raw)[header.at + CRC_END : header.at + LENGTH_END + header.length]
    if header.magic != MAGIC or header.attributes & (TRANSACTIONAL | CONTROL) or calc_crc32c(covered) != header.crc:
        return None
    records = covered[HEADER.size - CRC_END :]
    compression = header.attributes & COMPRESSION
    if not compression:
        return records.tobytes()
    has, decoded = CODECS.get(compression, (bool, bytes))
    return bytes(decoded(records.tobytes())) if has() else None
