"""What the store knows of one entity, in words: for people and tools that look into it."""

import math
from typing import Any

import numpy as np

from online_store.keys import Entity, record_key
from online_store.reading import read
from online_store.record import Layout, layouts
from online_store.store import OnlineStore
from schemas.aggregates import COUNTERS, Tiles
from schemas.errors import SettingsError, StoreError
from schemas.features import Registry, Static


async def describe(store: OnlineStore, registry: Registry, entity: Entity, as_of_ms: int) -> dict[str, Any]:
    """One entity as of a moment, ready for JSON; an unknown id is zeros with "known": False.

    registry: of a generation that has none registered; any other brings its own. Raises SettingsError for a kind that its registry does
    not have, StoreError where the store is empty or away.
    """
    generation = await store.current()
    if generation is None:
        raise StoreError("the store holds no generation yet. Start `millstream ingest` once to begin one.")
    if generation.feature_version != registry.fingerprint:
        registry = (await store.generations()).get(generation, registry)
    layout = layouts(registry).get(entity.kind)
    if layout is None:
        raise SettingsError(f"kind is {entity.kind!r}: the registry has {', '.join(registry.kinds)}.")
    tiles = read(layout, await store.read([record_key(generation, entity)]), as_of_ms)
    named = [feature for feature in registry.features if feature.kind == entity.kind]
    return {
        "kind": entity.kind,
        "id": entity.id,
        "generation": generation.name,
        "feature_version": registry.fingerprint,
        "as_of_ms": as_of_ms,
        "known": bool(tiles.known[0]),
        "exact": bool(tiles.exact[0]),
        "static": {static.name: _word(static, tiles) for static in layout.statics},
        "windows": _windows(layout, tiles),
        "features": {feature.name: _finite(registry.column(feature, tiles, as_of_ms)[0]) for feature in named},
    }


def _windows(layout: Layout, tiles: Tiles) -> dict[str, dict[str, int]]:
    counts = zip(layout.windows, tiles.counts[0].tolist(), strict=True)
    return {window.name: dict(zip(COUNTERS, row, strict=True)) for window, row in counts}


def _word(static: Static, tiles: Tiles) -> float | int | str | list[str] | list[float] | None:
    """A static field as it can be shown: of a hash its hex digits, None where it is missing."""
    value = tiles.statics[static.name][0]
    match static.form:
        case "number":
            return _finite(value)
        case "time_ms":
            return int(value) or None
        case "hash":
            return f"{value:016x}" if value else None
        case "category":
            return static.vocabulary[value - 1] if value else None
        case "embedding":
            return [round(int(part) / 127, 3) for part in value] if value.any() else None
    return [f"{part:016x}" for part in value if part]


def _finite(value: np.float32) -> float | None:
    return None if math.isnan(value) else float(value)
