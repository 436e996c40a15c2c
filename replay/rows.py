"""Point-in-time training rows: for every impression, the vector its request would have been scored with, and what came of it.

A request's moment, `as_of_ms`, is its first impression. Features are made of events strictly before it, so neither the row's own
impression nor its label can be among them. What an event adds is schemas.aggregates' definition, what a static field packs to is
online_store.record's, and the vector is the registry's: this module only says which events count at which moment.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from online_store.deltas import entity_of_profile, kind_of_profiles
from online_store.record import FORMS, pack_field
from schemas.aggregates import COUNTERS, ENTITY_ID, ITEM, USER, Tiles
from schemas.columnar import table
from schemas.columns import Profile
from schemas.features import REQUEST, Registry, Static, context_value
from schemas.records import Click, Impression, RankRequest
from schemas.windows import Window

Ints = NDArray[np.int64]
#: (tenant, request_id) -> the request's context.
Contexts = Mapping[tuple[str, str], Mapping[str, str]]

REQUEST_KEY = ("tenant", "request_id")
#: The kinds whose features are columns of the matrix.
KINDS = (USER, ITEM)
#: What orders the rows: requests by moment, a request's impressions as they stand in the log.
ROW_ORDER = ("as_of_ms", *REQUEST_KEY, "ts_ms", "offset", "item_id")


@dataclass(frozen=True, slots=True)
class Rows:
    """One row an impression; the rows of a request stand together, requests by as_of_ms.

    features: float32 [n, F], columns as Registry.feature_names, NaN is missing. labels: bool [n], clicked. dwell_ms: int64 [n], all
    dwell that this request earned the item. groups: int64 [n], a number for each request, ascending. as_of_ms: int64 [n].
    positions: int64 [n], the place among the request's impressions. tenants, request_ids, item_ids, user_ids: String [n].
    """

    features: NDArray[np.float32]
    labels: NDArray[np.bool_]
    dwell_ms: Ints
    groups: Ints
    as_of_ms: Ints
    positions: Ints
    tenants: pl.Series
    request_ids: pl.Series
    item_ids: pl.Series
    user_ids: pl.Series

    def __len__(self) -> int:
        return len(self.labels)

    def between(self, start_ms: int, stop_ms: int) -> "Rows":
        """The rows of the requests whose moment lies in [start_ms, stop_ms)."""
        part = slice(*np.searchsorted(self.as_of_ms, [start_ms, stop_ms]).tolist())
        return Rows(*(getattr(self, field.name)[part] for field in fields(self)))


def rows(events: pl.DataFrame, profiles: Iterable[Profile], registry: Registry, contexts: Contexts | None = None) -> Rows:
    """Rows for every impression of a log.

    events: schemas.columnar.table.EVENT_COLUMNS, in any order, at least one. profiles: content and user records and tombstones of the
    same log. contexts: those of the requests, for a registry that reads them; a request without one has those features missing.
    """
    shown = _labelled(events)
    as_of_ms = shown["as_of_ms"].to_numpy()
    updates = table.updates(events)
    written = list(profiles)
    tiles = {kind: History(registry, kind, updates, written).tiles(shown["tenant"], shown[ENTITY_ID[kind]], as_of_ms) for kind in KINDS}
    features = matrix(registry, tiles[ITEM], tiles[USER], as_of_ms)
    _fill_context(registry, features, shown, contexts or {})
    return Rows(
        features,
        shown["clicked"].to_numpy(),
        shown["dwelled_ms"].to_numpy(),
        shown["group"].to_numpy(),
        as_of_ms,
        shown["position"].to_numpy(),
        *(shown[name] for name in ("tenant", "request_id", "item_id", "user_id")),
    )


def matrix(registry: Registry, items: Tiles, users: Tiles, as_of_ms: Ints) -> NDArray[np.float32]:
    """The vectors of n pairs of item and user, each as of its own moment, float32 [n, F]; a request's own signals are missing."""
    # Formulas broadcast: a moment a row does for them what one moment for all rows does.
    moments: Any = as_of_ms
    return registry.vector(items, users, {}, moments)


def contexts_of(requests: Iterable[Impression | RankRequest]) -> dict[tuple[str, str], Mapping[str, str]]:
    """The context of each request: that of its earliest record."""
    found: dict[tuple[str, str], Impression | RankRequest] = {}
    for request in requests:
        key = (request.tenant, request.request_id)
        if key not in found or request.ts_ms < found[key].ts_ms:
            found[key] = request
    return {key: request.context for key, request in found.items()}


