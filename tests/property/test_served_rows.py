"""Whatever the times in a log, a recomputed vector knows nothing of what came at its request's moment or later."""

from typing import Any

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from replay.history import LogHistory
from replay.rows import rows
from replay.served.slates import of
from replay.served.telemetry import served
from replay.served.vectors import Recomputed
from schemas.columnar.table import EVENT_COLUMNS
from schemas.records import Impression, RankTelemetry, ServedItem
from tests.property.test_rows import REGISTRY, Log, contexts, logs, time_of, times_ms, whose

#: What requests carried, by tenant and request_id.
Carried = dict[tuple[str, str], dict[str, str]]


def told(request_id: str, user_id: str, tenant: str, ts_ms: int) -> RankTelemetry:
    """A request for both items."""
    items = [ServedItem(item_id=item_id, position=place, score=0.0, vector=b"") for place, item_id in enumerate(("i1", "i2"))]
    named: dict[str, Any] = {"model_version": "m1", "feature_version": "f1", "generation": "g1", "degraded": "NONE", "arm": "default"}
    return RankTelemetry(request_id=request_id, user_id=user_id, items=items, ts_ms=ts_ms, tenant=tenant, **named)


requests = st.builds(told, whose["request_id"], whose["user_id"], whose["tenant"], times_ms)


def before(log: Log, ts_ms: int) -> Log:
    """What had happened by then."""
    kept = {name: [one for one in getattr(log, name) if time_of(one) < ts_ms] for name in ("shown", "acts", "contents", "users")}
    return Log(**kept)


def vectors(log: Log, request: RankTelemetry, carried: Carried) -> list[list[float]]:
    """What is recomputed for one request."""
    events = log.frame() if log.shown or log.acts else pl.DataFrame(schema=EVENT_COLUMNS)
    past = LogHistory(events, log.profiles(), carried)
    found: list[list[float]] = np.nan_to_num(Recomputed(REGISTRY, past).vectors(served(of([request]), REGISTRY)), nan=-1.0).tolist()
    return found


@given(logs, requests, contexts)
def test_a_vector_has_nothing_of_its_moment_or_later(
    log: Log, request: RankTelemetry, carried: dict[tuple[str, str], dict[str, str]]
) -> None:
    """Take all that away, and no bit changes."""
    assert vectors(log, request, carried) == vectors(before(log, request.ts_ms), request, carried)


@given(logs, requests)
def test_a_vector_is_that_of_an_impression_at_its_moment(log: Log, request: RankTelemetry) -> None:
    """Which nested loops over the log are held against."""
    shown = [
        Impression(request_id="ours", user_id=request.user_id, item_id=item.item_id, ts_ms=request.ts_ms, position=0, tenant=request.tenant)
        for item in request.items
    ]
    found = rows(Log([*log.shown, *shown], log.acts, log.contents, log.users).frame(), log.profiles(), REGISTRY)
    ours = np.flatnonzero((found.request_ids == "ours").to_numpy())
    wanted = dict(zip(found.item_ids[ours].to_list(), np.nan_to_num(found.features[ours], nan=-1.0).tolist(), strict=True))

    assert vectors(log, request, {}) == [wanted["i1"], wanted["i2"]]
