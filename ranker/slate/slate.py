"""A request's scored candidates become its slate: some are out, some stand elsewhere than their score has them, each with its reasons.

    who is out -> what the rules make of scores -> who stands where -> the first k

Without rules it is the order of the scores. Lots are drawn from the request's id: asked again, on whichever replica, the slate is the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from online_store.record import hash_of
from ranker.slate.arrange import AUTHOR, TOPIC, Ordered, Plan, arrange, by_score
from ranker.slate.rules import EVERYWHERE, Rules, Safety, Touch
from ranker.slate.scores import Adjusted, adjust
from schemas.aggregates import LABELS_LEFT_OUT
from schemas.records import RankRequest

#: Keys of a request's context: who its user blocked and what they saw already, comma separated; the market, else it is the user's region.
BLOCKED_AUTHOR_IDS, SEEN_ITEM_IDS, MARKET = "blocked_author_ids", "seen_item_ids", "market"

Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]
#: Authors, labels and markets that rules and requests name.
_hash = lru_cache(maxsize=4_096)(hash_of)


class Candidates(NamedTuple):
    """n candidates. facts: of items, [n, ...] each.

    order_by: float32 [n], the model's scores; scores: float32 [n], calibrated if some rule arranges, which weighs them. Where calibration
    gives two of them one probability, the model's still tell them apart.
    """

    item_ids: Sequence[str]
    order_by: NDArray[np.float32]
    scores: NDArray[np.float32]
    facts: Mapping[str, NDArray[Any]]

    def part(self, begin: int, end: int) -> "Candidates":
        """Those of one request among several's."""
        facts = {name: column[begin:end] for name, column in self.facts.items()}
        return Candidates(self.item_ids[begin:end], self.order_by[begin:end], self.scores[begin:end], facts)


class Viewer(NamedTuple):
    """Who looks. market: its hash, 0 if it is not known; is_personalized: whether they want to be known by what they did."""

    market: int = 0
    is_personalized: bool = True


class Slate(NamedTuple):
    """order: int64 [at most k], candidates best first. touched: int64 [n], ranker.slate.rules.Touch of every candidate.

    propensities: float64 [at most k], how likely each stood where it does, given those above it. adjusted: None without such rules.
    """

    order: Ints
    touched: Ints
    propensities: NDArray[np.float64]
    adjusted: Adjusted | None = None


