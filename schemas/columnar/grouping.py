"""What a batch adds, summed by entity and tile and sorted by shard, in compiled loops.

Ten impressions of one page touch one user once; a popular item's thousand impressions are one row.
"""

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from schemas.columnar.words import Buffer, hash64, same, xxh32

Ints = NDArray[np.int64]
#: Room for "tenant:id" at its longest; ids and tenants are checked before.
NAME_BYTES_MAX = 512


class Grouped(NamedTuple):
    """Entities and rows of a batch, both sorted by shard.

    kind: uint8 [E], a place in kinds. event: int64 [E], one event that names the entity. entities_at, rows_at: int64 [shards + 1], where
    each shard's begin. place: int64 [R], the row's entity, counted from its shard's first. tile: int64 [R]. adds: int64 [R, counters].
    last_ms: int64 [R], the newest event of the tile.
    """

    kind: NDArray[np.uint8]
    event: Ints
    entities_at: Ints
    rows_at: Ints
    place: Ints
    tile: Ints
    adds: Ints
    last_ms: Ints


class Places(NamedTuple):
    """Where n events stand in their logs, and what is wanted of those.

    source: int64 [n], a row of guards. offset: int64 [n]. guards: int64 [sources, shards], a power of two of shards.
    """

    source: Ints
    offset: Ints
    guards: Ints


def group(text: Buffer, ids: Ints, tenants: Ints, ts_ms: Ints, adds: Ints, tile_ms: Ints, places: Places) -> Grouped:
    """Group n events that each name one entity of every kind, or none; an event that stands before its guard is left out.

    text: all words. ids: int64 [kinds, n, 2], start and length, length -1 for none. tenants: int64 [n, 2]. ts_ms: int64 [n].
    adds: int64 [n, counters]. tile_ms: int64 [kinds].
    """
    return Grouped(*_group(text, ids, tenants, ts_ms, adds, tile_ms, places.source, places.offset, places.guards))


@numba.njit(cache=True, nogil=True)
def keys(  # noqa: PLR0913  # compiled functions take arrays, not objects
    text: Buffer, ids: Ints, tenants: Ints, kind: NDArray[np.uint8], event: Ints, entities_at: Ints, heads: Buffer, heads_at: Ints
) -> tuple[Buffer, Ints]:
    """The key of each entity, head + tenant + ":" + id: all bytes, and where each begins, int64 [E + 1].

    heads: what keys of a kind and shard begin with, kind by kind; heads_at: int64 [kinds * shards + 1], where each begins.
    """
    shards = len(entities_at) - 1
    starts = np.zeros(len(kind) + 1, np.int64)
    total = 0
    for shard in range(shards):
        for entity in range(entities_at[shard], entities_at[shard + 1]):
            head = kind[entity] * shards + shard
            total += heads_at[head + 1] - heads_at[head] + tenants[event[entity], 1] + 1 + ids[kind[entity], event[entity], 1]
            starts[entity + 1] = total
    out = np.zeros(total, np.uint8)
    for shard in range(shards):
        for entity in range(entities_at[shard], entities_at[shard + 1]):
            head, at = kind[entity] * shards + shard, starts[entity]
            at = _copied(heads, heads_at[head], heads_at[head + 1] - heads_at[head], out, at)
            _name(text, tenants[event[entity]], ids[kind[entity], event[entity]], out, at)
    return out, starts


