"""Responses and telemetry as Avro, written straight from what was ranked: two hundred objects and a schema's walk cost more than scoring.

The bytes are those that schemas.codec.encode gives of the same record (Avro 1.12 specification, "Binary encoding"); tests hold them equal.
"""

import functools
import struct
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from schemas import avro
from schemas.codec import SINGLE_OBJECT
from schemas.columnar.words import Buffer
from schemas.records import CANDIDATES_COUNT_MAX, RankResponse, RankTelemetry
from schemas.topics import Source

_DOUBLE = struct.Struct("<d")
_RESPONSE = SINGLE_OBJECT + avro.NEWEST[RankResponse.__name__].fingerprint
_TELEMETRY = SINGLE_OBJECT + avro.NEWEST[RankTelemetry.__name__].fingerprint
#: The end of an array or map, an empty one, the first branch of a union.
_ZERO = b"\0"
#: Room for a place besides its id, reasons and vector: two doubles, its number, two lengths, and the end of its reasons or of the array.
PLACE_BYTES_MAX = 48

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Items:
    """The places of a slate, best first. vectors: the packed little-endian float32 that were scored, empty where nothing was."""

    ids: Sequence[str]
    scores: Sequence[float]
    reasons: Sequence[Sequence[str]]
    vectors: Sequence[bytes]
    propensities: Sequence[float]

    @functools.cached_property
    def written(self) -> tuple[bytes, bytes]:
        """As they stand in a response, and in telemetry."""
        if not self.ids:
            return _ZERO, _ZERO
        count = _count(self.ids)
        parts = [*map(str.encode, self.ids), *map(_texts, map(tuple, self.reasons)), *self.vectors]
        text, lengths = b"".join(parts), np.array(list(map(len, parts)), np.int64)
        numbers = np.array([self.scores, self.propensities], np.float64).view(np.uint8)
        ranked, served = np.empty((2, len(text) + len(self.ids) * PLACE_BYTES_MAX), np.uint8)
        ends = _write(np.frombuffer(text, np.uint8), lengths, numbers, ranked, served)
        return count + ranked[: ends[0]].tobytes(), count + served[: ends[1]].tobytes()


class Facts(NamedTuple):
    """What a response and its telemetry say besides their items."""

    request_id: str
    user_id: str
    model_version: str
    feature_version: str
    generation: str
    degraded: str
    arm: str
    ts_ms: int
    tenant: str


def response(items: Items, facts: Facts, latency_ms: float) -> bytes:
    """A RankResponse."""
    head = (_RESPONSE, text(facts.request_id), text(facts.user_id), items.written[0])
    named = (_names(facts.model_version, facts.feature_version, facts.generation), _DOUBLE.pack(latency_ms))
    return b"".join((*head, *named, _names(facts.degraded, facts.arm), long(facts.ts_ms), _names(facts.tenant)))


def telemetry(items: Items, facts: Facts, staleness_ms: int, applied: bytes = b"\0") -> bytes:
    """A RankTelemetry. staleness_ms: how old the oldest vector was that came from the near cache. applied: what `offsets` gives."""
    head = (_TELEMETRY, text(facts.request_id), text(facts.user_id), items.written[1])
    named = (_names(facts.model_version, facts.feature_version, facts.generation), _names(facts.degraded, facts.arm))
    return b"".join((*head, *named, long(facts.ts_ms), applied, _names(facts.tenant), long(staleness_ms)))


def offsets(applied: Mapping[Source, int]) -> bytes:
    """The store_offsets of telemetry."""
    places = [part for source, offset in applied.items() for part in (text(str(source)), long(offset))]
    return b"".join((_count(applied), *places, _ZERO))


def text(word: str) -> bytes:
    """A string: its length in bytes, then its UTF-8."""
    raw = word.encode()
    return (_NUMBERS[len(raw)] if len(raw) < len(_NUMBERS) else long(len(raw))) + raw


def long(number: int) -> bytes:
    """An int or a long: zig-zag, seven bits a byte, least first."""
    left = number << 1 if number >= 0 else ~(number << 1)
    found = bytearray()
    while left > 0x7F:
        found.append(left & 0x7F | 0x80)
        left >>= 7
    found.append(left)
    return bytes(found)


#: Lengths of ids, and positions: a slate has no more.
_NUMBERS = tuple(long(number) for number in range(CANDIDATES_COUNT_MAX))


@functools.lru_cache(maxsize=1_024)
def _names(*words: str) -> bytes:
    """Names that every response carries, one behind the other."""
    return b"".join(map(text, words))


@functools.lru_cache(maxsize=4_096)
def _texts(words: tuple[str, ...]) -> bytes:
    """An array of a few known words."""
    return b"".join((_count(words), *map(text, words), _ZERO))


def _count(items: Sized) -> bytes:
    """What an array begins with; an empty one only has its end."""
    return long(len(items)) if items else b""


@numba.njit(cache=True, nogil=True)
def _write(parts: Buffer, lengths: Ints, numbers: Buffer, ranked: Buffer, served: Buffer) -> tuple[int, int]:
    """Fill ranked and served with the n places and the end of the array; returns where that is.

    parts: n ids, n arrays of reasons, n vectors. lengths: int64 [3 n]. numbers: uint8 [2, 8 n], doubles, scores and propensities.
    """
    count = len(lengths) // 3
    begins = np.cumsum(lengths) - lengths
    at, to = 0, 0
    for place in range(count):
        vector, reasons = 2 * count + place, count + place
        at = _copy(parts, begins[place], lengths[place], ranked, _put(ranked, at, lengths[place]))
        at = _copy(numbers[0], 8 * place, 8, ranked, at)
        at = _copy(parts, begins[reasons], lengths[reasons], ranked, at)
        to = _copy(parts, begins[place], lengths[place], served, _put(served, to, lengths[place]))
        to = _copy(numbers[0], 8 * place, 8, served, _put(served, to, place))
        to = _copy(parts, begins[vector], lengths[vector], served, _put(served, to, lengths[vector]))
        to = _copy(numbers[1], 8 * place, 8, served, to)
        served[to] = 0
        to += 1
    ranked[at] = served[to] = 0
    return at + 1, to + 1


@numba.njit(cache=True, inline="always")
def _copy(source: Buffer, begin: int, length: int, target: Buffer, at: int) -> int:
    for place in range(length):
        target[np.uint64(at + place)] = source[np.uint64(begin + place)]
    return at + length


@numba.njit(cache=True, inline="always")
def _put(target: Buffer, at: int, number: int) -> int:
    """A number that is not negative, as `long` writes it."""
    left = number << 1
    while left > 0x7F:
        target[at] = left & 0x7F | 0x80
        left >>= 7
        at += 1
    target[at] = left
    return at + 1