class History:
    """Everything that happened to the entities of one kind, ready to be asked about any moment.

    updates: what schemas.columnar.table.updates gives. profiles: of this kind and, ignored, of others.
    """

    def __init__(self, registry: Registry, kind: str, updates: pl.DataFrame, profiles: Iterable[Profile]) -> None:
        """Sort the log by entity and time."""
        self.windows = registry.windows(kind)
        happened = table.entities(updates, kind)
        values = [profile for profile in profiles if kind_of_profiles(profile.record.topic) == kind]
        written = _profile_frame(kind, values)
        self.codes = pl.concat([happened.select("tenant", "id"), written.select("tenant", "id")]).unique().with_row_index("code")
        self._add_events(happened)
        self._add_profiles(written)
        self.statics = {static.name: self._packed(static, values) for static in registry.static_fields(kind)}

    def _add_events(self, happened: pl.DataFrame) -> None:
        codes = self._code(happened["tenant"], happened["id"])
        self.events = Timeline(codes, happened["ts_ms"].to_numpy())
        added = happened.select(COUNTERS).to_numpy()[self.events.order]
        self.totals = np.vstack([np.zeros((1, len(COUNTERS)), np.int64), np.cumsum(added, axis=0)])

    def _add_profiles(self, written: pl.DataFrame) -> None:
        codes, ts_ms = self._code(written["tenant"], written["id"]), written["ts_ms"].to_numpy()
        removed = written["removed"].to_numpy()
        self.written = Timeline(codes, ts_ms)
        self.removals = Timeline(codes[removed], ts_ms[removed])
        self.rows = written["row"].to_numpy()[self.written.order]
        self.removed = np.append(removed[self.written.order], False)

    def _packed(self, static: Static, profiles: list[Profile]) -> NDArray[Any]:
        """One static field in the order of the profiles' timeline, as records keep it; the last one is that of no profile."""
        values = [*(profiles[row].value for row in self.rows), None]
        return np.array([pack_field(static, value) for value in values], FORMS[static.form][0])

    def _code(self, tenants: pl.Series, ids: pl.Series) -> Ints:
        """The number of each entity, int64 [n]; -1 for one that the log does not name."""
        asked = pl.DataFrame({"tenant": tenants, "id": ids}).join(self.codes, on=["tenant", "id"], how="left", maintain_order="left")
        return asked["code"].fill_null(-1).cast(pl.Int64).to_numpy()

    def tiles(self, tenants: pl.Series, ids: pl.Series, as_of_ms: Ints) -> Tiles:
        """What the log says of n entities, each strictly before its own moment of as_of_ms, int64 [n]."""
        codes = self._code(tenants, ids)
        floor_ms = self.removals.newest_ms(codes, as_of_ms)
        counts = np.empty((len(codes), len(self.windows), len(COUNTERS)), np.int64)
        stop = self.events.before(codes, as_of_ms)
        for place, window in enumerate(self.windows):
            start = self.events.before(codes, _first_ms(window, as_of_ms, floor_ms))
            counts[:, place] = self.totals[np.maximum(start, stop)] - self.totals[start]
        last_ms = self.events.newest_ms(codes, as_of_ms)
        last_ms[last_ms < floor_ms] = 0
        row = self.written.newest(codes, as_of_ms)
        removed = self.removed[row]
        known = (self.events.newest(codes, as_of_ms) >= 0) | (row >= 0)
        statics = {name: values[row] for name, values in self.statics.items()}
        return Tiles(counts, statics, last_ms, known & (~removed | (last_ms > 0)), removed, np.ones(len(codes), np.bool_))


