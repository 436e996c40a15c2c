"""`python -m benchmarks.rank.feed BOOTSTRAP PREFIX EVENTS_PER_S`: a live feed at a rate, until it is ended."""

import itertools
import sys
import time
from collections.abc import Sequence

from confluent_kafka import Producer

from benchmarks import feed as feeds
from benchmarks import wire
from schemas.topics import CLICKS, IMPRESSIONS

#: The feed is made and sent in parts of so long (seconds): short bursts, as a producer's own batching makes them.
PART_S = 0.5


def main(argv: Sequence[str]) -> int:
    """Send parts, each when it is due; a part that is late is not made up for."""
    bootstrap, prefix, rate = argv[0], argv[1], int(argv[2])
    producer = Producer({"bootstrap.servers": bootstrap, "queue.buffering.max.messages": 500_000, "log_level": 0})
    names = (prefix + IMPRESSIONS.name, prefix + CLICKS.name)
    for part in itertools.count():
        begun_s = time.monotonic()
        _send(producer, names, part, rate)
        time.sleep(max(begun_s + PART_S - time.monotonic(), 0))
    return 0


def _send(producer: Producer, names: tuple[str, str], part: int, rate: int) -> None:
    count = int(rate * PART_S)
    feed = feeds.make(count, part, begin_ms=time.time_ns() // 1_000_000, events_per_s=rate)
    keys = wire.user_ids(feed.user)
    for is_click, key, value in zip(feed.is_click.tolist(), keys, wire.values(feed), strict=True):
        producer.produce(names[is_click], value, key.tobytes())
        producer.poll(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
