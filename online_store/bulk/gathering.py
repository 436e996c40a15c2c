"""What many batches add, summed by entity and tile as they come: what schemas.columnar.grouping does to one batch, in tables that stay.

Names are copied, so nothing of a batch is held once it is added: a call to the store may then be of a million events.
"""

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

from online_store.deltas import Deltas, by_shard, heads, rings
from online_store.keys import Generation
from online_store.record import Layout
from schemas.aggregates import COUNTERS, ENTITY_ID, adds
from schemas.columnar.events import Events
from schemas.columnar.grouping import Grouped, coarsened, sorted_by_shard
from schemas.columnar.words import Buffer, hash64, same, xxh32

Ints = NDArray[np.int64]
Slots = NDArray[np.int32]
Number = TypeVar("Number", np.int64, np.uint8)
#: Columns of an entity: its hash, its place in kinds, its shard, where "tenant:id" stands in names.
HASH, KIND, SHARD, NAME_AT, NAME_BYTES = range(5)
#: Columns of a row: its entity, its tile, the newest event, then counters.
OWNER, TILE, LAST_MS, ADDS = range(4)
COUNTERS_COUNT = len(COUNTERS)
#: What a table has room for at first: it doubles.
ROOM = 1 << 10


class Tables(NamedTuple):
    """entities: int64 [n, 5]. rows: int64 [n, 3 + counters]. names: uint8.

    entity_slots, row_slots: int32 [a power of two over twice n], by hash the place in entities or rows, from 1; 0 is free.
    """

    entities: Ints
    rows: Ints
    names: Buffer
    entity_slots: Slots
    row_slots: Slots


class Gathered:
    """What batches added since `clear`. entities_count, rows_count: of the tables."""

    def __init__(self, layouts: Mapping[str, Layout], generation: Generation) -> None:
        """layouts: by kind. Nothing is gathered yet."""
        self._layouts, self._generation = layouts, generation
        self._tile_ms = np.array([layout.tile_ms for layout in layouts.values()], np.int64)
        self._used = np.zeros(3, np.int64)
        self._tables = Tables(
            np.zeros((ROOM, 5), np.int64),
            np.zeros((ROOM, ADDS + COUNTERS_COUNT), np.int64),
            np.zeros(ROOM, np.uint8),
            np.zeros(2 * ROOM, np.int32),
            np.zeros(2 * ROOM, np.int32),
        )

    @property
    def entities_count(self) -> int:
        """Entities that were named."""
        return int(self._used[0])

    @property
    def rows_count(self) -> int:
        """Tiles of entities that something was added to."""
        return int(self._used[1])

    def add(self, events: Events, guards: Ints) -> None:
        """Add events of one source that each shard does not have yet. guards: int64 [shards], the next offset that each wants."""
        if not self._layouts or not len(events):
            return
        ids = np.stack([events.word(ENTITY_ID[kind]) for kind in self._layouts])
        tenants = events.word("tenant")
        self._make_room(ids, tenants)
        added = adds(events.record, events.number("dwell_ms"))
        _add(events.text, ids, tenants, events.number("ts_ms"), added, events.offset, guards, self._tile_ms, self._tables, self._used)

    def _make_room(self, ids: Ints, tenants: Ints) -> None:
        """For as many entities and rows as these events can name at most."""
        kinds, count = ids.shape[:2]
        names = np.maximum(ids[:, :, 1], 0).sum() + kinds * (tenants[:, 1].sum() + count)
        wanted = self._used + np.array([kinds * count, kinds * count, names])
        tables = self._tables
        entities, rows, letters = _grown(tables.entities, wanted[0]), _grown(tables.rows, wanted[1]), _grown(tables.names, wanted[2])
        entity_slots, row_slots = tables.entity_slots, tables.row_slots
        if 2 * wanted[:2].max() > len(row_slots):
            entity_slots, row_slots = (np.zeros(2 << int(wanted[:2].max()).bit_length(), np.int32) for _ in range(2))
            _place(entities[: self._used[0]], rows[: self._used[1]], entity_slots, row_slots)
        self._tables = Tables(entities, rows, letters, entity_slots, row_slots)

    def deltas(self) -> dict[int, Deltas]:
        """What was added, by shard."""
        entities, rows = self._tables.entities[: self._used[0]], self._tables.rows[: self._used[1]]
        kind, shard, owner, tile, last_ms = (
            np.ascontiguousarray(column)
            for column in (entities[:, KIND], entities[:, SHARD], rows[:, OWNER], rows[:, TILE], rows[:, LAST_MS])
        )
        sums, places, shards = np.ascontiguousarray(rows[:, ADDS:]), np.arange(len(entities)), self._generation.shards
        found = Grouped(*sorted_by_shard(kind.astype(np.uint8), places, shard, owner, tile, sums, last_ms, shards))
        grouped = coarsened(found, rings(list(self._layouts.values())))
        raw, starts = _keys(
            entities, self._tables.names, grouped.event, grouped.entities_at, *heads(self._generation, tuple(self._layouts))
        )
        return by_shard(grouped, raw.tobytes(), starts.tolist())

    def clear(self) -> None:
        """Begin anew."""
        self._used[:] = 0
        self._tables.entity_slots.fill(0)
        self._tables.row_slots.fill(0)


