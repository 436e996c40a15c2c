"""The lake has every record of every topic once, whatever happens to its sinks; and a sink that cannot go on ends."""

import random
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from prometheus_client import REGISTRY

from compose import topics
from compose.stack.local import Server
from replay.lake import Lake
from schemas import codec
from schemas.topics import CONTENT, IMPRESSIONS, TOPICS, LogRecord, Topic
from streams.lake.sink import LakeSettings, Sink
from streams.lake.table import LakePlace
from tests.lakes import lake_sink
from tests.workers import (
    SESSION_TIMEOUT_S,
    SHORT_SESSION_S,
    Process,
    command,
    committed,
    ends,
    events,
    log_records,
    own_broker,
    produce,
    send,
    wait_until,
)
from tests.worlds import content, user

PARTITIONS = 2


@pytest.fixture
def settings(kafka_bootstrap: str, topic_prefix: str, tmp_path: Path) -> LakeSettings:
    """Settings of a sink on topics of this test's own, which commits often."""
    return settings_at(kafka_bootstrap, topic_prefix, tmp_path)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Callable[[], None], str]]:
    """A broker that misses a sink soon."""
    with own_broker(tmp_path_factory.mktemp("broker")) as running:
        yield running


@pytest.fixture
def short_settings(broker: tuple[Server, Callable[[], None], str], topic_prefix: str, tmp_path: Path) -> LakeSettings:
    """As `settings`, on that broker: a sink that is gone is missed after two seconds."""
    return settings_at(broker[2], topic_prefix, tmp_path, SHORT_SESSION_S)


def settings_at(kafka_bootstrap: str, topic_prefix: str, folder: Path, session_timeout_s: float = SESSION_TIMEOUT_S) -> LakeSettings:
    topics.create(kafka_bootstrap, topic_prefix, PARTITIONS)
    group_id = f"{topic_prefix}lake"
    place = LakePlace(str(folder / "lake"))
    return LakeSettings(kafka_bootstrap, group_id, place, topic_prefix, commit_s=0.2, session_timeout_s=session_timeout_s)


def place_of(record: LogRecord) -> tuple[int, int]:
    return record.partition, record.offset


def places(settings: LakeSettings, topic: Topic) -> list[tuple[int, int]]:
    """Partition and offset of every row of a table."""
    batches = Lake(*settings.lake).read(topic)
    return sorted(place_of(record) for batch in batches for record in batch.records)


def logged(settings: LakeSettings, topic: Topic) -> list[tuple[int, int]]:
    """The same of a topic."""
    return sorted(place_of(record) for record in log_records(settings.kafka_bootstrap, settings.topic_prefix + topic.name))


def reached(settings: LakeSettings) -> dict[str, int]:
    """Where the lake ends, as `ends` tells it of Kafka."""
    lake = Lake(*settings.lake)
    return {f"{name}/{at}": end for name, topic in TOPICS.items() for at, end in lake.end_offsets(topic).items()}


def filled(settings: LakeSettings, *sinks: Process) -> None:
    """Return once the lake ends where Kafka does; fails if a sink ends before."""
    wanted = ends(settings.kafka_bootstrap, settings.topic_prefix, TOPICS)

    def done() -> bool:
        assert all(sink.alive for sink in sinks), [sink.log[-4_000:] for sink in sinks]
        return reached(settings) == wanted

    wait_until(done, lambda: (reached(settings), wanted, [sink.log[-4_000:] for sink in sinks]))


def begun(*sinks: Process) -> None:
    """Return once sinks have partitions, or have ended."""
    wait_until(lambda: all("has partitions" in sink.log or not sink.alive for sink in sinks), lambda: [sink.log for sink in sinks])


def ended(*sinks: Process) -> int:
    """Return once one of several sinks has ended, with its place."""
    wait_until(lambda: not all(sink.alive for sink in sinks), lambda: [sink.log for sink in sinks])
    return next(place for place, sink in enumerate(sinks) if not sink.alive)


