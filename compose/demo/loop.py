"""What both demos do: publish, wait until ingest has it, ask for rankings, check every record against the oracle."""

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from confluent_kafka import Consumer

from compose.demo.parts import Parts, Worker, quantile_ms, total
from compose.demo.view import View
from online_store.redis import RedisStore
from ranker.training.quality import auc, ndcg_at
from replay.log import QUIET, KafkaLog, Publisher
from schemas import codec
from schemas.errors import StackError
from schemas.features import Registry
from schemas.records import Degraded, RankRequest, RankResponse
from schemas.topics import RANK_REQUESTS, RANK_RESPONSES, SOURCES, Source
from tests.oracle import Oracle
from tests.verify import compare

#: How long ingest may take to catch up without moving, and a ranking worker to answer (seconds).
PATIENCE_S = 30.0


class Watch:
    """Watches ingest: how far the store is behind Kafka, and what the worker says of itself."""

    def __init__(self, parts: Parts, registry: Registry, ingest: Worker, view: View) -> None:
        """For one run of the demo."""
        self.log = KafkaLog(parts.addresses.kafka_bootstrap)
        self._registry = registry
        self._store_url = parts.addresses.store_url
        self._ingest = ingest
        self._view = view
        self._seen = (0.0, 0.0)
        self._fresh: list[tuple[dict[str, str], float]] = []

    def wait_until_applied(self, phase: str, done: float) -> None:
        """Return when every shard's guards stand at the end of the log. Raises StackError when they stop moving."""
        ends = {topic.name: self.log.end_offsets(topic) for topic in SOURCES}
        asyncio.run(self._wait(ends, phase, done))

    async def _wait(self, ends: dict[str, dict[int, int]], phase: str, done: float) -> None:
        sources = {Source(topic, partition): end for topic, found in ends.items() for partition, end in found.items() if end}
        store = RedisStore(self._store_url, self._registry)
        try:
            moved_s, before = time.monotonic(), -1
            while lag := await self._lag(store, sources):
                self._ingest.check()
                self._view.show(phase, done, {"lag, records": f"{lag:,}"})
                if lag != before:
                    moved_s, before = time.monotonic(), lag
                if time.monotonic() - moved_s > PATIENCE_S:
                    raise StackError(f"ingest stands still, {lag} records behind, for {PATIENCE_S} s. Its log is {self._ingest.log}.")
                await asyncio.sleep(0.02)
        finally:
            await store.close()
        self._view.show(phase, done, {"lag, records": "0"})

    @staticmethod
    async def _lag(store: RedisStore, sources: dict[Source, int]) -> int:
        generation = await store.current()
        if generation is None:
            return sum(sources.values())
        guards = await store.guards(generation, list(sources))
        behind = np.array(list(sources.values())) - guards.min(axis=1)
        return int(np.maximum(behind, 0).sum())

    def figures(self) -> dict[str, str]:
        """What ingest does now, for the table."""
        told, now_s = self._ingest.metrics(), time.monotonic()
        count = total(told.get("millstream_events_total"))
        rate = (count - self._seen[1]) / (now_s - self._seen[0])
        fresh = freshness_ms(self._fresh, told.get("millstream_freshness_seconds_bucket", []), 0.99)
        self._seen, self._fresh = (now_s, count), told.get("millstream_freshness_seconds_bucket", [])
        return {
            "events/s, now": f"{rate:,.0f}",
            "lag, records": f"{total(told.get('millstream_lag_records')):,.0f}",
            "freshness p99, now": "" if fresh is None else f"{fresh:,.0f} ms",
        }

    def dead_letters(self) -> int:
        """How many records ingest could not use."""
        return int(total(self._ingest.metrics().get("millstream_dead_letters_total")))

    def freshness(self) -> list[tuple[dict[str, str], float]]:
        """The worker's freshness histogram, cumulative."""
        return self._ingest.metrics().get("millstream_freshness_seconds_bucket", [])

    def check(self, as_of_ms: Sequence[int]) -> tuple[int, list[str]]:
        """Compare every record with the oracle's at several moments: how many entities there are, and each difference."""
        windows = {
            kind: {window.name: (window.span_ms, window.hop_ms) for window in self._registry.windows(kind)} for kind in self._registry.kinds
        }
        records = [record for topic in SOURCES for batch in self.log.read(topic) for record in batch.records]
        oracle = Oracle(records, windows)
        return len(oracle.entities), asyncio.run(self._differences(oracle, as_of_ms))

    async def _differences(self, oracle: Oracle, as_of_ms: Sequence[int]) -> list[str]:
        store = RedisStore(self._store_url, self._registry)
        try:
            generation = await store.current()
            assert generation is not None
            return await compare(store, self._registry, generation, oracle, as_of_ms)
        finally:
            await store.close()


