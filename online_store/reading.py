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
#: The length of a record that is missing.
NOTHING = -1
#: The last counter is a sum of milliseconds, of eight bytes; the others have four.
SUM = len(COUNTERS) - 1


def read(layout: Layout, raws: Sequence[bytes | None], as_of_ms: int | Ints) -> Tiles:
    """What n records say as of a moment, or each as of its own, int64 [n]; a missing one (None) says zeros.

    Raises StoreError for bytes of another layout.
    """
    count, nothing = len(raws), layout.blank
    lengths = np.array([NOTHING if raw is None else len(raw) for raw in raws], np.int64)
    text = np.frombuffer(b"".join([raw for raw in raws if raw is not None]), np.uint8)
    records, last = np.empty(count, layout.dtype), np.empty(count, np.int64)
    known, removed, exact = np.empty((3, count), np.bool_)
    counts = np.zeros((count, len(layout.windows), len(COUNTERS)), np.int64)
    front = records.view(np.uint8).reshape(count, layout.dtype.itemsize)
    moments = np.full(count, as_of_ms, np.int64)
    odd = _read(text, lengths, np.frombuffer(nothing, np.uint8), moments, layout.rings, front, counts, last, known, removed, exact)
    if odd >= 0:
        layout.check(raws[odd] or b"")
    static = records["static"]
    return Tiles(counts, {field.name: static[field.name] for field in layout.statics}, last, known, removed, exact)


@numba.njit(cache=True, nogil=True)
def _read(  # noqa: PLR0913  # compiled functions take arrays, not objects
    text: Buffer,
    lengths: Ints,
    blank: Buffer,
    as_of_ms: Ints,
    windows: Ints,
    front: NDArray[np.uint8],
    counts: Ints,
    last_ms: Ints,
    known: NDArray[np.bool_],
    removed: NDArray[np.bool_],
    exact: NDArray[np.bool_],
) -> int:
    """Fill front with each record's front, counts with the tiles that count; returns the first record that is none of this layout, or -1.

    lengths: int64 [n], of each record in text, or NOTHING. windows: int64 [windows, 3], hop in milliseconds, tiles that count, slots.
    """
    following = 0
    for row in range(len(as_of_ms)):
        at, following = following, following + max(lengths[row], 0)
        last_ms[row], known[row], removed[row], exact[row] = 0, False, False, True
        if lengths[row] == NOTHING:
            front[row] = blank
            continue
        if lengths[row] < front.shape[1] or text[at] != RECORD_VERSION:
            return row
        front[row] = text[at : at + front.shape[1]]
        last_ms[row], floor_ms = _number(text, at + LAST_AT, 8), _number(text, at + FLOOR_AT, 8)
        removed[row] = text[at + HEAD_BYTES + len(windows) * RING_BYTES] != 0
        known[row] = not removed[row] or last_ms[row] > 0
        closed_at = at + front.shape[1]
        for window in range(len(windows)):
            hop_ms, tiles_count, slots_count = windows[window]
            newest = as_of_ms[row] // hop_ms
            oldest = max(newest - tiles_count + 1, -(-floor_ms // hop_ms))
            exact[row] &= last_ms[row] // hop_ms - newest <= slots_count - tiles_count
            ring = at + HEAD_BYTES + window * RING_BYTES
            closed_end = closed_at + text[ring] * TILE_BYTES
            if closed_end > following:
                return row
            _add(text, ring + OPEN_AT, oldest, newest, counts[row, window])
            while closed_at < closed_end:
                _add(text, closed_at, oldest, newest, counts[row, window])
                closed_at += TILE_BYTES
        if closed_at != following:
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
