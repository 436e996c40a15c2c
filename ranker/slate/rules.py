"""The rules of a slate, as the table `slate` of millstream.toml declares them. A rule that is not given does nothing.

[slate]
blocked_authors = ["spam-farm"]

[[slate.caps]]                  # at most 2 of an author in the first 10 places
of = "author"
count = 2
window = 10

[[slate.caps]]                  # at most 1 of a topic in any run of 3
of = "topic"
count = 1
window = 3
where = "any"

[slate.diversity]
weight = 0.3
"""

from collections.abc import Mapping
from enum import IntFlag
from functools import lru_cache
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from schemas.aggregates import ITEM
from schemas.errors import SettingsError
from schemas.features import Registry
from schemas.records import CANDIDATES_COUNT_MAX

Count = Annotated[int, Meta(ge=1)]
Places = Annotated[int, Meta(ge=1, le=CANDIDATES_COUNT_MAX)]
Share = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[float, Meta(gt=0)]

#: The key of `safety.labels` that is every market.
EVERYWHERE = "*"


class Touch(IntFlag):
    """What a rule did to an item; the names are the reason codes of a response."""

    REMOVED = 1  # taken down: never returned
    BLOCKED_AUTHOR = 2  # never returned
    UNSAFE = 4  # a label that this market, or this person, is not shown: never returned
    SEEN = 8  # behind all that was not seen
    FRESH = 16  # its score was raised for its age
    COLD_START = 32  # its score was drawn to the prior: too few impressions to know it
    AUTHOR_CAP = 64  # stands lower: its author had enough places
    TOPIC_CAP = 128  # likewise, one of its topics
    CAP_RELAXED = 256  # stands where it breaks a cap: nothing that is left keeps it
    DIVERSITY = 512  # stands higher: those with better scores are like what stands above
    EXPLORED = 1024  # drawn by lot
    UNPERSONALIZED = 2048  # scored without what is known of the person, as they want it


#: Whoever is touched so is never returned.
OUT = Touch.REMOVED | Touch.BLOCKED_AUTHOR | Touch.UNSAFE


@lru_cache(maxsize=4_096)
def reasons(touched: int) -> tuple[str, ...]:
    """The reason codes of an item."""
    return tuple(flag.name or "" for flag in Touch if flag & touched)


class Rule(Struct, frozen=True, forbid_unknown_fields=True):
    """What all rules have in common: a field that they do not know is a slip of the pen."""


class Cap(Rule, frozen=True):
    """At most `count` items of one author, or with one topic, in the first `window` places, or in any run of so many."""

    of: Literal["author", "topic"]
    count: Count
    window: Places
    where: Literal["first", "any"] = "first"


class Diversity(Rule, frozen=True):
    """Maximal marginal relevance (Carbonell and Goldstein, 1998) on content embeddings, in the first places.

    A place goes to the highest (1 - weight) x score - weight x likeness to the most alike item above it; scores are spread over [0, 1].
    """

    weight: Share
    first: Places = 20


class Freshness(Rule, frozen=True):
    """A score grows by a share of itself, `boost` at once and half as much after each half-life."""

    boost: Positive
    half_life_hours: Positive = 12.0


class ColdStart(Rule, frozen=True):
    """An item with few impressions in the longest window is not judged by them: its score is drawn towards `prior`.

    By `weight` without any, by less with each, by nothing from `impressions` on.
    """

    prior: Share
    weight: Share = 0.5
    impressions: Count = 1_000


class Exploration(Rule, frozen=True):
    """Epsilon-greedy: each of the first places goes, with probability epsilon, to one of those that may stand there, all alike."""

    epsilon: Share
    first: Places = 20


class Safety(Rule, frozen=True):
    """Labels that are not shown: by market ("*" is every one), and to people without consent to personalization."""

    labels: Mapping[str, tuple[str, ...]] = {}
    without_consent: tuple[str, ...] = ()


class Rules(Rule, frozen=True):
    """All rules. displacement_max: how many places all but caps may move an item from where its score alone has it."""

    caps: tuple[Cap, ...] = ()
    diversity: Diversity | None = None
    freshness: Freshness | None = None
    cold_start: ColdStart | None = None
    exploration: Exploration | None = None
    safety: Safety | None = None
    blocked_authors: tuple[str, ...] = ()
    displacement_max: Places = 50

    @property
    def is_arranging(self) -> bool:
        """Whether some rule may change the order that scores give."""
        return bool(self.caps or self.diversity or self.freshness or self.cold_start or self.exploration)

    @property
    def is_weeding(self) -> bool:
        """Whether some rule leaves items out for everybody."""
        return bool(self.blocked_authors or self.safety)

    @property
    def facts(self) -> frozenset[str]:
        """What these rules look at of an item. Who asks may block authors, so authors are always looked at."""
        named = {"removed", "author_id"}
        if any(cap.of == "topic" for cap in self.caps):
            named.add("topic_tags")
        if self.diversity:
            named.add("content_embedding")
        if self.freshness:
            named.add("created_at_ms")
        if self.cold_start:
            named.add("impressions")
        if self.safety:
            named.add("safety_labels")
        return frozenset(named)


#: Where none is given.
NO_RULES = Rules()


def parse(text: str | bytes) -> Rules:
    """Rules from JSON, the table as millstream.toml has it. Raises ValueError that says which field is wrong."""
    try:
        return msgspec.json.decode(text or b"{}", type=Rules)
    except msgspec.DecodeError as error:
        raise ValueError(f"the rules of ranker/slate/rules.py as a table: {error}") from error


def check(rules: Rules, registry: Registry) -> None:
    """Raises SettingsError where a rule looks at what the registry's records do not keep."""
    kept = {static.name for static in registry.static_fields(ITEM)} | {"removed"}
    kept |= {"impressions"} if registry.windows(ITEM) else set()
    missing = sorted(rules.facts - kept - {"author_id"}) + (["author_id"] if _is_of_authors(rules) and "author_id" not in kept else [])
    if missing:
        message = f"slate has rules that look at {', '.join(missing)} of items, and the registry keeps no such static field. Name it there."
        raise SettingsError(message)


def _is_of_authors(rules: Rules) -> bool:
    return bool(rules.blocked_authors) or any(cap.of == "author" for cap in rules.caps)
