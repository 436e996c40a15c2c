"""Responses and telemetry as Avro, written straight from what was ranked: two hundred objects and a schema's walk cost more than scoring.

The bytes are those that schemas.codec.encode gives of the same record (Avro 1.12 specification, "Binary encoding"); tests hold them equal.
"""

import functools
import itertools
import struct
from collections.abc import Mapping, Sequence, Sized
from typing import NamedTuple

from schemas import avro
from schemas.codec import SINGLE_OBJECT
from schemas.records import CANDIDATES_COUNT_MAX, RankResponse, RankTelemetry
from schemas.topics import Source

_DOUBLE = struct.Struct("<d")
_RESPONSE = SINGLE_OBJECT + avro.NEWEST[RankResponse.__name__].fingerprint
_TELEMETRY = SINGLE_OBJECT + avro.NEWEST[RankTelemetry.__name__].fingerprint
#: The end of an array or map, an empty one, the first branch of a union.
_ZERO = b"\0"


class Items(NamedTuple):
    """The places of a slate, best first. vectors: the packed little-endian float32 that were scored, empty where nothing was."""

    ids: Sequence[str]
    scores: Sequence[float]
    reasons: Sequence[Sequence[str]]
    vectors: Sequence[bytes]
    propensities: Sequence[float]


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
    reasons = [_texts(words) if words else _ZERO for words in items.reasons]
    ranked = [part for item in zip(map(text, items.ids), map(_DOUBLE.pack, items.scores), reasons, strict=True) for part in item]
    head = (_RESPONSE, text(facts.request_id), text(facts.user_id), _count(items.ids))
    named = (_name(facts.model_version), _name(facts.feature_version), _name(facts.generation), _DOUBLE.pack(latency_ms))
    tail = (_ZERO, *named, _name(facts.degraded), _name(facts.arm), long(facts.ts_ms), _name(facts.tenant))
    return b"".join((*head, *ranked, *tail))


def telemetry(items: Items, facts: Facts, staleness_ms: int, applied: bytes = b"\0") -> bytes:
    """A RankTelemetry. staleness_ms: how old the oldest vector was that came from the near cache. applied: what `offsets` gives."""
    sizes = {size: long(size) for size in set(map(len, items.vectors))}
    columns = (
        map(text, items.ids),
        map(_NUMBERS.__getitem__, range(len(items.ids))),
        map(_DOUBLE.pack, items.scores),
        [sizes[len(vector)] for vector in items.vectors],
        items.vectors,
        map(_DOUBLE.pack, items.propensities),
        itertools.repeat(_ZERO, len(items.ids)),
    )
    served = [part for item in zip(*columns, strict=True) for part in item]
    head = (_TELEMETRY, text(facts.request_id), text(facts.user_id), _count(items.ids))
    named = (_name(facts.model_version), _name(facts.feature_version), _name(facts.generation))
    tail = (_ZERO, *named, _name(facts.degraded), _name(facts.arm), long(facts.ts_ms), applied, _name(facts.tenant), long(staleness_ms))
    return b"".join((*head, *served, *tail))


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
#: Names that every response carries.
_name = functools.lru_cache(maxsize=1_024)(text)


def _count(items: Sized) -> bytes:
    """What an array begins with; an empty one only has its end."""
    return long(len(items)) if items else b""


def _texts(words: Sequence[str]) -> bytes:
    return b"".join((long(len(words)), *map(_name, words), _ZERO))