@numba.njit(cache=True, nogil=True)
def _group(  # noqa: C901, PLR0913  # one loop over events; two hash tables under way
    text: Buffer, ids: Ints, tenants: Ints, ts_ms: Ints, adds: Ints, tile_ms: Ints, source: Ints, offset: Ints, guards: Ints
) -> tuple[NDArray[np.uint8], Ints, Ints, Ints, Ints, Ints, Ints, Ints]:
    kinds, events, shards = ids.shape[0], ids.shape[1], guards.shape[1]
    size = 16
    while size < 2 * kinds * events:
        size *= 2
    entity_slots, row_slots = np.full(size, -1, np.int32), np.full(size, -1, np.int32)
    most = kinds * events
    kind, event, shard, hashes = np.zeros(most, np.uint8), np.zeros(most, np.int64), np.zeros(most, np.int64), np.zeros(most, np.uint64)
    owner, tile, last_ms = np.zeros(most, np.int64), np.zeros(most, np.int64), np.zeros(most, np.int64)
    sums = np.zeros((most, adds.shape[1]), np.int64)
    name = np.zeros(NAME_BYTES_MAX, np.uint8)
    entities, rows = 0, 0
    for of_kind in range(kinds):
        for row in range(events):
            if ids[of_kind, row, 1] < 0:
                continue
            value = hash64(text, ids[of_kind, row, 0], ids[of_kind, row, 1], np.uint64(of_kind))
            if tenants[row, 1]:
                value = hash64(text, tenants[row, 0], tenants[row, 1], value)
            slot = np.int64(value & np.uint64(size - 1))
            entity = entity_slots[slot]
            while entity >= 0 and not (
                hashes[entity] == value
                and kind[entity] == of_kind
                and _same_word(text, ids[of_kind, event[entity]], ids[of_kind, row])
                and _same_word(text, tenants[event[entity]], tenants[row])
            ):
                slot = (slot + 1) & (size - 1)
                entity = entity_slots[slot]
            if entity < 0:
                entity = entities
                entities += 1
                entity_slots[slot] = entity
                kind[entity], event[entity], hashes[entity] = of_kind, row, value
                length = _name(text, tenants[row], ids[of_kind, row], name, 0)
                shard[entity] = xxh32(name, length) & np.uint32(shards - 1)
            if offset[row] < guards[source[row], shard[entity]]:
                continue
            of_tile = ts_ms[row] // tile_ms[of_kind]
            slot = ((entity * 0x9E3779B1) ^ (of_tile * 0x85EBCA6B)) & (size - 1)
            place = row_slots[slot]
            while place >= 0 and not (owner[place] == entity and tile[place] == of_tile):
                slot = (slot + 1) & (size - 1)
                place = row_slots[slot]
            if place < 0:
                place = rows
                rows += 1
                row_slots[slot] = place
                owner[place], tile[place] = entity, of_tile
            for counter in range(adds.shape[1]):
                sums[place, counter] += adds[row, counter]
            last_ms[place] = max(last_ms[place], ts_ms[row])
    return _sorted(kind[:entities], event[:entities], shard[:entities], owner[:rows], tile[:rows], sums[:rows], last_ms[:rows], shards)


@numba.njit(cache=True, nogil=True)
def _sorted(  # noqa: PLR0913  # as `keys`
    kind: NDArray[np.uint8], event: Ints, shard: Ints, owner: Ints, tile: Ints, sums: Ints, last_ms: Ints, shards: int
) -> tuple[NDArray[np.uint8], Ints, Ints, Ints, Ints, Ints, Ints, Ints]:
    """Entities that have rows, by shard; rows by entity, the oldest tile first: the store takes late tiles slowly."""
    held = np.zeros(len(kind), np.int64)
    for entity in owner:
        held[entity] += 1
    entities_at = np.zeros(shards + 1, np.int64)
    for entity in range(len(kind)):
        entities_at[shard[entity] + 1] += held[entity] > 0
    entities_at[:] = np.cumsum(entities_at)
    free = entities_at[:-1].copy()
    number = np.zeros(len(kind), np.int64)
    of_number = np.zeros(entities_at[-1], np.int64)
    for entity in range(len(kind)):
        if held[entity]:
            number[entity] = free[shard[entity]]
            of_number[number[entity]] = entity
            free[shard[entity]] += 1
    rows_from = np.zeros(len(of_number) + 1, np.int64)
    for place in range(len(of_number)):
        rows_from[place + 1] = rows_from[place] + held[of_number[place]]
    rows_at = rows_from[entities_at]
    of_row = np.zeros(len(owner), np.int64)
    for row in np.argsort(tile):
        entity = number[owner[row]]
        of_row[rows_from[entity]] = row
        rows_from[entity] += 1
    places = number[owner[of_row]] - entities_at[shard[owner[of_row]]]
    return kind[of_number], event[of_number], entities_at, rows_at, places, tile[of_row], sums[of_row], last_ms[of_row]


