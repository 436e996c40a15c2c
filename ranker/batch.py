"""A batch of requests to slates: read, matrix, score, calibrate, order. What cannot be done so falls back, step by step, and says how far.

full answer -> vectors that the near cache still has -> popularity -> the order that the candidates came in
"""

import asyncio
import time
from collections.abc import Sequence
from itertools import accumulate, chain, compress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from online_store.keys import Generation, Names, Pointer
from online_store.snapshot.file import Snapshot
from online_store.store import OnlineStore
from ranker import encode, metrics
from ranker.budgets import Budgets
from ranker.bundle import Bundle
from ranker.encode import Items, Places
from ranker.reads.near import NEAR_COUNT_MAX, Rows
from ranker.reads.popularity import Popularity
from ranker.reads.reader import NOTHING_APPLIED, VECTOR, Asked, Read, Reader
from ranker.score import Floats, Scorer
from ranker.slate.explain import explain
from ranker.slate.rules import Rules, check
from ranker.slate.slate import Candidates, Slated, Slates, Viewer
from schemas.aggregates import ITEM, USER
from schemas.errors import BundleError, GenerationError, StoreAwayError, StoreError
from schemas.features import REQUEST, Feature, Registry
from schemas.records import CANDIDATES_COUNT_MAX, Degraded, RankRequest

#: Items that are read before somebody asks: some ten reads, a few milliseconds of store and ranker each. More would crowd out requests.
POPULAR_COUNT_MAX = 2_000
#: How long that may take (seconds). What is not near by then is read when it is asked for.
PREWARM_S = 1.0


class Ranked(NamedTuple):
    """A slate, and how far it fell back. stale_ms: how old the oldest vector was that came from the near cache. applied: as Read's."""

    items: Items
    degraded: Degraded
    stale_ms: int
    applied: bytes = NOTHING_APPLIED


