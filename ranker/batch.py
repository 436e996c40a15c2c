"""A batch of requests to slates: read, matrix, score, order. What cannot be done so falls back, step by step, and says how far.

full answer -> vectors that the near cache still has -> popularity -> the order that the candidates came in
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from online_store.keys import Generation
from online_store.snapshot.file import Snapshot
from online_store.store import OnlineStore
from ranker import metrics
from ranker.bundle import Bundle
from ranker.encode import Items
from ranker.popularity import Popularity
from ranker.reads.near import Columns
from ranker.reads.reader import FOLDED, Asked, Read, Reader
from ranker.score import Scorer
from ranker.slate.explain import explain
from ranker.slate.rules import Rules, check, reasons
from ranker.slate.slate import Candidates, Slate, Slates, Viewer
from schemas.aggregates import ITEM, USER
from schemas.errors import BundleError, GenerationError, StoreAwayError, StoreError
from schemas.features import REQUEST, Feature, Registry
from schemas.records import Degraded


class Ranked(NamedTuple):
    """A slate, and how far it fell back. stale_ms: how old the oldest vector was that came from the near cache."""

    items: Items
    degraded: Degraded
    stale_ms: int


class Pipeline:
    """Ranks batches on one store with one bundle."""

    def __init__(self, store: OnlineStore, registry: Registry, bundle: Bundle, rules: Rules, snapshot: Snapshot | None) -> None:
        """Raises BundleError for a bundle that was trained on another registry, SettingsError for rules that it does not fit."""
        if bundle.manifest.feature_version != registry.fingerprint:
            message = (
                f"{bundle.folder} was trained on registry {bundle.manifest.feature_version}, ours is {registry.fingerprint}. "
                "Train a new bundle with `millstream train`."
            )
            raise BundleError(message)
        self._registry = registry
        self._scorer = Scorer(bundle, registry.places[ITEM])
        check(rules, registry)
        self._slates = Slates.by(rules)
        self._reader = Reader(store, registry, self._scorer.fold, rules.facts, snapshot)
        self._popularity = Popularity(bundle.popularity)
        self._ctr_at = longest_ctr_at(registry)

    def forget(self) -> None:
        """Another generation is current: nothing that was read holds any more."""
        self._reader.forget()

    async def read(self, generation: Generation | None, batch: Sequence[Asked]) -> Read:
        """What a batch must know. Raises TimeoutError, StoreError, and GenerationError without a generation of our registry."""
        if generation is None or generation.feature_version != self._registry.fingerprint:
            raise GenerationError(f"the current generation is {generation}: none of registry {self._registry.fingerprint}. Rebuild one.")
        with metrics.STAGES.labels("store").time():
            found = await self._reader.read(generation, batch)
        if self._ctr_at is not None:
            self._popularity.learn(found.new_ids, found.new.vectors[:, self._ctr_at])
        return found

    def rank(self, batch: Sequence[Asked], known: Read, degraded: Degraded = Degraded.NONE) -> list[Ranked]:
        """Slates from what was read, one a request. Raises BundleError where the model cannot score."""
        with metrics.STAGES.labels("vector").time():
            matrix = self._matrix(batch, known)
        with metrics.STAGES.labels("score").time():
            scores = self._scorer.score(matrix, known.starts, known.items.facts.get(FOLDED))
        with metrics.STAGES.labels("slate").time():
            return [self._slate(asked, number, known, matrix, scores, degraded) for number, asked in enumerate(batch)]

    def fall_back(self, asked: Asked, cause: str) -> Ranked:
        """The best slate without the store, or without the model."""
        metrics.FALLBACKS.labels(cause).inc()
        stale = self._reader.stale(asked) if cause != "model" else None
        if stale is not None:
            try:
                return self.rank([asked], stale, Degraded.STALE)[0]
            except BundleError:
                metrics.FALLBACKS.labels("model").inc()
        return self.by_popularity(asked)

    def by_popularity(self, asked: Asked) -> Ranked:
        """The slate that costs next to nothing."""
        found = self._popularity.scores(asked.item_ids)
        degraded = Degraded.INPUT_ORDER if found is None else Degraded.POPULARITY
        scores = np.zeros(len(asked.item_ids), np.float32) if found is None else found
        slate = self._slates.slate(_candidates(asked, scores, self._reader.remembered(asked)), asked.request, Viewer())
        return Ranked(_items(asked, slate, scores, [b""] * len(slate.order)), degraded, 0)

    def explain(self, asked: Asked, known: Read) -> dict[str, Any]:
        """How a request comes to its slate, ready for JSON. known: read for it alone. Raises BundleError where the model cannot score."""
        matrix = self._matrix([asked], known)
        candidates = _candidates(asked, self._scorer.score(matrix, known.starts, known.items.facts.get(FOLDED)), known.items)
        slate = self._slates.slate(candidates, asked.request, known.viewers[0])
        return explain(self._registry.feature_names, candidates, matrix, slate)

    def _matrix(self, batch: Sequence[Asked], known: Read) -> NDArray[np.float32]:
        """As Registry.vector, of several requests: float32 [n, features]."""
        counts = np.diff(known.starts)
        matrix = np.empty((len(known.items), len(self._registry.ranking)), np.float32)
        matrix[:, self._registry.places[ITEM]] = known.items.vectors
        matrix[:, self._registry.places[USER]] = np.repeat(known.users, counts, axis=0)
        if self._registry.places[REQUEST]:
            rows = np.stack([self._registry.context_row(asked.request.context) for asked in batch])
            matrix[:, self._registry.places[REQUEST]] = np.repeat(rows, counts, axis=0)
        return matrix

    def _slate(
        self, asked: Asked, number: int, known: Read, matrix: NDArray[np.float32], scores: NDArray[np.float32], degraded: Degraded
    ) -> Ranked:
        rows = slice(int(known.starts[number]), int(known.starts[number + 1]))
        slate = self._slates.slate(_candidates(asked, scores[rows], known.items, rows), asked.request, known.viewers[number])
        packed = matrix[rows][slate.order].astype("<f4", copy=False).tobytes()
        size = matrix.shape[1] * matrix.itemsize
        vectors = [packed[at : at + size] for at in range(0, len(packed), size)]
        return Ranked(_items(asked, slate, scores[rows], vectors), degraded, int(known.stale_ms[number]))


def _candidates(asked: Asked, scores: NDArray[np.float32], items: Columns, rows: slice = slice(None)) -> Candidates:
    """A request's, which are these rows of the items."""
    return Candidates(asked.item_ids, scores, scores, {name: column[rows] for name, column in items.facts.items() if name != FOLDED})


def _items(asked: Asked, slate: Slate, scores: NDArray[np.float32], vectors: Sequence[bytes]) -> Items:
    ids = [asked.item_ids[place] for place in slate.order.tolist()]
    why = list(map(reasons, slate.touched[slate.order].tolist()))
    return Items(ids, scores[slate.order].tolist(), why, vectors, slate.propensities.tolist())


def longest_ctr_at(registry: Registry) -> int | None:
    """Which column of items is their CTR over the longest window, by which popularity is judged; None where there is none."""
    features: list[Feature] = [registry.ranking[place] for place in registry.places[ITEM]]
    found = [place for place, feature in enumerate(features) if feature.formula == "ctr"]
    return max(found, key=lambda place: features[place].window.span_ms if features[place].window else 0, default=None)  # type: ignore[union-attr]  # a CTR has one


#: What may go wrong with a read, and what it is called.
CAUSES: tuple[tuple[type[Exception], str], ...] = (
    (TimeoutError, "deadline"),
    (GenerationError, "generation"),
    (StoreAwayError, "store"),
    (StoreError, "record"),
)


def cause_of(error: Exception) -> str:
    """What a failed read is called."""
    return next(name for kind, name in CAUSES if isinstance(error, kind))
