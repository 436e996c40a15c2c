"""Records after deltas, many at once in one compiled loop: what online_store.record.merge says of one, byte for byte.

A ring is worked on as its tiles, the oldest first; the newest of them is the record's open tile, the others its closed ones.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from online_store.deltas import Deltas
from online_store.record import HEAD, RECORD_VERSION, RING, Layout
from schemas.aggregates import COUNTERS, TILE
from schemas.columnar.words import Buffer
from schemas.errors import StoreError

Ints = NDArray[np.int64]
#: Columns of a row as it is worked on: tile, what it adds to each counter, the newest event.
ROW_FIELDS = ("tile", *COUNTERS, "last_ms")
LAST_MS = len(ROW_FIELDS) - 1
TILE_BYTES, RING_BYTES, HEAD_BYTES = TILE.itemsize, RING.itemsize, HEAD.itemsize
LAST_AT, FLOOR_AT = 1, 9
COUNTERS_COUNT = len(COUNTERS)
#: Where a static section (online_store.record.STATIC_HEAD) has what it is compared by.
PARTITION_AT, TS_AT, OFFSET_AT = 1, 5, 13


class Plan(NamedTuple):
    """How records of each kind are laid out.

    head, front: int64 [kinds], bytes before the static section and before the closed tiles. tile_ms, rings: int64 [kinds]. hop_ms, slots:
    int64 [kinds, rings], 0 where a kind has fewer of them.
    """

    head: Ints
    front: Ints
    tile_ms: Ints
    rings: Ints
    hop_ms: Ints
    slots: Ints

    @classmethod
    def of(cls, layouts: Sequence[Layout]) -> "Plan":
        """In the order of a registry's kinds."""
        most = max([1, *(len(layout.windows) for layout in layouts)])
        hop_ms, slots = np.zeros((2, len(layouts), most), np.int64)
        for place, layout in enumerate(layouts):
            hop_ms[place, : len(layout.windows)] = [window.hop_ms for window in layout.windows]
            slots[place, : len(layout.windows)] = [window.slots_count for window in layout.windows]
        numbers = [(layout.head.size, layout.dtype.itemsize, layout.tile_ms, len(layout.windows)) for layout in layouts]
        head, front, tile_ms, rings = np.array(numbers, np.int64).T.copy()
        return cls(head, front, tile_ms, rings, hop_ms, slots)


def check(deltas: Deltas, layouts: Sequence[Layout]) -> None:
    """Raise StoreError for deltas that do not fit together, as lua/apply.lua does."""
    count = len(deltas.keys)
    highest = max([-1, int(deltas.rows["key"].max(initial=0)) if len(deltas.rows) else -1, *(place for place, _ in deltas.sections)])
    if len(deltas.kinds) != count or max(deltas.kinds, default=0) >= len(layouts) or highest >= count:
        message = f"deltas do not fit: {count} keys, {len(deltas.kinds)} kinds, places up to {highest}."
        raise StoreError(f"{message} They were not made by online_store.deltas.")
    for place, section in deltas.sections:
        if section.nbytes != layouts[deltas.kinds[place]].static_dtype.itemsize:
            raise StoreError(f"a static section of {deltas.keys[place]!r} is cut short. It was not made by online_store.deltas.")


def merged(layouts: Sequence[Layout], deltas: Deltas, raws: Sequence[bytes | None]) -> list[bytes]:
    """The records that `deltas` touch as they are after them. raws: as they were, None where there is none.

    Raises StoreError for bytes of another layout, and for deltas that do not fit together.
    """
    check(deltas, layouts)
    kinds = np.frombuffer(deltas.kinds, np.uint8)
    blanks = [layout.blank for layout in layouts]
    standing = [blanks[kind] if raw is None else raw for kind, raw in zip(deltas.kinds, raws, strict=True)]
    sections = [section.tobytes() for _, section in deltas.sections]
    of_section = np.array([place for place, _ in deltas.sections], np.int64)
    text, starts = _joined([*standing, *sections])
    rows, rows_from = _by_record(deltas.rows["key"].astype(np.int64), len(kinds), _columns(deltas.rows))
    sections_at, sections_from = _by_record(of_section, len(kinds), starts[len(kinds) : -1])
    plan = Plan.of(layouts)
    out, out_from, odd = _merge(text, starts, kinds, rows, rows_from, sections_at, sections_from, plan)
    if odd >= 0:
        layouts[kinds[odd]].check(standing[odd])
    packed, ends = out.tobytes(), out_from.tolist()
    return [packed[start:end] for start, end in itertools.pairwise(ends)]