class Pipeline:
    """Ranks batches on one store with one bundle."""

    def __init__(  # what a ranker is made of
        self, store: OnlineStore, registry: Registry, bundle: Bundle, budgets: Budgets, rules: Rules, snapshot: Snapshot | None
    ) -> None:
        """Warm when it stands: the model has scored the bundle's sample, and all that a request runs through was compiled.

        Raises BundleError for a bundle that was trained on another registry, or that cannot score, SettingsError for rules that do not fit.
        """
        if bundle.manifest.feature_version != registry.fingerprint:
            message = (
                f"{bundle.folder} was trained on registry {bundle.manifest.feature_version}, ours is {registry.fingerprint}. "
                "Train a new bundle with `millstream train`."
            )
            raise BundleError(message)
        self.manifest = bundle.manifest
        self._registry = registry
        self._budgets = budgets
        self._scorer = Scorer(bundle, registry.places[ITEM], NEAR_COUNT_MAX + 1)
        check(rules, registry)
        self._slates = Slates.by(rules)
        self._reader = Reader(store, registry, budgets, rules.facts, snapshot)
        self._popularity = Popularity(bundle.popularity, longest_ctr_at(registry))
        self._popular = list(bundle.popularity)[:POPULAR_COUNT_MAX]
        #: From columns by kind to columns of the matrix.
        self._order = np.argsort([place for kind in (ITEM, USER, REQUEST) for place in registry.places[kind]])
        self._shared_order = np.argsort([place for kind in (USER, REQUEST) for place in registry.places[kind]])
        nobodys = _nobodys(["nothing"], 0)
        _ = self.by_popularity([nobodys]), self.rank([nobodys], self._reader.unknown(nobodys))

    def fits(self, pointer: Pointer) -> bool:
        """Whether it ranks what is current, by the model that is."""
        return pointer.feature_version == self._registry.fingerprint and pointer.model_version in ("", self.manifest.model_version)

    def forget(self) -> None:
        """Another generation is current: nothing that was read holds any more."""
        self._reader.forget()

    async def look(self, generation: Generation | None) -> None:
        """See what the store has applied, for telemetry to tell, and what snapshot there is; a store that is away changes nothing."""
        if generation is not None:
            try:
                await self._reader.look(generation)
            except StoreError:
                metrics.FALLBACKS.labels("refresh").inc()

    @property
    def is_store_away(self) -> bool:
        """Whether the store is left alone, for it did not answer."""
        return self._reader.is_store_away

    async def prewarm(self, generation: Generation | None) -> None:
        """Read what is popular before it is asked for: after a start, another generation or an outage nothing is near."""
        now_ms = time.time_ns() // 1_000_000
        try:
            async with asyncio.timeout(PREWARM_S):
                for at in range(0, len(self._popular), CANDIDATES_COUNT_MAX):
                    await self.read(generation, [_nobodys(self._popular[at : at + CANDIDATES_COUNT_MAX], now_ms)])
        except (TimeoutError, StoreError):
            metrics.FALLBACKS.labels("prewarm").inc()

    async def read(self, generation: Generation | None, batch: Sequence[Asked]) -> Read:
        """What a batch must know. Raises TimeoutError, StoreError, and GenerationError without a generation of our registry."""
        if generation is None or generation.feature_version != self._registry.fingerprint:
            raise GenerationError(f"the current generation is {generation}: none of registry {self._registry.fingerprint}. Rebuild one.")
        with metrics.STORE.time():
            return await self._reader.read(generation, batch)

    def rank(self, batch: Sequence[Asked], known: Read, degraded: Degraded = Degraded.NONE) -> list[Ranked]:
        """Slates from what was read, one a request. Raises BundleError where the model cannot score."""
        begun_s = time.perf_counter()
        raw = self._raw(batch, known)
        with metrics.CALIBRATE.time():
            # Rules weigh probabilities; without any, only who is returned has one.
            weighed = self._scorer.calibrate(raw) if self._slates.rules.is_arranging else raw
        scored_s = time.perf_counter()
        with metrics.SLATE.time():
            candidates = Candidates(_item_ids(batch), raw, weighed, _facts(known.items, slice(None)))
            slated = self._slates.slates(candidates, known.starts, [asked.request for asked in batch], known.viewers)
            ranked = self._ranked(batch, known, candidates, slated, degraded)
        metrics.spent("score", scored_s - begun_s, self._budgets.score_ms)
        metrics.spent("rules", time.perf_counter() - scored_s, self._budgets.rules_ms)
        return ranked

    def fall_back(self, batch: Sequence[Asked], cause: str) -> list[Ranked]:
        """The best slates without the store, or without the model, one a request."""
        metrics.FALLBACKS.labels(cause).inc(len(batch))
        if cause == "model":
            return self.by_popularity(batch)
        is_known, stale = self._reader.stale(batch)
        known, others = list(compress(batch, is_known)), [asked for asked, is_one in zip(batch, is_known, strict=True) if not is_one]
        try:
            ranked = iter(self.rank(known, stale, Degraded.STALE) if known else ())
        except BundleError:
            metrics.FALLBACKS.labels("model").inc(len(known))
            return self.by_popularity(batch)
        popular = iter(self.by_popularity(others) if others else ())
        return [next(ranked if is_one else popular) for is_one in is_known]

    def by_popularity(self, batch: Sequence[Asked]) -> list[Ranked]:
        """Slates that cost next to nothing, one a request."""
        names, near, rows = self._reader.remembered(batch)
        starts = np.array([0, *accumulate(len(asked.item_ids) for asked in batch)])
        item_ids = _item_ids(batch)
        scores, is_known = self._popularity.scores(item_ids, starts, near, rows)
        candidates = Candidates(item_ids, scores, scores, _facts(near, rows))
        slated = self._slates.slates(candidates, starts, [asked.request for asked in batch], [Viewer()] * len(batch))
        made = _items(batch, names, candidates, slated, scores[slated.rows], np.empty((len(slated.rows), 0), np.float32))
        degraded = [Degraded.POPULARITY if is_one else Degraded.INPUT_ORDER for is_one in is_known.tolist()]
        return [Ranked(items, how, 0) for items, how in zip(made, degraded, strict=True)]

    def explain(self, asked: Asked, known: Read) -> dict[str, Any]:
        """How a request comes to its slate, ready for JSON. known: read for it alone. Raises BundleError where the model cannot score."""
        raw = self._raw([asked], known)
        candidates = Candidates(asked.item_ids, raw, self._scorer.calibrate(raw), _facts(known.items, slice(None)))
        slate = self._slates.slate(candidates, asked.request, known.viewers[0])
        matrix = self._matrix([asked], known, np.arange(len(raw)), np.zeros(len(raw), np.int64))
        return explain(self._registry.feature_names, candidates, matrix, slate)

    def _raw(self, batch: Sequence[Asked], known: Read) -> NDArray[np.float32]:
        """The model's scores of all candidates. Where it folds, what rows of a request share is all that is needed besides their words."""
        if self._scorer.is_folding:
            with metrics.VECTOR.time():
                shared = self._shared(batch, known)[:, self._shared_order]
            with metrics.SCORE.time():
                return self._scorer.score(known.items[VECTOR], known.places, shared, known.starts)
        with metrics.VECTOR.time():
            of = np.repeat(np.arange(len(batch)), np.diff(known.starts))
            matrix = self._matrix(batch, known, np.arange(len(known.items)), of)
        with metrics.SCORE.time():
            return self._scorer.by_runtime(matrix)

    def _matrix(self, batch: Sequence[Asked], known: Read, rows: NDArray[np.int64], of: NDArray[np.int64]) -> NDArray[np.float32]:
        """As Registry.vector, of some candidates: float32 [n, features]. rows: int64 [n], which; of: int64 [n], each one's request."""
        return np.concatenate((known.items[VECTOR][rows], self._shared(batch, known)[of]), axis=1)[:, self._order]

    def _shared(self, batch: Sequence[Asked], known: Read) -> NDArray[np.float32]:
        """What rows of a request have in common, float32 [r, features]: the user's columns, then the request's own."""
        if not self._registry.places[REQUEST]:
            return known.users
        return np.concatenate((known.users, [self._registry.context_row(asked.request.context) for asked in batch]), axis=1)

    def _ranked(self, batch: Sequence[Asked], known: Read, candidates: Candidates, slated: Slated, degraded: Degraded) -> list[Ranked]:
        """Slates with the vectors that were scored."""
        of = np.repeat(np.arange(len(batch)), slated.counts)
        matrix, scores = self._matrix(batch, known, slated.rows, of), self._scorer.calibrate(candidates.order_by[slated.rows])
        made = _items(batch, known.names, candidates, slated, scores, matrix)
        return [Ranked(items, degraded, stale_ms, known.applied) for items, stale_ms in zip(made, known.stale_ms.tolist(), strict=True)]


def _facts(items: Rows, rows: slice | NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """What a slate looks at of some of the items."""
    return {name: items[name][rows] for name in items.dtype.names or () if name != VECTOR}


def _items(  # what places are made of
    batch: Sequence[Asked], names: Names, candidates: Candidates, slated: Slated, scores: Floats, vectors: Floats
) -> list[Items]:
    """The places of each slate. scores, vectors: of each place."""
    return encode.items(Places(candidates.item_ids, slated, scores), names, [asked.request.tenant for asked in batch], vectors)


def _item_ids(batch: Sequence[Asked]) -> Sequence[str]:
    """All candidates, request by request."""
    return batch[0].item_ids if len(batch) == 1 else list(chain.from_iterable([asked.item_ids for asked in batch]))


def _nobodys(item_ids: list[str], as_of_ms: int) -> Asked:
    """A request that nobody sent."""
    return Asked(RankRequest(request_id="", user_id="", candidate_item_ids=item_ids, k=len(item_ids), ts_ms=as_of_ms), item_ids)


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
