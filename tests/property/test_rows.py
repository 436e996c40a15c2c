"""Point-in-time rows are what nested loops over the log say, whatever the times; the loops share no code with replay/rows.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
import polars as pl
from hypothesis import example, given
from hypothesis import strategies as st

from replay.rows import Rows, contexts_of, rows
from schemas import codec
from schemas.columnar.table import event_table
from schemas.columns import Profile, decode_events, decode_profiles
from schemas.features import (
    Registry,
    age_days,
    category,
    context_category,
    context_number,
    ctr,
    dwell_avg,
    dwell_per_impression,
    idle_hours,
    impressions,
    number,
)
from schemas.records import Click, Content, Dwell, Event, Impression, RankRequest, User
from schemas.topics import CLICKS, CONTENT, IMPRESSIONS, USERS, StoredRecord, Topic
from schemas.windows import DAY_MS, DAYS_7, DAYS_30, HOUR_1, HOUR_MS, HOURS_24, MINUTE_MS, Window

REGISTRY = Registry(
    (
        ctr("ctr_1h", "item", HOUR_1),
        impressions("impressions_24h", "item", HOURS_24),
        dwell_avg("dwell_avg_30d", "item", DAYS_30),
        number("quality", "item", "quality_score"),
        number("price", "item", "attributes.price"),
        category("language", "item", "language", ("de", "en")),
        age_days("item_age_days", "item", "created_at_ms"),
        idle_hours("item_idle_hours", "item"),
        ctr("user_ctr_7d", "user", DAYS_7),
        dwell_per_impression("user_dwell_per_impression_1h", "user", HOUR_1),
        impressions("user_impressions_30d", "user", DAYS_30),
        idle_hours("user_idle_hours", "user"),
        age_days("user_age_days", "user", "created_at_ms"),
        context_category("tab", "tab", ("a", "b")),
        context_number("hour", "hour"),
    )
)

#: A moment where tiles of 5 minutes, 3 hours, 1 day and 3 days all begin, and the moments around it where something changes.
EDGE_MS = 19_098 * DAY_MS
STEPS_MS = (0, 5 * MINUTE_MS, HOUR_MS, 3 * HOUR_MS, DAY_MS, 3 * DAY_MS, 7 * DAY_MS, 30 * DAY_MS)
times_ms = st.builds(
    lambda step, sign, off: EDGE_MS + sign * step + off, st.sampled_from(STEPS_MS), st.sampled_from([-1, 1]), st.sampled_from([-1, 0, 1])
)
whose = {
    "request_id": st.sampled_from(["r1", "r2", "r3"]),
    "user_id": st.sampled_from(["u1", "u2"]),
    "item_id": st.sampled_from(["i1", "i2"]),
    "ts_ms": times_ms,
    "tenant": st.sampled_from(["", "t"]),
}
dwells_ms = st.integers(0, 100_000)
shown = st.builds(Impression, **whose, position=st.integers(0, 9))
acts = st.one_of(st.builds(Click, **whose, dwell_ms=st.none() | dwells_ms), st.builds(Dwell, **whose, dwell_ms=dwells_ms))
contents = st.builds(
    Content,
    item_id=whose["item_id"],
    author_id=st.just("a"),
    created_at_ms=times_ms,
    ts_ms=times_ms,
    language=st.sampled_from(["", "de", "en", "fr"]),
    quality_score=st.none() | st.floats(0, 1, width=32),
    attributes=st.dictionaries(st.just("price"), st.floats(0, 9, width=32)),
    tenant=whose["tenant"],
)
users = st.builds(User, user_id=whose["user_id"], created_at_ms=times_ms, ts_ms=times_ms, tenant=whose["tenant"])
#: A profile, or a tombstone: its key and its record's time.
Published = Content | User | tuple[str, int]
contexts = st.dictionaries(
    st.tuples(whose["tenant"], whose["request_id"]),
    st.dictionaries(st.sampled_from(["tab", "hour"]), st.sampled_from(["a", "b", "c", "7"])),
)


@dataclass
class Log:
    """A log as it was published: each list in the order of its topic."""

    shown: Sequence[Impression]
    acts: Sequence[Click | Dwell]
    contents: Sequence[Content | tuple[str, int]]
    users: Sequence[User | tuple[str, int]]

    @property
    def events(self) -> list[Event]:
        """Both topics."""
        return [*self.shown, *self.acts]

    def frame(self) -> pl.DataFrame:
        """The events as decoding the log gives them."""
        parts = [
            event_table(decode_events(topic, [stored(topic, at, event) for at, event in enumerate(found)]).events)
            for topic, found in ((IMPRESSIONS, self.shown), (CLICKS, self.acts))
            if found
        ]
        return pl.concat(parts)

    def profiles(self) -> list[Profile]:
        """The profiles as decoding the log gives them."""
        return [
            profile
            for topic, found in ((CONTENT, self.contents), (USERS, self.users))
            for profile in decode_profiles(topic, [stored(topic, at, value) for at, value in enumerate(found)])[0]
        ]


def stored(topic: Topic, offset: int, value: Event | Published) -> StoredRecord:
    if isinstance(value, tuple):
        return StoredRecord(topic.name, 0, offset, value[1], value[0].encode(), None)
    return StoredRecord(topic.name, 0, offset, value.ts_ms, topic.key_of(value), codec.encode(value))


logs = st.builds(
    Log,
    st.lists(shown, min_size=1, max_size=8),
    st.lists(acts, max_size=8),
    st.lists(contents | st.tuples(whose["item_id"], times_ms), max_size=4),
    st.lists(users | st.tuples(whose["user_id"], times_ms), max_size=4),
)


def entity_of(value: Event | Published, kind: str) -> tuple[str, str]:
    if isinstance(value, tuple):
        return "", value[0]
    return value.tenant, str(getattr(value, f"{kind}_id"))


class Entity:
    """What nested loops find of one user or item before a moment."""

    def __init__(self, log: Log, kind: str, entity: tuple[str, str], as_of_ms: int) -> None:
        """Keep what lies strictly before as_of_ms."""
        self.as_of_ms = as_of_ms
        published: Sequence[Published] = log.contents if kind == "item" else log.users
        known = [(time_of(value), at, value) for at, value in enumerate(published) if entity_of(value, kind) == entity]
        known = [found for found in known if found[0] < as_of_ms]
        self.profile = max(known, key=lambda found: found[:2])[2] if known else None
        self.floor_ms = max((ts_ms for ts_ms, _, value in known if isinstance(value, tuple)), default=0)
        self.events = [event for event in log.events if entity_of(event, kind) == entity and event.ts_ms < as_of_ms]

    def within(self, window: Window) -> list[Event]:
        """The events of a window."""
        oldest = self.as_of_ms // window.hop_ms - window.span_ms // window.hop_ms
        return [
            event
            for event in self.events
            if event.ts_ms // window.hop_ms > oldest and event.ts_ms // window.hop_ms * window.hop_ms >= self.floor_ms
        ]

    def count(self, window: Window, record: type[Event]) -> int:
        """Events of one record."""
        return sum(isinstance(event, record) for event in self.within(window))

    def dwells(self, window: Window) -> list[int]:
        """Every dwell that is told, whichever record tells it."""
        return [event.dwell_ms for event in self.within(window) if not isinstance(event, Impression) and event.dwell_ms is not None]

    def ctr(self, window: Window) -> float:
        """Smoothed towards 0.05, as if 20 impressions had been seen before."""
        return (self.count(window, Click) + 1) / (self.count(window, Impression) + 20)

    def idle_hours(self) -> float:
        """Since the newest event."""
        newest = max((event.ts_ms for event in self.events if event.ts_ms >= self.floor_ms), default=None)
        return nan if newest is None else (self.as_of_ms - newest) / HOUR_MS

    def field(self, name: str) -> object:
        """A field of the profile, None without one."""
        return None if self.profile is None or isinstance(self.profile, tuple) else getattr(self.profile, name)

    def age_days(self) -> float:
        """Since the profile's created_at_ms."""
        created_at_ms = self.field("created_at_ms")
        return max(self.as_of_ms - created_at_ms, 0) / DAY_MS if isinstance(created_at_ms, int) else nan


