"""What was gathered, put in order: entities by shard, rows by entity and tile."""

import numba
import numpy as np
from numpy.typing import NDArray

from schemas.aggregates import COUNTERS
from schemas.columnar.words import Buffer

Ints = NDArray[np.int64]
#: Columns of an entity: its hash, its place in kinds, its shard, where "tenant:id" stands in names.
HASH, KIND, SHARD, NAME_AT, NAME_BYTES = range(5)
#: Columns of a row: its entity, its tile, the newest event, then counters.
OWNER, TILE, LAST_MS, ADDS = range(4)
COUNTERS_COUNT = len(COUNTERS)


@numba.njit(cache=True, nogil=True)
def by_entity(entities: Ints, rows: Ints, shards: int) -> tuple[NDArray[np.uint8], Ints, Ints, Ints, Ints, Ints, Ints, Ints]:
    """Entities that have rows, by shard; rows by entity, the oldest tile first, one a tile: as Grouped says, an entity for an event."""
    held, entities_at = np.zeros(len(entities), np.int64), np.zeros(shards + 1, np.int64)
    for row in range(len(rows)):
        held[rows[row, OWNER]] += 1
    for entity in range(len(entities)):
        entities_at[entities[entity, SHARD] + 1] += held[entity] > 0
    entities_at[:] = np.cumsum(entities_at)
    free, number, of_number = entities_at[:-1].copy(), np.zeros(len(entities), np.int64), np.zeros(entities_at[-1], np.int64)
    for entity in range(len(entities)):
        if held[entity]:
            number[entity] = free[entities[entity, SHARD]]
            of_number[number[entity]] = entity
            free[entities[entity, SHARD]] += 1
    ends = np.cumsum(held[of_number])
    next_at, of_row = ends - held[of_number], np.zeros(len(rows), np.int64)
    for row in range(len(rows)):
        place = number[rows[row, OWNER]]
        of_row[next_at[place]] = row
        next_at[place] += 1
    place, tile, last_ms = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    adds, rows_at = np.zeros((len(rows), COUNTERS_COUNT), np.int64), np.zeros(shards + 1, np.int64)
    out, start = 0, 0
    for shard in range(shards):
        for entity in range(entities_at[shard], entities_at[shard + 1]):
            first = out
            for row in _by_tile(rows, of_row[start : ends[entity]]):
                if out == first or tile[out - 1] != rows[row, TILE]:
                    place[out], tile[out] = entity - entities_at[shard], rows[row, TILE]
                    out += 1
                last_ms[out - 1] = max(last_ms[out - 1], rows[row, LAST_MS])
                adds[out - 1] += rows[row, ADDS:]
            start = ends[entity]
        rows_at[shard + 1] = out
    kind = entities[of_number, KIND].astype(np.uint8)
    return kind, of_number, entities_at, rows_at, place[:out], tile[:out], adds[:out], last_ms[:out]


@numba.njit(cache=True, nogil=True)
def _by_tile(rows: Ints, found: Ints) -> Ints:
    """Some rows, the oldest tile first: those of a source come in order, and most entities have few."""
    for place in range(1, len(found)):
        if rows[found[place], TILE] < rows[found[place - 1], TILE]:
            return found[np.argsort(rows[found, TILE])]
    return found


@numba.njit(cache=True, nogil=True)
def keys(entities: Ints, names: Buffer, wanted: Ints, entities_at: Ints, heads: Buffer, heads_at: Ints) -> tuple[Buffer, Ints]:
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
