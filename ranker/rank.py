"""Rank requests to responses, whatever fails: the core behind every front end.

    request -> read (user and candidates, near cache before store) -> matrix -> score -> slate -> response, kept by its request_id

Requests that are there at once go through it as one batch: one read, one matrix, one scoring call (ranker/batch.py). While the store reads
for one batch, the one before it is scored. A request is always answered inside its deadline: what cannot be read or scored in time falls
back, and `degraded` says how far. The answer to a request_id is kept; asked again, the same bytes come back.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from online_store.keys import Generation, answer_key
from online_store.snapshot.file import Snapshot
from online_store.store import OnlineStore
from ranker import encode, metrics
from ranker.batch import Pipeline, Ranked, cause_of
from ranker.bundle import Bundle
from ranker.encode import Facts
from ranker.reads.reader import Asked, Read
from ranker.slate.rules import Rules
from schemas.errors import BundleError, DecodeError, StoreError
from schemas.features import Registry
from schemas.records import CANDIDATES_COUNT_MAX, ID_BYTES_MAX, Degraded, RankRequest, Reason

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
#: Requests of one batch. More would let the first of them wait for the scoring of the last.
BATCH_COUNT_MAX = 64
#: Requests that may wait for a batch. Past them one is answered by popularity at once: it would not be read for inside its deadline.
WAITING_COUNT_MAX = 512


class Answer(NamedTuple):
    """What goes out. response: the encoded RankResponse; telemetry: the encoded RankTelemetry, None for a repeated answer."""

    response: bytes
    telemetry: bytes | None


@dataclass(eq=False, slots=True)
class Call:
    """A request under way. received_s, deadline_s: time.perf_counter(). callers: who waits; is_settled: whether its slate is there."""

    asked: Asked
    key: bytes
    received_s: float
    deadline_s: float
    done: asyncio.Future[Answer]
    callers: int = 0
    is_settled: bool = False


class Ranker:
    """Ranks requests on one store with one bundle."""

    def __init__(
        self, store: OnlineStore, registry: Registry, bundle: Bundle, rules: Rules | None = None, snapshot: Snapshot | None = None
    ) -> None:
        """snapshot: has items that the store may have lost.

        Raises BundleError for a bundle that was trained on another registry, SettingsError for rules that it does not fit.
        """
        self._store = store
        self._manifest = bundle.manifest
        self._pipeline = Pipeline(store, registry, bundle, rules or Rules(), snapshot)
        self._answers: OrderedDict[bytes, bytes] = OrderedDict()
        self._calls: dict[bytes, Call] = {}
        self._waiting: deque[Call] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_reading = False
        self.generation: Generation | None = None

    async def refresh(self) -> None:
        """Look which generation is current; a store that is away changes nothing."""
        try:
            found = await self._store.current()
        except StoreError:
            metrics.FALLBACKS.labels("refresh").inc()
            return
        if found != self.generation:
            self._pipeline.forget()
        self.generation = found

    async def answer(self, request: RankRequest, received_s: float) -> Answer:
        """Answer a checked request. received_s: time.perf_counter() when it came in; its deadline counts from there.

        One that is cancelled is not ranked any more, unless another one waits for the same answer.
        """
        key = answer_key(request.tenant, request.request_id)
        kept = self._answers.get(key)
        if kept is not None:
            return self._repeated(key, kept)
        call = self._calls.get(key)
        is_first = call is None
        call = call or self._begin(request, key, received_s)
        call.callers += 1
        try:
            answer = await asyncio.shield(call.done)
        finally:
            call.callers -= 1
        return answer if is_first else self._repeated(key, answer.response)

    async def explain(self, request: RankRequest) -> dict[str, Any]:
        """How a checked request would come to its slate now, ready for JSON; nothing of it is kept.

        Raises StoreError and TimeoutError where it would fall back for the store, BundleError where it would for the model.
        """
        asked = Asked(request, list(dict.fromkeys(request.candidate_item_ids)))
        known = await self._pipeline.read(self.generation, [asked])
        return self._named(request) | self._pipeline.explain(asked, known)

    def _named(self, request: RankRequest) -> dict[str, Any]:
        facts = self._facts(request, Degraded.NONE)
        named = ("request_id", "user_id", "model_version", "feature_version", "generation", "ts_ms")
        return {name: getattr(facts, name) for name in named}

    def _repeated(self, key: bytes, kept: bytes) -> Answer:
        metrics.REPEATS.inc()
        self._remember(key, kept)
        return Answer(kept, None)

    def _begin(self, request: RankRequest, key: bytes, received_s: float) -> Call:
        loop = asyncio.get_running_loop()
        deadline_s = received_s + (request.deadline_ms or DEADLINE_MS) / 1000
        asked = Asked(request, list(dict.fromkeys(request.candidate_item_ids)))
        call = self._calls[key] = Call(asked, key, received_s, deadline_s, loop.create_future())
        left_s = deadline_s - RESERVE_MS / 1000 - time.perf_counter()
        if left_s <= 0:
            self._fall_back([call], "deadline")
        elif len(self._waiting) >= WAITING_COUNT_MAX:
            metrics.FALLBACKS.labels("queue").inc()
            self._settle([call], [self._pipeline.by_popularity(asked)])
        else:
            timer = loop.call_later(left_s, self._fall_back, [call], "deadline")
            call.done.add_done_callback(lambda _: timer.cancel())
            self._waiting.append(call)
            self._read_on()
        return call

    def _read_on(self) -> None:
        """Read for what waits, unless a read is under way: it goes on by itself."""
        if self._waiting and not self._is_reading:
            self._is_reading = True
            self._go(self._read_all())

    async def _read_all(self) -> None:
        """Read batch after batch; each is ranked while the store reads for the next."""
        # Whoever asks in this round of the loop shares the first read.
        await asyncio.sleep(0)
        try:
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH_COUNT_MAX))]
                wanted = self._wanted(batch)
                if wanted:
                    await self._read(wanted)
        finally:
            self._is_reading = False

    def _wanted(self, batch: Sequence[Call]) -> list[Call]:
        """Those that somebody still waits for; the others end here."""
        for call in batch:
            if not call.callers and not call.is_settled:
                call.is_settled = True
                call.done.cancel()
                self._calls.pop(call.key, None)
        return [call for call in batch if not call.is_settled]

    async def _read(self, batch: Sequence[Call]) -> None:
        try:
            known = await self._pipeline.read(self.generation, [call.asked for call in batch])
        except (TimeoutError, StoreError) as error:
            await self._unread(batch, error)
        else:
            asyncio.get_running_loop().call_soon(self._rank, batch, known)

    async def _unread(self, batch: Sequence[Call], error: TimeoutError | StoreError) -> None:
        """Fall back; where a record is at fault, only those fall back that asked for it."""
        cause = cause_of(error)
        if cause == "record" and len(batch) > 1:
            for call in batch:
                await self._read([call])
        else:
            self._fall_back(batch, cause)

    def _rank(self, batch: Sequence[Call], known: Read) -> None:
        try:
            ranked = self._pipeline.rank([call.asked for call in batch], known)
        except BundleError:
            self._fall_back(batch, "model")
        else:
            self._settle(batch, ranked)

    def _fall_back(self, batch: Sequence[Call], cause: str) -> None:
        waiting = [call for call in batch if not call.is_settled]
        self._settle(waiting, [self._pipeline.fall_back(call.asked, cause) for call in waiting])

    def _settle(self, batch: Sequence[Call], ranked: Sequence[Ranked]) -> None:
        """These slates are the answers, of those that have none yet."""
        settled = [(call, slate) for call, slate in zip(batch, ranked, strict=True) if not call.is_settled]
        for call, _ in settled:
            call.is_settled = True
        if settled:
            self._go(self._keep(settled))

    async def _keep(self, settled: Sequence[tuple[Call, Ranked]]) -> None:
        """Encode answers and keep them, unless another worker was faster: then its are the answers."""
        facts = [self._facts(call.asked.request, slate.degraded) for call, slate in settled]
        now_s = time.perf_counter()
        encoded = [
            encode.response(slate.items, said, round((now_s - call.received_s) * 1000, 3))
            for (call, slate), said in zip(settled, facts, strict=True)
        ]
        kept = await self._kept([(call.key, response) for (call, _), response in zip(settled, encoded, strict=True)], settled, now_s)
        for (call, slate), said, ours, response in zip(settled, facts, encoded, kept, strict=True):
            self._remember(call.key, response)
            metrics.REQUESTS.labels(slate.degraded).inc()
            telemetry = encode.telemetry(slate.items, said, slate.stale_ms) if response == ours else None
            self._calls.pop(call.key, None)
            call.done.set_result(Answer(response, telemetry))
            metrics.LATENCY.observe(time.perf_counter() - call.received_s)

    async def _kept(self, answers: Sequence[tuple[bytes, bytes]], settled: Sequence[tuple[Call, Ranked]], now_s: float) -> list[bytes]:
        """What is kept of these answers; they themselves where the store does not say in time."""
        left_s = min(call.deadline_s for call, _ in settled) - SEND_MS / 1000 - now_s
        try:
            async with asyncio.timeout(max(left_s, KEEP_MS_MIN / 1000)):
                return await self._store.keep_answers(answers, ANSWER_TTL_MS)
        except (StoreError, TimeoutError):
            return [answer for _, answer in answers]

    def _remember(self, key: bytes, answer: bytes) -> None:
        self._answers[key] = answer
        if len(self._answers) > ANSWERS_COUNT_MAX:
            self._answers.popitem(last=False)

    def _facts(self, request: RankRequest, degraded: Degraded) -> Facts:
        return Facts(
            request.request_id,
            request.user_id,
            self._manifest.model_version,
            self._manifest.feature_version,
            self.generation.name if self.generation else "",
            degraded,
            "default",
            request.ts_ms,
            request.tenant,
        )

    def _go(self, work: "asyncio._CoroutineLike[None]") -> None:
        """Run beside what is under way; kept until it is done, for the loop itself does not."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def check_request(request: RankRequest) -> None:
    """What no schema can say of a request. Raises DecodeError with the field at fault."""
    count = len(request.candidate_item_ids)
    if not 0 < count <= CANDIDATES_COUNT_MAX:
        raise DecodeError(Reason.OUT_OF_RANGE, f"candidate_item_ids has {count} entries, 1 to {CANDIDATES_COUNT_MAX} are ranked")
    if request.k < 1 or (request.deadline_ms is not None and request.deadline_ms < 1):
        raise DecodeError(Reason.OUT_OF_RANGE, f"k is {request.k} and deadline_ms {request.deadline_ms}: both count from 1")
    if not all(request.candidate_item_ids):
        raise DecodeError(Reason.MISSING_ID, "candidate_item_ids has an empty id")
    longest = max(map(len, request.candidate_item_ids))
    # A character has four bytes at most: nearly all requests are done here.
    if 4 * longest > ID_BYTES_MAX and max(len(item_id.encode()) for item_id in request.candidate_item_ids) > ID_BYTES_MAX:
        raise DecodeError(Reason.OVERSIZE, f"candidate_item_ids has an id longer than {ID_BYTES_MAX} bytes")
