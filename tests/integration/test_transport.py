"""The seam in Faust: what a worker is handed, where it reads from, what it commits, and what of Faust we rest on."""

import asyncio
import inspect
import tomllib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from faust.tables.manager import TableManager
from faust.transport.consumer import Consumer, ThreadDelegateConsumer
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from compose import topics
from schemas.topics import IMPRESSIONS, SOURCES, Batch, Source
from streams.agents import add_agents
from streams.transport import App
from tests.workers import committed, send

REPOSITORY = Path(__file__).parents[2]
#: What we read beside the names below; the first three are what our settings become.
READ = [
    attrgetter(path)
    for path in (
        "consumer._thread._consumer._fetcher._fetch_max_wait_ms",
        "consumer._thread._consumer._fetcher._fetch_min_bytes",
        "consumer._thread._consumer._fetcher._isolation_level",
        "consumer.flow_active",
        "consumer.can_resume_flow",
        "consumer._read_offset",
        "consumer._acked",
        "consumer._acked_index",
        "consumer_generation_id",
        "_fetcher.crashed",
        "consumer.crashed",
    )
]
#: Longer than anything here takes, on a busy machine too.
PATIENCE_S = 30.0


class Recorder:
    """In a worker's place: keeps the batches it is handed, and says where to begin."""

    def __init__(self, positions: Mapping[Source, int]) -> None:
        self.batches: list[Batch] = []
        self.failure: ArithmeticError | None = None
        self.may_finish = asyncio.Event()
        self.may_finish.set()
        self.app: App
        self._positions = positions

    async def take(self, batch: Batch) -> None:
        """Keep a batch, or fail as told; be done with it when told."""
        if self.failure:
            raise self.failure
        self.batches.append(batch)
        await self.may_finish.wait()
        self.app.done(batch.source)

    async def assign(self, sources: Sequence[Source]) -> Mapping[Source, int]:
        """Where to begin."""
        return {source: self._positions.get(source, 0) for source in sources}

    def of(self, partition: int) -> list[Batch]:
        """The batches of one partition of impressions."""
        return [batch for batch in self.batches if batch.source == Source("impressions", partition)]

    async def wait_for(self, records: int) -> None:
        """Return once so many records came, however many batches they came in."""
        await until(lambda: sum(len(batch.records) for batch in self.batches) >= records)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not true():  # noqa: ASYNC110  # Faust tells nobody of what is looked at here
            await asyncio.sleep(0.01)


@pytest.fixture
def prefix(kafka_bootstrap: str, topic_prefix: str) -> str:
    """The prefix of topics of this test's own, two partitions each."""
    topics.create(kafka_bootstrap, topic_prefix, partitions=2)
    return topic_prefix


@asynccontextmanager
async def running(
    kafka_bootstrap: str, prefix: str, folder: Path, positions: Mapping[Source, int] | None = None
) -> AsyncIterator[tuple[App, Recorder]]:
    """A started app whose agents hand batches to a recorder."""
    recorder = Recorder(positions or {})
    app = App(
        f"{prefix}seam",
        broker=f"kafka://{kafka_bootstrap}",
        topic_prefix=prefix,
        topic_disable_leader=True,
        topic_allow_declare=False,
        web_enabled=False,
        datadir=folder,
        consumer_auto_offset_reset="earliest",
        broker_max_poll_records=20_000,
        broker_commit_interval=0.2,
        stream_wait_empty=False,
    )
    recorder.app = app
    app.positions = recorder.assign
    add_agents(app, recorder)  # type: ignore[arg-type]  # it has the one method that agents call
    await app.start()
    try:
        yield app, recorder
    finally:
        await app.stop()


def fill(kafka_bootstrap: str, prefix: str, count: int, partition: int = 0, start: int = 0) -> None:
    """Send numbered records, in one compressed batch: fetches cut it where they please."""
    values = [(f"{prefix}{IMPRESSIONS.name}", b"key", b"%d" % number) for number in range(start, start + count)]
    send(kafka_bootstrap, values, partition=partition, **{"compression.type": "lz4"})


def values(batches: Sequence[Batch]) -> list[int]:
    return [int(record.value or b"") for batch in batches for record in batch.records]


def offsets(batches: Sequence[Batch]) -> list[int]:
    return [record.offset for batch in batches for record in batch.records]


async def test_batches_follow_one_another(kafka_bootstrap: str, prefix: str, tmp_path: Path) -> None:
    """Each batch starts where the one before it ended, and together they are the whole partition, once."""
    fill(kafka_bootstrap, prefix, 5_000)
    async with running(kafka_bootstrap, prefix, tmp_path) as (_, recorder):
        await recorder.wait_for(5_000)
    starts = [batch.start for batch in recorder.of(0)]

    assert (starts, values(recorder.of(0))) == ([0, *(batch.following for batch in recorder.of(0)[:-1])], list(range(5_000)))


