"""The feature registry: one line is one feature, and that line is all that a new feature needs.

A line says which entity a feature is about, what it needs of that entity's record (a window of tiles, or a static field) and
the formula that turns it into a float32. From the lines follow the layout of the records (online_store/record.py), what ingest
counts, the columns of the matrix that is scored and trained on, and the fingerprint that names the generation of records and
the model bundles that fit together. Point the setting `features` at a registry of your own: "my_feed.features:REGISTRY".
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.aggregates import CLICKS, DWELL_COUNT, DWELL_SUM_MS, IMPRESSIONS, ITEM, MODEL, PERSONALIZATION, USER, Tiles
from schemas.columnar import counted
from schemas.errors import SettingsError
from schemas.windows import DAY_MS, DAYS_7, DAYS_30, HOUR_1, HOUR_MS, HOURS_24, Window

REQUEST = "request"
#: CTR is smoothed towards CTR_PRIOR as if so many impressions had been seen before the first: with fewer, items of one lucky
#: click lead every slate; with more, a new item needs a day to show what it is.
CTR_PRIOR_IMPRESSIONS = 20
CTR_PRIOR = 0.05
CTR_PRIOR_COUNTS = (CTR_PRIOR * CTR_PRIOR_IMPRESSIONS, CTR_PRIOR_IMPRESSIONS)

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Static:
    """A field of a record's static section, last writer by event time wins.

    source: the field of Content or User, or "attributes.<key>". form: how it is packed: "number" float32 (NaN is missing),
    "time_ms" int64 (0 is missing), "hash" the first 8 bytes of BLAKE2b, "hashes" up to SET_HASHES_MAX of them, "labels" the same, with
    LABELS_LEFT_OUT in the last place where there are more, "category" the place in the vocabulary counted from 1 (0 is missing or not in
    it), "embedding" int8 [EMBEDDING_DIMS], a direction (all 0 is missing).
    """

    name: str
    source: str
    form: str
    vocabulary: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Feature:
    """One line of the registry. formula: a name in FORMULAS; key: for a request's context, the key that is read."""

    name: str
    kind: str
    formula: str
    window: Window | None = None
    static: Static | None = None
    key: str = ""
    vocabulary: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Moment:
    """What a formula may look at: tiles of the feature's kind, the place of its window, the moment."""

    tiles: Tiles
    window: int
    as_of_ms: int | NDArray[np.int64]

    def count(self, counter: int) -> NDArray[np.int64]:
        """One counter of the feature's window, int64 [n]."""
        return self.tiles.counts[:, self.window, counter]

    def static(self, feature: Feature) -> NDArray[np.generic]:
        """The feature's static field, [n]."""
        return self.tiles.statics[feature.static.name if feature.static else ""]


def _ctr(_: Feature, at: Moment) -> Floats:
    return ((at.count(CLICKS) + CTR_PRIOR_COUNTS[0]) / (at.count(IMPRESSIONS) + CTR_PRIOR_COUNTS[1])).astype(np.float32)


#: Formula by name: what a feature computes from what its record says, float32 [n]. A formula is never changed, only added:
#: its name is part of the fingerprint.
FORMULAS: dict[str, Callable[[Feature, Moment], Floats]] = {
    "ctr": _ctr,
    "dwell_avg_s": lambda _, at: counted.ratio(at.count(DWELL_SUM_MS) / 1000, at.count(DWELL_COUNT)),
    "dwell_per_impression_s": lambda _, at: counted.ratio(at.count(DWELL_SUM_MS) / 1000, at.count(IMPRESSIONS)),
    "impressions": lambda _, at: at.count(IMPRESSIONS).astype(np.float32),
    "number": lambda feature, at: at.static(feature).astype(np.float32),
    "age_days": lambda feature, at: counted.since(at.static(feature), at.as_of_ms, DAY_MS),
    "idle_hours": lambda _, at: counted.since(at.tiles.last_active_ms, at.as_of_ms, HOUR_MS),
}


