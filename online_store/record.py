"""One entity's record: the bytes under its key, laid out from the registry.

    version         u8     RECORD_VERSION
    last_active_ms  i64    event time of the newest event, 0 is never
    floor_ms        i64    a tombstone's time: tiles that start before it never count
    rings           one a window, shortest first: its closed tiles' count (u8), then its open tile, the newest (schemas.aggregates.TILE)
    static section  removed u8, partition u32, ts_ms i64, offset i64 (of the content or user record that wrote it), then its fields
    closed tiles    every older tile that was touched and that a window can still want, ring by ring, oldest first

What nearly every event changes is at the front and of one size; what a quiet entity never touched takes no room.
Every step here commutes: deltas of one log applied in any order give the same bytes. `merge` says in Python what lua/apply.lua does in
the store; tests/contract holds them together, tests/golden freezes the bytes.
"""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.aggregates import COUNTERS, EMBEDDING_DIMS, LABELS_LEFT_OUT, SET_HASHES_MAX, TILE
from schemas.errors import StoreError
from schemas.features import Registry, Static
from schemas.records import Content, User
from schemas.windows import LATENESS_MS, Window

RECORD_VERSION = 2
#: A record outlives its longest window by this factor before jitter, so that the lowest jitter (0.8) still covers the window.
TTL_FACTOR = 1.25
TTL_JITTER = 0.2

#: A number past this is stored as missing: no feature could hold it.
FLOAT32_MAX = float(np.finfo(np.float32).max)

HEAD = np.dtype([("version", "u1"), ("last_active_ms", "<i8"), ("floor_ms", "<i8")])
STATIC_HEAD = np.dtype([("removed", "u1"), ("partition", "<u4"), ("ts_ms", "<i8"), ("offset", "<i8")])
#: A ring's part of the front: closed tiles, then the open one.
RING = np.dtype([("closed", "u1"), *((name, TILE[name]) for name in TILE.names or ())])
RING_NUMBERS = 2 + len(COUNTERS)
FORMS: dict[str, tuple[Any, ...]] = {
    "number": ("<f4",),
    "time_ms": ("<i8",),
    "hash": ("<u8",),
    "hashes": ("<u8", (SET_HASHES_MAX,)),
    "labels": ("<u8", (SET_HASHES_MAX,)),
    "embedding": ("i1", (EMBEDDING_DIMS,)),
    "category": ("<u2",),
}
#: What one delta adds to one tile of a record, something at least; `key` is the record's place in Deltas.keys.
ROW = np.dtype([("key", "<u4"), *((name, TILE[name]) for name in TILE.names or ()), ("last_ms", "<i8")])


