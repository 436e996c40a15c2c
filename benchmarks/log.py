"""A feed in a real Kafka: topics of their own for every feed, and where they end."""

import itertools
import os
from collections.abc import Sequence
from itertools import islice

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


class Sender:
    """Sends a feed in order, with event times as Kafka's, by librdkafka's defaults.

    Keyed and parted by user; by_item: by item, and all of it to one topic, as peers want it that count by key.
    """

    def __init__(self, bootstrap: str, prefix: str, feed: Feed, values: Sequence[bytes], *, by_item: bool = False) -> None:
        """Nothing is sent yet. values: the feed's, as benchmarks.wire makes them."""
        self.sent = 0
        self._refused: list[object] = []
        self._producer = Producer({"bootstrap.servers": bootstrap, "queue.buffering.max.messages": QUEUE_MESSAGES_MAX, "log_level": 0})
        names = [prefix + IMPRESSIONS.name, prefix + (IMPRESSIONS if by_item else CLICKS).name]
        ids = wire.item_ids(feed.item) if by_item else wire.user_ids(feed.user)
        keys = (key.tobytes() for key in ids)
        partitions = (feed.item if by_item else feed.partition) % PARTITIONS_COUNT
        topics_ = (names[is_click] for is_click in feed.is_click.tolist())
        self._rows = zip(topics_, values, keys, partitions.tolist(), feed.ts_ms.tolist(), strict=True)

    def send(self, count: int) -> None:
        """Hand so many more events to the client; waits only where too many wait for Kafka."""
        for topic, value, key, partition, ts_ms in islice(self._rows, count):
            self._producer.produce(topic, value, key, partition, on_delivery=self._answered, timestamp=ts_ms)
            self.sent += 1
            if self.sent % 1_000 == 0:
                while len(self._producer) > QUEUE_MESSAGES_MAX - 1_000:
                    self._producer.poll(0.01)
                self._producer.poll(0)

    def finish(self) -> None:
        """Return when Kafka has all that was sent. Raises LogError where it has not."""
        left = self._producer.flush(FLUSH_S)
        if left or self._refused:
            message = f"Kafka did not take {left} of {self.sent} events and refused {len(self._refused)}: {self._refused[:1]}. See its log."
            raise LogError(message)

    def _answered(self, error: object, _: object) -> None:
        if error:
            self._refused.append(error)


def produce(bootstrap: str, prefix: str, feed: Feed, values: Sequence[bytes], *, by_item: bool = False) -> None:
    """Send a whole feed; back when Kafka has it. Raises LogError."""
    sender = Sender(bootstrap, prefix, feed, values, by_item=by_item)
    sender.send(len(feed))
    sender.finish()


def ends(feed: Feed) -> dict[Source, int]:
    """Where each source ends that a feed alone was sent to."""
    found: dict[Source, int] = {}
    for topic, wanted in ((IMPRESSIONS.name, ~feed.is_click), (CLICKS.name, feed.is_click)):
        counts = [int((feed.partition[wanted] == partition).sum()) for partition in range(PARTITIONS_COUNT)]
        found.update({Source(topic, partition): count for partition, count in enumerate(counts)})
    return found
