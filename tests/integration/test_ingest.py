"""Counts stay exact whatever happens to workers, store and broker; and a worker that cannot go on ends."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Self

import pytest
import redis
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from compose import topics
from compose.stack.local import Server
from online_store.deltas import NOTHING
from online_store.keys import Entity, record_key
from online_store.redis import RedisStore
from online_store.store import Move, Step
from schemas import codec
from schemas.errors import LogError
from schemas.features import REGISTRY
from schemas.records import Event, Impression
from schemas.topics import IMPRESSIONS, Source
from streams.app import IngestSettings, build, check_topics
from streams.worker import STORE_PATIENCE_S
from tests.services import free_port
from tests.workers import (
    GENERATION,
    REPOSITORY,
    SESSION_TIMEOUT_S,
    SHORT_SESSION_S,
    SOURCE_NAMES,
    Process,
    caught_up,
    command,
    committed,
    counted,
    ends,
    events,
    ingest_worker,
    own_broker,
    own_store,
    produce,
    stored,
    wait_until,
)


@pytest.fixture
def settings(kafka_bootstrap: str, topic_prefix: str) -> IngestSettings:
    """Settings of a worker on topics of this test's own, two partitions each."""
    return settings_at(kafka_bootstrap, topic_prefix)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Callable[[], None], str]]:
    """A broker that misses a worker soon, and that a test may stop: its server, how to start it again, and its address."""
    with own_broker(tmp_path_factory.mktemp("broker")) as running:
        yield running


@pytest.fixture
def short_settings(broker: tuple[Server, Callable[[], None], str], topic_prefix: str) -> IngestSettings:
    """As `settings`, on that broker: a worker that is gone is missed after two seconds."""
    return settings_at(broker[2], topic_prefix, SHORT_SESSION_S)


def settings_at(kafka_bootstrap: str, topic_prefix: str, session_timeout_s: float = SESSION_TIMEOUT_S) -> IngestSettings:
    topics.create(kafka_bootstrap, topic_prefix, partitions=2)
    return IngestSettings(kafka_bootstrap, f"{topic_prefix}ingest", topic_prefix, session_timeout_s=session_timeout_s)


class Feed:
    """Events that keep coming, a few hundred at a time, until the block ends; then `sent` is all of them."""

    def __init__(self, settings: IngestSettings) -> None:
        self.sent: list[Event] = []
        self._settings = settings
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            more = events(300, seed=len(self.sent))
            produce(self._settings.kafka_bootstrap, self._settings.topic_prefix, more)
            self.sent += more

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def wait_for_more(self) -> None:
        """Return once more events were sent than when this was called."""
        before = len(self.sent)
        wait_until(lambda: len(self.sent) > before)


def send(settings: IngestSettings, sent: list[Event], **how: str) -> list[Event]:
    produce(settings.kafka_bootstrap, settings.topic_prefix, sent, **how)
    return sent


def finish(settings: IngestSettings, store_url: str, *workers: Process) -> float:
    return caught_up(settings.kafka_bootstrap, settings.topic_prefix, store_url, *workers)


def progress(store_url: str, worker: Process) -> Callable[[], bool]:
    """Whether more is in the store than when this was called."""
    before = stored(store_url)

    def moved() -> bool:
        assert worker.alive, worker.log
        return stored(store_url) != before

    return moved


def cut_off(kafka_bootstrap: str, prefix: str, starts: dict[str, int]) -> None:
    """Let partitions begin later, as retention does."""
    places = [TopicPartition(prefix + name.split("/")[0], int(name.split("/")[1]), start) for name, start in starts.items()]
    admin = AdminClient({"bootstrap.servers": kafka_bootstrap})
    for answer in admin.delete_records(places).values():
        answer.result(10)


def flush(store_url: str) -> None:
    with redis.Redis.from_url(store_url) as store:
        store.flushdb()


def test_every_compression_is_counted(settings: IngestSettings, store_db: str, tmp_path: Path) -> None:
    """Every entity's every window equals plain counting, whatever codecs the producers of a topic chose."""
    with ingest_worker(tmp_path, settings, store_db) as worker:
        sent = [
            event
            for seed, codec_name in enumerate(("none", "gzip", "snappy", "lz4", "zstd"))
            for event in send(settings, events(700, seed), **{"compression.type": codec_name})
        ]
        finish(settings, store_db, worker)

    assert stored(store_db) == counted(sent)


