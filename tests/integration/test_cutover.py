"""A switch between two generations under traffic: no request fails or falls back, and both generations are what the oracle says."""

import asyncio
import itertools
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, Self, cast

import pytest

from compose import cli, topics
from compose.replay.cutover import lags
from online_store.ingest import Ingest
from online_store.keys import Generation
from online_store.redis import RedisStore
from replay.log import KafkaLog
from schemas import codec
from schemas.features import FEATURES, REGISTRY, STATICS, Registry, ctr
from schemas.records import DeadLetter
from schemas.topics import DEAD_LETTERS, IMPRESSIONS, SOURCES, Source
from schemas.windows import HOUR_MS, MINUTE_MS, Window
from streams.app import IngestSettings
from tests import rankers
from tests.oracle import Oracle
from tests.property.test_exactness import windows_of
from tests.services import free_port
from tests.verify import compare
from tests.workers import (
    PATIENCE_S,
    SOURCE_NAMES,
    Process,
    command,
    events,
    ingest_worker,
    log_records,
    own_store,
    produce,
    send,
    wait_until,
)

#: The default registry with a window more.
GROWN = Registry((*FEATURES, ctr("ctr_3h", "item", Window("3h", 3 * HOUR_MS, 15 * MINUTE_MS))), STATICS)
FIRST, SECOND = Generation(1, REGISTRY.fingerprint), Generation(2, GROWN.fingerprint)
REGISTRIES = {FIRST: REGISTRY, SECOND: GROWN}
#: What an answer says that it was made with.
BY_FIRST, BY_SECOND = ("g1", REGISTRY.fingerprint, "m1"), ("g2", GROWN.fingerprint, "m2")


class Beside:
    """Work that is done again and again in a thread of its own until the block ends; what it raises ends the test."""

    def __init__(self, work: Callable[[], object], pause_s: float) -> None:
        self._work = work
        self._pause_s = pause_s
        self._ended = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        assert self._failure is None, self._failure

    def _run(self) -> None:
        while not self._ended.wait(self._pause_s):
            try:
                self._work()
            except Exception as error:  # told at the end of the block
                self._failure = error
                raise


