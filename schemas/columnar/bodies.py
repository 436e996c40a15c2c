"""Avro bodies of one schema, read field by field into columns: numbers as int64, words as spans, in one compiled loop.

A body that is not plainly of its schema is odd: its place in the columns means nothing, fastavro says what it is.
"""

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from schemas.columnar.words import Buffer, is_utf8

#: A number that is not there.
NONE = int(np.iinfo(np.int64).min)
#: What can be read, and unions of one of them with null.
LONG, INT, STRING, MAP = range(4)
KINDS = {"long": LONG, "int": INT, "string": STRING, "map": MAP}
#: Bytes before the body: C3 01 and the schema's fingerprint (Avro 1.12 specification, "Single object encoding"), or 00 and its number
#: in a registry.
SINGLE_OBJECT_BYTES, CONFLUENT_BYTES = 10, 5
#: One field of a writer's schema: its kind, which branch of its union is null (-1 is no union), the column it fills (-1 is none).
Step = tuple[int, int, int]


def steps(fields: Sequence[Any], columns: Sequence[str], words: Sequence[str]) -> list[Step] | None:
    """How to read bodies of a schema with these fields (Avro's own, in order) into columns; None where they cannot be read so."""
    places = {name: place for names in (columns, words) for place, name in enumerate(names)}
    found = [_step(field["type"], places.get(field["name"], -1)) for field in fields]
    return None if any(step is None for step in found) else [step for step in found if step]


def _step(kind: Any, column: int) -> Step | None:  # noqa: ANN401  # Avro's own: str, list or dict
    null = -1
    if isinstance(kind, list):
        if len(kind) != 2 or "null" not in kind:
            return None
        null = kind.index("null")
        kind = kind[1 - null]
    name = kind["type"] if isinstance(kind, dict) else kind
    plain = isinstance(name, str) and name in KINDS and (name != "map" or kind["values"] == "string")
    return (KINDS[name], null, column) if plain else None


@numba.njit(cache=True, nogil=True)
def framings(raw: Buffer, spans: NDArray[np.int64], bytes_max: int) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
    """How values are framed. spans: int64 [n, 2], where each begins and ends.

    Returns how many bytes stand before each body, uint8 [n], 0 for one that has no such frame or is longer than bytes_max; and what names
    its schema there, uint64 [n]: the fingerprint's bytes as they lie, or the number.
    """
    skip, schema = np.zeros(len(spans), np.uint8), np.zeros(len(spans), np.uint64)
    for row in range(len(spans)):
        at, end = spans[row, 0], spans[row, 1]
        if end - at < CONFLUENT_BYTES or end - at > bytes_max:
            continue
        if raw[at] == 0:
            skip[row] = CONFLUENT_BYTES
            for place in range(1, 5):
                schema[row] = schema[row] << np.uint64(8) | np.uint64(raw[at + place])
        elif raw[at] == 0xC3 and raw[at + 1] == 0x01 and end - at >= SINGLE_OBJECT_BYTES:
            skip[row] = SINGLE_OBJECT_BYTES
            for place in range(8):
                schema[row] |= np.uint64(raw[at + 2 + place]) << np.uint64(8 * place)
    return skip, schema


@numba.njit(cache=True, nogil=True)
def read(  # noqa: C901  # one loop over bytes, its cases side by side
    raw: Buffer, spans: NDArray[np.int64], plan: NDArray[np.int64], numbers: NDArray[np.int64], words: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Read every body; returns which are odd, bool [n].

    spans: int64 [n, 2], where each body begins and ends in raw. plan: int64 [fields, 3], Steps. numbers: int64 [columns, n], filled before
    with what a missing field says. words: int64 [columns, n, 2], start and length, length -1 where there is none; likewise.
    """
    odd = np.zeros(len(spans), np.bool_)
    for row in range(len(spans)):
        at, end = spans[row, 0], spans[row, 1]
        for field in range(len(plan)):
            kind, null, column = plan[field, 0], plan[field, 1], plan[field, 2]
            if null >= 0:
                branch, at = long_at(raw, at, end)
                if at < 0 or branch < 0 or branch > 1:
                    at = -1
                    break
                if branch == null:
                    continue
            if kind == STRING:
                start, length, at = word_at(raw, at, end)
                if at >= 0 and column >= 0:
                    words[column, row, 0], words[column, row, 1] = start, length
            elif kind == MAP:
                at = _past_map(raw, at, end)
            else:
                value, at = long_at(raw, at, end)
                if kind == INT and value != np.int32(value):
                    at = -1
                if at >= 0 and column >= 0:
                    numbers[column, row] = value
            if at < 0:
                break
        odd[row] = at != end
    return odd


@numba.njit(cache=True, nogil=True)
def long_at(raw: Buffer, at: int, end: int) -> tuple[np.int64, int]:
    """The long here, and where it ends: zig-zag, seven bits a byte, low ones first; -1 where it has more than nine bytes or is cut."""
    value = np.uint64(0)
    for shift in range(0, 63, 7):
        if at >= end:
            return np.int64(0), -1
        byte = raw[at]
        at += 1
        value |= np.uint64(byte & 0x7F) << np.uint64(shift)
        if byte < 0x80:
            return np.int64(value >> np.uint64(1)) ^ -np.int64(value & np.uint64(1)), at
    return np.int64(0), -1


@numba.njit(cache=True, nogil=True)
def word_at(raw: Buffer, at: int, end: int) -> tuple[int, int, int]:
    """Start and length of the string here, and where it ends, -1 where it is none."""
    said, at = long_at(raw, at, end)
    length = int(said)
    if at < 0 or length < 0 or length > end - at or not is_utf8(raw, at, length):
        return 0, 0, -1
    return at, length, at + length


@numba.njit(cache=True, nogil=True)
def _past_map(raw: Buffer, at: int, end: int) -> int:
    """Where the map of strings here ends, -1 where it is none or tells its size in bytes."""
    while True:
        left, at = long_at(raw, at, end)
        if at < 0 or left <= 0 or left > end - at:
            return at if left == 0 else -1
        for _ in range(2 * left):
            _, _, at = word_at(raw, at, end)
            if at < 0:
                return -1
