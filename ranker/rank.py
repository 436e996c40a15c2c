"""Rank requests to responses, whatever fails: the core behind every front end.

    request -> read (user and candidates, near cache before store) -> matrix -> score -> calibrate -> slate -> response

Requests that are there at once go through it as one batch: one read, one matrix, one scoring call (ranker/batch.py). A request is always
answered inside its deadline: what cannot be read or scored in time falls back, and `degraded` says how far. The answer to a request_id is
kept; asked again, the same bytes come back.
"""

import asyncio
import functools
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from online_store.keys import Generation, answer_key
from online_store.snapshot.file import Snapshot
from online_store.store import OnlineStore
from ranker import encode, metrics
from ranker.batch import Pipeline, Ranked, cause_of
from ranker.budgets import BUDGETS, Budgets
from ranker.bundle import Bundle
from ranker.queue import Gathered, Queue
from ranker.reads.answers import Answer, Answers, Call, Said, Then, nothing
from ranker.reads.reader import Read, asked_of
from ranker.served.current import Current, Find, Served, no_other
from ranker.slate.rules import NO_RULES, Rules
from schemas.errors import BundleError, StoreError
from schemas.features import Registry
from schemas.records import RankRequest

__all__ = ["Answer", "Ranker"]

#: What keeping an answer is given though its deadline is near or over (milliseconds): asked again, it should be the same. Ten times what a
#: store near by takes; more would hold up a backlog while the store hangs.
KEEP_MS_MIN = 3


