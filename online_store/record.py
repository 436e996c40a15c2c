"""One entity's record: the bytes under its key, laid out from the registry.

    version         u8     RECORD_VERSION
    last_active_ms  i64    event time of the newest event, 0 is never
    floor_ms        i64    a tombstone's time: tiles that start before it never count
    static section  removed u8, partition u32, ts_ms i64, offset i64 (of the content or user record that wrote it), then its fields
    rings           one a window, shortest first: slots of schemas.aggregates.TILE; tile t lives in slot t % slots, the newest wins

Every step here commutes: deltas of one log applied in any order give the same bytes. `merge` says in Python what lua/apply.lua does in
the store; tests/contract holds them together, tests/golden freezes the bytes.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.aggregates import COUNTERS, TILE, Tiles
from schemas.errors import StoreError
from schemas.features import SET_HASHES_MAX, Registry, Static
from schemas.records import Content, User
from schemas.windows import LATENESS_MS, Window

RECORD_VERSION = 1
#: A record outlives its longest window by this factor before jitter, so that the lowest jitter (0.8) still covers the window.
TTL_FACTOR = 1.25
TTL_JITTER = 0.2

#: A number past this is stored as missing: no feature could hold it.
FLOAT32_MAX = float(np.finfo(np.float32).max)

HEAD = np.dtype([("version", "u1"), ("last_active_ms", "<i8"), ("floor_ms", "<i8")])
STATIC_HEAD = np.dtype([("removed", "u1"), ("partition", "<u4"), ("ts_ms", "<i8"), ("offset", "<i8")])
FORMS: dict[str, tuple[Any, ...]] = {
    "number": ("<f4",),
    "time_ms": ("<i8",),
    "hash": ("<u8",),
    "hashes": ("<u8", (SET_HASHES_MAX,)),
    "category": ("<u2",),
}
#: What one delta adds to one tile of a record; `key` is the record's place in Deltas.keys.
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
        """The whole record, packed."""
        rings = [(window.name, TILE, (window.slots_count,)) for window in self.windows]
        return np.dtype([*_fields(HEAD), ("static", self.static_dtype), *rings])

    @cached_property
    def blank(self) -> bytes:
        """A record of nothing yet: numbers missing, rings empty."""
        record = np.zeros(1, self.dtype)
        record["version"] = RECORD_VERSION
        record["static"] = self.pack_static(None, 0, 0, 0)
        return record.tobytes()

    @property
    def ttl_ms(self) -> int:
        """Time to live before jitter, milliseconds."""
        longest = max((window.span_ms for window in self.windows), default=self.tile_ms)
        return int(TTL_FACTOR * (longest + LATENESS_MS))

    def ring_offset(self, window: Window) -> int:
        """Where a window's ring begins, bytes."""
        assert self.dtype.fields is not None
        return int(self.dtype.fields[window.name][1])

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
        if len(raw) != self.dtype.itemsize or raw[0] != RECORD_VERSION:
            message = (
                f"a {self.kind} record has {len(raw)} bytes and version {raw[:1].hex()}, expected {self.dtype.itemsize} and "
                f"{RECORD_VERSION:02x}: it was written for another registry or version. Rebuild the generation from the log."
            )
            raise StoreError(message)


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
    hashes = [hash_of(word) for word in (found or ())[:SET_HASHES_MAX]]
    return np.array(hashes + [0] * (SET_HASHES_MAX - len(hashes)), dtype="<u8")