class Rings(NamedTuple):
    """How records keep tiles. tile_ms: int64 [kinds], of a row. hop_ms, slots: int64 [kinds, rings], 0 where a kind has fewer of them."""

    tile_ms: Ints
    hop_ms: Ints
    slots: Ints


def coarsened(grouped: Grouped, rings: Rings) -> Grouped:
    """The same for the store, in fewer rows.

    What is so old beside its entity's newest row that only coarse rings want it is summed by their tiles, and left out where none does; a
    day of a popular item is three hundred tiles of five minutes, of which its finest ring keeps fourteen.
    """
    rows_at, *rows = _coarsened(*grouped[:1], *grouped[2:], *rings)
    return Grouped(grouped.kind, grouped.event, grouped.entities_at, rows_at, *rows)


@numba.njit(cache=True, nogil=True)
def _coarsened(  # noqa: PLR0913  # as `keys`
    kind: NDArray[np.uint8],
    entities_at: Ints,
    rows_at: Ints,
    place: Ints,
    tile: Ints,
    adds: Ints,
    last_ms: Ints,
    tile_ms: Ints,
    hop_ms: Ints,
    slots: Ints,
) -> tuple[Ints, Ints, Ints, Ints, Ints]:
    out_at, out = rows_at.copy(), 0
    for shard in range(len(rows_at) - 1):
        row = rows_at[shard]
        while row < rows_at[shard + 1]:
            end = row + 1
            while end < rows_at[shard + 1] and place[end] == place[row]:
                end += 1
            of_kind, first, newest = kind[entities_at[shard] + place[row]], out, tile[end - 1]
            for old in range(row, end):
                step_ms = _wanted_ms(tile[old] * tile_ms[of_kind], newest * tile_ms[of_kind], hop_ms[of_kind], slots[of_kind])
                if not step_ms and old < end - 1:
                    continue
                # The newest is kept where no ring is, too: it says when its entity was active.
                step_ms = step_ms or tile_ms[of_kind]
                of_tile = tile[old] * tile_ms[of_kind] // step_ms * step_ms // tile_ms[of_kind]
                if out > first and tile[out - 1] == of_tile:
                    adds[out - 1] += adds[old]
                    last_ms[out - 1] = max(last_ms[out - 1], last_ms[old])
                else:
                    place[out], tile[out], adds[out], last_ms[out] = place[old], of_tile, adds[old], last_ms[old]
                    out += 1
            row = end
        out_at[shard + 1] = out
    return out_at, place[:out], tile[:out], adds[:out], last_ms[:out]


@numba.njit(cache=True, nogil=True)
def _wanted_ms(start_ms: int, newest_ms: int, hop_ms: Ints, slots: Ints) -> int:
    """The longest step whose tiles are whole in all rings that still want this moment beside the newest; 0 where none does."""
    step_ms = 0
    for ring in range(len(hop_ms)):
        hop = hop_ms[ring]
        if hop and start_ms // hop > newest_ms // hop - slots[ring]:
            while hop:
                step_ms, hop = hop, step_ms % hop
    return step_ms


@numba.njit(cache=True, nogil=True)
def _same_word(text: Buffer, a: Ints, b: Ints) -> bool:
    return a[1] == b[1] and same(text, a[0], b[0], a[1])


@numba.njit(cache=True, nogil=True)
def _name(text: Buffer, tenant: Ints, word: Ints, out: Buffer, at: int) -> int:
    """Write "tenant:id"; returns where it ends."""
    at = _copied(text, tenant[0], tenant[1], out, at)
    out[at] = ord(":")
    return _copied(text, word[0], word[1], out, at + 1)


@numba.njit(cache=True, nogil=True)
def _copied(text: Buffer, start: int, length: int, out: Buffer, at: int) -> int:
    for place in range(length):
        out[at + place] = text[start + place]
    return at + length
