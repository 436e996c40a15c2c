"""One rank request to one response, whatever fails: the core behind every front end.

    request -> one read (user, candidates, an answer kept from before) -> tiles -> vector -> score -> slate -> response

A request is always answered inside its deadline: what cannot be read or scored in time is ranked by popularity, else left in the
order it came in, and `degraded` says so. The answer to a request_id is kept; asked again, the same bytes come back.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakValueDictionary

import numpy as np

from online_store.keys import Entity, Generation, answer_key, record_key
from online_store.record import layouts, read
from online_store.store import OnlineStore
from ranker import metrics
from ranker.bundle import Bundle
from ranker.popularity import Popularity
from ranker.score import Scorer
from ranker.slate import slate
from schemas import codec
from schemas.aggregates import ITEM, USER, Tiles
from schemas.errors import BundleError, DecodeError, GenerationError, StoreError
from schemas.features import Feature, Registry
from schemas.records import (
    CANDIDATES_COUNT_MAX,
    ID_BYTES_MAX,
    Degraded,
    RankedItem,
    RankRequest,
    RankResponse,
    RankTelemetry,
    Reason,
    ServedItem,
)

#: A request that names no deadline is answered in this many milliseconds: what a feed waits before it shows something else.
DEADLINE_MS = 80
#: Of it, left for falling back and encoding once the store or the model has used up its time (milliseconds).
RESERVE_MS = 10
#: Of that, left for telemetry and sending once the answer is kept or the store has used up its time again (milliseconds).
SEND_MS = 4
#: What keeping an answer is given though its deadline is over (milliseconds): asked again, it should be the same. Ten times what a
#: store near by takes; more would hold up a backlog while the store hangs.
KEEP_MS_MIN = 3
#: How long the answer to a request_id is kept (milliseconds). A producer that retries later than this is answered anew.
ANSWER_TTL_MS = 900_000
#: Answers remembered in this process, for when the store is away.
ANSWERS_COUNT_MAX = 10_000


class Answer(NamedTuple):
    """What goes out. response: the encoded RankResponse; telemetry: the encoded RankTelemetry, None for a repeated answer."""

    response: bytes
    telemetry: bytes | None


class Ranked(NamedTuple):
    """A slate with the vectors that were scored, one an item; none on a fallback."""

    items: list[RankedItem]
    vectors: list[bytes]
    degraded: Degraded


class Ranker:
    """Ranks requests on one store with one bundle."""

    def __init__(self, store: OnlineStore, registry: Registry, bundle: Bundle) -> None:
        """Raises BundleError for a bundle that was trained on another registry."""
        if bundle.manifest.feature_version != registry.fingerprint:
            message = (
                f"{bundle.folder} was trained on registry {bundle.manifest.feature_version}, ours is {registry.fingerprint}. "
                "Train a new bundle with `millstream train`."
            )
            raise BundleError(message)
        self._store = store
        self._registry = registry
        self._layouts = layouts(registry)
        self._bundle = bundle
        self._scorer = Scorer(bundle)
        self._popularity = Popularity(bundle.popularity)
        self._longest_ctr = longest_ctr(registry)
        self._answers: OrderedDict[bytes, bytes] = OrderedDict()
        #: Requests under way: one that comes twice at once is ranked once. A lock goes with the last of its requests.
        self._asked: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()
        self.generation: Generation | None = None

    async def refresh(self) -> None:
        """Look which generation is current; a store that is away changes nothing."""
        try:
            self.generation = await self._store.current()
        except StoreError:
            metrics.FALLBACKS.labels("refresh").inc()

    async def answer(self, request: RankRequest, received_s: float) -> Answer:
        """Answer a checked request. received_s: time.perf_counter() when it came in; its deadline counts from there."""
        key = answer_key(request.tenant, request.request_id)
        asked = self._asked.setdefault(key, asyncio.Lock())
        async with asked:
            kept = self._answers.get(key)
            if kept is None:
                deadline_s = received_s + (request.deadline_ms or DEADLINE_MS) / 1000
                kept, ranked = await self._rank(request, key, deadline_s - RESERVE_MS / 1000)
                if ranked:
                    return await self._keep(request, key, ranked, received_s, deadline_s)
            assert kept is not None
            metrics.REPEATS.inc()
            self._remember(key, kept)
            return Answer(kept, None)

    async def _rank(  # one return a way to fall back
        self, request: RankRequest, key: bytes, until_s: float
    ) -> tuple[bytes | None, Ranked | None]:
        """The answer kept from before, or a slate."""
        item_ids = list(dict.fromkeys(request.candidate_item_ids))
        try:
            return await self._rank_in_full(request, key, item_ids, until_s)
        except TimeoutError:
            cause = "deadline"
        except GenerationError:
            cause = "generation"
        except StoreError:
            cause = "store"
        except BundleError:
            cause = "model"
        return None, self._fall_back(item_ids, request.k, cause)

    async def _rank_in_full(
        self, request: RankRequest, key: bytes, item_ids: Sequence[str], until_s: float
    ) -> tuple[bytes | None, Ranked | None]:
        """As _rank, from the store and the model. Raises TimeoutError past until_s."""
        generation = self.generation
        if generation is None or generation.feature_version != self._registry.fingerprint:
            raise GenerationError(f"the current generation is {generation}: none of registry {self._registry.fingerprint}. Rebuild one.")
        # A call that is cut off costs its connection: in a backlog, reconnecting would be all that gets done.
        async with asyncio.timeout(_left_s(until_s)):
            kept, user, *items = await self._read(generation, request, key, item_ids)
        if kept:
            return kept, None
        # Others may have been scored while this one's records were on their way.
        _left_s(until_s)
        return None, self._score(request, item_ids, user, items)

    async def _read(self, generation: Generation, request: RankRequest, key: bytes, item_ids: Sequence[str]) -> list[bytes | None]:
        entities = [Entity(request.tenant, USER, request.user_id)]
        entities += [Entity(request.tenant, ITEM, item_id) for item_id in item_ids]
        with metrics.STAGES.labels("store").time():
            return await self._store.read([key, *(record_key(generation, entity) for entity in entities)])

    def _score(self, request: RankRequest, item_ids: Sequence[str], user: bytes | None, items: Sequence[bytes | None]) -> Ranked:
        with metrics.STAGES.labels("vector").time():
            tiles = read(self._layouts[ITEM], items, request.ts_ms)
            user_tiles = read(self._layouts[USER], [user], request.ts_ms)
            matrix = self._registry.vector(tiles, user_tiles, request.context, request.ts_ms)
        with metrics.STAGES.labels("score").time():
            scores = self._scorer.score(matrix)
        with metrics.STAGES.labels("slate").time():
            self._learn(item_ids, tiles, request.ts_ms)
            chosen, places = slate(item_ids, scores, tiles.removed, request.k)
            return Ranked(chosen, [matrix[place].astype("<f4").tobytes() for place in places], Degraded.NONE)

    def _learn(self, item_ids: Sequence[str], tiles: Tiles, as_of_ms: int) -> None:
        if self._longest_ctr:
            self._popularity.learn(item_ids, self._registry.column(self._longest_ctr, tiles, as_of_ms))

    def _fall_back(self, item_ids: Sequence[str], k: int, cause: str) -> Ranked:
        metrics.FALLBACKS.labels(cause).inc()
        scores = self._popularity.scores(item_ids)
        degraded = Degraded.INPUT_ORDER if scores is None else Degraded.POPULARITY
        if scores is None:
            scores = np.zeros(len(item_ids), dtype=np.float32)
        chosen, _ = slate(item_ids, scores, np.zeros(len(item_ids), dtype=np.bool_), k)
        return Ranked(chosen, [b""] * len(chosen), degraded)

    async def _keep(self, request: RankRequest, key: bytes, ranked: Ranked, received_s: float, deadline_s: float) -> Answer:
        """Encode an answer and keep it, unless another worker was faster: then that one is the answer."""
        response = self._response(request, ranked, (time.perf_counter() - received_s) * 1000)
        encoded = codec.encode(response)
        try:
            left_s = deadline_s - SEND_MS / 1000 - time.perf_counter()
            async with asyncio.timeout(max(left_s, KEEP_MS_MIN / 1000)):
                kept = await self._store.keep_answer(key, encoded, ANSWER_TTL_MS)
        except (StoreError, TimeoutError):
            kept = encoded
        self._remember(key, kept)
        metrics.REQUESTS.labels(ranked.degraded).inc()
        metrics.LATENCY.observe(time.perf_counter() - received_s)
        return Answer(kept, codec.encode(self._telemetry(response, ranked)) if kept == encoded else None)

    def _remember(self, key: bytes, answer: bytes) -> None:
        self._answers[key] = answer
        if len(self._answers) > ANSWERS_COUNT_MAX:
            self._answers.popitem(last=False)

    def _response(self, request: RankRequest, ranked: Ranked, latency_ms: float) -> RankResponse:
        return RankResponse(
            request_id=request.request_id,
            user_id=request.user_id,
            ranked_items=ranked.items,
            model_version=self._bundle.manifest.model_version,
            feature_version=self._registry.fingerprint,
            generation=self.generation.name if self.generation else "",
            latency_ms=round(latency_ms, 3),
            degraded=ranked.degraded,
            arm="default",
            ts_ms=request.ts_ms,
            tenant=request.tenant,
        )

    @staticmethod
    def _telemetry(response: RankResponse, ranked: Ranked) -> RankTelemetry:
        items = [
            ServedItem(item_id=item.item_id, position=position, score=item.score, vector=vector)
            for position, (item, vector) in enumerate(zip(ranked.items, ranked.vectors, strict=True))
        ]
        return RankTelemetry(
            request_id=response.request_id,
            user_id=response.user_id,
            items=items,
            model_version=response.model_version,
            feature_version=response.feature_version,
            generation=response.generation,
            degraded=response.degraded,
            arm=response.arm,
            ts_ms=response.ts_ms,
            tenant=response.tenant,
        )


def _left_s(until_s: float) -> float:
    """Seconds until a moment of time.perf_counter(). Raises TimeoutError when there are none."""
    left_s = until_s - time.perf_counter()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def check_request(request: RankRequest) -> None:
    """What no schema can say of a request. Raises DecodeError with the field at fault."""
    count = len(request.candidate_item_ids)
    if not 0 < count <= CANDIDATES_COUNT_MAX:
        raise DecodeError(Reason.OUT_OF_RANGE, f"candidate_item_ids has {count} entries, 1 to {CANDIDATES_COUNT_MAX} are ranked")
    if request.k < 1 or (request.deadline_ms is not None and request.deadline_ms < 1):
        raise DecodeError(Reason.OUT_OF_RANGE, f"k is {request.k} and deadline_ms {request.deadline_ms}: both count from 1")
    for item_id in request.candidate_item_ids:
        if not item_id:
            raise DecodeError(Reason.MISSING_ID, "candidate_item_ids has an empty id")
        if len(item_id.encode()) > ID_BYTES_MAX:
            raise DecodeError(Reason.OVERSIZE, f"candidate_item_ids has an id longer than {ID_BYTES_MAX} bytes")


def longest_ctr(registry: Registry) -> Feature | None:
    """The item CTR over the longest window: what popularity is judged by."""
    found = [feature for feature in registry.features if feature.kind == ITEM and feature.formula == "ctr"]
    return max(found, key=lambda feature: feature.window.span_ms if feature.window else 0, default=None)
