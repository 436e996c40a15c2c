"""Updates of one batch, grouped into one atomic step a shard.

Ten impressions of one page touch one user once; a popular item's thousand impressions are one row. What is left is packed by
numpy, never record by record.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from online_store.keys import Entity, Generation, record_key, shard_of
from online_store.record import ROW, Layout
from schemas.aggregates import COUNTERS, ITEM, USER, entities, tiles
from schemas.columns import Profile
from schemas.topics import CONTENT


@dataclass(frozen=True, slots=True)
class Deltas:
    """What one batch changes in one shard.

    keys: records touched. kinds: each one's place in the registry's kinds. rows: record.ROW. sections: static sections, each with its
    record's place in keys.
    """

    keys: list[bytes]
    kinds: bytes
    rows: NDArray[Any]
    sections: list[tuple[int, NDArray[Any]]]


NOTHING = Deltas([], b"", np.zeros(0, ROW), [])


@dataclass(frozen=True, slots=True)
class _Table:
    """Rows of several kinds before they are parted by shard: rows["key"] is a place in keys, kinds and shards."""

    rows: NDArray[Any]
    keys: list[bytes]
    kinds: NDArray[np.uint8]
    shards: NDArray[np.int64]


def deltas_of_events(
    updates: pl.DataFrame, layouts: Mapping[str, Layout], generation: Generation, guards: NDArray[np.int64]
) -> dict[int, Deltas]:
    """Deltas by shard of the updates that each shard does not have yet.

    updates: as schemas.aggregates.updates. guards: int64 [shards], the next offset that each shard wants.
    """
    fresh = {kind: _fresh(entities(updates, kind), generation, guards) for kind in layouts}
    tables = [_table(fresh[kind], layout, place, generation) for place, (kind, layout) in enumerate(layouts.items())]
    starts = np.cumsum([0, *(len(table.keys) for table in tables)])
    for table, start in zip(tables, starts, strict=False):
        table.rows["key"] += np.uint32(start)
    return _by_shard(
        _Table(
            np.concatenate([table.rows for table in tables]),
            [key for table in tables for key in table.keys],
            np.concatenate([table.kinds for table in tables]),
            np.concatenate([table.shards for table in tables]),
        )
    )


def deltas_of_profiles(
    profiles: Iterable[Profile], layout: Layout, place: int, generation: Generation, guards: NDArray[np.int64]
) -> dict[int, Deltas]:
    """Deltas by shard of content or user records that each shard does not have yet. place: the kind's, in the registry."""
    found: dict[int, dict[bytes, list[NDArray[Any]]]] = {}
    for record, value in profiles:
        entity = entity_of_profile(layout.kind, record.key, value)
        shard = shard_of(entity.tenant, entity.id, generation.shards)
        if record.offset < guards[shard]:
            continue
        ts_ms = record.timestamp if value is None else value.ts_ms
        section = layout.pack_static(value, record.partition, ts_ms, record.offset)
        found.setdefault(shard, {}).setdefault(record_key(generation, entity), []).append(section)
    return {shard: _pack_sections(by_key, place) for shard, by_key in found.items()}


def entity_of_profile(kind: str, key: bytes | None, value: Any) -> Entity:  # noqa: ANN401  # Content, User or None
    """Whose record a content or user record writes; a tombstone names it by its Kafka key."""
    if value is None:
        return Entity("", kind, (key or b"").decode())
    return Entity(value.tenant, kind, value.item_id if kind == ITEM else value.user_id)


def kind_of_profiles(topic_name: str) -> str:
    """Which kind a topic of profiles describes."""
    return ITEM if topic_name == CONTENT.name else USER


def _fresh(rows: pl.DataFrame, generation: Generation, guards: NDArray[np.int64]) -> pl.DataFrame:
    """The updates that their shard does not have yet: all of them, but after a crash or a rewind."""
    if rows.is_empty() or (rows["offset"] >= guards.max()).all():
        return rows
    ids = rows.select("tenant", "id").unique()
    wanted = [int(guards[shard_of(tenant, entity_id, generation.shards)]) for tenant, entity_id in ids.iter_rows()]
    placed = ids.with_columns(pl.Series("guard", wanted, dtype=pl.Int64))
    return rows.join(placed, on=["tenant", "id"]).filter(pl.col("offset") >= pl.col("guard")).drop("guard")


def _table(rows: pl.DataFrame, layout: Layout, place: int, generation: Generation) -> _Table:
    """One kind's updates, summed by tile, with the key and shard of each record."""
    summed = tiles(rows, layout.tile_ms)
    numbers: dict[tuple[str, str], int] = {}
    names = zip(summed["tenant"].to_list(), summed["id"].to_list(), strict=True)
    packed = np.zeros(len(summed), ROW)
    packed["key"] = [numbers.setdefault(name, len(numbers)) for name in names]
    for name in ("tile", *COUNTERS, "last_ms"):
        packed[name] = summed[name].to_numpy()
    return _Table(
        packed,
        [record_key(generation, Entity(tenant, layout.kind, entity_id)) for tenant, entity_id in numbers],
        np.full(len(numbers), place, dtype=np.uint8),
        np.array([shard_of(tenant, entity_id, generation.shards) for tenant, entity_id in numbers], dtype=np.int64),
    )


def _by_shard(table: _Table) -> dict[int, Deltas]:
    if not len(table.rows):
        return {}
    shards = table.shards[table.rows["key"]]
    order = np.lexsort((table.rows["key"], shards))
    rows, shards = table.rows[order], shards[order]
    starts = np.flatnonzero(np.diff(shards, prepend=-1))
    stops = np.append(starts[1:], len(rows))
    return {int(shards[start]): _pack(table, rows[start:stop]) for start, stop in zip(starts, stops, strict=True)}


def _pack(table: _Table, rows: NDArray[Any]) -> Deltas:
    """One shard's rows, sorted by record."""
    numbers, places = np.unique(rows["key"], return_inverse=True)
    rows["key"] = places
    return Deltas([table.keys[number] for number in numbers], table.kinds[numbers].tobytes(), rows, [])


def _pack_sections(by_key: dict[bytes, list[NDArray[Any]]], place: int) -> Deltas:
    sections = [(number, section) for number, sections in enumerate(by_key.values()) for section in sections]
    return Deltas(list(by_key), bytes([place]) * len(by_key), np.zeros(0, ROW), sections)