async def test_partitions_do_not_mix(kafka_bootstrap: str, prefix: str, tmp_path: Path) -> None:
    """Records of two partitions come as batches of two sources, each complete and in order."""
    fill(kafka_bootstrap, prefix, 300, partition=0)
    fill(kafka_bootstrap, prefix, 200, partition=1)
    async with running(kafka_bootstrap, prefix, tmp_path) as (_, recorder):
        await recorder.wait_for(500)

    assert [values(recorder.of(partition)) for partition in (0, 1)] == [list(range(300)), list(range(200))]


async def test_an_assignment_reads_from_the_guards_not_from_the_committed_offset(kafka_bootstrap: str, prefix: str, tmp_path: Path) -> None:
    """A store whose guard stands behind what Kafka has committed is read from its guard, in the middle of a compressed batch."""
    fill(kafka_bootstrap, prefix, 1_000)
    async with running(kafka_bootstrap, prefix, tmp_path) as (_, recorder):
        await recorder.wait_for(1_000)
    async with running(kafka_bootstrap, prefix, tmp_path, {Source("impressions", 0): 321}) as (_, recorder):
        await recorder.wait_for(679)

    assert (recorder.of(0)[0].start, offsets(recorder.of(0))) == (321, list(range(321, 1_000)))


async def test_a_rewind_reads_again_from_there(kafka_bootstrap: str, prefix: str, tmp_path: Path) -> None:
    """After a rewind the next batch starts at its offset, though nothing new arrives; those of other partitions go on."""
    fill(kafka_bootstrap, prefix, 100, partition=0)
    fill(kafka_bootstrap, prefix, 50, partition=1)
    async with running(kafka_bootstrap, prefix, tmp_path) as (app, recorder):
        await recorder.wait_for(150)
        recorder.batches.clear()
        app.rewind(Source("impressions", 0), 40)
        await recorder.wait_for(60)

    assert (recorder.batches[0].start, values(recorder.batches)) == (40, list(range(40, 100)))


async def test_what_was_fetched_before_a_rewind_is_dropped(kafka_bootstrap: str, prefix: str, tmp_path: Path) -> None:
    """A fetch that was under way when a rewind was asked for is not handed on: the next batch starts at the rewind's offset."""
    fill(kafka_bootstrap, prefix, 100)
    async with running(kafka_bootstrap, prefix, tmp_path) as (app, recorder):
        await recorder.wait_for(100)
        recorder.batches.clear()
        # The consumer waits for new records now: they arrive behind the rewind, at 100, and must not be taken for what follows 40.
        app.rewind(Source("impressions", 0), 40)
        fill(kafka_bootstrap, prefix, 20, start=100)
        await recorder.wait_for(80)

    assert (recorder.batches[0].start, values(recorder.batches)) == (40, list(range(40, 120)))


async def test_two_partitions_are_in_hand_at_once(kafka_bootstrap: str, prefix: str, tmp_path: Path) -> None:
    """While the store has one partition's batch, another partition's is decoded."""
    fill(kafka_bootstrap, prefix, 1, partition=0)
    fill(kafka_bootstrap, prefix, 1, partition=1)
    async with running(kafka_bootstrap, prefix, tmp_path) as (_, recorder):
        recorder.may_finish.clear()
        await recorder.wait_for(2)
        recorder.may_finish.set()

    assert sorted(batch.source.partition for batch in recorder.batches) == [0, 1]


async def test_what_arrives_while_a_batch_is_under_way_becomes_one_batch(kafka_bootstrap: str, prefix: str, tmp_path: Path) -> None:
    """A slow store makes larger batches, not a queue of small ones: the batch, what was fetched behind it, and all the rest."""
    async with running(kafka_bootstrap, prefix, tmp_path) as (_, recorder):
        recorder.may_finish.clear()
        for number in range(10):
            await asyncio.to_thread(fill, kafka_bootstrap, prefix, 1, 0, number)
            await recorder.wait_for(1)
        recorder.may_finish.set()
        await recorder.wait_for(10)

    assert len(recorder.batches) <= 3


async def test_what_is_dropped_while_partitions_change_hands_is_fetched_again(kafka_bootstrap: str, prefix: str, tmp_path: Path) -> None:
    """Kafka's position is behind records that nobody took: without a rewind the next batch would hide the hole."""
    fill(kafka_bootstrap, prefix, 100)
    async with running(kafka_bootstrap, prefix, tmp_path) as (app, recorder):
        await recorder.wait_for(100)
        app.consumer.stop_flow()
        fill(kafka_bootstrap, prefix, 50, start=100)
        await asyncio.sleep(1.2)
        app.consumer.resume_flow()
        await recorder.wait_for(150)

    assert values(recorder.of(0)) == list(range(150))


