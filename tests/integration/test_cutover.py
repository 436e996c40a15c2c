"""A switch between two generations under traffic: no request fails or falls back, and both generations are what the oracle says."""

import asyncio
import itertools
import json
import re
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, Self, cast

import pytest
import redis

from benchmarks.switch.registries import WINDOW_ADDED
from compose import cli, topics
from compose.replay import cutover
from online_store.ingest import Ingest
from online_store.keys import Generation
from online_store.redis import RedisStore
from replay.log import KafkaLog
from schemas import codec
from schemas.features import REGISTRY, Registry
from schemas.records import DeadLetter
from schemas.topics import DEAD_LETTERS, IMPRESSIONS, SOURCES, Source
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

FIRST, SECOND = Generation(1, REGISTRY.fingerprint), Generation(2, WINDOW_ADDED.fingerprint)
REGISTRIES = {FIRST: REGISTRY, SECOND: WINDOW_ADDED}
#: How long three processes may take to start at once (seconds): without a cache of compiled loops each makes them anew.
STARTS_S = 3 * PATIENCE_S
#: What an answer says that it was made with.
BY_FIRST, BY_SECOND = ("g1", REGISTRY.fingerprint, "m1"), ("g2", WINDOW_ADDED.fingerprint, "m2")


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
    """Topics and a store of this test's own, and the settings that name them."""

    settings: dict[str, str]

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
            await ingest.settle([source])
        await store.close()

    async def lag(self, generation: Generation) -> int:
        """How many events a generation lacks."""
        store = self.store()
        found = await cutover.lags(cast("Any", SimpleNamespace(kafka_security={}, **self.settings)), store, [generation])
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
    rankers.trained(folder, WINDOW_ADDED, "m2")
    return folder


@pytest.fixture
def world(kafka_bootstrap: str, topic_prefix: str, models: Path, tmp_path: Path) -> Iterator[World]:
    """A log with a past, and two generations that have none of it yet, the first one current."""
    topics.create(kafka_bootstrap, topic_prefix, partitions=2)
    with own_store(tmp_path) as (_, _, url):
        settings = {"kafka_bootstrap": kafka_bootstrap, "topic_prefix": topic_prefix, "store_url": url, "http_port": str(free_port())}
        found = World(settings | {"models_uri": str(models), "state_dir": str(tmp_path / "state"), "group_id": topic_prefix})
        found.feed(2_000, seed=0)
        asyncio.run(register(found))
        yield found


async def register(world: World) -> None:
    store = world.store()
    await store.begin(FIRST)
    await store.register(SECOND, WINDOW_ADDED)
    await store.close()


class Running(NamedTuple):
    """Two ingest workers and a ranking one."""

    ingest: list[Process]
    serve: Process


@pytest.fixture
def running(world: World, tmp_path: Path) -> Iterator[Running]:
    """All of them up."""
    settings = world.settings
    ingest = IngestSettings(settings["kafka_bootstrap"], f"{settings['group_id']}-ingest", settings["topic_prefix"])
    with ExitStack() as stack:
        workers = [stack.enter_context(ingest_worker(tmp_path, ingest, settings["store_url"])) for _ in range(2)]
        # Wide: on a busy machine a read may take longer than the budget of one, and what falls back here must be a fault of the switch.
        serve = stack.enter_context(command(tmp_path, "serve", **settings, budgets_ms="total=8000,store=4000"))
        wait_until(
            lambda: all(worker.said("Worker ready") for worker in workers) and serve.said("serve is up"),
            lambda: [process.log[-1_000:] for process in (*workers, serve)],
            STARTS_S,
        )
        yield Running(workers, serve)


def made_by(answer: dict[str, Any]) -> tuple[str, str, str]:
    return answer["generation"], answer["feature_version"], answer["model_version"]


