"""Responses and telemetry as Avro, written straight from what was ranked: two hundred objects and a schema's walk cost more than scoring.

The bytes are those that schemas.codec.encode gives of the same record (Avro 1.12 specification, "Binary encoding"); tests hold them equal.
"""

import functools
import struct
from collections.abc import Mapping, Sequence, Sized
from itertools import pairwise
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from online_store.keys import Names
from ranker.slate.rules import Touch, reasons
from ranker.slate.slate import Slated
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
#: Room for a place besides its id, reasons and vector: two doubles, its number, two lengths, and the end of its reasons. Room for how many
#: places a slate has, and its end.
PLACE_BYTES_MAX, SLATE_BYTES_MAX = 48, 8

Ints = NDArray[np.int64]


class Places(NamedTuple):
    """The places of r slates, one behind the other. item_ids: of all candidates; scores: float32 [m], of each place."""

    item_ids: Sequence[str]
    slated: Slated
    scores: NDArray[np.float32]


class Items(NamedTuple):
    """The places of one slate, best first: those from begin to before end. ranked, served: as in a response, as in telemetry."""

    places: Places
    begin: int
    end: int
    ranked: bytes
    served: bytes

    def columns(self) -> tuple[list[str], list[float], list[tuple[str, ...]]]:
        """Ids, scores and reason codes."""
        (item_ids, slated, scores), own = self.places, slice(self.begin, self.end)
        ids = [item_ids[row] for row in slated.rows[own].tolist()]
        return ids, scores[own].tolist(), list(map(reasons, slated.touched[own].tolist()))


def items(places: Places, names: Names, tenants: Sequence[str], vectors: NDArray[np.float32]) -> list[Items]:
    """Each request's.

    names: of all candidates; tenants: of each request. vectors: [m, features], what was scored of each place; none where nothing was.
    """
    slated = places.slated
    prefixes = np.array([len(tenant.encode()) + 1 for tenant in tenants], np.int64)
    packed = np.ascontiguousarray(vectors, "<f4").view(np.uint8)
    numbers = (places.scores, slated.propensities, slated.touched)
    ranked, served, ends = _write(
        names.text, names.starts, prefixes, slated.counts, slated.rows, *numbers, packed, _REASONS, _REASON_STARTS
    )
    return [
        Items(places, begin, end, ranked[ranked_begin:ranked_end].tobytes(), served[served_begin:served_end].tobytes())
        for (begin, ranked_begin, served_begin), (end, ranked_end, served_end) in pairwise(ends.tolist())
    ]


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
    head = (_RESPONSE, text(facts.request_id), text(facts.user_id), items.ranked)
    named = (_names(facts.model_version, facts.feature_version, facts.generation), _DOUBLE.pack(latency_ms))
    return b"".join((*head, *named, _names(facts.degraded, facts.arm), long(facts.ts_ms), _names(facts.tenant)))


def telemetry(items: Items, facts: Facts, staleness_ms: int, applied: bytes = b"\0") -> bytes:
    """A RankTelemetry. staleness_ms: how old the oldest vector was that came from the near cache. applied: what `offsets` gives."""
    head = (_TELEMETRY, text(facts.request_id), text(facts.user_id), items.served)
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


#: The reason codes, one behind the other, each as in an array; and where they begin: that of the lowest bit of a Touch first.
_CODES = [text(reasons(1 << bit)[0]) for bit in range(len(Touch))]
_REASONS, _REASON_STARTS = np.frombuffer(b"".join(_CODES), np.uint8), np.cumsum([0, *map(len, _CODES)])


def _count(items: Sized) -> bytes:
    """What an array begins with; an empty one only has its end."""
    return long(len(items)) if items else b""


@numba.njit(cache=True, nogil=True)
def _write(  # noqa: PLR0913  # compiled functions take arrays, not objects
    text: Buffer,
    starts: Ints,
    prefixes: Ints,
    counts: Ints,
    rows: Ints,
    scores: NDArray[np.float32],
    propensities: NDArray[np.float64],
    touched: Ints,
    vectors: NDArray[np.uint8],
    words: Buffer,
    word_starts: Ints,
) -> tuple[Buffer, Buffer, Ints]:
    """The places of r slates as in a response, as in telemetry; and how many places and bytes of each end with a slate, int64 [r + 1, 3].

    text, starts: names of all candidates. prefixes: int64 [r], bytes of a name before its id. vectors: uint8 [m, bytes]. words: of reasons.
    """
    room = SLATE_BYTES_MAX * len(counts)
    for place in range(len(rows)):
        room += PLACE_BYTES_MAX + starts[rows[place] + 1] - starts[rows[place]] + vectors.shape[1] + len(words) * (touched[place] != 0)
    ranked, served, ends = np.empty(room, np.uint8), np.empty(room, np.uint8), np.zeros((len(counts) + 1, 3), np.int64)
    number = np.empty(2)
    score, propensity = number[:1].view(np.uint8), number[1:].view(np.uint8)
    place = at = to = 0
    for slate in range(len(counts)):
        if counts[slate]:
            at, to = _put(ranked, at, counts[slate]), _put(served, to, counts[slate])
        for position in range(counts[slate]):
            begin = starts[rows[place]] + prefixes[slate]
            length = starts[rows[place] + 1] - 1 - begin
            number[0], number[1] = scores[place], propensities[place]
            at = _copy(text, begin, length, ranked, _put(ranked, at, length))
            at = _put_reasons(ranked, _copy(score, 0, 8, ranked, at), touched[place], words, word_starts)
            to = _copy(text, begin, length, served, _put(served, to, length))
            to = _copy(score, 0, 8, served, _put(served, to, position))
            to = _copy(vectors[place], 0, vectors.shape[1], served, _put(served, to, vectors.shape[1]))
            to = _copy(propensity, 0, 8, served, to)
            served[to] = 0
            to += 1
            place += 1
        ranked[at] = served[to] = 0
        at, to = at + 1, to + 1
        ends[slate + 1, 0], ends[slate + 1, 1], ends[slate + 1, 2] = place, at, to
    return ranked, served, ends


@numba.njit(cache=True, inline="always")
def _put_reasons(target: Buffer, at: int, touched: int, words: Buffer, starts: Ints) -> int:
    """An array of the codes of what touched an item."""
    count = 0
    for bit in range(len(starts) - 1):
        count += touched >> bit & 1
    if count:
        at = _put(target, at, count)
        for bit in range(len(starts) - 1):
            if touched >> bit & 1:
                at = _copy(words, starts[bit], starts[bit + 1] - starts[bit], target, at)
    target[at] = 0
    return at + 1


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
