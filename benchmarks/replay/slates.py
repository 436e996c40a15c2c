"""Slates that were served, seen and clicked, in Kafka: what `millstream replay rows` makes rows of."""

from collections.abc import Iterator

import numpy as np

from benchmarks.feed import BEGIN_MS
from benchmarks.replay.verbs import run
from benchmarks.results import Result
from benchmarks.stack import Stack
from ranker import encode
from ranker.reads.near import names_of
from ranker.slate.slate import Slated
from replay.log import KafkaLog, Message
from schemas import codec
from schemas.features import REGISTRY
from schemas.records import Click, Impression
from schemas.topics import CLICKS, IMPRESSIONS, RANK_TELEMETRY

#: Items of a slate: all are seen, one in ten is clicked.
SLATE_ITEMS = 20
#: How far apart requests are (milliseconds).
APART_MS = 10
USERS_COUNT, ITEMS_COUNT = 50_000, 100_000


def send(stack: Stack, prefix: str, requests_count: int, seed: int) -> None:
    """So many slates, with their impressions and clicks."""
    log = KafkaLog(stack.kafka_bootstrap, prefix)
    for topic, messages in ((RANK_TELEMETRY, _telemetry), (IMPRESSIONS, _impressions), (CLICKS, _clicks)):
        log.append(topic, messages(requests_count, np.random.default_rng(seed)))


def measure(stack: Stack, prefix: str, cores: set[int], vectors: str) -> Result:
    """All rows of them, to a file."""
    told = run(stack, prefix, cores, "rows", str(stack.folder / "rows.parquet"), "--vectors", vectors, "--source", "kafka")
    rate = round(told["rows"] / told["seconds"])
    return {"rows": told["rows"], "per_s": rate, **{name: told[name] for name in ("seconds", "cpu_s", "rss_mb_max")}}


def _slates(count: int, draw: np.random.Generator) -> Iterator[tuple[str, str, list[str], int]]:
    """Request, user, items and moment; the same for the same seed, whoever asks."""
    items = draw.integers(0, ITEMS_COUNT, (count, SLATE_ITEMS))
    for number in range(count):
        ids = [f"item-{item:07d}" for item in items[number].tolist()]
        yield f"request-{number:09d}", f"user-{number % USERS_COUNT:07d}", ids, BEGIN_MS + APART_MS * number


def _telemetry(count: int, draw: np.random.Generator) -> Iterator[Message]:
    for request_id, user_id, ids, ts_ms in _slates(count, draw):
        vectors = draw.random((len(ids), len(REGISTRY.feature_names)), np.float32)
        facts = encode.Facts(request_id, user_id, "m1", REGISTRY.fingerprint, "g1", "NONE", "default", ts_ms, "")
        slated = Slated(np.arange(len(ids)), np.array([len(ids)]), np.zeros(len(ids), np.int64), np.ones(len(ids)))
        [items] = encode.items(encode.Places(ids, slated, np.full(len(ids), 0.5, np.float32)), names_of([("", ids)]), [""], vectors)
        yield Message(request_id.encode(), encode.telemetry(items, facts, 0), ts_ms)


def _impressions(count: int, draw: np.random.Generator) -> Iterator[Message]:
    for request_id, user_id, ids, ts_ms in _slates(count, draw):
        for place, item_id in enumerate(ids):
            shown = Impression(request_id=request_id, user_id=user_id, item_id=item_id, ts_ms=ts_ms + 5, position=place)
            yield Message(user_id.encode(), codec.encode(shown), shown.ts_ms)


def _clicks(count: int, draw: np.random.Generator) -> Iterator[Message]:
    for request_id, user_id, ids, ts_ms in _slates(count, draw):
        for item_id in ids[::10]:
            clicked = Click(request_id=request_id, user_id=user_id, item_id=item_id, ts_ms=ts_ms + 9_000, dwell_ms=40_000)
            yield Message(user_id.encode(), codec.encode(clicked), clicked.ts_ms)