def freshness_ms(before: list[tuple[dict[str, str], float]], after: list[tuple[dict[str, str], float]], share: float) -> float | None:
    """A quantile of what a cumulative histogram gained between two looks."""
    earlier = {labels["le"]: count for labels, count in before}
    return quantile_ms([(labels, count - earlier.get(labels["le"], 0)) for labels, count in after], share)


@dataclass(slots=True)
class Answers:
    """The asker's end of the rank topics: what was asked when, and what came back."""

    consumer: Consumer
    sent_s: dict[str, float] = field(default_factory=dict)
    responses: dict[str, RankResponse] = field(default_factory=dict)
    latencies_ms: list[float] = field(default_factory=list)
    degraded: int = 0

    @classmethod
    def open(cls, bootstrap: str) -> "Answers":
        """Ready to hear every response from now on."""
        settings = {"bootstrap.servers": bootstrap, "group.id": "demo-feed", "auto.offset.reset": "earliest"}
        consumer = Consumer(settings | QUIET)
        consumer.subscribe([RANK_RESPONSES.name])
        deadline = time.monotonic() + PATIENCE_S
        while not consumer.assignment():
            consumer.poll(0.05)
            if time.monotonic() > deadline:
                raise StackError(f"Kafka assigned no partition of {RANK_RESPONSES.name} within {PATIENCE_S} s.")
        return cls(consumer)

    def wait_for_ranker(self, publisher: Publisher) -> None:
        """Return when a ranking worker has answered: it joins its group some moments after its process is up."""
        now_ms = time.time_ns() // 1_000_000
        asked = RankRequest(request_id="are-you-there", user_id="nobody", candidate_item_ids=["nothing"], k=1, ts_ms=now_ms)
        publisher.send(RANK_REQUESTS, asked, now_ms)
        publisher.flush()
        if self.consumer.poll(PATIENCE_S) is None:
            raise StackError(f"no ranking worker answered within {PATIENCE_S} s.")

    def asked(self, request_id: str) -> None:
        """A request is on its way."""
        self.sent_s[request_id] = time.perf_counter()

    @property
    def waiting(self) -> int:
        """Requests without an answer."""
        return len(self.sent_s) - len(self.responses)

    def take(self, timeout_s: float) -> list[RankResponse]:
        """Answers that arrived; waits for the first one at most so long."""
        first = self.consumer.poll(timeout_s)
        messages = [] if first is None else [first, *self.consumer.consume(1000, 0)]
        now_s = time.perf_counter()
        found = []
        for message in messages:
            if message.error():
                raise StackError(f"rank-responses cannot be read: {message.error()}.")
            response = codec.decode(RANK_RESPONSES, message.value())
            assert isinstance(response, RankResponse), response
            if response.request_id in self.sent_s and response.request_id not in self.responses:
                self.responses[response.request_id] = response
                self.latencies_ms.append((now_s - self.sent_s[response.request_id]) * 1000)
                self.degraded += response.degraded != Degraded.NONE
                found.append(response)
        return found

    def take_rest(self) -> Iterable[RankResponse]:
        """Wait until every request is answered. Raises StackError when answers stop coming."""
        until_s = time.monotonic() + PATIENCE_S
        while self.waiting:
            yield from self.take(0.1)
            if time.monotonic() > until_s:
                raise StackError(f"{self.waiting} requests have no answer after {PATIENCE_S} s.")

    def latency_ms(self, share: float) -> float | None:
        """A quantile of the time from sending a request to reading its answer."""
        return round(float(np.quantile(self.latencies_ms, share)), 2) if self.latencies_ms else None


@dataclass(frozen=True, slots=True)
class Judged:
    """Scores of ranked groups beside what was clicked, a row a candidate."""

    groups: list[int]
    labels: list[bool]
    scores: list[float]
    popularity: list[float]

    def add(self, group: int, label: bool, score: float, popularity: float) -> None:  # noqa: FBT001  # a row, not a switch
        """One candidate of one group."""
        self.groups.append(group)
        self.labels.append(label)
        self.scores.append(score)
        self.popularity.append(popularity)

    def figures(self) -> dict[str, float]:
        """AUC over all rows; NDCG@10 over the groups that hold both a click and none, for no order of the others can be wrong."""
        labels, scores = np.array(self.labels, dtype=np.bool_), np.array(self.scores)
        clicked = np.bincount(self.groups, labels)
        mixed = ((clicked > 0) & (clicked < np.bincount(self.groups)))[self.groups]
        groups, told = np.array(self.groups, dtype=np.int64)[mixed], labels[mixed]
        # Scores all equal: ties are averaged, so this is the expectation over every order.
        return {
            "auc": round(auc(labels, scores), 4),
            "ndcg10": round(ndcg_at(10, groups, told, scores[mixed]), 4),
            "ndcg10_random": round(ndcg_at(10, groups, told, np.zeros(len(told))), 4),
            "ndcg10_popularity": round(ndcg_at(10, groups, told, np.array(self.popularity)[mixed]), 4),
        }