def _grown(table: NDArray[Number], most: int) -> NDArray[Number]:
    """The same table with room for so many, twice as much as it had at least."""
    if most <= len(table):
        return table
    found = np.zeros((max(most, 2 * len(table)), *table.shape[1:]), table.dtype)
    found[: len(table)] = table
    return found


@numba.njit(cache=True, nogil=True)
def _place(entities: Ints, rows: Ints, entity_slots: Slots, row_slots: Slots) -> None:
    """Put what there is into slots that are free."""
    for entity in range(len(entities)):
        slot = entities[entity, HASH] & (len(entity_slots) - 1)
        while entity_slots[slot]:
            slot = (slot + 1) & (len(entity_slots) - 1)
        entity_slots[slot] = entity + 1
    for row in range(len(rows)):
        slot = _slot_of_row(rows[row, OWNER], rows[row, TILE]) & (len(row_slots) - 1)
        while row_slots[slot]:
            slot = (slot + 1) & (len(row_slots) - 1)
        row_slots[slot] = row + 1


@numba.njit(cache=True, nogil=True)
def _add(  # noqa: PLR0913  # compiled functions take arrays, not objects
    text: Buffer, ids: Ints, tenants: Ints, ts_ms: Ints, adds: Ints, offset: Ints, guards: Ints, tile_ms: Ints, tables: Tables, used: Ints
) -> None:
    entities, rows, names, entity_slots, row_slots = tables
    for kind in range(ids.shape[0]):
        entity, named, row = -1, -1, -1
        for event in range(ids.shape[1]):
            if ids[kind, event, 1] < 0:
                continue
            # A page's events stand together, and nearly all name one model: who was named just now is not looked for.
            if named < 0 or not _is_same(text, ids, tenants, kind, named, event):
                entity, row = _entity(text, kind, ids[kind, event], tenants[event], len(guards), entities, names, entity_slots, used), -1
            named = event
            if offset[event] < guards[entities[entity, SHARD]]:
                continue
            tile = ts_ms[event] // tile_ms[kind]
            if row < 0 or rows[row, TILE] != tile:
                row = _row(entity, tile, rows, row_slots, used)
            rows[row, LAST_MS] = max(rows[row, LAST_MS], ts_ms[event])
            for counter in range(COUNTERS_COUNT):
                rows[row, ADDS + counter] += adds[event, counter]


@numba.njit(cache=True, inline="always")
def _is_same(text: Buffer, ids: Ints, tenants: Ints, kind: int, a: int, b: int) -> bool:
    """Whether two events name the same entity."""
    length, tenant = ids[kind, a, 1], tenants[a, 1]
    if length != ids[kind, b, 1] or tenant != tenants[b, 1]:
        return False
    return bool(same(text, ids[kind, a, 0], ids[kind, b, 0], length) and same(text, tenants[a, 0], tenants[b, 0], tenant))


