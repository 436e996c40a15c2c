"""What many batches add, summed by entity and tile as they come: what schemas.columnar.grouping does to one batch, in tables that stay.

Names are copied, so nothing of a batch is held once it is added: a call to the store may then be of a million events.
"""

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

from online_store.bulk.sorting import ADDS, COUNTERS_COUNT, HASH, KIND, LAST_MS, NAME_AT, NAME_BYTES, OWNER, SHARD, TILE, by_entity, keys
from online_store.deltas import Deltas, by_shard, heads, rings
from online_store.keys import Generation
from online_store.record import Layout
from schemas.aggregates import ENTITY_ID, adds
from schemas.columnar.events import Events
from schemas.columnar.grouping import Grouped, coarsened
from schemas.columnar.words import Buffer, hash64, same, xxh32

Ints = NDArray[np.int64]
Slots = NDArray[np.int32]
Number = TypeVar("Number", np.int64, np.uint8)
#: Of an event whose entity is not known yet: it is to be looked up, there is none, it is the one of the event before.
NEW, NOBODY, AS_BEFORE = -1, -2, -3
#: What a table has room for at first: it doubles.
ROOM = 1 << 10


class Tables(NamedTuple):
    """entities: int64 [n, 5]. rows: int64 [n, 3 + counters]. names: uint8.

    slots: int32 [a power of two over twice the entities], by hash the place in entities, from 1; 0 is free.
    """

    entities: Ints
    rows: Ints
    names: Buffer
    slots: Slots


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
        )

    @property
    def entities_count(self) -> int:
        """Entities that were named."""
        return int(self._used[0])

    @property
    def rows_count(self) -> int:
        """Rows: a tile of an entity, several times if other entities came in between."""
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
        slots = tables.slots
        if 2 * wanted[0] > len(slots):
            slots = np.zeros(2 << int(wanted[0]).bit_length(), np.int32)
            _place(entities[: self._used[0]], slots)
        self._tables = Tables(entities, rows, letters, slots)

    def deltas(self) -> dict[int, Deltas]:
        """What was added, by shard."""
        entities, rows = self._tables.entities[: self._used[0]], self._tables.rows[: self._used[1]]
        grouped = coarsened(Grouped(*by_entity(entities, rows, self._generation.shards)), rings(list(self._layouts.values())))
        raw, starts = keys(entities, self._tables.names, grouped.event, grouped.entities_at, *heads(self._generation, tuple(self._layouts)))
        return by_shard(grouped, raw.tobytes(), starts.tolist())

    def clear(self) -> None:
        """Begin anew."""
        self._used[:] = 0
        self._tables.slots.fill(0)


def _grown(table: NDArray[Number], most: int) -> NDArray[Number]:
    """The same table with room for so many, twice as much as it had at least."""
    if most <= len(table):
        return table
    found = np.zeros((max(most, 2 * len(table)), *table.shape[1:]), table.dtype)
    found[: len(table)] = table
    return found


@numba.njit(cache=True, nogil=True)
def _place(entities: Ints, slots: Slots) -> None:
    """Put what there is into slots that are free."""
    for entity in range(len(entities)):
        slot = entities[entity, HASH] & (len(slots) - 1)
        while slots[slot]:
            slot = (slot + 1) & (len(slots) - 1)
        slots[slot] = entity + 1


@numba.njit(cache=True, nogil=True)
def _add(  # noqa: PLR0913  # compiled functions take arrays, not objects
    text: Buffer, ids: Ints, tenants: Ints, ts_ms: Ints, adds: Ints, offset: Ints, guards: Ints, tile_ms: Ints, tables: Tables, used: Ints
) -> None:
    """Pass by pass, so that memory fetches for many events at once: names are hashed, then looked up, then added to."""
    entities, rows, names, slots = tables
    hashes, owners = np.zeros(ids.shape[1], np.int64), np.zeros(ids.shape[1], np.int64)
    for kind in range(ids.shape[0]):
        named = _hash_names(text, kind, ids[kind], tenants, hashes, owners)
        for event in range(len(owners)):
            if owners[event] == NEW:
                word, tenant = ids[kind, event], tenants[event]
                owners[event] = _entity(text, kind, hashes[event], word, tenant, len(guards), entities, names, slots, used)
            elif owners[event] == AS_BEFORE:
                owners[event] = owners[named[event]]
        entity, row = -1, -1
        for event in range(len(owners)):
            if owners[event] < 0 or offset[event] < guards[entities[owners[event], SHARD]]:
                continue
            tile = ts_ms[event] // tile_ms[kind]
            if owners[event] != entity or rows[row, TILE] != tile:
                entity, row = owners[event], used[1]
                used[1] += 1
                rows[row] = 0
                rows[row, OWNER], rows[row, TILE] = entity, tile
            rows[row, LAST_MS] = max(rows[row, LAST_MS], ts_ms[event])
            for counter in range(COUNTERS_COUNT):
                rows[row, ADDS + counter] += adds[event, counter]


@numba.njit(cache=True, nogil=True)
def _hash_names(text: Buffer, kind: int, words: Ints, tenants: Ints, hashes: Ints, owners: Ints) -> Ints:
    """Hashes of the names that are to be looked up; owners says which are: NEW, NOBODY, or AS_BEFORE.

    A page's events stand together, and nearly all name one model: who was named just now is not looked for. Returns by whom, int64 [n].
    """
    named, before = np.zeros(len(words), np.int64), -1
    for event in range(len(words)):
        if words[event, 1] < 0:
            owners[event] = NOBODY
            continue
        if before >= 0 and _is_same(text, words, tenants, before, event):
            owners[event], named[event] = AS_BEFORE, before
        else:
            owners[event], hashes[event] = NEW, _hashed(text, kind, words[event], tenants[event])
        before = event
    return named


@numba.njit(cache=True, inline="always")
def _is_same(text: Buffer, words: Ints, tenants: Ints, a: int, b: int) -> bool:
    """Whether two events name the same entity."""
    length, tenant = words[a, 1], tenants[a, 1]
    if length != words[b, 1] or tenant != tenants[b, 1]:
        return False
    return bool(same(text, words[a, 0], words[b, 0], length) and same(text, tenants[a, 0], tenants[b, 0], tenant))


@numba.njit(cache=True, nogil=True)
def _entity(  # noqa: PLR0913  # as _add
    text: Buffer,
    kind: int,
    hashed: int,
    word: Ints,
    tenant: Ints,
    shards: int,
    entities: Ints,
    names: Buffer,
    slots: Slots,
    used: Ints,
) -> int:
    """The place of an entity, which may be new."""
    mask = len(slots) - 1
    slot = hashed & mask
    while slots[slot]:
        entity = slots[slot] - 1
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
    used[0], used[2], slots[slot] = entity + 1, at + length, entity + 1
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