def test_killed_workers_count_nothing_twice(short_settings: IngestSettings, store_db: str, tmp_path: Path) -> None:
    """After kill -9 in the middle of the stream, again and again, nothing is lost and nothing is counted twice."""
    with Feed(short_settings) as feed, ExitStack() as workers:
        for _ in range(3):
            worker = workers.enter_context(ingest_worker(tmp_path, short_settings, store_db))
            wait_until(progress(store_db, worker))
            worker.kill()
    with ingest_worker(tmp_path, short_settings, store_db) as worker:
        finish(short_settings, store_db, worker)

    assert stored(store_db) == counted(feed.sent)


def test_repeats_are_known_again_after_kills(short_settings: IngestSettings, store_db: str, tmp_path: Path) -> None:
    """Everything sent twice, workers killed and restarted in between and in the middle of it: each event counts once."""
    sent = send(short_settings, events(2_000, seed=7))
    with ingest_worker(tmp_path, short_settings, store_db) as worker:
        finish(short_settings, store_db, worker)
        worker.kill()
    with ingest_worker(tmp_path, short_settings, store_db) as worker:
        send(short_settings, sent[:1_000])
        finish(short_settings, store_db, worker)
        send(short_settings, sent)
        worker.kill()
    more = send(short_settings, events(500, seed=8))
    with ingest_worker(tmp_path, short_settings, store_db) as worker:
        finish(short_settings, store_db, worker)

    assert stored(store_db) == counted([*sent, *more])


def test_repeats_count_where_they_are_switched_off(settings: IngestSettings, store_db: str, tmp_path: Path) -> None:
    """With a stretch of no offsets, what was sent twice counts twice."""
    sent = send(settings, send(settings, events(200)))
    with ingest_worker(tmp_path, replace(settings, repeat_offsets=0), store_db) as worker:
        finish(settings, store_db, worker)

    assert stored(store_db) == counted([*sent, *sent])