def time_of(value: Event | Published) -> int:
    return value[1] if isinstance(value, tuple) else value.ts_ms


def vector(item: Entity, user: Entity, context: dict[str, str]) -> list[float]:
    item_dwells, user_dwells, user_shown = item.dwells(DAYS_30), user.dwells(HOUR_1), user.count(HOUR_1, Impression)
    quality, attributes = item.field("quality_score"), item.field("attributes")
    hour = context.get("hour")
    return [
        item.ctr(HOUR_1),
        item.count(HOURS_24, Impression),
        sum(item_dwells) / 1000 / len(item_dwells) if item_dwells else nan,
        quality if isinstance(quality, float) else nan,
        attributes.get("price", nan) if isinstance(attributes, dict) else nan,
        {"de": 1, "en": 2}.get(str(item.field("language")), 0),
        item.age_days(),
        item.idle_hours(),
        user.ctr(DAYS_7),
        sum(user_dwells) / 1000 / user_shown if user_shown else nan,
        user.count(DAYS_30, Impression),
        user.idle_hours(),
        user.age_days(),
        {"a": 1, "b": 2}.get(context["tab"], 0) if "tab" in context else nan,
        7 if hour == "7" else nan,
    ]


def loops(log: Log, context: dict[tuple[str, str], dict[str, str]]) -> list[tuple[object, ...]]:
    """Every row, in the order that is promised: as_of_ms, request, place in the request, ids, label, dwell, vector."""
    found = []
    for at, event in enumerate(log.shown):
        request = (event.tenant, event.request_id)
        as_of_ms = min(other.ts_ms for other in log.shown if (other.tenant, other.request_id) == request)
        came = [act for act in log.acts if (act.tenant, act.request_id, act.item_id) == (*request, event.item_id)]
        clicked = any(isinstance(act, Click) for act in came)
        dwell_ms = sum(act.dwell_ms or 0 for act in came)
        item, user = (Entity(log, kind, entity_of(event, kind), as_of_ms) for kind in ("item", "user"))
        values = [np.float32(value).tobytes() for value in vector(item, user, context.get(request, {}))]
        found.append((as_of_ms, *request, event.ts_ms, at, event.item_id, event.user_id, clicked, dwell_ms, values))
    return [row[:3] + row[5:] for row in sorted(found)]