@dataclass(frozen=True)
class Layout:
    """How the records of one kind are laid out."""

    kind: str
    windows: tuple[Window, ...]
    statics: tuple[Static, ...]
    tile_ms: int

    @cached_property
    def static_dtype(self) -> np.dtype[Any]:
        """The static section, packed."""
        fields = [(static.name, *FORMS[static.form]) for static in self.statics]
        return np.dtype([*_fields(STATIC_HEAD), *fields])

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The front, packed: all but the closed tiles."""
        rings = [(window.name, RING) for window in self.windows]
        return np.dtype([*_fields(HEAD), *rings, ("static", self.static_dtype)])

    @cached_property
    def head(self) -> struct.Struct:
        """What stands before the static section, as plain numbers."""
        return struct.Struct("<Bqq" + "BIIIIQ" * len(self.windows))

    @cached_property
    def blank(self) -> bytes:
        """A record of nothing yet: numbers missing, rings empty."""
        record = np.zeros(1, self.dtype)
        record["version"] = RECORD_VERSION
        record["static"] = self.pack_static(None, 0, 0, 0)
        return record.tobytes()

    @cached_property
    def rings(self) -> NDArray[np.int64]:
        """Of each window its hop in milliseconds, the tiles that count, and the slots: int64 [windows, 3]."""
        return np.array([(window.hop_ms, window.tiles_count, window.slots_count) for window in self.windows], np.int64).reshape(-1, 3)

    @property
    def ttl_ms(self) -> int:
        """Time to live before jitter, milliseconds.

        It is set when a tile is opened, not by every write: the shortest hop is what may still follow in that tile.
        """
        spans = [window.span_ms for window in self.windows] or [self.tile_ms]
        hops = [window.hop_ms for window in self.windows] or [0]
        return int(TTL_FACTOR * (max(spans) + min(hops) + LATENESS_MS))

    @property
    def ttl_ms_min(self) -> int:
        """What every write that sets it leaves at least to live, milliseconds: a tombstone's does."""
        return int(self.ttl_ms * (1 - TTL_JITTER))

    def pack_static(self, value: Content | User | None, partition: int, ts_ms: int, offset: int) -> NDArray[Any]:
        """The static section that a content or user record writes; None is a tombstone if it has a time, else blank."""
        section = np.zeros(1, self.static_dtype)
        section["removed"] = value is None and ts_ms > 0
        section["partition"], section["ts_ms"], section["offset"] = partition, ts_ms, offset
        for static in self.statics:
            section[static.name] = pack_field(static, value)
        return section

    def check(self, raw: bytes) -> None:
        """Assert the layout. Raises StoreError for bytes that are not such a record."""
        front = self.dtype.itemsize
        expected = front + TILE.itemsize * sum(raw[at] for at in self._closed_at) if len(raw) >= front else front
        if len(raw) != expected or raw[0] != RECORD_VERSION:
            message = (
                f"a {self.kind} record has {len(raw)} bytes and version {raw[:1].hex()}, expected {expected} and "
                f"{RECORD_VERSION:02x}: it was written for another registry or version. Rebuild the generation from the log."
            )
            raise StoreError(message)

    @cached_property
    def _closed_at(self) -> range:
        """Where each ring says how many closed tiles it has."""
        return range(HEAD.itemsize, HEAD.itemsize + RING.itemsize * len(self.windows), RING.itemsize)


def layouts(registry: Registry) -> dict[str, Layout]:
    """Every kind's layout, in the registry's order of kinds."""
    return {kind: Layout(kind, registry.windows(kind), registry.static_fields(kind), registry.tile_ms(kind)) for kind in registry.kinds}


def pack_field(static: Static, value: Content | User | None) -> Any:  # noqa: ANN401  # a number, or an array of hashes
    """One static field of a content or user record as it is packed; of None, as it is packed when missing."""
    found = _lookup(static.source, value)
    match static.form:
        case "number":
            return np.nan if found is None or abs(found) > FLOAT32_MAX else float(found)
        case "time_ms":
            return found or 0
        case "hash":
            return hash_of(found) if found else 0
        case "category":
            return static.vocabulary.index(found) + 1 if found in static.vocabulary else 0
        case "embedding":
            return direction(found or ())
    hashes = [hash_of(word) for word in (found or ())[:SET_HASHES_MAX]]
    if static.form == "labels" and len(found or ()) > SET_HASHES_MAX:
        hashes[-1] = LABELS_LEFT_OUT
    return np.array(hashes + [0] * (SET_HASHES_MAX - len(hashes)), dtype="<u8")


