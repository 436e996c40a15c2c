"""`millstream replay rebuild` beside a live ingest worker: both generations are what the oracle says, whatever changed between them."""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from benchmarks.switch import registries
from benchmarks.switch.registries import CHANGES, WINDOW_ADDED
from compose import topics
from online_store.keys import Generation, Pointer, guard_key
from online_store.redis import RedisStore
from replay.log import KafkaLog
from schemas.features import REGISTRY, Registry
from schemas.topics import CLICKS, DEAD_LETTERS, IMPRESSIONS, SOURCES, Source
from tests.lakes import sink
from tests.oracle import Oracle
from tests.property.test_exactness import windows_of
from tests.verify import compare
from tests.workers import PATIENCE_S, SOURCE_NAMES, Process, command, events, log_file, log_records, own_store, produce, send, wait_until

FIRST, SECOND = Generation(1, REGISTRY.fingerprint), Generation(2, WINDOW_ADDED.fingerprint)


class World:
    """Topics and a store of a test's own. folder: of logs and the lake."""

    def __init__(self, kafka_bootstrap: str, prefix: str, store_url: str, folder: Path) -> None:
        self.kafka_bootstrap, self.prefix, self.store_url, self.folder = kafka_bootstrap, prefix, store_url, folder
        self.log = KafkaLog(kafka_bootstrap, prefix)

    @property
    def settings(self) -> dict[str, str]:
        """Of every command."""
        places = {"kafka_bootstrap": self.kafka_bootstrap, "topic_prefix": self.prefix, "store_url": self.store_url}
        return {**places, "group_id": self.prefix, "lake_uri": str(self.folder / "lake")}

    def feed(self, count: int, seed: int) -> None:
        """Events, and among them a value that is none."""
        produce(self.kafka_bootstrap, self.prefix, events(count, seed=seed))
        send(self.kafka_bootstrap, [(self.prefix + CLICKS.name, b"u", b"no event %d" % seed)])

    @contextmanager
    def fed(self) -> Iterator[None]:
        """Some hundred events a second until the block ends."""
        ended = threading.Event()

        def feed() -> None:
            seed = 1_000
            while not ended.wait(0.1):
                seed += 1
                self.feed(50, seed)

        thread = threading.Thread(target=feed)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def rebuild(self, *words: str, features: str = "WINDOW_ADDED") -> Process:
        """`millstream replay rebuild`."""
        environment = {f"MILLSTREAM_{name.upper()}": value for name, value in self.settings.items()}
        flags = ["--json", "--features", f"{registries.__name__}:{features}", *words]
        return Process(["-m", "compose.processes", "replay", "rebuild", *flags], log_file(self.folder), **environment)

    def oracle(self, registry: Registry, starts: dict[Source, int] | None = None) -> Oracle:
        """What the log says now, from some offsets on."""
        found = [record for name in SOURCE_NAMES for record in log_records(self.kafka_bootstrap, self.prefix + name)]
        starts = starts or {}
        wanted = [one for one in found if one.offset >= starts.get(Source(one.topic.removeprefix(self.prefix), one.partition), 0)]
        return Oracle(wanted, windows_of(registry), self.prefix)

    async def differences(self, generation: Generation, registry: Registry, starts: dict[Source, int] | None = None) -> list[str]:
        """Between a generation and the oracle."""
        store = RedisStore(self.store_url, registry)
        moments = [time.time_ns() // 1_000_000 + 1_000]
        found = await compare(store, registry, generation, self.oracle(registry, starts), moments)
        await store.close()
        return found

    def ends(self) -> dict[str, int]:
        """How far the log goes now."""
        return {f"{topic.name}/{partition}": end for topic in SOURCES for partition, end in self.log.end_offsets(topic).items()}

    def lag(self, generation: Generation, ends: dict[str, int]) -> int:
        """How many records before these ends its lowest guards have not passed."""
        with redis.Redis.from_url(self.store_url) as store:
            rows = [store.hmget(guard_key(generation, shard), list(ends)) for shard in range(generation.shards)]
        return sum(max(end - min(int(row[place] or 0) for row in rows), 0) for place, end in enumerate(ends.values()))

    def await_lag_0(self, *generations: Generation, of: Sequence[Process] = ()) -> None:
        """Return once generations have everything that is there now: beside a live feed hardly any look finds nothing new."""
        ends = self.ends()
        wait_until(lambda: all(self.lag(one, ends) == 0 for one in generations), lambda: [one.log[-4_000:] for one in of])


@pytest.fixture
def world(kafka_bootstrap: str, topic_prefix: str, tmp_path: Path) -> Iterator[World]:
    topics.create(kafka_bootstrap, topic_prefix, partitions=2)
    with own_store(tmp_path) as (_, _, url):
        yield World(kafka_bootstrap, topic_prefix, url, tmp_path)


def told(process: Process) -> dict[str, object]:
    """What a command that ended says last."""
    lines = [line for line in process.log.splitlines() if line.startswith("{")]
    assert lines, process.log
    found: dict[str, object] = json.loads(lines[-1])
    return found


@pytest.mark.parametrize("changed", CHANGES)
async def test_both_generations_are_the_oracles_beside_live_traffic(world: World, changed: str) -> None:
    """The registry that was changed is counted from the beginning, the one that is live goes on, and who follows stays at the tail."""
    registry = CHANGES[changed]
    second = Generation(2, registry.fingerprint)
    world.feed(2_000, seed=1)
    with command(world.folder, "ingest", **world.settings) as live, world.fed(), world.rebuild(features=changed) as filling:
        wait_until(lambda: filling.said("ingest is up"))
        world.await_lag_0(second, of=[filling])
        filling.kill()
        world.feed(500, seed=2)
        with world.rebuild("--generation", "g2", features=changed) as resumed:
            wait_until(lambda: resumed.said("ingest is up"))
            world.feed(500, seed=3)
            world.await_lag_0(FIRST, second, of=[live, resumed])
            code = resumed.stop()
    with command(world.folder, "ingest", **world.settings) as live, world.rebuild("--generation", "g2", "--until-caught-up") as end:
        ended = end.exit_code()
        world.await_lag_0(FIRST, second, of=[live])

    assert (code, ended, told(end)["lag"]) == (0, 0, 0)
    assert (await world.differences(FIRST, REGISTRY), await world.differences(second, registry)) == ([], [])


async def test_the_lake_comes_first_and_kafka_goes_on(world: World) -> None:
    """What the lake has is read from it, what came since from Kafka, each once: a value that is none is counted, and sent nowhere."""
    world.feed(1_000, seed=1)
    for topic in SOURCES:
        if found := [one._replace(topic=topic.name) for one in log_records(world.kafka_bootstrap, world.prefix + topic.name)]:
            sink(world.folder / "lake", topic, found)
    world.feed(300, seed=2)
    with world.rebuild("--until-caught-up") as filling:
        code = filling.exit_code()
    said, letters = told(filling), log_records(world.kafka_bootstrap, world.prefix + DEAD_LETTERS.name)

    counts = {name: said[name] for name in ("generation", "from_lake", "from_kafka", "events", "dead_letters", "lag")}
    expected = {"generation": "g2", "from_lake": 1_000, "from_kafka": 300, "events": 1_300, "dead_letters": 2, "lag": 0}
    assert (code, counts, letters) == (0, expected, [])
    assert await world.differences(SECOND, WINDOW_ADDED) == []


async def test_a_generation_begins_at_offsets(world: World) -> None:
    """It holds what stands at and behind them; guards say so to whoever goes on."""
    world.feed(600, seed=1)
    starts = {
        Source(topic.name, partition): end // 2
        for topic in (IMPRESSIONS, CLICKS)
        for partition, end in world.log.end_offsets(topic).items()
    }
    words = ",".join(f"{source}={offset}" for source, offset in starts.items())
    with world.rebuild("--from", words, "--until-caught-up") as filling:
        code = filling.exit_code()
    world.feed(200, seed=2)
    with world.rebuild("--generation", "g2", "--until-caught-up") as resumed:
        again = resumed.exit_code()

    assert (code, again, told(resumed)["from_kafka"]) == (0, 0, 200)
    assert await world.differences(SECOND, WINDOW_ADDED, starts) == []


async def test_after_a_cutover_the_generation_before_is_kept_up_to_date(world: World) -> None:
    """So that a rollback is instant; once it is dropped nothing is left to do."""
    world.feed(300, seed=1)
    with command(world.folder, "ingest", **world.settings) as live:
        world.await_lag_0(FIRST, of=[live])
        with world.rebuild() as keeper:
            world.await_lag_0(SECOND, of=[keeper])
            store = RedisStore(world.store_url, REGISTRY)
            before = await store.pointer()
            assert before is not None
            await store.point(before, Pointer(2, WINDOW_ADDED.fingerprint, previous=before))
            wait_until(lambda: keeper.log.count("ingest is up") == 2, lambda: keeper.log[-4_000:])
            world.feed(300, seed=2)
            world.await_lag_0(FIRST, SECOND, of=[live, keeper])
            differences = [await world.differences(FIRST, REGISTRY), await world.differences(SECOND, WINDOW_ADDED)]
            await store.drop(1)
            await store.close()
            code = keeper.exit_code()

    assert (differences, code, told(keeper)["generation"]) == ([[], []], 0, "g2")


async def test_what_kafka_has_lost_is_not_passed_over(world: World) -> None:
    """A generation that ends before Kafka begins is not read on, and the sources are named."""
    world.feed(300, seed=1)
    with world.rebuild("--until-caught-up") as filling:
        filling.exit_code()
    world.feed(300, seed=2)
    ends = world.log.end_offsets(IMPRESSIONS)
    lost = [TopicPartition(world.prefix + IMPRESSIONS.name, partition, end) for partition, end in ends.items()]
    admin = AdminClient({"bootstrap.servers": world.kafka_bootstrap})
    for answer in admin.delete_records(lost).values():
        answer.result(PATIENCE_S)
    with world.rebuild("--generation", "g2", "--until-caught-up") as resumed:
        code = resumed.exit_code()

    assert (code, "what lies between is in neither" in resumed.log) == (2, True)


def test_a_generation_that_is_not_there_is_named(world: World) -> None:
    """With those that are."""
    with world.rebuild("--generation", "g7") as filling:
        code = filling.exit_code()

    assert (code, "no generation g7, but none" in filling.log) == (2, True)
