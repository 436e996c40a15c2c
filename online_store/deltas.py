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


def deltas_of_events(
    updates: pl.DataFrame, layouts: Mapping[str, Layout], generation: Generation, guards: NDArray[np.int64]
) -> dict[int, Deltas]:
    """Deltas by shard of the updates that each shard does not have yet.

    updates: as schemas.aggregates.updates. guards: int64 [shards], the next offset that each shard wants.
    """
    tables = [_placed(entities(updates, layout.kind), layout, place, generation, guards) for place, layout in enumerate(layouts.values())]
    table = pl.concat(tables).sort("shard", "key")
    if table.is_empty():
        return {}
    return {int(shard): _pack(part) for (shard,), part in table.partition_by("shard", as_dict=True).items()}


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


def _placed(rows: pl.DataFrame, layout: Layout, place: int, generation: Generation, guards: NDArray[np.int64]) -> pl.DataFrame:
    """Tiles of one kind with shard and key, without the rows that their shard has already."""
    ids = rows.select("tenant", "id").unique(maintain_order=True)
    names = [Entity(tenant, layout.kind, entity_id) for tenant, entity_id in ids.iter_rows()]
    shards = np.array([shard_of(name.tenant, name.id, generation.shards) for name in names], dtype=np.int64)
    placed = ids.with_columns(
        pl.Series("shard", shards, dtype=pl.Int64),
        pl.Series("key", [record_key(generation, name) for name in names], dtype=pl.Binary),
        pl.Series("guard", guards[shards], dtype=pl.Int64),
    )
    if len(rows) and guards.max() > int(rows["offset"].min() or 0):  # type: ignore[arg-type]  # an integer column's minimum
        rows = rows.join(placed, on=["tenant", "id"]).filter(pl.col("offset") >= pl.col("guard"))
    table = tiles(rows.select("tenant", "id", "ts_ms", *COUNTERS), layout.tile_ms)
    table = table.join(placed, on=["tenant", "id"]).with_columns(pl.lit(place, pl.UInt8).alias("kind"))
    return table.select("shard", "kind", "key", "tile", *COUNTERS, "last_ms")


def _pack(table: pl.DataFrame) -> Deltas:
    """One shard's table, sorted by key."""
    keys = table.select("key", "kind").unique(subset="key", maintain_order=True)
    rows = np.zeros(len(table), ROW)
    rows["key"] = table["key"].rle_id().to_numpy()
    for name in ("tile", *COUNTERS, "last_ms"):
        rows[name] = table[name].to_numpy()
    return Deltas(keys["key"].to_list(), bytes(keys["kind"].to_list()), rows, [])


def _pack_sections(by_key: dict[bytes, list[NDArray[Any]]], place: int) -> Deltas:
    sections = [(number, section) for number, sections in enumerate(by_key.values()) for section in sections]
    return Deltas(list(by_key), bytes([place]) * len(by_key), np.zeros(0, ROW), sections)