class Slated(NamedTuple):
    """The slates of r requests, one behind the other.

    rows: int64 [m], which of all candidates; counts: int64 [r], places of each. touched, propensities: [m], as Slate's, of each place.
    """

    rows: Ints
    counts: Ints
    touched: Ints
    propensities: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Slates:
    """Makes slates by rules."""

    rules: Rules
    _blocked: Hashes
    _plan: Plan

    @classmethod
    def by(cls, rules: Rules) -> "Slates":
        """By these rules."""
        blocked = np.array([_hash(author) for author in rules.blocked_authors], np.uint64)
        caps = [(AUTHOR if cap.of == "author" else TOPIC, cap.count, cap.window, cap.where == "any") for cap in rules.caps]
        weight, diverse = (rules.diversity.weight, rules.diversity.first) if rules.diversity else (0.0, 0)
        epsilon, explored = (rules.exploration.epsilon, rules.exploration.first) if rules.exploration else (0.0, 0)
        plan = Plan(np.array(caps, np.int64).reshape(-1, 4), float(weight), diverse, float(epsilon), explored, rules.displacement_max)
        return cls(rules, blocked, plan)

    def slates(self, candidates: Candidates, starts: Ints, requests: Sequence[RankRequest], viewers: Sequence[Viewer]) -> Slated:
        """Those of r requests. starts: int64 [r + 1], where each one's candidates begin."""
        each = zip(starts[:-1].tolist(), starts[1:].tolist(), requests, viewers, strict=True)
        if self.rules.is_arranging:
            return _joined([(begin, self.slate(candidates.part(begin, end), request, viewer)) for begin, end, request, viewer in each])
        touched = _removed(candidates)
        for begin, end, request, viewer in each:
            if self.rules.is_weeding or request.context or not viewer.is_personalized:
                touched[begin:end] = self._touched(candidates.part(begin, end), request, viewer)
        ks = np.array([request.k for request in requests], np.int64)
        rows, counts = by_score(candidates.order_by, touched, starts, ks)
        return Slated(rows, counts, touched[rows], np.ones(len(rows)))

    def slate(self, candidates: Candidates, request: RankRequest, viewer: Viewer) -> Slate:
        """One request's slate."""
        touched = self._touched(candidates, request, viewer)
        if not self.rules.is_arranging:
            order = _by_score(candidates, touched, request.k)
            return Slate(order, touched, np.ones(len(order)))
        ranks = _by_score(candidates, touched, len(touched))
        return self._arranged(candidates, request, ranks, touched)

    def _arranged(self, candidates: Candidates, request: RankRequest, ranks: Ints, touched: Ints) -> Slate:
        adjusted = adjust(self.rules, candidates.scores, dict(candidates.facts), request.ts_ms)
        touched = touched | adjusted.touched
        if not len(ranks):
            return Slate(ranks, touched, np.ones(0), adjusted)
        facts, unseen = candidates.facts, int(((touched[ranks] & Touch.SEEN) == 0).sum())
        topics = facts["topic_tags"][ranks] if "topic_tags" in facts else np.zeros((len(ranks), 0), np.uint64)
        embeddings = facts["content_embedding"][ranks] if "content_embedding" in facts else np.zeros((len(ranks), 0), np.int8)
        ranked = Ordered(unseen, _spread(adjusted.values[ranks]), _authors(candidates)[ranks], topics, embeddings)
        seed = np.uint64(xxhash.xxh3_64_intdigest(f"{request.tenant}\0{request.request_id}".encode()))
        order, moved, propensities = arrange(ranked, self._plan, min(request.k, len(ranks)), seed)
        touched[ranks] |= moved
        return Slate(ranks[order], touched, propensities, adjusted)

    def _touched(self, candidates: Candidates, request: RankRequest, viewer: Viewer) -> Ints:
        """Who is not returned, or last, and why; and who is scored without what is known of the person."""
        facts, context = candidates.facts, request.context
        touched = _removed(candidates)
        blocked = _hashes(context.get(BLOCKED_AUTHOR_IDS, ""))
        if len(blocked) or len(self._blocked):
            touched |= np.where(np.isin(_authors(candidates), [*blocked, *self._blocked]), int(Touch.BLOCKED_AUTHOR), 0)
        if self.rules.safety:
            market = _hash(context[MARKET]) if MARKET in context else viewer.market
            unsafe = _with_label(facts["safety_labels"], _unwanted(self.rules.safety, market, viewer))
            touched |= np.where(unsafe, int(Touch.UNSAFE), 0)
        if context.get(SEEN_ITEM_IDS):
            seen = set(context[SEEN_ITEM_IDS].split(","))
            touched |= np.array([int(Touch.SEEN) if item_id in seen else 0 for item_id in candidates.item_ids], np.int64)
        if not viewer.is_personalized:
            touched |= int(Touch.UNPERSONALIZED)
        return touched


def _joined(slates: Sequence[tuple[int, Slate]]) -> Slated:
    """Slates of several, each with the row of all at which its candidates begin."""
    return Slated(
        np.concatenate([begin + slate.order for begin, slate in slates]),
        np.array([len(slate.order) for _, slate in slates]),
        np.concatenate([slate.touched[slate.order] for _, slate in slates]),
        np.concatenate([slate.propensities for _, slate in slates]),
    )


def _by_score(candidates: Candidates, touched: Ints, k: int) -> Ints:
    return by_score(candidates.order_by, touched, np.array([0, len(touched)]), np.array([k]))[0]


def _removed(candidates: Candidates) -> Ints:
    return np.where(candidates.facts["removed"], int(Touch.REMOVED), 0)


def _authors(candidates: Candidates) -> Hashes:
    """Hashes of authors, uint64 [n], 0 where the records keep none."""
    found = candidates.facts.get("author_id")
    return np.zeros(len(candidates.item_ids), np.uint64) if found is None else found


def _hashes(words: str) -> list[np.uint64]:
    return [np.uint64(_hash(word)) for word in words.split(",") if word]


def _unwanted(safety: Safety, market: int, viewer: Viewer) -> Hashes:
    """Hashes of the labels that are not shown to this person in this market."""
    named = [*safety.labels.get(EVERYWHERE, ()), *(() if viewer.is_personalized else safety.without_consent)]
    named += [label for where, labels in safety.labels.items() if _hash(where) == market for label in labels]
    return np.array([_hash(label) for label in named], np.uint64)


def _with_label(labels: Hashes, unwanted: Hashes) -> NDArray[np.bool_]:
    """Who has an unwanted label, or more labels than records keep: one that is not known may be one of them."""
    if not len(unwanted):
        return np.zeros(len(labels), np.bool_)
    return np.asarray(np.isin(labels, [*unwanted, np.uint64(LABELS_LEFT_OUT)]).any(axis=1))


def _spread(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over [0, 1]; all 0 where they are the same."""
    lowest, highest = values.min(), values.max()
    return (values - lowest) / (highest - lowest) if highest > lowest else np.zeros(len(values))