def _joined(parts: Sequence[bytes]) -> tuple[Buffer, Ints]:
    """Bytes one after the other, and where each begins, int64 [n + 1]."""
    starts = np.zeros(len(parts) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, parts), np.int64, len(parts)), out=starts[1:])
    return np.frombuffer(b"".join(parts), np.uint8), starts


def _columns(rows: NDArray[Any]) -> Ints:
    found = np.empty((len(rows), len(ROW_FIELDS)), np.int64)
    for place, name in enumerate(ROW_FIELDS):
        found[:, place] = rows[name]
    return found


def _by_record(of: Ints, count: int, values: Ints) -> tuple[Ints, Ints]:
    """Values sorted by the record that they belong to, and where each record's begin, int64 [count + 1]."""
    if (np.diff(of) < 0).any():
        order = np.argsort(of, kind="stable")
        of, values = of[order], values[order]
    return values, np.searchsorted(of, np.arange(count + 1))


@numba.njit(cache=True, nogil=True)
def _merge(  # noqa: PLR0913  # compiled functions take arrays, not objects
    text: Buffer, starts: Ints, kinds: Buffer, rows: Ints, rows_from: Ints, sections_at: Ints, sections_from: Ints, plan: Plan
) -> tuple[Buffer, Ints, int]:
    """All records one after the other, where each begins, and the place of one that is not of its layout, else -1."""
    out, out_from = np.zeros(_room(kinds, starts, rows_from, plan), np.uint8), np.zeros(len(kinds) + 1, np.int64)
    room = 2 * plan.slots.max() + 256
    tiles, held = np.zeros((plan.slots.shape[1], room, 1 + COUNTERS_COUNT), np.int64), np.zeros((plan.slots.shape[1], 2), np.int64)
    at = 0
    for record in range(len(kinds)):
        kind, start, end = kinds[record], starts[record], starts[record + 1]
        if not _taken_apart(text, start, end, kind, plan, tiles, held):
            return out, out_from, record
        last_ms, floor_ms, static = _eight(text, start + LAST_AT), _eight(text, start + FLOOR_AT), start + plan.head[kind]
        for place in range(sections_from[record], sections_from[record + 1]):
            static, floor_ms = _after_section(text, sections_at[place], static, floor_ms)
        last_ms = last_ms if last_ms >= floor_ms else 0
        _forget(floor_ms, kind, plan, tiles, held)
        for place in range(rows_from[record], rows_from[record + 1]):
            row = rows[place]
            if row[LAST_MS] >= floor_ms:
                last_ms = max(last_ms, row[LAST_MS])
            for ring in range(plan.rings[kind]):
                hop_ms = plan.hop_ms[kind, ring]
                tile = row[0] * plan.tile_ms[kind] // hop_ms
                if tile * hop_ms >= floor_ms:
                    _add(tiles[ring], held[ring], plan.slots[kind, ring], tile, row)
        at = _put_together(out, at, last_ms, floor_ms, text, static, kind, plan, tiles, held)
        out_from[record + 1] = at
    return out[:at], out_from, -1


@numba.njit(cache=True, inline="always")
def _after_section(text: Buffer, section: int, static: int, floor_ms: int) -> tuple[int, int]:
    """Where the section that stands now begins, and the floor: a tombstone's is its time."""
    removed_ms = _eight(text, section + TS_AT) if text[section] else 0
    return section if _is_newer(text, section, static) else static, max(floor_ms, removed_ms)


@numba.njit(cache=True, nogil=True)
def _room(kinds: Buffer, starts: Ints, rows_from: Ints, plan: Plan) -> int:
    """Bytes that all records have at most."""
    found = 0
    for record in range(len(kinds)):
        kind = kinds[record]
        rows = rows_from[record + 1] - rows_from[record]
        more = min(rows * plan.rings[kind], plan.slots[kind].sum())
        found += max(starts[record + 1] - starts[record], plan.front[kind]) + TILE_BYTES * more
    return found


@numba.njit(cache=True, nogil=True)
def _taken_apart(text: Buffer, start: int, end: int, kind: int, plan: Plan, tiles: Ints, held: Ints) -> bool:
    """A record's rings into `tiles`, [rings, room, tile and counters], those of each from held[ring, 0] to held[ring, 1].

    False where the bytes are no record of this layout.
    """
    at = start + plan.front[kind]
    if end < at or text[start] != RECORD_VERSION:
        return False
    for ring in range(plan.rings[kind]):
        head = start + HEAD_BYTES + ring * RING_BYTES
        count = int(text[head])
        if end - at < count * TILE_BYTES:
            return False
        for place in range(count):
            _read_tile(text, at, tiles[ring, place])
            at += TILE_BYTES
        _read_tile(text, head + 1, tiles[ring, count])
        is_open = tiles[ring, count, 1] | tiles[ring, count, 2] | tiles[ring, count, 3] | tiles[ring, count, 4]
        held[ring, 0], held[ring, 1] = 0, count + (is_open != 0)
    return bool(at == end)


