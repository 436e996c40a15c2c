"""Compares a store with the oracle: every record, every window, every static field, both ways."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from online_store.keys import Entity, Generation, entity_of, record_key
from online_store.reading import read
from online_store.record import Layout, layouts, pack_field
from online_store.store import OnlineStore
from schemas.aggregates import Tiles
from schemas.features import Registry
from schemas.records import Content, User
from tests.oracle import Oracle

#: Records read at once.
READ_ROWS = 1_000


async def compare(store: OnlineStore, registry: Registry, generation: Generation, oracle: Oracle, as_of_ms: Sequence[int]) -> list[str]:
    """Every difference between a generation and the oracle at several moments, one sentence an entity; empty where they are equal."""
    stored = {entity_of(key) async for key in store.records(generation)}
    expected = {Entity(*entity) for entity in oracle.entities if entity[1] in registry.kinds}
    differences = [f"{entity} is missing" for entity in expected - stored]
    differences += [f"{entity} should not be there" for entity in stored - expected]
    by_kind: dict[str, list[Entity]] = defaultdict(list)
    for entity in sorted(expected & stored):
        by_kind[entity.kind].append(entity)
    for kind, layout in layouts(registry).items():
        for start in range(0, len(by_kind[kind]), READ_ROWS):
            entities = by_kind[kind][start : start + READ_ROWS]
            raws = await store.read([record_key(generation, entity) for entity in entities])
            differences += _differences(layout, oracle, entities, raws, as_of_ms)
    return differences


def _differences(
    layout: Layout, oracle: Oracle, entities: list[Entity], raws: list[bytes | None], as_of_ms: Sequence[int]
) -> Iterator[str]:
    found = {moment: read(layout, raws, moment) for moment in as_of_ms}
    for row, entity in enumerate(entities):
        faults = [fault for moment, tiles in found.items() for fault in _counts(layout, oracle, entity, tiles, row, moment)]
        faults += _profile(layout, oracle, entity, found[as_of_ms[0]], row)
        if faults:
            yield f"{entity}: {'; '.join(faults)}"


def _counts(layout: Layout, oracle: Oracle, entity: Entity, tiles: Tiles, row: int, as_of_ms: int) -> Iterator[str]:
    expected = oracle.counts(entity_key(entity), as_of_ms)
    if not tiles.exact[row]:
        yield f"{as_of_ms} lies further back than the record holds"
    for place, window in enumerate(layout.windows):
        counts = tuple(tiles.counts[row, place].tolist())
        if counts != expected[window.name]:
            yield f"{window.name} as of {as_of_ms} is {counts}, the oracle says {expected[window.name]}"


def _profile(layout: Layout, oracle: Oracle, entity: Entity, tiles: Tiles, row: int) -> Iterator[str]:
    newest = oracle.last_active_ms(entity_key(entity))
    if tiles.last_active_ms[row] != newest:
        yield f"last_active_ms is {tiles.last_active_ms[row]}, the oracle says {newest}"
    standing = oracle.profile(entity_key(entity))
    fields = standing[3] if standing else None
    if bool(tiles.removed[row]) != (standing is not None and fields is None):
        yield f"removed is {tiles.removed[row]}, the oracle's profile is {fields}"
    value = _value(entity.kind, fields)
    for static in layout.statics:
        expected = np.asarray(pack_field(static, value), dtype=tiles.statics[static.name].dtype)
        if not np.array_equal(tiles.statics[static.name][row], expected, equal_nan=static.form == "number"):
            yield f"{static.name} is {tiles.statics[static.name][row]}, the oracle's {expected}"


def _value(kind: str, fields: dict[str, Any] | None) -> Content | User | None:
    if fields is None:
        return None
    return msgspec.convert(fields, Content) if kind == "item" else msgspec.convert(fields, User)


def entity_key(entity: Entity) -> tuple[str, str, str]:
    """An entity as the oracle names it."""
    return entity.tenant, entity.kind, entity.id