def test_a_cutover_and_a_rollback_under_traffic_are_not_felt(world: World, running: Running) -> None:
    """Each answer is a full one and names what it was made with; every record of both generations is right, each dead letter once."""
    answers: list[dict[str, Any]] = []
    seeds = iter(range(1, 1_000_000))
    asyncio.run(world.fill(SECOND))
    early = itertools.count()
    wait_until(lambda: world.rank(-next(early))["degraded"] == "NONE")
    wait_until(lambda: asyncio.run(world.lag(FIRST)) == 0)
    # Whoever takes a partition over at the start may send again what was sent a moment before.
    sent_before = Counter(world.letters())
    with ExitStack() as stack:
        stack.enter_context(Beside(lambda: world.feed(100, next(seeds)), 0.05))
        stack.enter_context(Beside(lambda: asyncio.run(world.fill_the_other()), 0.1))
        stack.enter_context(Beside(lambda: answers.append(world.rank(len(answers))), 0.005))
        wait_until(lambda: len(answers) > 100)
        world.parity("g1", "g2")
        codes = [world.replay("cutover", "g2", "--lag-max=1000000")]
        wait_until(lambda: made_by(answers[-1]) == BY_SECOND, lambda: running.serve.log)
        wait_until(lambda: all(worker.said("generation g2 is current") for worker in running.ingest))
        seen = len(answers)
        wait_until(lambda: len(answers) > seen + 100)
        codes.append(world.replay("rollback", "--lag-max=1000000"))
        wait_until(lambda: made_by(answers[-1]) == BY_FIRST, lambda: running.serve.log)
        wait_until(lambda: all(worker.said("generation g1 is current") for worker in running.ingest))
        seen = len(answers)
        wait_until(lambda: len(answers) > seen + 100)
    asyncio.run(world.fill(SECOND))
    wait_until(lambda: asyncio.run(world.lag(FIRST)) == 0)

    letters = Counter(world.letters())
    fallen = [(number, answer) for number, answer in enumerate(answers) if answer["degraded"] != "NONE"]
    assert (codes, fallen) == ([0, 0], [])
    assert [made for made, _ in groupby(map(made_by, answers))] == [BY_FIRST, BY_SECOND, BY_FIRST]
    assert [asyncio.run(world.differences(generation)) for generation in (FIRST, SECOND)] == [[], []]
    assert (len(letters), set((letters - sent_before).values())) == (next(seeds), {1})


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What the last verb printed."""
    found: dict[str, Any] = json.loads("".join(capsys.readouterr()).splitlines()[-1])
    return found


async def pointed(world: World) -> str:
    """Which generation is current."""
    store = world.store()
    current = await store.current()
    await store.close()
    return current.name if current else ""


def test_a_cutover_that_nothing_speaks_for_is_refused(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything that speaks against it is said at once, with its values and what to do; nothing is changed."""
    asyncio.run(world.fill(FIRST))
    bare = World(world.settings | {"models_uri": str(tmp_path / "none")})
    code = bare.replay("cutover", "g2")
    told = said(capsys)
    faults = " ".join(told["faults"])

    assert (code, told["current"], told["refused"], asyncio.run(pointed(world))) == (1, "g1", "g2", "g1")
    assert re.search(r"no bundle serves g2: .*/none: no bundle in it.*`millstream train`", faults)
    assert re.search(r"no parity report .*g1-g2\.json.*`millstream replay parity g1 g2`", faults)
    assert re.search(r"g2 lacks 2001 events that g1 has, at most 1000 .*--lag-max", faults)


