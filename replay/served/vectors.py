"""Vectors of served items, recomputed from the log: what a store that had everything would have said at the moment of each request."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from replay.history import LogHistory
from replay.rows import History
from replay.served.telemetry import Served
from schemas.aggregates import ITEM, USER
from schemas.columnar import table
from schemas.features import REQUEST, Registry


class Recomputed:
    """A log's past, ready to be asked. Features are made of events strictly before a request's own moment."""

    def __init__(self, registry: Registry, past: LogHistory) -> None:
        """Sort the log by entity and time: some 150 bytes an event for the moment, 100 from then on."""
        self._registry = registry
        self._contexts = past.contexts
        updates = table.updates(past.events)
        self._histories = {kind: History(registry, kind, updates, past.profiles) for kind in (ITEM, USER)}

    def vectors(self, found: Served) -> NDArray[np.float32]:
        """Of each served item, float32 [n, features]; a user and a request's own signals are computed once a request."""
        registry, asked = self._registry, found.request
        matrix = np.empty((len(found), len(registry.ranking)), np.float32)
        matrix[:, registry.places[ITEM]] = self._columns(ITEM, found.table["tenant"], found.table["item_id"], found.table["ts_ms"])
        requests = found.requests
        matrix[:, registry.places[USER]] = self._columns(USER, requests["tenant"], requests["user_id"], requests["ts_ms"])[asked]
        if registry.places[REQUEST] and len(requests):
            names = requests.select("tenant", "request_id").iter_rows()
            rows = [registry.context_row(self._contexts.get((tenant, request_id), {})) for tenant, request_id in names]
            matrix[:, registry.places[REQUEST]] = np.stack(rows)[asked]
        return matrix

    def _columns(self, kind: str, tenants: pl.Series, ids: pl.Series, ts_ms: pl.Series) -> NDArray[np.float32]:
        moments = ts_ms.to_numpy()
        return self._registry.columns(kind, self._histories[kind].tiles(tenants, ids, moments), moments)
