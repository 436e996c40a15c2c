"""A feed of pages, clicks and profiles with everything in it that producers do wrong, by a seed.

Its clock begins days ago and runs faster than ours, so that tiles roll over while it runs; Kafka's timestamps follow it.
"""

import random
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

from confluent_kafka import KafkaError, Producer

from schemas import codec
from schemas.records import Click, Content, Dwell, Impression, Record, User
from schemas.topics import CLICKS, CONTENT, IMPRESSIONS, USERS
from schemas.windows import DAY_MS, LATENESS_MS, MINUTE_MS

PARTITIONS = 8
USERS_COUNT, ITEMS_COUNT = 2_000, 800
TOPIC_OF = {Impression: IMPRESSIONS, Click: CLICKS, Dwell: CLICKS, Content: CONTENT, User: USERS}
#: How often the feed sends (seconds).
TICK_S = 0.05
#: One message in so many is poison, is sent twice, comes by another partition than its key's.
POISON_EVERY, TWICE_EVERY, ASTRAY_EVERY = 10, 40, 5
#: Messages that are kept to be produced again as a whole range; a burst of poison.
RANGE_ROWS, BURST_ROWS = 400, 300

#: What one broken producer puts in front of its records: the fingerprint of a schema that nobody knows.
UNKNOWN_FRAMING = b"\xc3\x01" + b"\7" * 8


def repaired(value: bytes) -> bytes | None:
    """For `dead-letters redrive --repair`: the record behind the unknown framing; None for poison of any other sort."""
    return value.removeprefix(UNKNOWN_FRAMING) if value.startswith(UNKNOWN_FRAMING) else None


class Message(NamedTuple):
    """What is produced. timestamp: Kafka's, ms."""

    topic: str
    partition: int
    key: bytes
    value: bytes | None
    timestamp: int