class World(NamedTuple):
    """Topics and a store of this test's own, two ingest workers and a ranking one."""

    settings: dict[str, str]
    ingest: list[Process]
    serve: Process

    @property
    def log(self) -> KafkaLog:
        """All topics."""
        return KafkaLog(self.settings["kafka_bootstrap"], self.settings["topic_prefix"])

    def feed(self, count: int, seed: int) -> None:
        """Events, and among them a value that is none."""
        bootstrap, prefix = self.settings["kafka_bootstrap"], self.settings["topic_prefix"]
        produce(bootstrap, prefix, events(count, seed=seed))
        send(bootstrap, [(prefix + IMPRESSIONS.name, b"u", b"no event %d" % seed)])

    def rank(self, number: int) -> dict[str, Any]:
        """The answer to a request."""
        body = {"request_id": f"q{number}", "user_id": f"u{number % 40}", "candidate_item_ids": ["i1", "i2", "i3"], "k": 3}
        url = f"http://127.0.0.1:{self.settings['http_port']}/v1/rank"
        with urllib.request.urlopen(url, json.dumps(body).encode(), PATIENCE_S) as answer:
            found: dict[str, Any] = json.loads(answer.read())
        return found

    def store(self, registry: Registry = REGISTRY) -> RedisStore:
        """The store."""
        return RedisStore(self.settings["store_url"], registry)

    def replay(self, *words: str) -> int:
        """The exit code of `millstream replay`."""
        return cli.main(["replay", *words, "--json", *(f"--{name.replace('_', '-')}={value}" for name, value in self.settings.items())])

    async def fill(self, target: Generation) -> None:
        """Take a generation to the end of the log, as whoever keeps it up to date does."""
        store, ends = self.store(), {topic: self.log.end_offsets(topic) for topic in SOURCES}
        ingest = Ingest(store, REGISTRY, target=target)
        positions = await ingest.positions([Source(topic.name, partition) for topic, found in ends.items() for partition in found])
        for topic in SOURCES:
            starts = {source.partition: offset for source, offset in positions.items() if source.topic == topic.name}
            for batch in self.log.read(topic, starts):
                await ingest.apply([ingest.decode(batch)])
        for source in positions:
            await ingest.settle(source)
        await store.close()

    async def lag(self, generation: Generation) -> int:
        """How many events a generation lacks."""
        store = self.store()
        found = await lags(cast("Any", SimpleNamespace(kafka_security={}, **self.settings)), store, [generation])
        await store.close()
        return found[generation]

    async def fill_the_other(self) -> None:
        """Keep up to date what is not current."""
        store = self.store()
        current, known = await store.current(), await store.generations()
        await store.close()
        for generation in known:
            if generation != current:
                await self.fill(generation)

    async def differences(self, generation: Generation) -> list[str]:
        """Between a generation and the oracle."""
        prefix = self.settings["topic_prefix"]
        records = [record for name in SOURCE_NAMES for record in log_records(self.settings["kafka_bootstrap"], prefix + name)]
        registry, now_ms = REGISTRIES[generation], time.time_ns() // 1_000_000
        store = self.store(registry)
        try:
            return await compare(store, registry, generation, Oracle(records, windows_of(registry), prefix), [now_ms, now_ms + 7_200_000])
        finally:
            await store.close()

    def letters(self) -> list[tuple[str, int, int]]:
        """Which records are in dead-letters, each as often as it is."""
        records = log_records(self.settings["kafka_bootstrap"], self.settings["topic_prefix"] + DEAD_LETTERS.name)
        found = [codec.decode(DEAD_LETTERS, record.value, record.headers) for record in records]
        return sorted((one.topic, one.partition, one.offset) for one in found if isinstance(one, DeadLetter))

    def parity(self, first: str, second: str, *, passed: bool = True) -> None:
        """Leave the report of a comparison."""
        path = Path(self.settings["state_dir"]) / "parity" / f"{first}-{second}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        made_at_ms = time.time_ns() // 1_000_000
        path.write_text(json.dumps({"first": first, "second": second, "passed": passed, "as_of_ms": made_at_ms, "made_at_ms": made_at_ms}))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for each registry."""
    folder = tmp_path_factory.mktemp("models")
    rankers.trained(folder)
    rankers.trained(folder, GROWN, "m2")
    return folder


@pytest.fixture
def world(kafka_bootstrap: str, topic_prefix: str, models: Path, tmp_path: Path) -> Iterator[World]:
    """Everything up, on a log with a past, the first generation current."""
    topics.create(kafka_bootstrap, topic_prefix, partitions=2)
    with ExitStack() as stack:
        _, _, url = stack.enter_context(own_store(tmp_path))
        settings = {"kafka_bootstrap": kafka_bootstrap, "topic_prefix": topic_prefix, "store_url": url, "http_port": str(free_port())}
        settings |= {"models_uri": str(models), "state_dir": str(tmp_path / "state"), "group_id": topic_prefix}
        ingest = IngestSettings(kafka_bootstrap, f"{topic_prefix}-ingest", topic_prefix)
        workers = [stack.enter_context(ingest_worker(tmp_path, ingest, url)) for _ in range(2)]
        wait_until(lambda: all(worker.said("ingest is up") for worker in workers))
        # Wide: on a busy machine a read may take longer than the budget of one, and what falls back here must be a fault of the switch.
        serve = stack.enter_context(command(tmp_path, "serve", **settings, budgets_ms="total=8000,store=4000"))
        found = World(settings, workers, serve)
        wait_until(lambda: serve.said("serve is up"))
        found.feed(2_000, seed=0)
        asyncio.run(register(found))
        yield found


async def register(world: World) -> None:
    store = world.store()
    await store.register(SECOND, GROWN)
    await store.close()


def made_by(answer: dict[str, Any]) -> tuple[str, str, str]:
    return answer["generation"], answer["feature_version"], answer["model_version"]


def test_a_cutover_and_a_rollback_under_traffic_are_not_felt(world: World) -> None:
    """Each answer is a full one and names what it was made with; every record of both generations is right, each dead letter once."""
    answers: list[dict[str, Any]] = []
    seeds = iter(range(1, 1_000_000))
    asyncio.run(world.fill(SECOND))
    early = itertools.count()
    wait_until(lambda: world.rank(-next(early))["degraded"] == "NONE")
    with ExitStack() as stack:
        stack.enter_context(Beside(lambda: world.feed(100, next(seeds)), 0.05))
        stack.enter_context(Beside(lambda: asyncio.run(world.fill_the_other()), 0.1))
        stack.enter_context(Beside(lambda: answers.append(world.rank(len(answers))), 0.005))
        wait_until(lambda: len(answers) > 100)
        world.parity("g1", "g2")
        codes = [world.replay("cutover", "g2", "--lag-max=1000000")]
        wait_until(lambda: made_by(answers[-1]) == BY_SECOND, lambda: world.serve.log)
        wait_until(lambda: all(worker.said("generation g2 is current") for worker in world.ingest))
        seen = len(answers)
        wait_until(lambda: len(answers) > seen + 100)
        codes.append(world.replay("rollback", "--lag-max=1000000"))
        wait_until(lambda: made_by(answers[-1]) == BY_FIRST, lambda: world.serve.log)
        wait_until(lambda: all(worker.said("generation g1 is current") for worker in world.ingest))
        seen = len(answers)
        wait_until(lambda: len(answers) > seen + 100)
    asyncio.run(world.fill(SECOND))
    wait_until(lambda: asyncio.run(world.lag(FIRST)) == 0)

    letters = world.letters()
    fallen = [(number, answer) for number, answer in enumerate(answers) if answer["degraded"] != "NONE"]
    assert (codes, fallen) == ([0, 0], [])
    assert [made for made, _ in groupby(map(made_by, answers))] == [BY_FIRST, BY_SECOND, BY_FIRST]
    assert [asyncio.run(world.differences(generation)) for generation in (FIRST, SECOND)] == [[], []]
    assert (len(letters), len(set(letters))) == (next(seeds), len(letters))