def hash_of(word: str) -> int:
    """A word as records keep it where only equality matters: the first 8 bytes of BLAKE2b, little-endian."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def read(layout: Layout, raws: Sequence[bytes | None], as_of_ms: int) -> Tiles:
    """What records say as of a moment; a missing one (None) says zeros. Raises StoreError for bytes of another layout."""
    for raw in raws:
        if raw is not None:
            layout.check(raw)
    records = np.frombuffer(b"".join([raw or layout.blank for raw in raws]), layout.dtype)
    present = np.array([raw is not None for raw in raws], dtype=np.bool_)
    static, last = records["static"], records["last_active_ms"]
    counts = np.zeros((len(raws), len(layout.windows), len(COUNTERS)), dtype=np.int64)
    exact = np.ones(len(raws), dtype=np.bool_)
    for place, window in enumerate(layout.windows):
        _sum_ring(records[window.name], records["floor_ms"], window, as_of_ms, counts[:, place])
        spare = window.slots_count - window.tiles_count
        exact &= last // window.hop_ms - as_of_ms // window.hop_ms <= spare
    removed = static["removed"].astype(np.bool_)
    statics = {field.name: static[field.name] for field in layout.statics}
    return Tiles(counts, statics, last.astype(np.int64), present & (~removed | (last > 0)), removed, exact)


def _sum_ring(ring: NDArray[Any], floor_ms: NDArray[np.int64], window: Window, as_of_ms: int, out: NDArray[np.int64]) -> None:
    """Sum the tiles that count, each counter into a column of out [n, counters]."""
    tile = ring["tile"].astype(np.int64)
    counted = window.tiles(as_of_ms)
    holds = (tile >= counted.start) & (tile < counted.stop) & (tile * window.hop_ms >= floor_ms[:, None])
    for place, counter in enumerate(COUNTERS):
        out[:, place] = np.where(holds, ring[counter], 0).sum(axis=1)


def merge(layout: Layout, raw: bytes | None, rows: NDArray[Any], sections: Sequence[NDArray[Any]]) -> bytes:
    """A record after deltas: rows of ROW, sections of the static dtype. Raises StoreError for bytes of another layout."""
    layout.check(raw or layout.blank)
    record = np.frombuffer(raw or layout.blank, layout.dtype).copy()
    for section in sections:
        if _order(section) > _order(record["static"]):
            record["static"] = section
        if section["removed"][0]:
            _forget(layout, record, int(section["ts_ms"][0]))
    for row in rows:
        _add(layout, record, row)
    return record.tobytes()


def _order(section: NDArray[Any]) -> tuple[int, int, int]:
    """Last writer wins by event time; the log's own order decides between equals."""
    return int(section["ts_ms"][0]), int(section["offset"][0]), int(section["partition"][0])


def _forget(layout: Layout, record: NDArray[Any], ts_ms: int) -> None:
    floor_ms = max(int(record["floor_ms"][0]), ts_ms)
    record["floor_ms"] = floor_ms
    if record["last_active_ms"][0] < floor_ms:
        record["last_active_ms"] = 0
    for window in layout.windows:
        ring = record[window.name][0]
        ring[ring["tile"].astype(np.int64) * window.hop_ms < floor_ms] = 0


def _add(layout: Layout, record: NDArray[Any], row: np.void) -> None:
    floor_ms = int(record["floor_ms"][0])
    if row["last_ms"] >= floor_ms:
        record["last_active_ms"] = max(record["last_active_ms"][0], row["last_ms"])
    for window in layout.windows:
        tile = int(row["tile"]) * layout.tile_ms // window.hop_ms
        slot = record[window.name][0][tile % window.slots_count : tile % window.slots_count + 1]
        if tile < slot["tile"][0] or tile * window.hop_ms < floor_ms:
            continue
        if tile > slot["tile"][0]:
            slot[:] = 0
            slot["tile"] = tile
        for counter in COUNTERS:
            slot[counter] += row[counter]


def _fields(dtype: np.dtype[Any]) -> list[tuple[str, Any]]:
    return [(name, dtype[name]) for name in dtype.names or ()]


def _lookup(source: str, value: Content | User | None) -> Any:  # noqa: ANN401  # whatever the field holds
    if value is None:
        return None
    holder, _, key = source.partition(".")
    return getattr(value, holder).get(key) if key else getattr(value, holder, None)
