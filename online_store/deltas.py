"""What one batch changes, as one atomic step a shard."""

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from online_store.keys import Entity, Generation, record_head, record_key, shard_of
from online_store.record import ROW, Layout
from schemas.aggregates import COUNTERS, ENTITY_ID, ITEM, USER, adds
from schemas.columnar.events import Events, concat
from schemas.columnar.grouping import Grouped, Places, Rings, coarsened, group, keys
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
    parts: Sequence[Events], layouts: Mapping[str, Layout], generation: Generation, guards: NDArray[np.int64]
) -> dict[int, Deltas]:
    """Deltas by shard of the events of several sources that each shard does not have yet.

    parts: one a source. guards: int64 [sources, shards], the next offset that each shard wants.
    """
    if not layouts:
        return {}
    events = concat(parts)
    places = Places(np.repeat(np.arange(len(parts)), [len(part) for part in parts]), events.offset, guards)
    ids = np.stack([events.word(ENTITY_ID[kind]) for kind in layouts])
    tenants = events.word("tenant")
    of_rings = rings(list(layouts.values()))
    added = adds(events.record, events.number("dwell_ms"))
    grouped = coarsened(group(events.text, ids, tenants, events.number("ts_ms"), added, of_rings.tile_ms, places), of_rings)
    raw, starts = keys(events.text, ids, tenants, grouped.kind, grouped.event, grouped.entities_at, *heads(generation, tuple(layouts)))
    return by_shard(grouped, raw.tobytes(), starts.tolist())


def rings(layouts: Sequence[Layout]) -> Rings:
    """How the records of each kind keep tiles."""
    most = max(len(layout.windows) for layout in layouts)
    hop_ms, slots = np.zeros((2, len(layouts), most), np.int64)
    for place, layout in enumerate(layouts):
        hop_ms[place, : len(layout.windows)] = [window.hop_ms for window in layout.windows]
        slots[place, : len(layout.windows)] = [window.slots_count for window in layout.windows]
    return Rings(np.array([layout.tile_ms for layout in layouts], np.int64), hop_ms, slots)


@functools.lru_cache(maxsize=8)
def heads(generation: Generation, kinds: tuple[str, ...]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """What keys begin with, kind by kind and shard by shard: all bytes, and where each begins."""
    found = [record_head(generation, kind, shard) for kind in kinds for shard in range(generation.shards)]
    return np.frombuffer(b"".join(found), np.uint8), np.cumsum([0, *map(len, found)])


def by_shard(grouped: Grouped, raw: bytes, starts: list[int]) -> dict[int, Deltas]:
    """Deltas by shard of what was grouped. raw, starts: the entities' keys, and where each begins."""
    rows = np.empty(len(grouped.tile), ROW)
    rows["key"], rows["tile"], rows["last_ms"] = grouped.place, grouped.tile, grouped.last_ms
    for place, counter in enumerate(COUNTERS):
        rows[counter] = grouped.adds[:, place]
    names = [raw[start:stop] for start, stop in itertools.pairwise(starts)]
    kinds = grouped.kind.tobytes()
    entities_at, rows_at = grouped.entities_at.tolist(), grouped.rows_at.tolist()
    return {
        shard: Deltas(names[first:last], kinds[first:last], rows[rows_at[shard] : rows_at[shard + 1]], [])
        for shard, (first, last) in enumerate(itertools.pairwise(entities_at))
        if last > first
    }


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


def _pack_sections(by_key: dict[bytes, list[NDArray[Any]]], place: int) -> Deltas:
    sections = [(number, section) for number, sections in enumerate(by_key.values()) for section in sections]
    return Deltas(list(by_key), bytes([place]) * len(by_key), np.zeros(0, ROW), sections)