def test_a_forced_cutover_says_what_is_risked(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """The same that would have been refused."""
    refused = (world.replay("cutover", "g2"), said(capsys)["faults"])
    forced = (world.replay("cutover", "g2", "--force"), said(capsys)["risked"])

    assert (refused[0], forced[0], forced[1] == refused[1], asyncio.run(pointed(world))) == (1, 0, True, "g2")


def rewritten(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"passed": False}, "differs from g1 by more than is tolerated"),
        ({"made_at_ms": 0}, "minutes old, and believed for 60"),
        ({"second": "g3"}, "compares g1 with g3"),
        ({"passed": "yes"}, "is no parity report"),
    ],
)
def test_a_parity_report_must_be_a_passing_one_of_late(
    world: World, capsys: pytest.CaptureFixture[str], fields: dict[str, object], fault: str
) -> None:
    """Of these two generations; else the cutover is refused."""
    asyncio.run(world.fill(SECOND))
    world.parity("g1", "g2")
    rewritten(Path(world.settings["state_dir"]) / "parity" / "g1-g2.json", **fields)
    code = world.replay("cutover", "g2")
    faults = said(capsys)["faults"]

    assert (code, len(faults), fault in faults[0]) == (1, 1, True)


def test_a_generation_that_is_behind_for_a_moment_is_waited_for(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine one is ahead now, then the other: one look in which little is missing is enough."""
    asyncio.run(world.fill(FIRST))
    monkeypatch.setattr(cutover, "LAG_PATIENCE_S", PATIENCE_S)
    world.parity("g1", "g2")
    late = threading.Timer(1.0, lambda: asyncio.run(world.fill(SECOND)))
    late.start()
    code = world.replay("cutover", "g2")
    late.join()

    assert (code, said(capsys)["current"]) == (0, "g2")


def test_what_no_generation_has_applied_yet_is_no_reason_against_a_cutover(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Features go back by what the current one is ahead, not by what both are behind."""
    for generation in (FIRST, SECOND):
        asyncio.run(world.fill(generation))
    world.feed(2_000, seed=1)
    world.parity("g1", "g2")
    code = world.replay("cutover", "g2")

    assert (code, said(capsys)["current"], asyncio.run(world.lag(SECOND))) == (0, "g2", 2_001)


def test_a_generation_is_left_and_gone_back_to_with_its_model(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """What was current comes back; a second rollback undoes the first. Who lags behind is not gone back to."""
    asyncio.run(world.fill(SECOND))
    world.parity("g1", "g2")
    moves = [(world.replay("cutover", "g2"), said(capsys)), (world.replay("rollback"), said(capsys))]
    asyncio.run(world.fill(FIRST))
    moves += [(world.replay("rollback"), said(capsys)) for _ in range(2)]
    found = [(code, move["current"], move.get("model_version")) for code, move in moves]

    assert found == [(0, "g2", "m2"), (1, "g2", None), (0, "g1", ""), (0, "g2", "m2")]


def test_generations_are_listed_with_their_lag(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """And which one is current."""
    asyncio.run(world.fill(SECOND))
    code = world.replay("generations")
    rows = said(capsys)["generations"]

    assert (code, [(row["name"], row["feature_version"], row["current"], row["lag"]) for row in rows]) == (
        0,
        [("g1", REGISTRY.fingerprint, True, 2_001), ("g2", WINDOW_ADDED.fingerprint, False, 0)],
    )


def test_a_generation_is_dropped(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """With all its records; the current one is not, and what was dropped cannot be made current."""
    asyncio.run(world.fill(SECOND))
    kept = (world.replay("drop", "g1"), said(capsys))
    gone = (world.replay("drop", "g2"), said(capsys))
    code = world.replay("cutover", "g2", "--force")
    keys = list(redis.Redis.from_url(world.settings["store_url"]).scan_iter("*g2*"))

    assert (kept[0], gone[0], gone[1]["dropped"], gone[1]["records"] > 0, code, keys) == (2, 0, "g2", True, 2, [])


@pytest.mark.parametrize("words", [("cutover", "g7"), ("cutover", "second"), ("rollback",), ("drop", "g7")])
def test_what_is_not_there_is_called_wrongly(world: World, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    """With what there is."""
    code = world.replay(*words)

    assert (code, "`millstream replay " in said(capsys)["error"]) == (2, True)
