"""A feed in a real Kafka: topics of their own for every feed, and where they end."""

import itertools
import os
from collections.abc import Sequence

from confluent_kafka import Producer

from benchmarks import wire
from benchmarks.feed import PARTITIONS_COUNT, Feed
from compose import topics
from schemas.errors import LogError
from schemas.topics import CLICKS, IMPRESSIONS, Source

#: How long Kafka may take to have everything that was sent (seconds).
FLUSH_S = 120.0
#: So many messages may wait for Kafka at once: fewer stop the sender, more take memory.
QUEUE_MESSAGES_MAX = 200_000
#: Every feed gets topics that no other has had, in this run or another.
NUMBERS = itertools.count(1)


def create(bootstrap: str, name: str) -> str:
    """New topics of eight partitions, kept for ever. Returns their prefix."""
    prefix = f"{name}-{os.getpid()}-{next(NUMBERS)}-"
    topics.create(bootstrap, prefix, PARTITIONS_COUNT, retention_ms=-1)
    return prefix


def produce(bootstrap: str, prefix: str, feed: Feed, values: Sequence[bytes], *, by_item: bool = False) -> None:
    """Send a feed in order, with event times as Kafka's, by librdkafka's defaults; back when Kafka has it all.

    Keyed and parted by user; by_item: by item, and all of it to one topic, as peers want it that count by key.
    """
    refused: list[object] = []
    producer = Producer({"bootstrap.servers": bootstrap, "queue.buffering.max.messages": QUEUE_MESSAGES_MAX, "log_level": 0})
    names = [prefix + IMPRESSIONS.name, prefix + (IMPRESSIONS if by_item else CLICKS).name]
    keys = (wire.item_ids(feed.item) if by_item else wire.user_ids(feed.user)).tobytes()
    partitions = (feed.item if by_item else feed.partition) % PARTITIONS_COUNT
    width = len(keys) // len(feed)
    rows = zip(feed.is_click.tolist(), partitions.tolist(), feed.ts_ms.tolist(), values, strict=True)
    for row, (is_click, partition, ts_ms, value) in enumerate(rows):
        if row % 1_000 == 0:
            while len(producer) > QUEUE_MESSAGES_MAX - 1_000:
                producer.poll(0.01)
            producer.poll(0)
        key = keys[row * width : (row + 1) * width]
        producer.produce(
            names[is_click],
            value,
            key,
            partition,
            timestamp=ts_ms,
            on_delivery=lambda error, _: refused.append(error) if error else None,
        )
    left = producer.flush(FLUSH_S)
    if left or refused:
        message = (
            f"Kafka at {bootstrap} has not taken {left} of {len(feed)} events, and refused {len(refused)}: {refused[:1]}. See its log."
        )
        raise LogError(message)


def ends(feed: Feed) -> dict[Source, int]:
    """Where each source ends that a feed alone was sent to."""
    found: dict[Source, int] = {}
    for topic, wanted in ((IMPRESSIONS.name, ~feed.is_click), (CLICKS.name, feed.is_click)):
        counts = [int((feed.partition[wanted] == partition).sum()) for partition in range(PARTITIONS_COUNT)]
        found.update({Source(topic, partition): count for partition, count in enumerate(counts)})
    return found