def listed(found: Rows) -> list[tuple[object, ...]]:
    columns = (
        found.as_of_ms.tolist(),
        found.tenants,
        found.request_ids,
        found.item_ids,
        found.user_ids,
        found.labels.tolist(),
        found.dwell_ms.tolist(),
        [[value.tobytes() for value in row] for row in found.features],
    )
    return list(zip(*columns, strict=True))


AT_THE_MOMENT = Log(
    [Impression(request_id=request, user_id="u1", item_id="i1", ts_ms=EDGE_MS, position=0) for request in ("r1", "r2")],
    [Click(request_id="r1", user_id="u1", item_id="i1", ts_ms=EDGE_MS)],
    [Content(item_id="i1", author_id="a", created_at_ms=EDGE_MS - DAY_MS, ts_ms=EDGE_MS, quality_score=1.0)],
    [("u1", EDGE_MS)],
)

WRITERS_OF_ONE_MOMENT = Log(
    AT_THE_MOMENT.shown,
    [],
    [Content(item_id="i1", author_id="a", created_at_ms=EDGE_MS, ts_ms=EDGE_MS - 1, quality_score=quality) for quality in (0.25, 1.0, 0.5)],
    [],
)


@given(log=logs, context=contexts)
@example(log=AT_THE_MOMENT, context={})
@example(log=WRITERS_OF_ONE_MOMENT, context={})
def test_rows_are_what_nested_loops_say(log: Log, context: dict[tuple[str, str], dict[str, str]]) -> None:
    """Features of what lies strictly before the request, labels of what came of it, in the order that is promised."""
    assert listed(rows(log.frame(), log.profiles(), REGISTRY, context)) == loops(log, context)


@given(log=logs)
def test_rows_of_a_request_stand_together(log: Log) -> None:
    """Groups are numbered from 0 in order, one a request; positions count from 0 in each."""
    found = rows(log.frame(), log.profiles(), REGISTRY)
    requests = list(zip(found.as_of_ms.tolist(), found.tenants, found.request_ids, strict=True))
    distinct = sorted(set(requests))

    assert found.groups.tolist() == [distinct.index(request) for request in requests]
    assert found.positions.tolist() == [at - requests.index(request) for at, request in enumerate(requests)]


@given(log=logs, edges=st.tuples(times_ms, times_ms).map(sorted))
def test_between_keeps_the_requests_of_a_stretch(log: Log, edges: list[int]) -> None:
    """The start is inside, the stop is not, and every column is cut alike."""
    found = rows(log.frame(), log.profiles(), REGISTRY)

    assert listed(found.between(*edges)) == [row for row in listed(found) if edges[0] <= row[0] < edges[1]]  # type: ignore[operator]  # the first of a listed row is its time


def test_the_context_of_a_request_is_its_earliest_records() -> None:
    """Records of one request may differ: the first one by event time speaks for it."""
    late = Impression(request_id="r", user_id="u", item_id="i", ts_ms=2, position=0, context={"tab": "b"})
    early = RankRequest(request_id="r", user_id="u", candidate_item_ids=["i"], k=1, ts_ms=1, context={"tab": "a"})

    assert contexts_of([late, early, late]) == {("", "r"): {"tab": "a"}}
