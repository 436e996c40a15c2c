"""Slates as telemetry tells them, as columns: bodies of one schema are read in one compiled loop.

A body that is not plainly of its schema is odd, and decoded by schemas.codec; what is no telemetry then is left out, for nobody promised
that a topic holds nothing else.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from schemas import avro, codec
from schemas.columnar.bodies import SINGLE_OBJECT_BYTES, long_at, word_at
from schemas.columnar.repeats import named
from schemas.columnar.words import Buffer
from schemas.columns import Values
from schemas.errors import DecodeError
from schemas.records import RankTelemetry
from schemas.topics import RANK_TELEMETRY, LogRecord

#: What a request says, and each of its items: words as spans of bytes, numbers as int64; of an item's last two numbers, the bits. The first
#: two words name a request.
WORDS = ("tenant", "request_id", "user_id", "model_version", "feature_version", "generation", "degraded", "arm")
NUMBERS = ("ts_ms", "staleness_ms")
ITEM_WORDS = ("item_id", "vector")
ITEM_NUMBERS = ("position", "score", "propensity")
#: A telemetry that lacks one of these is none.
IDS = ("request_id", "user_id")
#: What can be read, by its type in a schema; what is a word comes first.
STRING, BYTES, INT, LONG, DOUBLE, DOUBLE_OR_NULL, OFFSETS, ITEMS = range(8)
KINDS = {
    "string": STRING,
    "bytes": BYTES,
    "int": INT,
    "long": LONG,
    "double": DOUBLE,
    "['null', 'double']": DOUBLE_OR_NULL,
    "{'type': 'map', 'values': 'long'}": OFFSETS,
}

Ints = NDArray[np.int64]


class Slates(NamedTuple):
    """r requests with n items.

    text: the words' bytes. words: int64 [WORDS, r, 2], start in text and length. numbers: int64 [NUMBERS, r]. items_count: int64 [r].
    item_words: int64 [ITEM_WORDS, n, 2]; item_numbers: int64 [ITEM_NUMBERS, n]: items of the first request first.
    """

    text: Buffer
    words: Ints
    numbers: Ints
    items_count: Ints
    item_words: Ints
    item_numbers: Ints

    @property
    def requests_count(self) -> int:
        """How many requests these are."""
        return len(self.items_count)

    @property
    def request(self) -> Ints:
        """Which request each item belongs to, int64 [n]."""
        return np.repeat(np.arange(self.requests_count), self.items_count)

    @property
    def names(self) -> NDArray[np.uint64]:
        """What names each request, in 64 bits, uint64 [r]: of a million two share one with a probability of 3e-8."""
        return named(self.text, self.words[:2])

    @property
    def outcomes(self) -> NDArray[np.uint64]:
        """What came of which item each waits for, by schemas.columnar.repeats.IDENTITY, uint64 [n]."""
        return named(self.text, np.concatenate([self.words[:2, self.request], self.item_words[:1]]))

    def where(self, wanted: NDArray[np.bool_]) -> "Slates":
        """Some of the requests, with their items. wanted: bool [r]."""
        if wanted.all():
            return self
        items = np.repeat(wanted, self.items_count)
        return Slates(
            self.text,
            self.words[:, wanted],
            self.numbers[:, wanted],
            self.items_count[wanted],
            self.item_words[:, items],
            self.item_numbers[:, items],
        )


def concat(parts: Sequence[Slates]) -> Slates:
    """All requests of several parts, at least one."""
    starts = np.cumsum([0, *(len(part.text) for part in parts)])
    moved = [np.array([start, 0]) for start in starts[:-1].tolist()]
    return Slates(
        np.concatenate([part.text for part in parts]),
        np.concatenate([part.words + by for part, by in zip(parts, moved, strict=True)], axis=1),
        np.concatenate([part.numbers for part in parts], axis=1),
        np.concatenate([part.items_count for part in parts]),
        np.concatenate([part.item_words + by for part, by in zip(parts, moved, strict=True)], axis=1),
        np.concatenate([part.item_numbers for part in parts], axis=1),
    )


def of(requests: Sequence[RankTelemetry]) -> Slates:
    """Decoded telemetry as columns."""
    items = [item for one in requests for item in one.items]
    raws = [getattr(one, name).encode() for name in WORDS for one in requests]
    raws += [item.item_id.encode() for item in items] + [item.vector for item in items]
    lengths = np.fromiter(map(len, raws), np.int64, len(raws))
    spans = np.stack([np.cumsum(lengths) - lengths, lengths], axis=1)
    part = len(WORDS) * len(requests)
    reals = np.array([[item.score for item in items], [item.propensity for item in items]], np.float64)
    return Slates(
        np.frombuffer(b"".join(raws), np.uint8),
        spans[:part].reshape(len(WORDS), len(requests), 2),
        np.array([[getattr(one, name) for one in requests] for name in NUMBERS], np.int64),
        np.array([len(one.items) for one in requests], np.int64),
        spans[part:].reshape(len(ITEM_WORDS), len(items), 2),
        np.concatenate([np.array([[item.position for item in items]], np.int64), reals.view(np.int64)]),
    )


def decoded(value: bytes | None) -> RankTelemetry | None:
    """None for what is no telemetry."""
    try:
        found = codec.decode(RANK_TELEMETRY, value)
    except DecodeError:
        return None
    assert isinstance(found, RankTelemetry), found
    return found


def read(records: Sequence[LogRecord]) -> Slates:
    """All telemetry of a batch; those that had to be decoded one by one come last."""
    taken = Values.of(records)
    parts: list[Slates] = []
    single = np.ones(len(records), np.bool_)
    framed = taken.skip == SINGLE_OBJECT_BYTES
    for name in taken.schemas(framed):
        plans = _plans(avro.BY_FINGERPRINT.get(name.tobytes()))
        if plans is not None:
            rows = np.flatnonzero(framed & (taken.schema == name))
            found, odd = _read_block(taken.text, taken.spans[rows] + np.array([SINGLE_OBJECT_BYTES, 0]), plans)
            parts.append(found)
            single[rows] = odd
    values = [decoded(taken.raw[start:end]) for start, end in taken.spans[single].tolist()]
    return concat([*parts, of([value for value in values if value is not None])])


class Plans(NamedTuple):
    """How to read a body, and an item in it: int64 [fields, 2], kinds and the columns that they fill (-1 is none)."""

    request: Ints
    item: Ints


def _plans(schema: avro.Schema | None) -> Plans | None:
    """None for what must be decoded one by one."""
    if schema is None or schema.name != RankTelemetry.__name__:
        return None
    array = next((field["type"] for field in schema.raw["fields"] if field["name"] == "items"), None)
    if array is None:
        return None
    request = _steps([field for field in schema.raw["fields"] if field["name"] != "items"], (*WORDS,), (*NUMBERS,))
    item = _steps(array["items"]["fields"], ITEM_WORDS, ITEM_NUMBERS)
    if request is None or item is None:
        return None
    request.insert([field["name"] for field in schema.raw["fields"]].index("items"), (ITEMS, -1))
    return Plans(np.array(request, np.int64), np.array(item, np.int64))


def _steps(fields: Sequence[Any], words: Sequence[str], numbers: Sequence[str]) -> list[tuple[int, int]] | None:
    places = {name: place for names in (words, numbers) for place, name in enumerate(names)}
    kinds = [KINDS.get(str(field["type"])) for field in fields]
    found = [(kind, places.get(field["name"], -1)) for kind, field in zip(kinds, fields, strict=True) if kind is not None]
    return found if len(found) == len(fields) else None


def _read_block(text: Buffer, spans: Ints, plans: Plans) -> tuple[Slates, NDArray[np.bool_]]:
    """The requests of bodies of one schema, and which are odd: bool [bodies]."""
    items_count = np.zeros(len(spans), np.int64)
    words, numbers = np.zeros((len(WORDS), len(spans), 2), np.int64), np.zeros((len(NUMBERS), len(spans)), np.int64)
    _read(text, spans, *plans, Slates(text, words, numbers, items_count, np.zeros((0, 0, 2), np.int64), np.zeros((0, 0), np.int64)), False)
    odd = items_count < 0
    n = int(items_count[~odd].sum())
    item_words, item_numbers = np.zeros((len(ITEM_WORDS), n, 2), np.int64), np.zeros((len(ITEM_NUMBERS), n), np.int64)
    found = Slates(text, words, numbers, items_count, item_words, item_numbers)
    _read(text, spans, *plans, found, True)
    odd |= np.minimum.reduce([words[WORDS.index(name), :, 1] for name in IDS]) == 0
    return found._replace(items_count=np.maximum(items_count, 0)).where(~odd), odd


@numba.njit(cache=True, nogil=True)
def _read(raw: Buffer, spans: Ints, plan: Ints, item_plan: Ints, to: Slates, is_counted: bool) -> None:  # noqa: FBT001  # the second pass
    """Count every body's items, -1 where it is odd; once that is done, read them.

    spans: int64 [n, 2], where each body begins and ends in raw.
    """
    first = 0
    for row in range(len(spans)):
        at, end, count = spans[row, 0], spans[row, 1], 0
        if is_counted and to.items_count[row] < 0:
            continue
        for field in range(len(plan)):
            kind, column = plan[field, 0], plan[field, 1]
            if kind == ITEMS:
                count, at = _read_items(raw, at, end, item_plan, to, first, is_counted)
            else:
                value, length, at = _value(raw, at, end, kind)
                if at >= 0 and column >= 0 and kind == STRING:
                    to.words[column, row, 0], to.words[column, row, 1] = value, length
                elif at >= 0 and column >= 0:
                    to.numbers[column, row] = value
            if at < 0:
                break
        to.items_count[row] = count if at == end else -1
        first += count


@numba.njit(cache=True, nogil=True)
def _read_items(raw: Buffer, at: int, end: int, plan: Ints, to: Slates, first: int, is_counted: bool) -> tuple[int, int]:  # noqa: FBT001  # as above
    """How many items the array here has, and where it ends, -1 where it is none. first: the column of its first item."""
    count = 0
    while True:
        left, at = long_at(raw, at, end)
        if at < 0 or left <= 0 or left > end - at:
            return count, at if left == 0 else -1
        for _ in range(left):
            for field in range(len(plan)):
                kind, column = plan[field, 0], plan[field, 1]
                value, length, at = _value(raw, at, end, kind)
                if at < 0:
                    return count, -1
                if is_counted and column >= 0 and kind <= BYTES:
                    to.item_words[column, first + count, 0], to.item_words[column, first + count, 1] = value, length
                elif is_counted and column >= 0:
                    to.item_numbers[column, first + count] = value
            count += 1


@numba.njit(cache=True, nogil=True)
def _value(raw: Buffer, at: int, end: int, kind: int) -> tuple[int, int, int]:  # noqa: PLR0911  # a kind, a return
    """The number here, or the word's start and length; and where it ends, -1 where it is none. Of a double, the bits."""
    if kind == STRING:
        return word_at(raw, at, end)
    if kind == DOUBLE_OR_NULL:
        branch, at = long_at(raw, at, end)
        if branch != 1:
            return 0, 0, at if branch == 0 else -1
    if kind in (DOUBLE, DOUBLE_OR_NULL):
        if at < 0 or end - at < 8:
            return 0, 0, -1
        bits = np.uint64(0)
        for place in range(8):
            bits |= np.uint64(raw[at + place]) << np.uint64(8 * place)
        return int(np.int64(bits)), 0, at + 8
    if kind == OFFSETS:
        return 0, 0, _past_offsets(raw, at, end)
    number, at = long_at(raw, at, end)
    value = int(number)
    if kind == BYTES:
        return (at, value, at + value) if 0 <= value <= end - at and at >= 0 else (0, 0, -1)
    return value, 0, at if kind != INT or value == np.int32(value) else -1


@numba.njit(cache=True, nogil=True)
def _past_offsets(raw: Buffer, at: int, end: int) -> int:
    """Where the map of numbers here ends, -1 where it is none or tells its size in bytes."""
    while True:
        left, at = long_at(raw, at, end)
        if at < 0 or left <= 0 or left > end - at:
            return at if left == 0 else -1
        for _ in range(left):
            _, _, at = word_at(raw, at, end)
            if at >= 0:
                _, at = long_at(raw, at, end)
            if at < 0:
                return -1


@numba.njit(cache=True, nogil=True)
def rows_of(raw: Buffer, spans: Ints, wanted: NDArray[np.bool_], to: NDArray[np.uint8]) -> None:
    """Copy spans of one length to the rows of a matrix. spans: int64 [n, 2]; wanted: bool [n]; to: uint8 [n, length]."""
    for row in range(len(spans)):
        if wanted[row]:
            start = spans[row, 0]
            for place in range(to.shape[1]):
                to[row, place] = raw[start + place]