async def test_the_offset_behind_the_newest_batch_is_committed(kafka_bootstrap: str, prefix: str, tmp_path: Path) -> None:
    """Lag tools see a worker that keeps up at the end of every partition, while it runs."""
    fill(kafka_bootstrap, prefix, 300, partition=0)
    fill(kafka_bootstrap, prefix, 200, partition=1)
    found: dict[str, int] = {}
    async with running(kafka_bootstrap, prefix, tmp_path) as (_, recorder):
        await recorder.wait_for(500)
        for _ in range(50):
            found = await asyncio.to_thread(committed, kafka_bootstrap, prefix, f"{prefix}seam", ["impressions"])
            if len(found) == 2:
                break

    assert found == {"impressions/0": 300, "impressions/1": 200}


async def test_a_commit_of_partitions_that_were_taken_away_does_nothing(kafka_bootstrap: str, prefix: str, tmp_path: Path) -> None:
    """A rebalance between taking a batch and committing it takes them; the worker goes on with those that it has."""
    async with running(kafka_bootstrap, prefix, tmp_path) as (app, recorder):
        await until(lambda: len(app.consumer.assignment()) == 2 * len(SOURCES))
        consumer: Any = app.consumer
        was_told = await consumer._thread.commit({TP(f"{prefix}impressions", 9): 1})  # noqa: SLF001  # where Faust commits
        fill(kafka_bootstrap, prefix, 1)
        await recorder.wait_for(1)
        crashed = app.consumer.crashed

    assert (was_told, crashed) == (False, False)


async def test_a_busy_partition_does_not_wait_for_idle_ones(kafka_bootstrap: str, prefix: str, tmp_path: Path) -> None:
    """Records that arrive one after another are handed on at once, not after the broker's long answers for partitions without any."""
    loop = asyncio.get_running_loop()
    async with running(kafka_bootstrap, prefix, tmp_path) as (_, recorder):
        fill(kafka_bootstrap, prefix, 1)
        await recorder.wait_for(1)
        slowest_s = 0.0
        for number in range(1, 30):
            begun_s = loop.time()
            await asyncio.to_thread(fill, kafka_bootstrap, prefix, 1, 0, number)
            await recorder.wait_for(number + 1)
            slowest_s = max(slowest_s, loop.time() - begun_s)

    assert slowest_s < 1.0


async def test_an_agent_that_fails_is_noticed(kafka_bootstrap: str, prefix: str, tmp_path: Path) -> None:
    """Faust would restart the agent with the next message; the app keeps the failure for whoever ends the process."""
    async with running(kafka_bootstrap, prefix, tmp_path) as (app, recorder):
        recorder.failure = ArithmeticError("of this test's own")
        fill(kafka_bootstrap, prefix, 1)
        await until(lambda: app.agent_failure is not None)

    assert app.agent_failure is recorder.failure


def test_faust_is_the_version_that_the_seam_was_cut_for() -> None:
    """The pin in pyproject.toml is exact, and is what is installed."""
    dependencies = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]

    assert f"faust-streaming=={version('faust-streaming')}" in dependencies


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [
        (Consumer, "perform_seek", ["self"]),
        (Consumer, "getmany", ["self", "timeout"]),
        (Consumer, "_wait_next_records", ["self", "timeout"]),
        (Consumer, "_add_gap", ["self", "tp", "offset_from", "offset_to"]),
        (Consumer, "_new_offset", ["self", "tp"]),
        (ThreadDelegateConsumer, "seek_wait", ["self", "partitions"]),
        (ThreadDelegateConsumer, "highwaters", ["self", "partitions"]),
        (driver.Consumer, "_new_consumer_thread", ["self"]),
        (driver.AIOKafkaConsumerThread, "_create_worker_consumer", ["self", "transport"]),
        (driver.AIOKafkaConsumerThread, "_commit", ["self", "offsets"]),
        (TableManager, "_update_channels", ["self"]),
        (App.__base__, "_new_transport", ["self"]),
        (App.__base__, "_on_agent_error", ["self", "agent", "exc"]),
    ],
)
def test_the_names_that_we_override_are_there(owner: type, name: str, parameters: list[str]) -> None:
    """Private names may go with any release: a renamed one would silently be ours alone."""
    assert list(inspect.signature(getattr(owner, name)).parameters) == parameters


async def test_the_attributes_that_we_read_are_there(kafka_bootstrap: str, prefix: str, tmp_path: Path) -> None:
    """What the seam reads and sets on Faust's and aiokafka's objects is there, and our three settings have reached the fetcher."""
    async with running(kafka_bootstrap, prefix, tmp_path) as (app, _):
        await until(lambda: len(app.consumer.assignment()) == 2 * len(SOURCES))
        found = [read(app) for read in READ]

    assert (found[:3], None in found) == ([30, 64 << 10, 1], False)
