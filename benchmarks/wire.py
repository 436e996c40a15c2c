"""A feed as bytes: what schemas.codec would encode, event for event, hundreds of times faster.

Events whose records differ only in fields of fixed width (ids, times) are one shape: `codec.encode` makes one record of each shape,
its fields are found in those bytes, and numpy writes the other events' fields over them. tests/unit/test_benchmark_feed.py holds
the two together.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.feed import MODELS, NONE, SURFACES, Feed, Ints, mixed
from schemas import codec
from schemas.records import Click, Event, Impression

Bytes = NDArray[np.uint8]
Encode = Callable[[Event], bytes]

HEX = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
#: Where a UUID's hyphens stand.
HYPHENS = (8, 13, 18, 23)
AVRO, JSON = "avro", "json"


def user_ids(numbers: Ints) -> Bytes:
    """Ids of users as text, uint8 [n, 16]: u and 15 hex digits."""
    return _named(b"u", numbers, 15)


def item_ids(numbers: Ints) -> Bytes:
    """Ids of items as text, uint8 [n, 12]: i and 11 hex digits."""
    return _named(b"i", numbers, 11)


def request_ids(numbers: Ints, seed: int) -> Bytes:
    """Ids of requests as text, uint8 [n, 36]: a UUID's form."""
    high, low = _hex(mixed(numbers + (seed << 40)), 16), _hex(mixed(~numbers - (seed << 40)), 16)
    digits = np.concatenate([high, low], axis=1)
    out = np.full((len(numbers), 36), ord("-"), dtype=np.uint8)
    out[:, [place for place in range(36) if place not in HYPHENS]] = digits
    return out


def texts(ids: Bytes) -> list[str]:
    """Ids as strings."""
    width = ids.shape[1]
    return [text.decode() for text in _cut(ids.tobytes(), width)]


def event(feed: Feed, row: int) -> Event:
    """One event of a feed as a record."""
    at = slice(row, row + 1)
    fields: dict[str, Any] = {
        "request_id": texts(request_ids(feed.request[at], feed.seed))[0],
        "user_id": texts(user_ids(feed.user[at]))[0],
        "item_id": texts(item_ids(feed.item[at]))[0],
        "ts_ms": int(feed.ts_ms[row]),
        "model_version": MODELS[feed.model[row]],
    }
    if feed.position[row] == NONE:
        dwell_ms = int(feed.dwell_ms[row])
        return Click(**fields, dwell_ms=None if dwell_ms == NONE else dwell_ms)
    return Impression(**fields, position=int(feed.position[row]), context={"surface": SURFACES[feed.surface[row]]})


def values(feed: Feed, form: str = AVRO) -> list[bytes]:
    """What producers send, event by event. form: AVRO (single-object encoding) or JSON."""
    out: list[bytes] = [b""] * len(feed)
    columns = _Columns(feed, form)
    for rows in _shapes(feed, form):
        template = columns.encode(event(feed, int(rows[0])))
        packed = np.tile(np.frombuffer(template, dtype=np.uint8), (len(rows), 1))
        for column in columns.of(int(feed.dwell_ms[rows[0]]) != NONE):
            wire = column(rows)
            at = template.index(wire[0].tobytes())
            packed[:, at : at + wire.shape[1]] = wire
        for row, value in zip(rows.tolist(), _cut(packed.tobytes(), len(template)), strict=True):
            out[row] = value
    return out


@dataclass(frozen=True, slots=True)
class _Columns:
    """The fields that differ within a shape, each as a function of rows to their wire form, uint8 [rows, width]."""

    feed: Feed
    form: str

    def encode(self, record: Event) -> bytes:
        """One record as the product encodes it."""
        return codec.encode(record) if self.form == AVRO else codec.encode_json(record)

    def of(self, with_dwell: bool) -> list[Callable[[Ints], Bytes]]:  # noqa: FBT001  # the shape's own property, not an option
        """The columns of a shape."""
        feed, number = self.feed, _varints if self.form == AVRO else _decimals
        columns: list[Callable[[Ints], Bytes]] = [
            lambda rows: request_ids(feed.request[rows], feed.seed),
            lambda rows: user_ids(feed.user[rows]),
            lambda rows: item_ids(feed.item[rows]),
            lambda rows: number(feed.ts_ms[rows]),
        ]
        # Behind the time, for a short number may be found in an id: the tag before it makes it long enough to be the only one.
        return [*columns, lambda rows: self._tagged(number(feed.dwell_ms[rows]), number(feed.ts_ms[rows]))] if with_dwell else columns

    def _tagged(self, dwells: Bytes, times: Bytes) -> Bytes:
        if self.form == AVRO:  # the union's branch stands between the two
            return np.concatenate([times, np.full((len(dwells), 1), 2, dtype=np.uint8), dwells], axis=1)
        tag = np.frombuffer(b'"dwell_ms":', dtype=np.uint8)
        return np.concatenate([np.tile(tag, (len(dwells), 1)), dwells], axis=1)


def _shapes(feed: Feed, form: str) -> Iterator[Ints]:
    """Rows of events that differ only in fields of fixed width."""
    width = _varint_widths(feed.dwell_ms) if form == AVRO else _decimal_widths(feed.dwell_ms)
    shown = (feed.position * len(SURFACES) + feed.surface) * len(MODELS) + feed.model
    clicked = -1 - (width * len(MODELS) + feed.model)
    code = np.where(feed.is_click, clicked, shown)
    order = np.argsort(code, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(code[order])) + 1)


def _named(letter: bytes, numbers: Ints, digits_count: int) -> Bytes:
    return np.concatenate([np.full((len(numbers), 1), letter[0], dtype=np.uint8), _hex(mixed(numbers), digits_count)], axis=1)


def _hex(numbers: NDArray[np.uint64], digits_count: int) -> Bytes:
    """The lowest hex digits as text, uint8 [n, digits_count]."""
    shifts = np.arange(4 * (digits_count - 1), -1, -4, dtype=np.uint64)
    return HEX[(numbers[:, None] >> shifts & np.uint64(15)).astype(np.intp)]


def _varints(numbers: Ints) -> Bytes:
    """Avro longs of one width, zigzag and seven bits a byte, uint8 [n, width]."""
    zigzag = numbers.astype(np.uint64) << np.uint64(1)
    width = int(_varint_widths(numbers[:1])[0])
    groups = (zigzag[:, None] >> np.arange(0, 7 * width, 7, dtype=np.uint64) & np.uint64(127)).astype(np.uint8)
    groups[:, :-1] |= 128
    return groups


def _decimals(numbers: Ints) -> Bytes:
    """Numbers of one width as decimal digits, uint8 [n, width]."""
    powers = 10 ** np.arange(int(_decimal_widths(numbers[:1])[0]) - 1, -1, -1)
    return (numbers[:, None] // powers % 10 + ord("0")).astype(np.uint8)


def _varint_widths(numbers: Ints) -> Ints:
    """Bytes of each as an Avro long; NONE has 0."""
    return np.searchsorted([0, *(1 << bits for bits in range(6, 56, 7))], numbers, side="right")


def _decimal_widths(numbers: Ints) -> Ints:
    """Digits of each; NONE has 0."""
    return np.searchsorted([0, *(10**power for power in range(1, 15))], numbers, side="right")


def _cut(packed: bytes, width: int) -> list[bytes]:
    return [packed[at : at + width] for at in range(0, len(packed), width)]