@numba.njit(cache=True, nogil=True)
def _entity(  # noqa: PLR0913  # as _add
    text: Buffer, kind: int, word: Ints, tenant: Ints, shards: int, entities: Ints, names: Buffer, entity_slots: Slots, used: Ints
) -> int:
    """The place of an entity, which may be new."""
    hashed, mask = _hashed(text, kind, word, tenant), len(entity_slots) - 1
    slot = hashed & mask
    while entity_slots[slot]:
        entity = entity_slots[slot] - 1
        is_found = entities[entity, HASH] == hashed and entities[entity, KIND] == kind
        if is_found and _is_name(names, entities[entity, NAME_AT], entities[entity, NAME_BYTES], text, tenant, word):
            return int(entity)
        slot = (slot + 1) & mask
    entity, at = used[0], used[2]
    length = tenant[1] + 1 + word[1]
    name = names[at : at + length]
    for place in range(tenant[1]):
        name[place] = text[tenant[0] + place]
    name[tenant[1]] = ord(":")
    for place in range(word[1]):
        name[tenant[1] + 1 + place] = text[word[0] + place]
    new = entities[entity]
    new[HASH], new[KIND], new[SHARD], new[NAME_AT], new[NAME_BYTES] = hashed, kind, xxh32(name, length) & np.uint32(shards - 1), at, length
    used[0], used[2], entity_slots[slot] = entity + 1, at + length, entity + 1
    return int(entity)


@numba.njit(cache=True, inline="always")
def _hashed(text: Buffer, kind: int, word: Ints, tenant: Ints) -> np.int64:
    value = hash64(text, word[0], word[1], np.uint64(kind))
    if tenant[1]:
        value = hash64(text, tenant[0], tenant[1], value)
    return np.int64(value)


@numba.njit(cache=True, inline="always")
def _is_name(names: Buffer, at: int, length: int, text: Buffer, tenant: Ints, word: Ints) -> bool:
    """Whether "tenant:id" stands there."""
    if length != tenant[1] + 1 + word[1] or names[at + tenant[1]] != ord(":"):
        return False
    for place in range(tenant[1]):
        if names[at + place] != text[tenant[0] + place]:
            return False
    after = at + tenant[1] + 1
    for place in range(word[1]):  # noqa: SIM110  # numba compiles no all(...)
        if names[after + place] != text[word[0] + place]:
            return False
    return True


@numba.njit(cache=True, inline="always")
def _slot_of_row(entity: int, tile: int) -> int:
    return int((entity * 0x9E3779B1) ^ (tile * 0x85EBCA6B))


@numba.njit(cache=True, nogil=True)
def _row(entity: int, tile: int, rows: Ints, row_slots: Slots, used: Ints) -> int:
    """The place of a row, which may be new."""
    mask = len(row_slots) - 1
    slot = _slot_of_row(entity, tile) & mask
    while row_slots[slot]:
        row = row_slots[slot] - 1
        if rows[row, OWNER] == entity and rows[row, TILE] == tile:
            return int(row)
        slot = (slot + 1) & mask
    row = used[1]
    rows[row] = 0
    rows[row, OWNER], rows[row, TILE] = entity, tile
    used[1], row_slots[slot] = row + 1, row + 1
    return int(row)


@numba.njit(cache=True, nogil=True)
def _keys(entities: Ints, names: Buffer, wanted: Ints, entities_at: Ints, heads: Buffer, heads_at: Ints) -> tuple[Buffer, Ints]:
    """The keys of some entities, which are sorted by shard: all bytes, and where each begins, int64 [n + 1]."""
    shards, starts = len(entities_at) - 1, np.zeros(len(wanted) + 1, np.int64)
    for place in range(len(wanted)):
        entity = entities[wanted[place]]
        head = entity[KIND] * shards + entity[SHARD]
        starts[place + 1] = starts[place] + heads_at[head + 1] - heads_at[head] + entity[NAME_BYTES]
    out = np.zeros(starts[-1], np.uint8)
    for place in range(len(wanted)):
        entity, at = entities[wanted[place]], starts[place]
        head = entity[KIND] * shards + entity[SHARD]
        for byte in range(heads_at[head], heads_at[head + 1]):
            out[at] = heads[byte]
            at += 1
        for byte in range(entity[NAME_AT], entity[NAME_AT] + entity[NAME_BYTES]):
            out[at] = names[byte]
            at += 1
    return out, starts