def test_the_lake_has_what_kafka_has(settings: LakeSettings, tmp_path: Path) -> None:
    """Keys, bytes, times and headers of every topic, a bad record's as well; and Kafka is told how far it is."""
    name = settings.topic_prefix + CONTENT.name
    send(settings.kafka_bootstrap, [(name, b"i1", codec.encode(content()))], headers=[("traceparent", b"00-1"), ("empty", b"")])
    send(settings.kafka_bootstrap, [(name, b"i1", None), (name, None, b"\xff")])
    produce(settings.kafka_bootstrap, settings.topic_prefix, [*events(300), user()])
    with lake_sink(tmp_path, settings) as sink:
        filled(settings, sink)
        assert sink.stop() == 0, sink.log

    for topic in TOPICS.values():
        rows = [record for batch in Lake(*settings.lake).read(topic) for record in batch.records]
        found = log_records(settings.kafka_bootstrap, settings.topic_prefix + topic.name)
        assert sorted(rows, key=place_of) == sorted((record._replace(topic=topic.name) for record in found), key=place_of)
    hinted = committed(settings.kafka_bootstrap, settings.topic_prefix, settings.group_id, [CONTENT.name])
    assert {place: end for place, end in reached(settings).items() if place in hinted} == hinted
    assert hinted


def test_a_sink_tells_how_far_it_is(settings: LakeSettings) -> None:
    """Rows that it wrote, what a commit took, and that nothing is left."""
    produce(settings.kafka_bootstrap, settings.topic_prefix, events(300))
    count, before = len(logged(settings, IMPRESSIONS)), sample("rows_total")
    stop = Event()
    running = Thread(target=Sink(settings).run, args=[stop])
    running.start()
    wait_until(lambda: sample("rows_total") == before + count)
    stop.set()
    running.join()

    assert [sample("lag_records", partition=str(at)) for at in range(PARTITIONS)] == [0, 0]
    assert sample("commit_seconds_count") > 0


def sample(name: str, **labels: str) -> float:
    """A metric of the lake for impressions."""
    return REGISTRY.get_sample_value(f"millstream_lake_{name}", {"topic": IMPRESSIONS.name, **labels}) or 0


def test_the_command_writes_the_lake(settings: LakeSettings, tmp_path: Path) -> None:
    """`millstream lake` writes what is pending when it is told to stop, into a folder of state_dir if none is named."""
    produce(settings.kafka_bootstrap, settings.topic_prefix, events(50))
    named = {"kafka_bootstrap": settings.kafka_bootstrap, "topic_prefix": settings.topic_prefix, "group_id": settings.group_id}
    with command(tmp_path, "lake", **named, state_dir=str(tmp_path)) as running:
        begun(running)
        time.sleep(1)
        assert running.stop() == 0, running.log

    assert places(settings, IMPRESSIONS) == logged(settings, IMPRESSIONS) != []


def test_a_sink_killed_at_any_moment_loses_and_repeats_nothing(short_settings: LakeSettings, tmp_path: Path) -> None:
    """Six times, while records keep coming."""
    chance = random.Random(7)
    for seed in range(6):
        produce(short_settings.kafka_bootstrap, short_settings.topic_prefix, events(500, seed))
        with lake_sink(tmp_path, short_settings) as sink:
            begun(sink)
            time.sleep(chance.random() * 0.6)
    with lake_sink(tmp_path, short_settings) as last:
        filled(short_settings, last)

    for topic in TOPICS.values():
        assert places(short_settings, topic) == logged(short_settings, topic)


def test_two_sinks_by_mistake_write_every_offset_once(settings: LakeSettings, tmp_path: Path) -> None:
    """Each in a group of its own, so both read everything: whoever comes second ends, and says why."""
    groups = [settings, replace(settings, group_id=f"{settings.group_id}-other")]
    with ExitStack() as running:
        sinks = [running.enter_context(lake_sink(tmp_path, group)) for group in groups]
        for seed in range(3):
            begun(*sinks)
            produce(settings.kafka_bootstrap, settings.topic_prefix, events(400, seed))
            place = ended(*sinks)
            assert "another writer changed the lake's table" in sinks[place].log
            sinks[place] = running.enter_context(lake_sink(tmp_path, groups[place]))
    with lake_sink(tmp_path, settings) as last:
        filled(settings, last)

    assert places(settings, IMPRESSIONS) == logged(settings, IMPRESSIONS)


def test_sinks_of_one_group_share_the_partitions(short_settings: LakeSettings, tmp_path: Path) -> None:
    """A second one joins and a first one leaves while records come: every offset is written once, and nobody ends with an error."""
    with lake_sink(tmp_path, short_settings) as first, lake_sink(tmp_path, short_settings) as second:
        begun(first, second)
        for seed in range(4):
            produce(short_settings.kafka_bootstrap, short_settings.topic_prefix, events(400, seed))
            time.sleep(0.5)
        assert first.stop() == 0, first.log
        produce(short_settings.kafka_bootstrap, short_settings.topic_prefix, events(400, 9))
        filled(short_settings, second)
        assert second.stop() == 0, second.log

    assert places(short_settings, IMPRESSIONS) == logged(short_settings, IMPRESSIONS)