class Ranker:
    """Ranks requests on one store with one bundle."""

    def __init__(  # what a ranker is made of
        self,
        store: OnlineStore,
        registry: Registry,
        bundle: Bundle,
        budgets: Budgets = BUDGETS,
        rules: Rules = NO_RULES,
        snapshot: Snapshot | None = None,
        find: Find = no_other,
    ) -> None:
        """Its model is warm. snapshot: has items that the store may have lost. find: for other registries and models that become current.

        Raises BundleError for a bundle that was trained on another registry, or that cannot score, SettingsError for rules that do not fit.
        """

        def make(of: Registry, model_version: str) -> Pipeline:
            found, items = find(of, model_version)
            return Pipeline(store, of, found, budgets, rules, items)

        self.budgets = budgets
        self._current = Current(store, Pipeline(store, registry, bundle, budgets, rules, snapshot), make)
        self._answers = Answers(store)
        self._calls: dict[bytes, Call] = {}
        self._waiting = Queue()
        self._settled = Gathered(self._encode)
        self._turned_away = Gathered(self._turn_away)
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_reading = False

    @property
    def generation(self) -> Generation | None:
        """Which one new requests are ranked from; None where none is known."""
        return self._current.served.generation

    async def refresh(self) -> None:
        """As Current.refresh."""
        await self._current.refresh()

    async def answer(self, request: RankRequest, received_s: float) -> Answer:
        """As `ask`, for who is a task; one that is cancelled waits no longer."""
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        leave = self.ask(request, received_s, lambda answer: None if answered.done() else answered.set_result(answer))
        try:
            return await answered
        finally:
            leave()

    def ask(self, request: RankRequest, received_s: float, then: Then, *, is_patient: bool = False) -> Callable[[], None]:
        """Answer a checked request. received_s: time.perf_counter() when it came in; its deadline counts from there.

        then: takes the answer, now or later; others are told theirs after it, so it must not fail. is_patient: whether it may wait a little
        for company. Returns what to call where it is not waited for any more: it is not ranked then, unless another one waits for the same.
        """
        key = answer_key(request.tenant, request.request_id)
        if (kept := self._answers.find(key)) is not None:
            metrics.REPEATS.inc()
            then(Answer(kept, None))
            return nothing
        if is_new := key not in self._calls:
            self._calls[key] = Call(asked_of(request), key, received_s)
        else:
            metrics.REPEATS.inc()
        call = self._calls[key]
        call.waiting.append(then)
        call.is_patient &= is_patient
        deadline_ms = request.deadline_ms or self.budgets.total_ms
        if (deadline_s := received_s + deadline_ms / 1000) < call.deadline_s:
            call.deadline_s, call.reserve_s = deadline_s, self.budgets.reserve_s(deadline_ms)
            self._wait(call)
        if is_new and not call.is_settled:
            self._begin(call)
        return functools.partial(call.leave, then)

    async def explain(self, request: RankRequest) -> dict[str, Any]:
        """How a checked request would come to its slate now, ready for JSON; nothing of it is kept.

        Raises StoreError and TimeoutError where it would fall back for the store, BundleError where it would for the model.
        """
        return await self._current.served.explain(request)

    def _begin(self, call: Call) -> None:
        if self._waiting.is_too_long(call.deadline_s - call.reserve_s - self._answers.keep_s, time.perf_counter()):
            self._shed(call, "queue")
            return
        self._waiting.put(call)
        if not self._is_reading:
            self._is_reading = True
            self._go(self._read_all())

    def _wait(self, call: Call) -> None:
        """What happens at the latest: without a slate it falls back; with an answer that is not kept yet, that goes out."""
        later, left_s = asyncio.get_running_loop().call_later, call.deadline_s - call.reserve_s - time.perf_counter()
        if call.ours is not None:
            call.wait(later(max(left_s, KEEP_MS_MIN / 1000), self._end, call, call.ours))
        elif not call.is_settled and left_s > 0:
            call.wait(later(left_s, self._run_out, call))
        elif not call.is_settled:
            self._run_out(call)

    def _run_out(self, call: Call) -> None:
        """The time for its slate is over. One that was not even read for gets what costs least: there are too many, or it came too late.

        Most are answered by then, so an answer has no timer of its own before.
        """
        call.wait(None)
        if call.ours is not None:
            self._wait(call)
        elif call.is_read and not call.is_settled:
            self._fall_back([call], "deadline")
        elif self._is_wanted(call):
            self._shed(call, "deadline")

    def _shed(self, call: Call, cause: str) -> None:
        """Answer at the least cost: together with who else is turned away in this round of the loop."""
        metrics.FALLBACKS.labels(cause).inc()
        call.is_settled = True
        self._turned_away.put(call)

    def _turn_away(self, calls: Sequence[Call]) -> None:
        for served, alike in groupby(calls, self._served):
            batch = list(alike)
            self._encode(list(zip(batch, served.pipeline.by_popularity([call.asked for call in batch]), strict=True)))

    async def _read_all(self) -> None:
        """Read batch after batch. Where many wait, the store reads for the next while each is ranked."""
        try:
            while self._waiting:
                if (pause_s := self._waiting.pause_s(time.perf_counter())) > 0:
                    await asyncio.sleep(pause_s)
                taken, late = self._waiting.take(time.perf_counter(), self._answers.keep_s)
                for call in filter(self._is_wanted, late):
                    self._shed(call, "queue")
                if wanted := list(filter(self._is_wanted, taken)):
                    metrics.QUEUE.observe(time.perf_counter() - wanted[0].received_s)
                    await self._read(wanted)
                    self._waiting.done(time.perf_counter())
        finally:
            self._is_reading = False

    def _is_wanted(self, call: Call) -> bool:
        """Whether it lacks a slate and somebody waits for it. One that nobody waits for any more ends here."""
        if not call.is_settled and not call.waiting:
            call.drop()
            del self._calls[call.key]
        return not call.is_settled

    async def _read(self, batch: Sequence[Call]) -> None:
        served = self._served(batch[0])
        was_away = served.pipeline.is_store_away
        for call in batch:
            call.is_read, call.served = True, served
        try:
            known = await served.pipeline.read(served.generation, [call.asked for call in batch])
        except (TimeoutError, StoreError) as error:
            await self._unread(batch, error)
            return
        finally:
            self._waiting.was_read(time.perf_counter())
        if self._waiting.is_long:
            # The round after the next one: in that, the store is asked for the next batch.
            later = asyncio.get_running_loop().call_soon
            later(later, self._rank, batch, known)
        else:
            self._rank(batch, known)
        if was_away:
            self._go(served.pipeline.prewarm(served.generation))

    async def _unread(self, batch: Sequence[Call], error: TimeoutError | StoreError) -> None:
        """Fall back; where a record is at fault, only those fall back that asked for it."""
        cause = cause_of(error)
        if cause == "record" and len(batch) > 1:
            for call in filter(self._is_wanted, batch):
                await self._read([call])
        else:
            self._fall_back(batch, cause)

    def _rank(self, batch: Sequence[Call], known: Read) -> None:
        try:
            self._settle(batch, self._served(batch[0]).pipeline.rank([call.asked for call in batch], known))
        except BundleError:
            self._fall_back(batch, "model")

    def _fall_back(self, batch: Sequence[Call], cause: str) -> None:
        if not (wanted := list(filter(self._is_wanted, batch))):
            return
        try:
            ranked = self._served(wanted[0]).pipeline.fall_back([call.asked for call in wanted], cause)
        except BaseException:
            # A fault that nobody thought of is the loop's to tell, and the callers' answers must not hang on it.
            for call in wanted:
                self._shed(call, "fault")
            raise
        self._settle(wanted, ranked)

    def _settle(self, batch: Sequence[Call], ranked: Sequence[Ranked]) -> None:
        """These slates are the answers, of those that are wanted."""
        for call, slate in zip(batch, ranked, strict=True):
            if self._is_wanted(call):
                call.is_settled = True
                self._settled.put((call, slate))

    def _encode(self, settled: Sequence[tuple[Call, Ranked]]) -> None:
        """Encode these answers, and keep them."""
        now_s = time.perf_counter()
        with metrics.ENCODE.time():
            offered = [(call, self._encoded(call, slate, now_s)) for call, slate in settled]
        metrics.spent("rules", time.perf_counter() - now_s, self.budgets.rules_ms)
        for call, answer in offered:
            self._offer(call, answer)
        self._keep(offered)

    def _offer(self, call: Call, answer: Answer) -> None:
        """It goes out at the latest when its time is over, unless another one holds."""
        call.ours = answer
        if self._current.served.pipeline.is_store_away:
            # It would hold up each answer for as long as that can wait.
            call.wait(asyncio.get_running_loop().call_later(KEEP_MS_MIN / 1000, self._end, call, answer))
        elif call.timer is None:
            self._wait(call)

    def _keep(self, offered: Sequence[tuple[Call, Answer]]) -> None:
        """Keep our answers, unless another worker was faster: then its are the answers."""

        def end(responses: Sequence[bytes]) -> None:
            for (call, answer), response in zip(offered, responses, strict=True):
                self._end(call, answer if response == answer.response else Answer(response, None))

        self._answers.keep([(call.key, answer.response) for call, answer in offered], end)

    def _end(self, call: Call, answer: Answer) -> None:
        if call.is_answered:
            return
        call.wait(None)
        latency_s = time.perf_counter() - call.received_s
        metrics.LATENCY.observe(latency_s)
        metrics.spent("total", latency_s, (call.deadline_s - call.received_s) * 1000)
        self._answers.remember(call.key, answer.response)
        del self._calls[call.key]
        call.answer(answer)

    def _encoded(self, call: Call, ranked: Ranked, now_s: float) -> Answer:
        metrics.requests(ranked.degraded).inc()
        facts = self._served(call).facts(call.asked.request, ranked.degraded)
        said = Said(ranked.items, facts, round((now_s - call.received_s) * 1000, 3))
        return Answer(encode.response(*said), encode.telemetry(ranked.items, facts, ranked.stale_ms, ranked.applied), said)

    def _served(self, call: Call) -> Served:
        """What a request is ranked by: by what it was read for, whatever is current meanwhile."""
        call.served = call.served or self._current.served
        return call.served

    def _go(self, work: "asyncio._CoroutineLike[None]") -> None:
        """Run beside what is under way; kept until it is done, for the loop itself does not."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