class Timeline:
    """Entities' rows in order of entity and time, found by binary search on both at once.

    codes: int64 [m], the entity of each row, from 0. ts_ms: int64 [m]. order: int [m], the rows in that order; rows of one moment
    stay as they came.
    """

    def __init__(self, codes: Ints, ts_ms: Ints) -> None:
        """Number the distinct moments: (entity, time) fits one integer only so, for any time and any count of entities."""
        self.moments = np.unique(ts_ms)
        keys = self._keys(codes, ts_ms)
        self.order = np.argsort(keys, kind="stable")
        self.keys = keys[self.order]
        self.ts_ms = np.append(ts_ms[self.order], 0)

    def _keys(self, codes: Ints, ts_ms: Ints) -> Ints:
        return codes * (len(self.moments) + 1) + np.searchsorted(self.moments, ts_ms)

    def before(self, codes: Ints, ts_ms: Ints) -> NDArray[np.intp]:
        """Where in the order each entity's first row at or after ts_ms stands or would stand, int [n]."""
        return np.searchsorted(self.keys, self._keys(codes, ts_ms))

    def newest(self, codes: Ints, ts_ms: Ints) -> NDArray[np.intp]:
        """Where in the order each entity's last row before ts_ms stands, int [n]; -1 is none."""
        stop = self.before(codes, ts_ms)
        return np.where(stop > self.before(codes, np.zeros_like(ts_ms)), stop - 1, -1)

    def newest_ms(self, codes: Ints, ts_ms: Ints) -> Ints:
        """The time of that row, int64 [n]; 0 is none."""
        return self.ts_ms[self.newest(codes, ts_ms)]


def _labelled(events: pl.DataFrame) -> pl.DataFrame:
    """The impressions with as_of_ms, group, clicked and dwelled_ms, in the order of the rows."""
    outcome = [*REQUEST_KEY, "item_id"]
    shown = events.filter(pl.col("record") == Impression.__name__)
    acts = events.filter(pl.col("record") != Impression.__name__)
    came = acts.group_by(outcome).agg(
        (pl.col("record") == Click.__name__).any().alias("clicked"), pl.col("dwell_ms").sum().alias("dwelled_ms")
    )
    return (
        shown.with_columns(pl.col("ts_ms").min().over(REQUEST_KEY).alias("as_of_ms"))
        .join(came, on=outcome, how="left")
        .with_columns(pl.col("clicked").fill_null(value=False), pl.col("dwelled_ms").fill_null(0))
        .sort(ROW_ORDER)
        .with_columns((pl.struct("as_of_ms", *REQUEST_KEY).rle_id()).cast(pl.Int64).alias("group"))
        .with_columns(pl.int_range(pl.len(), dtype=pl.Int64).over("group").alias("position"))
    )


def _fill_context(registry: Registry, features: NDArray[np.float32], shown: pl.DataFrame, contexts: Contexts) -> None:
    """Write the requests' own signals into their columns."""
    places = [place for place, feature in enumerate(registry.ranking) if feature.kind == REQUEST]
    if not places:
        return
    requests = shown.unique("group", keep="first", maintain_order=True).select(REQUEST_KEY).iter_rows()
    found = [contexts.get((tenant, request_id), {}) for tenant, request_id in requests]
    for place in places:
        column = [context_value(registry.ranking[place], context) for context in found]
        features[:, place] = np.array(column, np.float32)[shown["group"].to_numpy()]


def _first_ms(window: Window, as_of_ms: Ints, floor_ms: Ints) -> Ints:
    """The first moment that counts, int64 [n]: the window's, or that of the first whole tile since the entity was removed."""
    tiles, place = np.unique(as_of_ms // window.hop_ms, return_inverse=True)
    start_ms = np.array([window.start_ms(tile * window.hop_ms) for tile in tiles.tolist()], np.int64)[place]
    return np.maximum(start_ms, -(-floor_ms // window.hop_ms) * window.hop_ms)


def _profile_frame(kind: str, profiles: Iterable[Profile]) -> pl.DataFrame:
    """One row a profile: last writer by event time wins, between equals the log's own order decides, as in online_store.record."""
    heads = [(*_head(kind, profile), profile.record.offset, profile.record.partition, profile.value is None) for profile in profiles]
    schema = {"tenant": pl.String, "id": pl.String, "ts_ms": pl.Int64, "offset": pl.Int64, "partition": pl.Int64, "removed": pl.Boolean}
    return pl.DataFrame(heads, schema, orient="row").with_row_index("row").sort("ts_ms", "offset", "partition")


def _head(kind: str, profile: Profile) -> tuple[str, str, int]:
    """Tenant, id and event time; a tombstone has its Kafka record's."""
    record, value = profile
    entity = entity_of_profile(kind, record.key, value)
    return entity.tenant, entity.id, record.timestamp if value is None else value.ts_ms
