"""Probes: impressions of users that nobody else is, sent among a feed's events, and looked for in the store until they are there.

The loop is open: event n is due at n / rate, whether or not those before it went out in time, and a probe's latency counts from the
moment it was due. A probe is visible when its user's record is: that record is made by the very step that counts it.
"""

import asyncio
import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from confluent_kafka import Producer
from numpy.typing import NDArray

from benchmarks import wire
from benchmarks.feed import Feed
from online_store.keys import Entity, Generation, record_key
from online_store.store import OnlineStore
from schemas import codec
from schemas.aggregates import USER
from schemas.errors import MillstreamError
from schemas.records import Impression
from schemas.topics import CLICKS, IMPRESSIONS

#: Probes a second, at every rate.
PROBES_PER_S = 50
#: How long the sender and looker rests between two rounds (seconds): the resolution of a latency, and its cost.
ROUND_S = 0.001
#: How long a probe may stay unseen (seconds) before the run fails.
UNSEEN_S = 30.0


@dataclass(frozen=True, slots=True)
class Message:
    """One message to send. probe: the key of the record that it makes, empty where it is none."""

    topic: str
    key: bytes
    value: bytes
    probe: bytes = b""


@dataclass(slots=True)
class Seen:
    """What came of a run. due_s, latency_s: of each probe, in order of becoming visible. rounds_s: how long each round took.

    logged_s: of each probe, from when it was due to when Kafka's acknowledgement was seen, by when it was due (seconds).
    """

    due_s: list[float] = field(default_factory=list)
    latency_s: list[float] = field(default_factory=list)
    logged_s: dict[float, float] = field(default_factory=dict)
    rounds_s: list[float] = field(default_factory=list)


def messages(feed: Feed, prefix: str, generation: Generation, rate: int) -> list[Message]:
    """A feed with every so-many-th event replaced by a probe."""
    names = (prefix + IMPRESSIONS.name, prefix + CLICKS.name)
    keys = [text.encode() for text in wire.texts(wire.user_ids(feed.user))]
    sent = [
        Message(names[is_click], key, value) for is_click, key, value in zip(feed.is_click.tolist(), keys, wire.values(feed), strict=True)
    ]
    for row in range(0, len(feed), rate // PROBES_PER_S):
        sent[row] = _probe(feed, row, prefix, generation)
    return sent


def _probe(feed: Feed, row: int, prefix: str, generation: Generation) -> Message:
    like = wire.event(feed, row)
    user_id = f"probe-{row:010d}"
    event = Impression(request_id=user_id, user_id=user_id, item_id=like.item_id, ts_ms=like.ts_ms, position=0)
    key = record_key(generation, Entity("", USER, user_id))
    return Message(prefix + IMPRESSIONS.name, user_id.encode(), codec.encode(event), key)


async def drive(bootstrap: str, store: OnlineStore, sent: list[Message], rate: int) -> Seen:
    """Send all at a rate, looking for probes meanwhile. Raises MillstreamError where one stays unseen."""
    producer = Producer({"bootstrap.servers": bootstrap, "queue.buffering.max.messages": max(len(sent), 1_000), "log_level": 0})
    due = iter(sent)
    seen, waiting, count = Seen(), dict[bytes, float](), 0
    begun_s = time.perf_counter()
    while count < len(sent) or waiting:
        round_s = time.perf_counter()
        for number, message in _due(due, count, min(int((round_s - begun_s) * rate), len(sent))):
            count += 1
            if not message.probe:
                producer.produce(message.topic, message.value, message.key)
                continue
            waiting[message.probe] = due_s = begun_s + number / rate
            producer.produce(message.topic, message.value, message.key, on_delivery=functools.partial(_logged, seen, begun_s, due_s))
        producer.poll(0)
        await _look(store, waiting, seen, begun_s)
        if waiting and time.perf_counter() - next(iter(waiting.values())) > UNSEEN_S:
            raise MillstreamError(f"{len(waiting)} probes are not in the store {UNSEEN_S} s after they were due. See the worker's log.")
        seen.rounds_s.append(time.perf_counter() - round_s)
        await asyncio.sleep(max(ROUND_S - seen.rounds_s[-1], 0))
    producer.flush()
    return seen


def _logged(seen: Seen, begun_s: float, due_s: float, error: object, _: object) -> None:
    if error is None:
        seen.logged_s[due_s - begun_s] = time.perf_counter() - due_s


def _due(messages: Iterator[Message], first: int, until: int) -> Iterator[tuple[int, Message]]:
    return ((number, next(messages)) for number in range(first, until))


async def _look(store: OnlineStore, waiting: dict[bytes, float], seen: Seen, begun_s: float) -> None:
    keys = list(waiting)
    found = await store.read(keys)
    now_s = time.perf_counter()
    for key, value in zip(keys, found, strict=True):
        if value is not None:
            due_s = waiting.pop(key)
            seen.due_s.append(due_s - begun_s)
            seen.latency_s.append(now_s - due_s)


def quantiles(seen: Seen, warm_up_s: float) -> dict[str, float]:
    """Latencies of the probes that were due after the warm-up, milliseconds."""
    latency_ms = np.array(seen.latency_s)[np.array(seen.due_s) >= warm_up_s] * 1000
    logged_ms = np.array([taken_s for due_s, taken_s in seen.logged_s.items() if due_s >= warm_up_s]) * 1000
    return {
        "probes": len(latency_ms),
        **{f"latency_ms_p{quantile}": _quantile(latency_ms, quantile) for quantile in (50, 90, 99)},
        "latency_ms_max": _quantile(latency_ms, 100),
        "logged_ms_p50": _quantile(logged_ms, 50),
        "logged_ms_p99": _quantile(logged_ms, 99),
        "round_ms_p99": _quantile(np.array(seen.rounds_s) * 1000, 99),
    }


def _quantile(taken_ms: NDArray[np.float64], quantile: int) -> float:
    return round(float(np.percentile(taken_ms, quantile)), 1)