def test_a_stretch_that_retention_removed_in_part_stops_nobody(settings: IngestSettings, store_db: str, tmp_path: Path) -> None:
    """What lies before the guards may be gone: a worker begins with what is left, and counts what comes."""
    sent = send(settings, events(1_000, seed=1))
    with ingest_worker(tmp_path, settings, store_db) as worker:
        finish(settings, store_db, worker)
    half = {name: end // 2 for name, end in ends(settings.kafka_bootstrap, settings.topic_prefix).items() if end}
    cut_off(settings.kafka_bootstrap, settings.topic_prefix, half)
    sent += send(settings, events(500, seed=2))
    with ingest_worker(tmp_path, settings, store_db) as worker:
        finish(settings, store_db, worker)

    assert stored(store_db) == counted(sent)


def test_workers_that_come_and_go_count_nothing_twice(settings: IngestSettings, store_db: str, tmp_path: Path) -> None:
    """A second worker joins and the first leaves while events keep coming: partitions change hands, counts stay exact."""
    with ingest_worker(tmp_path, settings, store_db) as first, ingest_worker(tmp_path, settings, store_db) as second:
        with Feed(settings) as feed:
            for worker in (first, second):
                wait_until(lambda worker=worker: worker.said("ingest is up"))  # type: ignore[misc]  # a bound default
                feed.wait_for_more()
            left = first.stop()
            feed.wait_for_more()
        finish(settings, store_db, second)

    assert (left, stored(store_db) == counted(feed.sent)) == (0, True)


def test_a_zombie_counts_nothing_twice(short_settings: IngestSettings, store_db: str, tmp_path: Path) -> None:
    """A worker frozen in the middle of its work wakes up when another has done it all, and goes on as one of the group."""
    with ingest_worker(tmp_path, short_settings, store_db) as zombie, ingest_worker(tmp_path, short_settings, store_db) as other:
        with Feed(short_settings) as feed:
            for worker in (zombie, other):
                wait_until(lambda worker=worker: worker.said("ingest is up"))  # type: ignore[misc]  # a bound default
            feed.wait_for_more()
            zombie.pause()
            feed.wait_for_more()
        finish(short_settings, store_db, other)
        zombie.resume()
        sent = [*feed.sent, *send(short_settings, events(500, seed=-1))]
        finish(short_settings, store_db, zombie, other)

    assert stored(store_db) == counted(sent)


def test_an_emptied_store_fills_again_by_itself(settings: IngestSettings, store_db: str, tmp_path: Path) -> None:
    """A store that loses everything, between events or when nothing comes any more, is filled again from the log."""
    with ingest_worker(tmp_path, settings, store_db) as worker:
        with Feed(settings) as feed:
            wait_until(progress(store_db, worker))
            flush(store_db)
            wait_until(progress(store_db, worker))
        finish(settings, store_db, worker)
        flush(store_db)
        finish(settings, store_db, worker)

    assert stored(store_db) == counted(feed.sent)


def test_a_store_that_is_away_for_a_while_costs_nothing(settings: IngestSettings, tmp_path: Path) -> None:
    """While the store is stopped the worker waits; when it is back every event is counted once."""
    with own_store(tmp_path) as (server, start, url), ingest_worker(tmp_path, settings, url) as worker:
        with Feed(settings) as feed:
            wait_until(progress(url, worker))
            server.stop()
            time.sleep(2.0)
            start()
            feed.wait_for_more()
        finish(settings, url, worker)
        exact = stored(url) == counted(feed.sent)

    assert exact


def test_a_broker_that_is_away_for_a_while_costs_nothing(
    broker: tuple[Server, Callable[[], None], str], short_settings: IngestSettings, store_db: str, tmp_path: Path
) -> None:
    """While the broker is stopped the worker keeps trying; when it is back the worker goes on, and counts are exact."""
    server, start, _ = broker
    with ingest_worker(tmp_path, short_settings, store_db) as worker:
        sent = send(short_settings, events(500, seed=1))
        finish(short_settings, store_db, worker)
        server.stop()
        time.sleep(2.0)
        start()
        sent += send(short_settings, events(500, seed=2))
        finish(short_settings, store_db, worker)

    assert stored(store_db) == counted(sent)


def test_sigterm_is_an_orderly_end(settings: IngestSettings, store_db: str, tmp_path: Path) -> None:
    """`millstream ingest` ends with 0 soon after SIGTERM, and leaves guards and committed offsets at the end of the log."""
    names = {"kafka_bootstrap": settings.kafka_bootstrap, "topic_prefix": settings.topic_prefix, "store_url": store_db, "group_id": "cli"}
    with command(tmp_path, "ingest", **names) as worker:
        send(settings, events(500))
        finish(settings, store_db, worker)
        begun_s = time.monotonic()
        code = worker.stop()
        took_s = time.monotonic() - begun_s
    wanted = {source: end for source, end in ends(settings.kafka_bootstrap, settings.topic_prefix).items() if end}

    assert (code, took_s < 10, committed(settings.kafka_bootstrap, settings.topic_prefix, "cli-ingest", SOURCE_NAMES)) == (0, True, wanted)


def test_a_record_of_another_making_ends_the_worker(settings: IngestSettings, store_db: str, tmp_path: Path) -> None:
    """A value in the store that is no record of ours crashes the agent: the process ends with 1 instead of passing the batch over."""
    sent = send(settings, events(100))
    with redis.Redis.from_url(store_db) as store:
        store.set(record_key(GENERATION, Entity("", "user", sent[0].user_id)), b"not a record")
    with ingest_worker(tmp_path, settings, store_db) as worker:
        code = worker.exit_code()

    assert (code, "12 bytes, not" in worker.log) == (1, True)


def test_a_codec_that_cannot_be_read_ends_the_worker(settings: IngestSettings, store_db: str, tmp_path: Path) -> None:
    """A fetch that fails for good (here: no cramjam for zstd) ends the process with 1; Faust alone would stay alive, reading nothing."""
    (tmp_path / "cramjam.py").write_text("raise ImportError")
    with ingest_worker(tmp_path, settings, store_db, PYTHONPATH=str(tmp_path)) as worker:
        send(settings, events(100), **{"compression.type": "zstd"})
        code = worker.exit_code()

    assert (code, "UnsupportedCodecError" in worker.log) == (1, True)


async def test_a_topic_made_anew_ends_the_worker(settings: IngestSettings, store_db: str, tmp_path: Path) -> None:
    """Where guards stand past the end of the log, its new events would be taken for old ones: the worker ends and says so."""
    store = RedisStore(store_db, REGISTRY)
    source = Source(IMPRESSIONS.name, 0)
    await store.begin(GENERATION)
    await store.apply(GENERATION, [Step(shard, [Move(source, 0, 1_000_000)], NOTHING) for shard in range(GENERATION.shards)])
    await store.close()
    send(settings, events(200))
    with ingest_worker(tmp_path, settings, store_db) as worker:
        code = worker.exit_code()

    assert (code, "up to 1000000: the topic was made anew" in worker.log) == (1, True)


def test_what_a_transaction_took_back_is_not_counted(settings: IngestSettings, store_db: str, tmp_path: Path) -> None:
    """Events of an aborted transaction were never said; those of a committed one count when it is."""
    producer = Producer({"bootstrap.servers": settings.kafka_bootstrap, "transactional.id": f"{settings.topic_prefix}sender"})
    producer.init_transactions(20)
    sent = [events(100, seed=1), events(100, seed=2)]
    for some, end in zip(sent, (producer.abort_transaction, producer.commit_transaction), strict=True):
        producer.begin_transaction()
        for event in some:
            topic = "impressions" if isinstance(event, Impression) else "clicks"
            producer.produce(settings.topic_prefix + topic, codec.encode(event), event.user_id)
        producer.flush()
        end(20)
    # Each transaction leaves a mark on each of its four partitions.
    wait_until(lambda: sum(ends(settings.kafka_bootstrap, settings.topic_prefix).values()) == 208)
    kept = [*sent[1], *send(settings, events(100, seed=3))]
    with ingest_worker(tmp_path, settings, store_db) as worker:
        finish(settings, store_db, worker)

    assert stored(store_db) == counted(kept)


def test_missing_topics_are_named(kafka_bootstrap: str, topic_prefix: str) -> None:
    """A worker whose topics are not there says which, and what creates them, instead of waiting for ever."""
    with pytest.raises(LogError, match=f"has no topic {topic_prefix}impressions, .*dead-letters. `millstream topics`"):
        check_topics(IngestSettings(kafka_bootstrap, "group", topic_prefix))


def test_a_kafka_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong address is said in one sentence."""
    monkeypatch.setattr("streams.app.KAFKA_ANSWER_S", 0.5)
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(LogError, match=f"Kafka at {address} does not answer"):
        check_topics(IngestSettings(address, "group"))


#: A worker's beginning, behind the look for its topics. In a process of its own: Faust leaves a loop and sockets where it cannot start.
BEGINNING = """
import asyncio, sys
from online_store.memory import MemoryStore
from schemas.features import REGISTRY
from streams.app import IngestSettings, build, work

async def begin():
    await work(build(IngestSettings(sys.argv[1], "group"), MemoryStore(REGISTRY), REGISTRY), None)

asyncio.run(begin())
"""


def test_a_kafka_that_went_away_meanwhile_is_named() -> None:
    """It was there when its topics were looked for; what aiokafka says of it is no advice."""
    address = f"127.0.0.1:{free_port()}"
    words = [sys.executable, "-c", BEGINNING, address]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, cwd=REPOSITORY)  # noqa: S603  # our own command

    assert (done.returncode, f"schemas.errors.LogError: kafka://{address} went away while ingest began" in done.stderr) == (1, True)


async def test_patience_with_the_store_ends_before_faust_gives_up_an_assignment(settings: IngestSettings, store_db: str) -> None:
    """Past broker_request_timeout Faust abandons an assignment and stays alive: a worker must have ended by then."""
    store = RedisStore(store_db, REGISTRY)
    app = build(settings, store, REGISTRY).app
    await store.close()

    assert app.conf.broker_request_timeout > STORE_PATIENCE_S + 10
