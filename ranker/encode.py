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
    skips = np.array([len(tenant.encode()) + 1 for tenant in tenants], np.int64).repeat(slated.counts)
    begins, ends = names.starts[slated.rows] + skips, names.starts[slated.rows + 1] - 1
    numbers = np.array([places.scores, slated.propensities], np.float64).view(np.uint8)
    packed = np.ascontiguousarray(vectors, "<f4").view(np.uint8)
    place_bytes = PLACE_BYTES_MAX + packed.shape[1]
    room = (
        int((ends - begins).sum())
        + len(begins) * place_bytes
        + np.count_nonzero(slated.touched) * len(_REASONS)
        + len(tenants) * SLATE_BYTES_MAX
    )
    ranked, served = np.empty((2, room), np.uint8)
    sizes = np.zeros((2, len(tenants) + 1), np.int64)
    _write(names.text, begins, ends, numbers, slated.touched, _REASONS, _REASON_STARTS, packed, slated.counts, ranked, served, sizes)
    parts = [
        [column[begin:end].tobytes() for begin, end in pairwise(size.tolist())]
        for column, size in zip((ranked, served), sizes, strict=True)
    ]
    bounds = pairwise([0, *np.cumsum(slated.counts).tolist()])
    return [Items(places, begin, end, *written) for (begin, end), *written in zip(bounds, *parts, strict=True)]


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
    begins: Ints,
    ends: Ints,
    numbers: NDArray[np.uint8],
    touched: Ints,
    words: Buffer,
    word_starts: Ints,
    vectors: NDArray[np.uint8],
    counts: Ints,
    ranked: Buffer,
    served: Buffer,
    sizes: NDArray[np.int64],
) -> None:
    """Fill ranked and served with the places of r slates, and sizes, int64 [2, r + 1], with where each slate begins in them, and the end.

    begins, ends: int64 [m], of ids in text. numbers: uint8 [2, 8 m], doubles, scores and propensities. words, word_starts: reason codes.
    vectors: uint8 [m, bytes]. counts: int64 [r].
    """
    place = at = to = 0
    for slate in range(len(counts)):
        if counts[slate]:
            at, to = _put(ranked, at, counts[slate]), _put(served, to, counts[slate])
        for position in range(counts[slate]):
            length = ends[place] - begins[place]
            at = _copy(text, begins[place], length, ranked, _put(ranked, at, length))
            at = _copy(numbers[0], 8 * place, 8, ranked, at)
            at = _put_reasons(ranked, at, touched[place], words, word_starts)
            to = _copy(text, begins[place], length, served, _put(served, to, length))
            to = _copy(numbers[0], 8 * place, 8, served, _put(served, to, position))
            to = _copy(vectors[place], 0, vectors.shape[1], served, _put(served, to, vectors.shape[1]))
            to = _copy(numbers[1], 8 * place, 8, served, to)
            served[to] = 0
            to += 1
            place += 1
        ranked[at] = served[to] = 0
        at, to = at + 1, to + 1
        sizes[0, slate + 1], sizes[1, slate + 1] = at, to


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