def test_a_zombie_writes_nothing_twice(short_settings: LakeSettings, tmp_path: Path) -> None:
    """A sink that stood still while another one took its partitions has rows that the table has by now."""
    with lake_sink(tmp_path, short_settings) as zombie:
        begun(zombie)
        produce(short_settings.kafka_bootstrap, short_settings.topic_prefix, events(2_000))
        zombie.pause()
        with lake_sink(tmp_path, short_settings) as other:
            filled(short_settings, other)
            zombie.resume()
            time.sleep(2)
    assert places(short_settings, IMPRESSIONS) == logged(short_settings, IMPRESSIONS)


def test_what_a_transaction_took_back_is_not_in_the_lake(settings: LakeSettings, tmp_path: Path) -> None:
    """Its marks and the records of one that was aborted are holes: reading goes over them."""
    name = settings.topic_prefix + CONTENT.name
    producer = Producer({"bootstrap.servers": settings.kafka_bootstrap, "transactional.id": name})
    producer.init_transactions()
    for end in (producer.commit_transaction, producer.abort_transaction, producer.commit_transaction):
        producer.begin_transaction()
        producer.produce(name, codec.encode(content()), b"i1", partition=0)
        producer.flush()
        end()
    with lake_sink(tmp_path, settings) as sink:
        wait_until(lambda: len(places(settings, CONTENT)) == 2, lambda: sink.log)

    batches = list(Lake(*settings.lake).read(CONTENT))
    assert [(batch.start, batch.following) for batch in batches] == [(0, 5)]
    assert [record.offset for record in batches[0].records] == [0, 4]


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[None]:
    """A disk of so many bytes in place of a folder; skips the test where this user may not mount one."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "none", folder], check=False, capture_output=True)  # noqa: S603, S607  # a fixed command
    if done.returncode:
        pytest.skip(f"mounting takes root: {done.stderr.decode()}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)  # noqa: S603, S607  # as above


def test_a_full_disk_ends_the_sink_and_loses_nothing(settings: LakeSettings, tmp_path: Path) -> None:
    """Whatever file it was that did not fit: with more room the next sink goes on from there."""
    with small_disk(tmp_path / "lake", 1 << 19):
        for seed in range(20):
            produce(settings.kafka_bootstrap, settings.topic_prefix, events(1_000, seed))
        with lake_sink(tmp_path, settings) as sink:
            assert sink.exit_code() == 1, sink.log
            assert "cannot be written" in sink.log
        held = places(settings, IMPRESSIONS)
        assert held == [place for place in logged(settings, IMPRESSIONS) if place in set(held)] != logged(settings, IMPRESSIONS)
        subprocess.run(["mount", "-o", "remount,size=64m", tmp_path / "lake"], check=True)  # noqa: S603, S607  # as above
        with lake_sink(tmp_path, settings) as sink:
            filled(settings, sink)

        assert [places(settings, topic) for topic in TOPICS.values()] == [logged(settings, topic) for topic in TOPICS.values()]


def test_a_topic_made_anew_is_told(settings: LakeSettings, tmp_path: Path) -> None:
    """What is new in it would be taken for what the lake has: the sink ends and says so."""
    produce(settings.kafka_bootstrap, settings.topic_prefix, events(300))
    with lake_sink(tmp_path, settings) as sink:
        filled(settings, sink)
        sink.stop()
    admin = AdminClient({"bootstrap.servers": settings.kafka_bootstrap})
    admin.delete_topics([settings.topic_prefix + IMPRESSIONS.name])[settings.topic_prefix + IMPRESSIONS.name].result(30)
    wait_until(lambda: settings.topic_prefix + IMPRESSIONS.name not in admin.list_topics(timeout=10).topics)
    topics.create(settings.kafka_bootstrap, settings.topic_prefix, PARTITIONS)

    with lake_sink(tmp_path, settings) as sink:
        assert sink.exit_code() == 1
        assert "made anew" in sink.log


def test_missing_topics_are_named(kafka_bootstrap: str, topic_prefix: str, tmp_path: Path) -> None:
    """With the command that creates them."""
    settings = LakeSettings(kafka_bootstrap, "lake", LakePlace(str(tmp_path / "lake")), topic_prefix)

    with lake_sink(tmp_path, settings) as sink:
        assert sink.exit_code() == 1
        assert "has no topic impressions" in sink.log
