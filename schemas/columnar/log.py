"""Records of a log as it stores them, a column each: no object is made for a record until somebody asks for that one.

A record of Kafka's batch format v2 (Apache Kafka documentation, "Record"): length, attributes, what to add to its batch's first
timestamp and first offset, key, value, headers; lengths are zig-zag varints, -1 is null.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

import numba
import numpy as np
from numpy.typing import NDArray

from schemas.columnar.words import Buffer
from schemas.topics import StoredRecord

Ints = NDArray[np.int64]
#: Columns of `Spans.words`.
KEY, VALUE = range(2)


class RecordBatch(NamedTuple):
    """One of Kafka's batches. start, end: where its records stand in the text, plain. log_append_ms: of all its records, -1 is none."""

    start: int
    end: int
    records_count: int
    base_offset: int
    base_timestamp: int
    log_append_ms: int


class Spans(NamedTuple):
    """n records. offset, timestamp: int64 [n]. words: int64 [2, n, 2], KEY and VALUE, start and length, length -1 for null.

    headers: int64 [n], where each record's headers begin. named: bool [n], whether one of them has the name that was looked for.
    """

    offset: Ints
    timestamp: Ints
    words: Ints
    headers: Ints
    named: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class LogColumns(Sequence[StoredRecord]):
    """The records of one partition, offsets ascending. topic: as in Kafka, prefix included. text: the bytes that the spans lie in."""

    topic: str
    partition: int
    text: bytes
    spans: Spans

    def __len__(self) -> int:
        return len(self.spans.offset)

    @overload
    def __getitem__(self, place: int) -> StoredRecord: ...
    @overload
    def __getitem__(self, place: slice) -> list[StoredRecord]: ...
    def __getitem__(self, place: int | slice) -> StoredRecord | list[StoredRecord]:
        """One record, made anew at every call."""
        if isinstance(place, slice):
            return [self[row] for row in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        key, value = (_part(self.text, self.spans.words[column, place]) for column in (KEY, VALUE))
        offset, timestamp = int(self.spans.offset[place]), int(self.spans.timestamp[place])
        return StoredRecord(self.topic, self.partition, offset, timestamp, key, value, tuple(self._headers(int(self.spans.headers[place]))))

    def _headers(self, at: int) -> Iterator[tuple[str, bytes]]:
        text = np.frombuffer(self.text, np.uint8)
        count, at = varint(text, at, len(text))
        for _ in range(count):
            length, at = varint(text, at, len(text))
            name, at = self.text[at : at + length], at + length
            length, at = varint(text, at, len(text))
            yield name.decode(errors="backslashreplace"), _part(self.text, (at, length)) or b""
            at += max(length, 0)


def read_batches(text: bytes, batches: Sequence[RecordBatch], first_offset: int, header: bytes) -> Spans | None:
    """The records of batches from an offset on; None where one is not as the format says. header: the name to look for."""
    rows = sum(batch.records_count for batch in batches)
    table = np.array(batches, np.int64).reshape(len(batches), len(RecordBatch._fields))
    spans = Spans(
        np.zeros(rows, np.int64),
        np.zeros(rows, np.int64),
        np.zeros((2, rows, 2), np.int64),
        np.zeros(rows, np.int64),
        np.zeros(rows, np.bool_),
    )
    name = np.frombuffer(header, np.uint8)
    if not _read(np.frombuffer(text, np.uint8), table, name, *spans):
        return None
    wanted = spans.offset >= first_offset
    if wanted.all():
        return spans
    offset, timestamp, words, headers, named = spans
    return Spans(offset[wanted], timestamp[wanted], words[:, wanted], headers[wanted], named[wanted])


def _part(text: bytes, span: Sequence[int] | Ints) -> bytes | None:
    start, length = int(span[0]), int(span[1])
    return None if length < 0 else text[start : start + length]


@numba.njit(cache=True)
def _read(  # noqa: PLR0913  # compiled functions take arrays, not objects
    text: Buffer,
    batches: Ints,
    header: Buffer,
    offset: Ints,
    timestamp: Ints,
    words: Ints,
    headers: Ints,
    named: NDArray[np.bool_],
) -> bool:
    """Fill the columns; False where a record does not end where it should."""
    row = 0
    for batch in range(len(batches)):
        at, end, count, base_offset, base_timestamp, log_append_ms = batches[batch]
        for _ in range(count):
            length, at = varint(text, at, end)
            if at < 0 or length < 1 or length > end - at:
                return False
            stop = at + length
            after_ms, at = varint(text, at + 1, stop)
            after, at = varint(text, at, stop)
            timestamp[row] = base_timestamp + after_ms if log_append_ms < 0 else log_append_ms
            offset[row] = base_offset + after
            for column in range(2):
                length, at = varint(text, at, stop)
                if at < 0 or length > stop - at:
                    return False
                words[column, row, 0], words[column, row, 1] = at, length
                at += max(length, 0)
            headers[row] = at
            named[row], at = _past_headers(text, at, stop, header)
            if at != stop:
                return False
            row += 1
        if at != end:
            return False
    return True


@numba.njit(cache=True)
def _past_headers(text: Buffer, at: int, end: int, header: Buffer) -> tuple[bool, int]:
    """Whether one of the headers here has that name, and where they end."""
    found = False
    left, at = varint(text, at, end)
    while left > 0 and at >= 0:
        length, at = varint(text, at, end)
        if at < 0 or length < 0 or length > end - at:
            return False, -1
        if length == len(header):
            equal = True
            for place in range(length):
                equal = equal and text[at + place] == header[place]
            found = found or equal
        length, at = varint(text, at + length, end)
        if at < 0 or length > end - at:
            return False, -1
        at += max(length, 0)
        left -= 1
    return found, at


@numba.njit(cache=True)
def varint(text: Buffer, at: int, end: int) -> tuple[int, int]:
    """The zig-zag number here, and where it ends: -1 where it is cut or longer than ten bytes, or was so before."""
    value = np.uint64(0)
    if at < 0:
        return 0, -1
    for shift in range(0, 70, 7):
        if at >= end:
            return 0, -1
        byte = text[at]
        at += 1
        value |= np.uint64(byte & 0x7F) << np.uint64(shift)
        if byte < 0x80:
            return int(np.int64(value >> np.uint64(1)) ^ -np.int64(value & np.uint64(1))), at
    return 0, -1