class Feed:
    """Produces until the block ends. sent: messages so far, poison and repeats included; refused: by the broker."""

    def __init__(self, kafka_bootstrap: str, prefix: str, seed: int, events_per_s: int, speed: int) -> None:
        """speed: how many seconds the feed's clock runs in one of ours."""
        self.sent = self.refused = 0
        self._draw = random.Random(seed)  # noqa: S311  # data by a seed, no secret
        self._prefix, self._rate, self._speed = prefix, events_per_s, speed
        # Without idempotence, and trying for ever: what a broker's restart duplicates and reorders stays so in the log.
        plain = {"enable.idempotence": False, "acks": "all", "message.timeout.ms": 0, "linger.ms": 5, "log_level": 0}
        self._producer = Producer({"bootstrap.servers": kafka_bootstrap, **plain})
        self._ahead = Producer({"bootstrap.servers": kafka_bootstrap, "log_level": 0})
        self._recent: deque[Message] = deque(maxlen=RANGE_ROWS)
        self._begun_s = time.monotonic()
        self._begun_ms = time.time_ns() // 1_000_000 - 4 * DAY_MS
        self._wanted = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed")

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, if it has not."""
        self.stop()

    def stop(self) -> None:
        """Send what is under way and stop."""
        self._stop.set()
        self._thread.join()
        assert self._producer.flush(60) == 0, "Kafka did not take the feed's last messages within a minute"
        self._ahead.flush(10)

    def burst(self, rows: int) -> None:
        """Send so many more at once."""
        self._wanted += rows

    def _now_ms(self) -> int:
        return self._begun_ms + int((time.monotonic() - self._begun_s) * 1000 * self._speed)

    def _run(self) -> None:
        tick, owed = 0, 0.0
        while not self._stop.wait(TICK_S):
            tick += 1
            extra, self._wanted = self._wanted, 0
            owed += self._rate * TICK_S + extra
            while owed > 0:
                owed -= self._send(self._page())
            if tick % 100 == 0:
                self._send(self._recent)
            if tick % 150 == 0:
                self._send(self._burst())
            if tick % 200 == 0:
                self._send_ahead()

    def _send(self, messages: Any) -> int:  # noqa: ANN401  # an iterable or the deque itself
        rows = list(messages)
        self._draw.shuffle(rows)
        for message in rows:
            while True:
                try:
                    self._produce(self._producer, message)
                    break
                except BufferError:
                    self._producer.poll(0.1)
            self._producer.poll(0)
        self.sent += len(rows)
        return len(rows)

    def _produce(self, producer: Producer, message: Message, **options: Any) -> None:  # noqa: ANN401  # librdkafka's own
        topic, partition, key, value, timestamp = message
        producer.produce(self._prefix + topic, value, key, partition=partition, timestamp=timestamp, **options)

    def _page(self) -> Iterator[Message]:
        """A page of ten impressions and what came of it, each perhaps poisoned or said twice."""
        for record in self._records():
            message = self._message(record)
            if self._draw.randrange(POISON_EVERY) == 0:
                message = message._replace(value=self._poison(message.value))
            for _ in range(2 if self._draw.randrange(TWICE_EVERY) == 0 else 1):
                self._recent.append(message)
                yield message

    def _records(self) -> Iterator[Record | Message]:
        draw, now_ms = self._draw, self._now_ms()
        user_id = f"u{draw.randrange(USERS_COUNT)}"
        for position in range(10):
            fields: dict[str, Any] = {
                "request_id": f"r{draw.getrandbits(48):x}",
                "user_id": user_id,
                "item_id": f"i{int(draw.paretovariate(0.9)) % ITEMS_COUNT}",
                "ts_ms": self._time_ms(now_ms),
                "model_version": draw.choice((None, "m1", "m2")),
            }
            yield Impression(**fields, position=position)
            if draw.random() < 0.08:
                yield Click(**fields, dwell_ms=draw.choice((None, draw.randrange(90_000))))
                yield Dwell(**fields, dwell_ms=draw.randrange(90_000))
        if draw.random() < 0.2:
            yield from self._profiles(now_ms)

    def _profiles(self, now_ms: int) -> Iterator[Record | Message]:
        draw = self._draw
        item_id, user_id = f"i{draw.randrange(ITEMS_COUNT)}", f"u{draw.randrange(USERS_COUNT)}"
        ts_ms = self._time_ms(now_ms)
        yield Content(item_id=item_id, author_id=f"a{draw.randrange(50)}", created_at_ms=ts_ms, ts_ms=ts_ms, quality_score=draw.random())
        yield User(user_id=user_id, created_at_ms=ts_ms, ts_ms=ts_ms, locale=draw.choice(("de", "en")))
        if draw.random() < 0.1:
            topic, key = draw.choice(((CONTENT.name, item_id), (USERS.name, user_id)))
            yield Message(topic, draw.randrange(PARTITIONS), key.encode(), None, now_ms)

    def _time_ms(self, now_ms: int) -> int:
        """When it happened: mostly just now, often late by up to what is allowed and more, sometimes by a clock that is a day ahead."""
        kind = self._draw.random()
        if kind < 0.005:
            return now_ms + DAY_MS
        if kind < 0.03:
            return now_ms + self._draw.randrange(5 * MINUTE_MS)
        if kind < 0.05:
            return now_ms - self._draw.randrange(9 * DAY_MS)
        return now_ms - self._draw.randrange(LATENESS_MS if kind < 0.3 else 5_000)

    def _message(self, record: Record | Message) -> Message:
        if isinstance(record, Message):
            return record
        topic = TOPIC_OF[type(record)]
        key = topic.key_of(record)
        astray = self._draw.randrange(ASTRAY_EVERY) == 0
        partition = self._draw.randrange(PARTITIONS) if astray else sum(key) % PARTITIONS
        value = codec.encode_json(record) if self._draw.random() < 0.1 else codec.encode(record)
        return Message(topic.name, partition, key, value, self._now_ms())

    def _poison(self, value: bytes | None) -> bytes:
        """Bytes that are no record, or a record that cannot be."""
        body = value or b"{}"
        cut = body[: self._draw.randrange(len(body))]
        return self._draw.choice((cut, body + b"\0", self._draw.randbytes(20), UNKNOWN_FRAMING + body, b'{"request_id":"r"}'))

    def _burst(self) -> Iterator[Message]:
        partition, now_ms = self._draw.randrange(PARTITIONS), self._now_ms()
        for _ in range(BURST_ROWS):
            yield Message(self._draw.choice((IMPRESSIONS.name, CLICKS.name)), partition, b"poison", self._poison(b"{}"), now_ms)

    def _send_ahead(self) -> None:
        """A producer whose Kafka timestamps run a day ahead as well: the broker refuses it."""
        ahead_ms = time.time_ns() // 1_000_000 + DAY_MS
        record = Impression(request_id="ahead", user_id="ahead", item_id="ahead", ts_ms=ahead_ms, position=0)
        message = Message(IMPRESSIONS.name, 0, b"ahead", codec.encode(record), ahead_ms)
        self._produce(self._ahead, message, on_delivery=self._count_refused)
        self._ahead.poll(0)

    def _count_refused(self, error: KafkaError | None, _: object) -> None:
        self.refused += error is not None