def direction(embedding: Sequence[float]) -> NDArray[np.int8]:
    """An embedding as records keep it, int8 [EMBEDDING_DIMS], its length 127; all 0 where it has none, or is not finite.

    What is past EMBEDDING_DIMS is folded in, each stretch with the signs of another Walsh function, which keeps inner products on
    average (a count sketch: Charikar, Chen and Farach-Colton, 2002).
    """
    folded = np.zeros(EMBEDDING_DIMS)
    for start in range(0, len(embedding), EMBEDDING_DIMS):
        part = np.array(embedding[start : start + EMBEDDING_DIMS], np.float64)
        folded[: len(part)] += part * [1 - 2 * ((start // EMBEDDING_DIMS & place).bit_count() & 1) for place in range(len(part))]
    largest = np.abs(folded).max()
    if not np.isfinite(largest) or largest == 0:
        return np.zeros(EMBEDDING_DIMS, np.int8)
    scaled = folded / largest
    packed: NDArray[np.int8] = np.rint(scaled / np.linalg.norm(scaled) * 127).astype(np.int8)
    return packed


def hash_of(word: str) -> int:
    """A word as records keep it where only equality matters: the first 8 bytes of BLAKE2b, little-endian."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


#: A ring as `merge` works on it: tile number -> counters.
Ring = dict[int, list[int]]


def merge(layout: Layout, raw: bytes | None, rows: NDArray[Any], sections: Sequence[NDArray[Any]]) -> bytes:
    """A record after deltas: rows of ROW, sections of the static dtype. Raises StoreError for bytes of another layout."""
    raw = raw or layout.blank
    layout.check(raw)
    last_ms, floor_ms, rings = _unpack(layout, raw)
    static = raw[layout.head.size : layout.dtype.itemsize]
    for section in sections:
        packed = section.tobytes()
        static = max(static, packed, key=_order)
        removed, _, ts_ms, _ = _STATIC_HEAD.unpack_from(packed)
        floor_ms = max(floor_ms, ts_ms) if removed else floor_ms
    last_ms = last_ms if last_ms >= floor_ms else 0
    for _, tile, *counts, newest_ms in rows.tolist():
        last_ms = max(last_ms, newest_ms) if newest_ms >= floor_ms else last_ms
        for window, ring in zip(layout.windows, rings, strict=True):
            _add(ring, window.slots_count, tile * layout.tile_ms // window.hop_ms, counts)
    kept = [_kept(window, ring, floor_ms) for window, ring in zip(layout.windows, rings, strict=True)]
    return _pack(layout, last_ms, floor_ms, kept, static)


_STATIC_HEAD = struct.Struct("<BIqq")
_TILE = struct.Struct("<IIIIQ")


def _order(section: bytes) -> tuple[int, int, int]:
    """Last writer wins by event time; the log's own order decides between equals."""
    _, partition, ts_ms, offset = _STATIC_HEAD.unpack_from(section)
    return ts_ms, offset, partition


def _unpack(layout: Layout, raw: bytes) -> tuple[int, int, list[Ring]]:
    _, last_ms, floor_ms, *numbers = layout.head.unpack_from(raw)
    rings: list[Ring] = []
    tiles = _TILE.iter_unpack(raw[layout.dtype.itemsize :])
    for at in range(0, len(numbers), RING_NUMBERS):
        closed, tile, *counts = numbers[at : at + RING_NUMBERS]
        ring = {number: list(held) for number, *held in islice(tiles, closed)}
        rings.append(ring | {tile: counts} if any(counts) else ring)
    return last_ms, floor_ms, rings


def _pack(layout: Layout, last_ms: int, floor_ms: int, rings: list[Ring], static: bytes) -> bytes:
    numbers, closed = [], []
    for ring in rings:
        *older, newest = sorted(ring) or [0]
        numbers += [len(older), newest, *ring.get(newest, (0, 0, 0, 0))]
        closed += [_TILE.pack(tile, *ring[tile]) for tile in older]
    return layout.head.pack(RECORD_VERSION, last_ms, floor_ms, *numbers) + static + b"".join(closed)


def _add(ring: Ring, slots: int, tile: int, counts: list[int]) -> None:
    """Add to a tile, unless it is past what the ring keeps; a new newest one pushes old ones out."""
    newest = max(ring, default=0)
    if tile <= newest - slots:
        return
    if tile > newest:
        for old in [number for number in ring if number <= tile - slots]:
            del ring[old]
    ring[tile] = [held + more for held, more in zip(ring.get(tile, (0, 0, 0, 0)), counts, strict=True)]


def _kept(window: Window, ring: Ring, floor_ms: int) -> Ring:
    return {tile: counts for tile, counts in ring.items() if tile * window.hop_ms >= floor_ms}


def _fields(dtype: np.dtype[Any]) -> list[tuple[str, Any]]:
    return [(name, dtype[name]) for name in dtype.names or ()]


def _lookup(source: str, value: Content | User | None) -> Any:  # noqa: ANN401  # whatever the field holds
    if value is None:
        return None
    holder, _, key = source.partition(".")
    found = getattr(value, holder, None)
    if not key:
        return found
    return found.get(key) if isinstance(found, Mapping) else getattr(found, key, None)
