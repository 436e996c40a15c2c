"""What records say once a store has applied each source up to some offset: by nested loops over an entity's own events, no record is made.

For few entities: those of a sample.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from online_store.deltas import entity_of_profile, kind_of_profiles
from online_store.record import FORMS, pack_field
from replay.history import events_of, profiles_of
from replay.log import ReadableLog
from schemas.aggregates import COUNTERS, ENTITY_ID, USER, Tiles
from schemas.columnar import table
from schemas.columnar.events import pack
from schemas.columnar.repeats import REPEAT_OFFSETS, named
from schemas.columns import Profile
from schemas.features import Feature, Registry
from schemas.topics import Source

Ints = NDArray[np.int64]
#: (tenant, id).
Name = tuple[str, str]


class Happened(NamedTuple):
    """One entity's m events. source: int64 [m], a place in Past.sources. timestamp: Kafka's. added: int64 [m, COUNTERS]."""

    source: Ints
    offset: Ints
    timestamp: Ints
    ts_ms: Ints
    added: Ints


#: What is known of an event besides what it adds.
HAPPENED = ("source", "offset", "timestamp", "ts_ms")
NO_NUMBERS = np.zeros(0, np.int64)
NOTHING = Happened(NO_NUMBERS, NO_NUMBERS, NO_NUMBERS, NO_NUMBERS, np.zeros((0, len(COUNTERS)), np.int64))


class Written(NamedTuple):
    """One profile of an entity, or its tombstone."""

    source: int
    offset: int
    timestamp: int
    ts_ms: int
    profile: Profile


class Past:
    """The events and profiles of some entities of one kind."""

    def __init__(self, registry: Registry, kind: str, sources: Sequence[Source], events: pl.DataFrame, profiles: Iterable[Profile]) -> None:
        """events: as `read` makes them. profiles: of any entities."""
        self.kind = kind
        self.sources = list(sources)
        self._registry = registry
        parts = events.partition_by("tenant", "id", as_dict=True)
        self._happened = {name: _happened(part) for name, part in parts.items()}
        self._written: dict[Name, list[Written]] = {}
        for profile in profiles:
            if kind_of_profiles(profile.record.topic) == kind:
                self._write(profile)

    def _write(self, profile: Profile) -> None:
        record, value = profile
        entity = entity_of_profile(self.kind, record.key, value)
        place = self.sources.index(Source(record.topic, record.partition))
        ts_ms = record.timestamp if value is None else value.ts_ms
        self._written.setdefault((entity.tenant, entity.id), []).append(Written(place, record.offset, record.timestamp, ts_ms, profile))

    def pending(self, name: Name, limits: Ints, until_ms: int) -> dict[int, list[int]]:
        """Offsets from limits on, by source, of what stood in the log by until_ms. limits: int64 [sources]."""
        happened = self._happened.get(name, NOTHING)
        rows = np.flatnonzero((happened.offset >= limits[happened.source]) & (happened.timestamp <= until_ms))
        found = list(zip(happened.source[rows].tolist(), happened.offset[rows].tolist(), strict=True))
        written = [one for one in self._written.get(name, ()) if one.timestamp <= until_ms]
        found += [(one.source, one.offset) for one in written if one.offset >= limits[one.source]]
        by_source: dict[int, list[int]] = {}
        for source, offset in sorted(found):
            by_source.setdefault(source, []).append(offset)
        return by_source

    def tiles(self, name: Name, limits: Ints, as_of_ms: Ints) -> Tiles:
        """What the entity's record says, in n cases: what lies before limits, int64 [n, sources], is applied; as of int64 [n]."""
        happened, count = self._happened.get(name, NOTHING), len(limits)
        written = [[one for one in self._written.get(name, ()) if one.offset < limit[one.source]] for limit in limits]
        floor_ms = np.array([max((one.ts_ms for one in found if one.profile.value is None), default=0) for found in written], np.int64)
        applied = happened.offset < limits[:, happened.source]
        counts = np.zeros((count, len(self._registry.windows(self.kind)), len(COUNTERS)), np.int64)
        for place, window in enumerate(self._registry.windows(self.kind)):
            tile, newest = happened.ts_ms // window.hop_ms, (as_of_ms // window.hop_ms)[:, None]
            inside = (tile > newest - window.tiles_count) & (tile <= newest) & (tile * window.hop_ms >= floor_ms[:, None])
            counts[:, place] = (applied & inside) @ happened.added
        last_ms = np.where(applied & (happened.ts_ms >= floor_ms[:, None]), happened.ts_ms, 0).max(axis=1, initial=0)
        newest_of = [max(found, key=self._order, default=None) for found in written]
        removed = np.array([one is not None and one.profile.value is None for one in newest_of], np.bool_)
        known = (applied.any(axis=1) | np.array([bool(found) for found in written], np.bool_)) & (~removed | (last_ms > 0))
        return Tiles(counts, self._statics(newest_of), last_ms, known, removed, np.ones(count, np.bool_))

    def _order(self, one: Written) -> tuple[int, int, int]:
        """Last writer wins by event time; the log's own order decides between equals."""
        return one.ts_ms, one.offset, self.sources[one.source].partition

    def _statics(self, newest: Sequence[Written | None]) -> Mapping[str, NDArray[Any]]:
        values = [None if one is None else one.profile.value for one in newest]
        fields = self._registry.static_fields(self.kind)
        return {static.name: np.array([pack_field(static, value) for value in values], FORMS[static.form][0]) for static in fields}