@numba.njit(cache=True, nogil=True)
def _forget(floor_ms: int, kind: int, plan: Plan, tiles: Ints, held: Ints) -> None:
    """Leave out the tiles that begin before a tombstone."""
    for ring in range(plan.rings[kind]):
        while held[ring, 0] < held[ring, 1] and tiles[ring, held[ring, 0], 0] * plan.hop_ms[kind, ring] < floor_ms:
            held[ring, 0] += 1


@numba.njit(cache=True, nogil=True)
def _add(tiles: Ints, held: Ints, slots: int, tile: int, row: Ints) -> None:
    """Add a row to a ring, unless it is past what the ring keeps; a new newest tile pushes old ones out."""
    first, last = held[0], held[1]
    if last > first and tile <= tiles[last - 1, 0] - slots:
        return
    at = last
    while at > first and tiles[at - 1, 0] > tile:
        at -= 1
    if at > first and tiles[at - 1, 0] == tile:
        for counter in range(1, 1 + COUNTERS_COUNT):
            tiles[at - 1, counter] += row[counter]
        return
    if last == len(tiles):
        for place in range(first, last):
            tiles[place - first, :] = tiles[place]
        first, last, at = 0, last - first, at - first
    for place in range(last, at, -1):
        tiles[place, :] = tiles[place - 1]
    tiles[at, 0] = tile
    for counter in range(1, 1 + COUNTERS_COUNT):
        tiles[at, counter] = row[counter]
    last += 1
    while tiles[first, 0] <= tiles[last - 1, 0] - slots:
        first += 1
    held[0], held[1] = first, last


@numba.njit(cache=True, nogil=True)
def _put_together(  # noqa: PLR0913  # as _merge
    out: Buffer, at: int, last_ms: int, floor_ms: int, text: Buffer, static: int, kind: int, plan: Plan, tiles: Ints, held: Ints
) -> int:
    """Write a record; returns where it ends."""
    out[at] = RECORD_VERSION
    _put(out, at + LAST_AT, last_ms, 8)
    _put(out, at + FLOOR_AT, floor_ms, 8)
    after = at + plan.head[kind]
    for place in range(plan.front[kind] - plan.head[kind]):
        out[after + place] = text[static + place]
    after = at + plan.front[kind]
    for ring in range(plan.rings[kind]):
        first, last, head = held[ring, 0], held[ring, 1], at + HEAD_BYTES + ring * RING_BYTES
        if last > first:
            out[head] = last - 1 - first
            _put_tile(out, head + 1, tiles[ring, last - 1])
        for place in range(first, last - 1):
            _put_tile(out, after, tiles[ring, place])
            after += TILE_BYTES
    return int(after)


@numba.njit(cache=True, inline="always")
def _is_newer(text: Buffer, a: int, b: int) -> bool:
    """Of two static sections, by event time, then by the log's own order."""
    a_ms, b_ms = _eight(text, a + TS_AT), _eight(text, b + TS_AT)
    if a_ms != b_ms:
        return a_ms > b_ms
    a_offset, b_offset = _eight(text, a + OFFSET_AT), _eight(text, b + OFFSET_AT)
    if a_offset != b_offset:
        return a_offset > b_offset
    return bool(_four(text, a + PARTITION_AT) > _four(text, b + PARTITION_AT))


@numba.njit(cache=True, inline="always")
def _read_tile(text: Buffer, at: int, tile: Ints) -> None:
    for place in range(4):
        tile[place] = _four(text, at + 4 * place)
    tile[4] = _eight(text, at + 16)


@numba.njit(cache=True, inline="always")
def _put_tile(out: Buffer, at: int, tile: Ints) -> None:
    for place in range(4):
        _put(out, at + 4 * place, tile[place], 4)
    _put(out, at + 16, tile[4], 8)


@numba.njit(cache=True, inline="always")
def _four(text: Buffer, at: int) -> np.int64:
    found = np.int64(0)
    for place in range(4):
        found |= np.int64(text[at + place]) << np.int64(8 * place)
    return found


@numba.njit(cache=True, inline="always")
def _eight(text: Buffer, at: int) -> int:
    return int(_four(text, at) | (_four(text, at + 4) << np.int64(32)))


@numba.njit(cache=True, inline="always")
def _put(out: Buffer, at: int, value: int, count: int) -> None:
    for place in range(count):
        out[at + place] = (value >> (8 * place)) & 0xFF
