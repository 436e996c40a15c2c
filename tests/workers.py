"""Real workers in processes of their own, servers that a test may stop, and plain counting of what went in and came out."""

import asyncio
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import redis
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from compose.stack.kafka_jars import broker_answers, broker_command
from compose.stack.local import Server, store_answers, store_command
from online_store.keys import Generation, entity_of, guard_key, record_pattern
from online_store.reading import read
from online_store.record import layouts
from online_store.redis import RedisStore
from schemas import codec
from schemas.features import REGISTRY
from schemas.records import Click, Dwell, Event, Impression, Record
from schemas.topics import SOURCES, TOPICS, StoredRecord, record_of
from streams.app import IngestSettings, run
from tests.services import free_port

REPOSITORY = Path(__file__).parents[1]
#: The least that a broker grants unless told otherwise.
SESSION_TIMEOUT_S = 6.0
#: What our own broker grants: so long a group takes to miss a worker that was killed.
SHORT_SESSION_S = 2.0
#: Longer than anything here takes, on a busy machine too.
PATIENCE_S = 40.0
SOURCE_NAMES = [topic.name for topic in SOURCES]
GENERATION = Generation(1, REGISTRY.fingerprint)

#: (kind, id) -> the values its windows show, each (impressions, clicks, dwell count, dwell sum in ms); one where all windows agree.
Counts = dict[tuple[str, str], set[tuple[int, ...]]]