def read(
    log: ReadableLog, registry: Registry, wanted: Mapping[str, Collection[Name]], repeat_offsets: int = REPEAT_OFFSETS
) -> dict[str, Past]:
    """The past of some entities, by kind. wanted: their names by kind."""
    hashes = {kind: np.unique(names_of(*zip(*names, strict=True))) for kind, names in wanted.items() if names}
    taken = {kind: [_added(pl.DataFrame(schema=table.EVENT_COLUMNS), kind, 0)] for kind in wanted}
    sources: dict[Source, int] = {}
    for batch, events in events_of(log, repeat_offsets):
        place = sources.setdefault(batch.source, len(sources))
        for kind, names in hashes.items():
            words = np.stack([events.word("tenant"), events.word(ENTITY_ID[kind])])
            here = events.where(np.isin(named(events.text, words), names))
            taken[kind].append(_added(table.event_table(here), kind, place))
    profiles = profiles_of(log)
    for record, _ in profiles:
        sources.setdefault(Source(record.topic, record.partition), len(sources))
    return {kind: Past(registry, kind, list(sources), pl.concat(parts), profiles) for kind, parts in taken.items()}


def _added(events: pl.DataFrame, kind: str, source: int) -> pl.DataFrame:
    """What events add to entities of a kind, with the log's own time and where they stood."""
    said = table.updates(events).with_columns(events["timestamp"], pl.lit(source, pl.Int64).alias("source"))
    return said.rename({ENTITY_ID[kind]: "id"}).drop_nulls("id").select("tenant", "id", *HAPPENED, *COUNTERS)


def _happened(events: pl.DataFrame) -> Happened:
    source, offset, timestamp, ts_ms = (events[name].to_numpy() for name in HAPPENED)
    return Happened(source, offset, timestamp, ts_ms, events.select(COUNTERS).to_numpy())


def names_of(*columns: Sequence[str | None]) -> NDArray[np.uint64]:
    """What these words name together, row by row, as schemas.columnar.repeats.named says of events: uint64 [n]."""
    packed = [pack(column) for column in columns]
    starts = np.cumsum([0, *(len(text) for text, _ in packed)])
    words = np.stack([spans + np.array([start, 0]) for (_, spans), start in zip(packed, starts, strict=False)])
    return named(np.frombuffer(b"".join(text for text, _ in packed), np.uint8), words)


def vectors(registry: Registry, features: Sequence[Feature], tiles: Tiles, as_of_ms: int | Ints) -> NDArray[np.float32]:
    """Features of n entities of one kind by the formulas that define them, float32 [n, features].

    Ranking fills its columns in a compiled loop that must say the same; who holds it against the log must not ask it. as_of_ms: of all, or
    int64 [n].
    """
    said = tiles.without(np.flatnonzero(~tiles.is_personalized)) if features and features[0].kind == USER else tiles
    columns = [registry.column(feature, said, as_of_ms) for feature in features]
    return np.stack(columns, axis=1) if columns else np.zeros((len(tiles.known), 0), np.float32)
