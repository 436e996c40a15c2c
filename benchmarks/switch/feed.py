"""`python -m benchmarks.switch.feed '{...}'`: a live feed in real time until SIGTERM, with what producers do wrong in it.

The benchmarks' feed of pages and clicks; among it profiles and tombstones, events that are sent twice, and values that are none. An open
loop: message n is due at n / rate, and whoever is late catches up.
"""

import itertools
import random
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import FrameType
from typing import NamedTuple

import msgspec
import numpy as np
from confluent_kafka import Producer

from benchmarks import feed as feeds
from benchmarks import wire
from benchmarks.feed import PARTITIONS_COUNT, Feed
from benchmarks.log import FLUSH_S, QUEUE_MESSAGES_MAX
from schemas import codec
from schemas.errors import LogError
from schemas.records import Content, User
from schemas.topics import CLICKS, CONTENT, IMPRESSIONS, USERS

#: How long a stretch of event time is drawn at once (seconds): drawing shorter ones costs more a message than sending it.
PART_S = 1.0
#: How often what is due is sent (seconds).
TICK_S = 0.005
#: One message in so many: a profile, one of the last messages again, a value that is no event, a tombstone.
PROFILE_EVERY, AGAIN_EVERY, POISON_EVERY, TOMBSTONE_EVERY = 100, 150, 1_000, 20_000
#: Of how many messages one is sent again.
RECENT_COUNT = 20_000


class Task(msgspec.Struct, frozen=True):
    """rate: messages a second. users: how many there are, each drawn as often as others."""

    kafka_bootstrap: str
    prefix: str
    rate: int
    users: int
    items: int
    seed: int


class Message(NamedTuple):
    """What is produced, with the time of now."""

    topic: str
    partition: int
    key: bytes
    value: bytes | None


def events(count: int, users: int, seed: int, begin_ms: int, end_ms: int) -> Feed:
    """A stretch of the feed; what would come after its end comes at it."""
    drawn = feeds.make(count, seed, begin_ms=begin_ms, events_per_s=count * 1000 / (end_ms - begin_ms))
    return replace(drawn, user=drawn.user % users, ts_ms=np.minimum(drawn.ts_ms, end_ms))


def content(number: int, ts_ms: int) -> Content:
    """What an item is, as of a moment."""
    item_id, quality = wire.texts(wire.item_ids(np.array([number])))[0], ts_ms % 1_000 / 1_000
    return Content(item_id=item_id, author_id=f"a{number % 500}", created_at_ms=ts_ms - number, quality_score=quality, ts_ms=ts_ms)


def messages(task: Task) -> Iterator[Message]:
    """All that is sent, for ever."""
    draw = random.Random(task.seed)  # noqa: S311  # data by a seed, no secret
    recent: deque[Message] = deque(maxlen=RECENT_COUNT)
    for number, message in enumerate(_pages(task), 1):
        recent.append(message)
        yield message
        if number % PROFILE_EVERY == 0:
            yield _profile(task, draw)
        if number % AGAIN_EVERY == 0:
            yield draw.choice(recent)
        if number % POISON_EVERY == 0:
            yield message._replace(value=(message.value or b"")[:-1])
        if number % TOMBSTONE_EVERY == 0:
            yield _profile(task, draw)._replace(value=None)


def _pages(task: Task) -> Iterator[Message]:
    for part in itertools.count():
        now_ms = time.time_ns() // 1_000_000
        found = events(int(PART_S * task.rate), task.users, (task.seed << 20) + part, now_ms, now_ms + int(PART_S * 1_000))
        keys = wire.user_ids(found.user)
        for is_click, partition, key, value in zip(
            found.is_click.tolist(), found.partition.tolist(), keys, wire.values(found), strict=True
        ):
            yield Message((CLICKS if is_click else IMPRESSIONS).name, partition, key.tobytes(), value)


def _profile(task: Task, draw: random.Random) -> Message:
    now_ms, partition = time.time_ns() // 1_000_000, draw.randrange(PARTITIONS_COUNT)
    if draw.random() < 0.5:
        record = content(draw.randrange(task.items), now_ms)
        return Message(CONTENT.name, partition, record.item_id.encode(), codec.encode(record))
    user_id = wire.texts(wire.user_ids(np.array([draw.randrange(task.users)])))[0]
    locale = draw.choice(("de", "en", "fr"))
    return Message(
        USERS.name, partition, user_id.encode(), codec.encode(User(user_id=user_id, created_at_ms=now_ms, ts_ms=now_ms, locale=locale))
    )


def main(argv: Sequence[str]) -> int:
    """Send until told to stop. Raises LogError where Kafka did not take something."""
    task = msgspec.json.decode(argv[0], type=Task)
    told: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        told.append(number)

    signal.signal(signal.SIGTERM, stop)
    refused: list[object] = []
    producer = Producer({"bootstrap.servers": task.kafka_bootstrap, "queue.buffering.max.messages": QUEUE_MESSAGES_MAX, "log_level": 0})
    drawn, sent, begun_s = messages(task), 0, time.monotonic()
    while not told:
        due = int((time.monotonic() - begun_s) * task.rate)
        for topic, partition, key, value in itertools.islice(drawn, due - sent):
            producer.produce(
                task.prefix + topic, value, key, partition, on_delivery=lambda error, _: refused.append(error) if error else None
            )
        sent = due
        producer.poll(0)
        time.sleep(TICK_S)
    left = producer.flush(FLUSH_S)
    if left or refused:
        raise LogError(f"Kafka did not take {left} of {sent} messages and refused {len(refused)}: {refused[:1]}. See its log.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