class Process:
    """One worker: a process whose log is a file, killed when the block that opened it ends."""

    def __init__(self, command: Sequence[str], log: Path, **environment: str) -> None:
        self.log_file = log
        with log.open("wb") as output:
            self._popen = subprocess.Popen(  # noqa: S603  # commands of this file
                [sys.executable, *command], stdout=output, stderr=output, cwd=REPOSITORY, env={**os.environ, **environment}
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self.log_file.read_text(errors="replace")

    @property
    def pid(self) -> int:
        """Its number."""
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._popen.poll() is None

    def kill(self) -> None:
        """End it as a power cut would."""
        self._popen.kill()
        self._popen.wait()

    def pause(self) -> None:
        """Let it stand still, as a long garbage collection or a frozen machine would."""
        self._popen.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on, unaware of the time that went by."""
        self._popen.send_signal(signal.SIGCONT)

    def stop(self) -> int:
        """Ask it to stop, and return its exit code."""
        self._popen.terminate()
        return self.exit_code()

    def exit_code(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for its end."""
        return self._popen.wait(timeout_s)

    def said(self, words: str) -> bool:
        """Whether its log holds these words; fails the test if it ended without them."""
        if words in self.log:
            return True
        assert self.alive, self.log
        return False


def ingest_worker(folder: Path, settings: IngestSettings, store_url: str, **environment: str) -> Process:
    """An ingest worker: streams.app.run with these settings."""
    arguments = json.dumps({name: getattr(settings, name) for name in IngestSettings.__dataclass_fields__})
    return Process(["-m", "tests.workers", arguments, store_url], log_file(folder), **environment)


def command(folder: Path, verb: str, **settings: str) -> Process:
    """`millstream VERB` with settings by MILLSTREAM_* variables."""
    return Process(
        ["-m", "compose.processes", verb], log_file(folder), **{f"MILLSTREAM_{name.upper()}": value for name, value in settings.items()}
    )


def log_file(folder: Path) -> Path:
    """Where the next process of a test says what it does."""
    return folder / f"worker-{len(list(folder.glob('worker-*.log')))}.log"


@contextmanager
def own_store(folder: Path) -> Iterator[tuple[Server, Callable[[], None], str]]:
    """A store of the test's own: its server, how to start it again, and its URL."""
    port = free_port()
    server = Server("Valkey", folder / "own-store" / "valkey.conf", store_answers)
    with _running(server, lambda: store_command(server.settings, port), port) as start:
        yield server, start, f"redis://127.0.0.1:{port}"


@contextmanager
def own_broker(folder: Path) -> Iterator[tuple[Server, Callable[[], None], str]]:
    """A broker of the test's own, which grants short sessions: its server, how to start it again, and its address."""
    port, controller_port = free_port(), free_port()
    server = Server("Kafka", folder / "own-kafka" / "server.properties", broker_answers)

    def java() -> list[str]:
        line = broker_command(server.settings, port, controller_port)
        with server.settings.open("a") as settings:
            settings.write("group.min.session.timeout.ms=100\n")
        return line

    with _running(server, java, port) as start:
        yield server, start, f"127.0.0.1:{port}"


@contextmanager
def _running(server: Server, command: Callable[[], list[str]], port: int) -> Iterator[Callable[[], None]]:
    def start() -> None:
        server.launch(command(), port)
        server.await_answer(port)

    try:
        start()
        yield start
    finally:
        server.stop()


def events(count: int, seed: int = 0, users: int = 40, items: int = 25) -> list[Event]:
    """Impressions, and clicks and dwells of some, all within the last minute: every window must show the same."""
    draw = random.Random(seed)
    now_ms = time.time_ns() // 1_000_000
    found: list[Event] = []
    for number in range(count):
        fields: dict[str, Any] = {
            "request_id": f"r{seed}-{number}",
            "user_id": f"u{draw.randrange(users)}",
            "item_id": f"i{draw.randrange(items)}",
            "ts_ms": now_ms - draw.randrange(60_000),
            "model_version": draw.choice((None, "m1")),
        }
        dwell_ms = draw.randrange(100_000)
        found.append(
            draw.choice(
                (
                    Impression(**fields, position=number % 10),
                    Impression(**fields, position=number % 10),
                    Click(**fields, dwell_ms=draw.choice((None, dwell_ms))),
                    Dwell(**fields, dwell_ms=dwell_ms),
                )
            )
        )
    return found


def produce(kafka_bootstrap: str, prefix: str, records: Iterable[Record], **settings: Any) -> None:  # noqa: ANN401  # librdkafka's own
    """Send records to their topics in our Avro, and wait until Kafka has them."""
    topics = {record.__name__: topic for topic in TOPICS.values() for record in topic.records}
    values = [(topics[type(record).__name__], record) for record in records]
    send(kafka_bootstrap, [(prefix + topic.name, topic.key_of(record), codec.encode(record)) for topic, record in values], **settings)


def send(kafka_bootstrap: str, messages: Iterable[tuple[str, bytes | None, bytes | None]], **settings: Any) -> None:  # noqa: ANN401  # as above
    """Send (topic, key, value) as they are, and wait until Kafka has them. headers, timestamp, partition: of every message."""
    places = {name: settings.pop(name) for name in ("headers", "timestamp", "partition") if name in settings}
    refused: list[object] = []
    producer = Producer({"bootstrap.servers": kafka_bootstrap, "linger.ms": 5, **settings})
    for topic, key, value in messages:
        producer.produce(topic, value, key, **places, on_delivery=lambda error, _: refused.append(error) if error else None)
        producer.poll(0)
    assert producer.flush(PATIENCE_S) == 0
    assert not refused, refused


class Reader:
    """Everything that topics hold, as it comes. records: by topic, partition by partition in order."""

    def __init__(self, kafka_bootstrap: str, *topics: str) -> None:
        self.records: dict[str, list[StoredRecord]] = {topic: [] for topic in topics}
        self._consumer = Consumer({"bootstrap.servers": kafka_bootstrap, "group.id": "tests", "fetch.wait.max.ms": 20})
        held = self._consumer.list_topics(timeout=PATIENCE_S).topics
        self._places = [TopicPartition(topic, partition, 0) for topic in topics for partition in held[topic].partitions]
        self._consumer.assign(self._places)

    def read(self, wait_s: float = 0.02) -> None:
        """Take what has come, waiting a moment for more."""
        for message in self._consumer.consume(10_000, wait_s):
            assert message.error() is None, message.error()
            topic = str(message.topic())
            self.records[topic].append(record_of(topic, message))

    def read_to_end(self) -> None:
        """Take everything that is there now; marks of transactions are no records, and are not waited for."""
        until = [(place, end_of(self._consumer, place)) for place in self._places]

        def at_end() -> bool:
            self.read()
            return all(self._at(place) >= end for place, end in until)

        wait_until(at_end)

    def _at(self, place: TopicPartition) -> int:
        return max(self._consumer.position([place])[0].offset, 0)

    def close(self) -> None:
        """Let go of the connection."""
        self._consumer.close()


def log_records(kafka_bootstrap: str, topic: str) -> list[StoredRecord]:
    """Everything that a topic holds now, partition by partition."""
    reader = Reader(kafka_bootstrap, topic)
    reader.read_to_end()
    reader.close()
    return reader.records[topic]


def end_of(consumer: Consumer, place: TopicPartition) -> int:
    """Where a partition ends; asked again while a broker that has just come back elects its leader."""
    found: list[int] = []

    def asked() -> bool:
        try:
            found.append(consumer.get_watermark_offsets(place, timeout=PATIENCE_S)[1])
        except KafkaException:
            return False
        return True

    wait_until(asked)
    return found[0]


def ends(kafka_bootstrap: str, prefix: str, names: Iterable[str] = SOURCE_NAMES) -> dict[str, int]:
    """Where each source ends, by the name of its guard."""
    consumer = Consumer({"bootstrap.servers": kafka_bootstrap, "group.id": "tests"})
    found = {}
    for name in names:
        for partition in consumer.list_topics(prefix + name, timeout=PATIENCE_S).topics[prefix + name].partitions:
            end = end_of(consumer, TopicPartition(prefix + name, partition))
            found[f"{name}/{partition}"] = end
    consumer.close()
    return found


def committed(kafka_bootstrap: str, prefix: str, group_id: str, names: Iterable[str]) -> dict[str, int]:
    """What a group has committed, by the name of the guard; a partition without records has no entry."""
    consumer = Consumer({"bootstrap.servers": kafka_bootstrap, "group.id": group_id})
    places = [TopicPartition(prefix + place.split("/")[0], int(place.split("/")[1])) for place in ends(kafka_bootstrap, prefix, names)]
    found = consumer.committed(places, timeout=PATIENCE_S)
    consumer.close()
    return {f"{place.topic.removeprefix(prefix)}/{place.partition}": place.offset for place in found if place.offset >= 0}


def guards(store_url: str, sources: Sequence[str]) -> dict[str, int]:
    """The lowest guard of each source."""
    with redis.Redis.from_url(store_url) as store, store.pipeline(transaction=False) as pipeline:
        for shard in range(GENERATION.shards):
            pipeline.hmget(guard_key(GENERATION, shard), list(sources))
        answers = pipeline.execute()
    return {source: min(int(answer[place] or 0) for answer in answers) for place, source in enumerate(sources)}


def wait_until(true: Callable[[], bool], what: Callable[[], object] = str, timeout_s: float = PATIENCE_S) -> float:
    """Return once something is true, with the seconds it took; fail with what was there instead."""
    begun_s = time.monotonic()
    while not true():
        assert time.monotonic() - begun_s < timeout_s, what()
        time.sleep(0.02)
    return time.monotonic() - begun_s


def caught_up(kafka_bootstrap: str, prefix: str, store_url: str, *workers: Process) -> float:
    """Return once all guards stand at the ends of all sources, with the seconds it took; fails if a worker ends before."""
    wanted = ends(kafka_bootstrap, prefix)

    def done() -> bool:
        assert all(worker.alive for worker in workers), [worker.log[-4_000:] for worker in workers]
        return guards(store_url, list(wanted)) == wanted

    return wait_until(done, lambda: (guards(store_url, list(wanted)), wanted, [worker.log[-4_000:] for worker in workers]))


def counted(records: Iterable[Record]) -> Counts:
    """What plain counting makes of events."""
    sums: Mapping[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for record in records:
        if not isinstance(record, Impression | Click | Dwell):
            continue
        entities = {"user": record.user_id, "item": record.item_id, "model": record.model_version}
        for kind, name in entities.items():
            if name is not None:
                counters = sums[kind, name]
                counters[0] += isinstance(record, Impression)
                counters[1] += isinstance(record, Click)
                dwell_ms = None if isinstance(record, Impression) else record.dwell_ms
                counters[2] += dwell_ms is not None
                counters[3] += dwell_ms or 0
    return {entity: {tuple(counters)} for entity, counters in sums.items()}


def stored(store_url: str) -> Counts:
    """What the store holds now, entity by entity."""
    found: Counts = {}
    with redis.Redis.from_url(store_url) as store:
        keys = sorted(set(store.scan_iter(record_pattern(GENERATION), count=10_000)))
        values = store.mget(keys) if keys else []
    for key, value in zip(keys, values, strict=True):
        entity = entity_of(key)
        tiles = read(layouts(REGISTRY)[entity.kind], [value], time.time_ns() // 1_000_000 + 1_000)
        found[entity.kind, entity.id] = {tuple(window) for window in tiles.counts[0].tolist()}
    return found


async def _ingest(settings: IngestSettings, store_url: str) -> int:
    return await run(settings, RedisStore(store_url, REGISTRY), REGISTRY)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    sys.exit(asyncio.run(_ingest(IngestSettings(**json.loads(sys.argv[1])), sys.argv[2])))
