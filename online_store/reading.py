"""Records as of a moment: what a request, a view and a check against the oracle read.

One compiled loop over the records' bytes, for a rank request reads two hundred of them; online_store/record.py has the layout.
"""

from collections.abc import Sequence

import numba
import numpy as np
from numpy.typing import NDArray

from online_store.record import HEAD, RECORD_VERSION, RING, Layout
from schemas.aggregates import COUNTERS, TILE, Tiles
from schemas.columnar.words import Buffer

Ints = NDArray[np.int64]
#: Where a head says the newest event's time and the floor, and where a ring's open tile and a tile's counters begin (bytes).
LAST_AT, FLOOR_AT, OPEN_AT, COUNTERS_AT = (
    int(HEAD.fields["last_active_ms"][1]),  # type: ignore[index]  # its stubs know of dtypes without fields
    int(HEAD.fields["floor_ms"][1]),  # type: ignore[index]  # as above
    int(RING.fields["tile"][1]),  # type: ignore[index]  # as above
    int(TILE.fields["impressions"][1]),  # type: ignore[index]  # as above
)
HEAD_BYTES, RING_BYTES, TILE_BYTES = HEAD.itemsize, RING.itemsize, TILE.itemsize
#: The last counter is a sum of milliseconds, of eight bytes; the others have four.
SUM = len(COUNTERS) - 1


def read(layout: Layout, raws: Sequence[bytes | None], as_of_ms: int | Ints) -> Tiles:
    """What n records say as of a moment, or each as of its own, int64 [n]; a missing one (None) says zeros.

    Raises StoreError for bytes of another layout.
    """
    found = [layout.blank if raw is None else raw for raw in raws]
    count = len(found)
    starts = np.zeros(count + 1, np.int64)
    np.cumsum(np.fromiter(map(len, found), np.int64, count), out=starts[1:])
    records, exact = np.zeros(count, layout.dtype), np.ones(count, np.bool_)
    counts = np.zeros((count, len(layout.windows), len(COUNTERS)), np.int64)
    front = records.view(np.uint8).reshape(count, layout.dtype.itemsize)
    odd = _read(np.frombuffer(b"".join(found), np.uint8), starts, np.full(count, as_of_ms, np.int64), layout.rings, front, counts, exact)
    if odd >= 0:
        layout.check(found[odd])
    static, last = records["static"], records["last_active_ms"].astype(np.int64)
    present = np.fromiter((raw is not None for raw in raws), np.bool_, count)
    removed = static["removed"].astype(np.bool_)
    statics = {field.name: static[field.name] for field in layout.statics}
    return Tiles(counts, statics, last, present & (~removed | (last > 0)), removed, exact)


@numba.njit(cache=True, nogil=True)
def _read(  # compiled functions take arrays, not objects
    text: Buffer, starts: Ints, as_of_ms: Ints, windows: Ints, front: NDArray[np.uint8], counts: Ints, exact: NDArray[np.bool_]
) -> int:
    """Fill front with each record's front, counts with the tiles that count; returns the first record that is none of this layout, or -1.

    starts: int64 [n + 1], where each record begins. windows: int64 [windows, 3], hop in milliseconds, tiles that count, slots.
    """
    for row in range(len(as_of_ms)):
        at, end = starts[row], starts[row + 1]
        if end - at < front.shape[1] or text[at] != RECORD_VERSION:
            return row
        front[row] = text[at : at + front.shape[1]]
        last_ms, floor_ms = _number(text, at + LAST_AT, 8), _number(text, at + FLOOR_AT, 8)
        closed_at = at + front.shape[1]
        for window in range(len(windows)):
            hop_ms, tiles_count, slots_count = windows[window]
            newest = as_of_ms[row] // hop_ms
            oldest = max(newest - tiles_count + 1, -(-floor_ms // hop_ms))
            if last_ms // hop_ms - newest > slots_count - tiles_count:
                exact[row] = False
            ring = at + HEAD_BYTES + window * RING_BYTES
            closed_end = closed_at + text[ring] * TILE_BYTES
            if closed_end > end:
                return row
            _add(text, ring + OPEN_AT, oldest, newest, counts[row, window])
            while closed_at < closed_end:
                _add(text, closed_at, oldest, newest, counts[row, window])
                closed_at += TILE_BYTES
        if closed_at != end:
            return row
    return -1


@numba.njit(cache=True, inline="always")
def _add(text: Buffer, at: int, oldest: int, newest: int, counts: Ints) -> None:
    """Add one tile's counters, if it counts."""
    tile = _number(text, at, 4)
    if oldest <= tile <= newest:
        for counter in range(SUM):
            counts[counter] += _number(text, at + COUNTERS_AT + 4 * counter, 4)
        counts[SUM] += _number(text, at + COUNTERS_AT + 4 * SUM, 8)


@numba.njit(cache=True, inline="always")
def _number(text: Buffer, at: int, size: int) -> np.int64:
    """A little-endian number of so many bytes; of eight, with its sign."""
    # An index without a sign: numba looks whether another one counts from the end, byte by byte.
    value, first = np.uint64(0), np.uint64(at)
    for place in range(size):
        value |= np.uint64(text[first + np.uint64(place)]) << np.uint64(8 * place)
    return np.int64(value)