@dataclass(frozen=True)
class Registry:
    """All features of a feed. statics: fields that records keep besides those that features name, by kind.

    The order of the lines is the order of the matrix's columns.
    """

    features: tuple[Feature, ...]
    statics: Mapping[str, tuple[Static, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises SettingsError where two static fields of a kind share a name."""
        for kind in self.kinds:
            names = [static.name for static in self.static_fields(kind)]
            if twice := {name for name in names if names.count(name) > 1}:
                raise SettingsError(f"the registry has two static fields of a {kind} named {', '.join(sorted(twice))}. Rename one.")

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of entity that have records, in a fixed order."""
        named = {feature.kind for feature in self.features} | set(self.statics)
        return tuple(kind for kind in (USER, ITEM, MODEL) if kind in named)

    def windows(self, kind: str) -> tuple[Window, ...]:
        """The windows of a kind that some feature names, shortest first."""
        return self._windows.get(kind, ())

    @cached_property
    def _windows(self) -> dict[str, tuple[Window, ...]]:
        named = {kind: {feature.window for feature in self.features if feature.kind == kind and feature.window} for kind in self.kinds}
        return {kind: tuple(sorted(found, key=lambda window: (window.span_ms, window.hop_ms))) for kind, found in named.items()}

    def static_fields(self, kind: str) -> tuple[Static, ...]:
        """The static fields of a kind, by name."""
        named = {feature.static for feature in self.features if feature.kind == kind and feature.static}
        return tuple(sorted(named | set(self.statics.get(kind, ())), key=lambda static: static.name))

    def tile_ms(self, kind: str) -> int:
        """The length of the tiles that updates of a kind are summed by: every ring's tile is made of whole ones."""
        return math.gcd(*(window.hop_ms for window in self.windows(kind))) or DAY_MS

    @cached_property
    def ranking(self) -> tuple[Feature, ...]:
        """The features of the matrix: those of users, items and requests."""
        return tuple(feature for feature in self.features if feature.kind in (USER, ITEM, REQUEST))

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the matrix's columns."""
        return tuple(feature.name for feature in self.ranking)

    @cached_property
    def fingerprint(self) -> str:
        """Names this registry wherever it matters which one it was: generations, bundles, responses. 16 hex digits."""
        named = {kind: [asdict(static) for static in self.static_fields(kind)] for kind in self.kinds}
        text = msgspec.json.encode([[asdict(feature) for feature in self.features], named], order="sorted")
        return hashlib.sha256(text).hexdigest()[:16]

    def vector(self, items: Tiles, user: Tiles, context: Mapping[str, str], as_of_ms: int) -> Floats:
        """The matrix that is scored and trained on, float32 [len(items), features], C order.

        user: tiles of one user, or of one for each item. context: the request's, used by every row.
        """
        matrix = np.empty((len(items.known), len(self.ranking)), dtype=np.float32)
        for kind, tiles in ((ITEM, items), (USER, user)):
            matrix[:, self.places[kind]] = self.columns(kind, tiles, as_of_ms)
        matrix[:, self.places[REQUEST]] = self.context_row(context)
        return matrix

    @cached_property
    def places(self) -> dict[str, list[int]]:
        """Which columns of the matrix are each kind's, ascending."""
        return {kind: [place for place, feature in enumerate(self.ranking) if feature.kind == kind] for kind in (ITEM, USER, REQUEST)}

    def columns(self, kind: str, tiles: Tiles, as_of_ms: int | NDArray[np.int64]) -> Floats:
        """The columns of one kind, float32 [n, features]: those of items or users whose tiles these are.

        Who does not want to be known by what they did is nobody, here and so in serving, replay and training.
        """
        if kind == USER:
            tiles = tiles.without(np.flatnonzero(~tiles.is_personalized))
        plan, found = self._plans[kind], np.empty((len(tiles.known), len(self.places[kind])), np.float32)
        counted.fill(plan, tiles, np.full(len(found), as_of_ms, np.int64), CTR_PRIOR_COUNTS, found)
        for column in plan.others:
            found[:, column] = self.column(self.ranking[self.places[kind][column]], tiles, as_of_ms)
        return found

    @cached_property
    def _plans(self) -> dict[str, counted.Plan]:
        return {kind: counted.plan([self.ranking[place] for place in found], self.windows(kind)) for kind, found in self.places.items()}

    def context_row(self, context: Mapping[str, str]) -> Floats:
        """The columns of a request, float32 [features]: its own signals."""
        return np.array([context_value(self.ranking[place], context) for place in self.places[REQUEST]], dtype=np.float32)

    def column(self, feature: Feature, tiles: Tiles, as_of_ms: int | NDArray[np.int64]) -> Floats:
        """One feature of the entities whose tiles these are, float32 [n]."""
        place = self.windows(feature.kind).index(feature.window) if feature.window else 0
        return FORMULAS[feature.formula](feature, Moment(tiles, place, as_of_ms))


def context_value(feature: Feature, context: Mapping[str, str]) -> float:
    """A request's own signal: a number, or the place in the vocabulary counted from 1; NaN where absent, 0 for an unknown word."""
    word = context.get(feature.key)
    if word is None:
        return math.nan
    if feature.formula == "context_category":
        return float(feature.vocabulary.index(word) + 1) if word in feature.vocabulary else 0.0
    try:
        return float(word)
    except ValueError:
        return math.nan


def ctr(name: str, kind: str, window: Window) -> Feature:
    """Clicks per impression in the window, smoothed towards CTR_PRIOR."""
    return Feature(name, kind, "ctr", window)


def dwell_avg(name: str, kind: str, window: Window) -> Feature:
    """Mean dwell of the window in seconds, NaN without any."""
    return Feature(name, kind, "dwell_avg_s", window)


def dwell_per_impression(name: str, kind: str, window: Window) -> Feature:
    """Dwell in seconds that an impression of the window earned, NaN without any."""
    return Feature(name, kind, "dwell_per_impression_s", window)


def impressions(name: str, kind: str, window: Window) -> Feature:
    """How many impressions the window holds."""
    return Feature(name, kind, "impressions", window)


def number(name: str, kind: str, source: str) -> Feature:
    """A static number; source is a field, or "attributes.<key>"."""
    return Feature(name, kind, "number", static=Static(source.rsplit(".", 1)[-1], source, "number"))


def category(name: str, kind: str, source: str, vocabulary: tuple[str, ...]) -> Feature:
    """A static word as its place in a bounded vocabulary, counted from 1; 0 is missing or not in it."""
    return Feature(name, kind, "number", static=Static(source, source, "category", vocabulary))


def age_days(name: str, kind: str, source: str) -> Feature:
    """Days since a static time."""
    return Feature(name, kind, "age_days", static=Static(source, source, "time_ms"))


def idle_hours(name: str, kind: str) -> Feature:
    """Hours since the entity's newest event."""
    return Feature(name, kind, "idle_hours")


def context_number(name: str, key: str) -> Feature:
    """A number that the request carries."""
    return Feature(name, REQUEST, "context_number", key=key)


def context_category(name: str, key: str, vocabulary: tuple[str, ...]) -> Feature:
    """A word that the request carries, as its place in a bounded vocabulary."""
    return Feature(name, REQUEST, "context_category", key=key, vocabulary=vocabulary)


FEATURES = (
    ctr("ctr_1h", ITEM, HOUR_1),
    ctr("ctr_24h", ITEM, HOURS_24),
    ctr("ctr_7d", ITEM, DAYS_7),
    ctr("ctr_global_30d", ITEM, DAYS_30),
    impressions("impressions_1h", ITEM, HOUR_1),
    impressions("impressions_24h", ITEM, HOURS_24),
    impressions("impressions_7d", ITEM, DAYS_7),
    dwell_avg("dwell_avg_24h", ITEM, HOURS_24),
    dwell_avg("dwell_avg_7d", ITEM, DAYS_7),
    dwell_per_impression("dwell_per_impression_7d", ITEM, DAYS_7),
    number("quality", ITEM, "quality_score"),
    age_days("freshness_days", ITEM, "created_at_ms"),
    ctr("user_ctr_24h", USER, HOURS_24),
    ctr("user_ctr_7d", USER, DAYS_7),
    impressions("user_impressions_24h", USER, HOURS_24),
    impressions("user_impressions_7d", USER, DAYS_7),
    dwell_avg("user_dwell_avg_24h", USER, HOURS_24),
    dwell_avg("user_dwell_avg_7d", USER, DAYS_7),
    dwell_per_impression("user_dwell_per_impression_7d", USER, DAYS_7),
    idle_hours("last_active_hours", USER),
    age_days("account_age_days", USER, "created_at_ms"),
    ctr("model_ctr_24h", MODEL, HOURS_24),
    dwell_avg("model_dwell_avg_24h", MODEL, HOURS_24),
)
STATICS = {
    ITEM: (
        Static("author_id", "author_id", "hash"),
        Static("topic_tags", "topic_tags", "hashes"),
        Static("safety_labels", "safety_labels", "labels"),
        Static("content_embedding", "content_embedding", "embedding"),
    ),
    USER: (Static(PERSONALIZATION, "consent.personalization", "number"), Static("market", "region", "hash")),
}
REGISTRY = Registry(FEATURES, STATICS)
