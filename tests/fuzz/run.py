"""A run: everything a serving process needs, then requests by the thousand, and what became of them."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from compose import topics
from online_store.redis import RedisStore
from schemas.features import REGISTRY
from schemas.topics import DEAD_LETTERS, RANK_REQUESTS, RANK_RESPONSES, record_of
from tests import rankers
from tests.fuzz.requests import PARTITIONS, REPLY_PARTITIONS, Request, Requests
from tests.fuzz.verdict import Place, Verdict
from tests.schema_registry import Registry
from tests.workers import PATIENCE_S, Process, command, wait_until
from tests.worlds import NOW_MS, SCHEMA_GUIDS, SCHEMA_IDS, SCHEMA_NUMBERS

#: So many of the last requests are as they should be: whatever came before, somebody must still be there for them.
LAST_COUNT = 20
#: Requests are given up when nothing has come out for so long (seconds).
STILL_S = 60.0
#: Outcomes taken at once.
ROWS_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Report:
    """What a run found. crashed: the process ended, or would not end in order; wrong: sentences; unanswered: numbers of requests."""

    seed: int
    requests: int
    responses: int
    dead_letters: int
    unanswered: list[int]
    crashed: bool
    wrong: list[str]
    reasons: dict[str, int]
    seconds: float
    log: str

    def is_wrong(self) -> bool:
        """Whether a claim does not hold."""
        return self.crashed or bool(self.unanswered or self.wrong)


def play(kafka_bootstrap: str, store_url: str, folder: Path, seed: int, numbers: Mapping[int, bool], tell: Callable[[int], None]) -> Report:
    """Send requests and say what became of them. store_url: of an empty store; numbers: which, and whether it is left as it should be.

    tell: gets the number of outcomes so far.
    """
    begun_s = time.monotonic()
    prefix = f"fuzz{time.time_ns()}-"
    replies = f"{prefix}replies"
    asked = Requests(seed, numbers, replies)
    places: dict[int, Place] = {}
    verdict = Verdict(asked, places, prefix, replies, SCHEMA_IDS)
    with _serving(kafka_bootstrap, store_url, folder, prefix, replies) as process, _outcomes(kafka_bootstrap, prefix, replies) as consumer:
        _send(kafka_bootstrap, prefix + RANK_REQUESTS.name, asked, places)
        last_s = time.monotonic()
        while len(verdict.outcomes) < len(asked) and process.alive and time.monotonic() - last_s < STILL_S:
            last_s = time.monotonic() if _take(consumer, verdict) else last_s
            tell(len(verdict.outcomes))
        crashed = not process.alive or process.stop() != 0
        while _take(consumer, verdict):
            """What came out twice, or too late."""
        log = process.log
    repeated = [f"request {number} has {verdict.outcomes[number]} outcomes" for number in verdict.repeated()]
    return Report(
        seed=seed,
        requests=len(asked),
        responses=verdict.responses,
        dead_letters=verdict.dead_letters,
        unanswered=verdict.unanswered(),
        crashed=crashed,
        wrong=verdict.wrong + repeated,
        reasons=dict(verdict.reasons),
        seconds=round(time.monotonic() - begun_s, 1),
        log=log,
    )


def numbers(count: int) -> dict[int, bool]:
    """The requests of a run of so many; the last are as they should be."""
    return {number: number >= count - LAST_COUNT for number in range(count)}


@contextmanager
def _serving(kafka_bootstrap: str, store_url: str, folder: Path, prefix: str, replies: str) -> Iterator[Process]:
    """`millstream serve` with all that it has: a schema registry, a reply topic, a store with a past, a model."""
    topics.create(kafka_bootstrap, prefix, PARTITIONS, retention_ms=-1)
    admin = AdminClient({"bootstrap.servers": kafka_bootstrap})
    admin.create_topics([NewTopic(replies, REPLY_PARTITIONS, 1)])[replies].result(PATIENCE_S)
    rankers.trained(folder / "models")
    asyncio.run(_fill(store_url))
    numbered = {number: name for name, number in SCHEMA_NUMBERS.items()}
    guided = {guid: name for name, guid in SCHEMA_GUIDS.items()}
    with Registry(numbered, guided) as registry, registry.running():
        settings = {"kafka_bootstrap": kafka_bootstrap, "topic_prefix": prefix, "group_id": prefix, "store_url": store_url}
        settings |= {"models_uri": str(folder / "models"), "reply_topics": replies, "schema_registry_url": registry.url}
        with command(folder, "serve", **settings) as process:
            wait_until(lambda: process.said("serve is up"))
            yield process


async def _fill(store_url: str) -> None:
    store = RedisStore(store_url, REGISTRY)
    await rankers.fill(store, NOW_MS)
    await store.close()


def _send(kafka_bootstrap: str, topic: str, asked: Mapping[int, Request], places: dict[int, Place]) -> None:
    """Send every request to the partition of its number, and note where Kafka put it. Fails where Kafka does not take one."""
    refused: list[KafkaError] = []
    limits = {"message.max.bytes": 2_000_000, "queue.buffering.max.kbytes": 100_000}
    producer = Producer({"bootstrap.servers": kafka_bootstrap, "linger.ms": 5, "log_level": 0, **limits})

    def delivered(number: int) -> Callable[[KafkaError | None, Message], None]:
        def note(error: KafkaError | None, message: Message) -> None:
            places[number] = (int(message.partition() or 0), int(message.offset() or 0))
            refused.extend([error] if error else [])

        return note

    for number, one in asked.items():
        while True:
            try:
                producer.produce(
                    topic, one.value, one.key, number % PARTITIONS, delivered(number), timestamp=one.timestamp, headers=list(one.headers)
                )
            except BufferError:
                producer.poll(0.1)
            else:
                break
        producer.poll(0)
    assert producer.flush(PATIENCE_S) == 0
    assert not refused, refused[:3]


@contextmanager
def _outcomes(kafka_bootstrap: str, prefix: str, replies: str) -> Iterator[Consumer]:
    """Whatever comes out of the serving process."""
    quick = {"fetch.wait.max.ms": 50, "fetch.message.max.bytes": 2**22, "log_level": 0}
    consumer = Consumer({"bootstrap.servers": kafka_bootstrap, "group.id": "fuzz", **quick})
    held = consumer.list_topics(timeout=PATIENCE_S).topics
    names = (prefix + RANK_RESPONSES.name, replies, prefix + DEAD_LETTERS.name)
    consumer.assign([TopicPartition(name, partition, 0) for name in names for partition in held[name].partitions])
    yield consumer
    consumer.close()


def _take(consumer: Consumer, verdict: Verdict) -> int:
    """Look at what has come, and say how much; waits a second for something."""
    messages = consumer.consume(ROWS_MAX, 1.0)
    for message in messages:
        assert message.error() is None, message.error()
        verdict.take(record_of(str(message.topic()), message))
    return len(messages)
