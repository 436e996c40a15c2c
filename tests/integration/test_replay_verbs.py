"""`millstream replay parity`, `rows` and `verify`, on a real Kafka and a real store."""

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from compose import cli, topics
from online_store.ingest import Ingest
from online_store.keys import Generation, Pointer
from online_store.redis import RedisStore
from replay.log import KafkaLog, Message
from schemas import codec
from schemas.features import REGISTRY
from schemas.records import Record
from schemas.topics import RANK_TELEMETRY, SOURCES, Source
from tests.rankers import Model, answer, on, trained
from tests.worlds import NOW_MS, click, content, impression, take, topic_of, user

PAST: tuple[Record, ...] = (
    *(content(f"i{number}", NOW_MS, quality_score=number * 2.5) for number in range(4)),
    user("u1", NOW_MS),
    *(impression("u1", f"i{number % 4}", NOW_MS + number, request_id=f"old{number}", model_version="m1") for number in range(9)),
    click("u1", "i2", NOW_MS + 20, request_id="old2", dwell_ms=4_000),
)
LATER: tuple[Record, ...] = (
    impression("u1", "i1", NOW_MS + 60_001, request_id="r1"),
    impression("u1", "i2", NOW_MS + 60_001, request_id="r1"),
    click("u1", "i2", NOW_MS + 70_000, request_id="r1", dwell_ms=40_000),
)
Verb = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A small model over the default registry's features."""
    return trained(tmp_path_factory.mktemp("models"))


@pytest.fixture
def log(kafka_bootstrap: str, topic_prefix: str) -> KafkaLog:
    """Topics of this test's own, with a past."""
    topics.create(kafka_bootstrap, topic_prefix, partitions=2)
    found = KafkaLog(kafka_bootstrap, topic_prefix)
    happen(found, PAST)
    return found


def happen(log: KafkaLog, records: Sequence[Record]) -> None:
    """Append records."""
    for record in records:
        topic = topic_of(record)
        log.append(topic, [Message(topic.key_of(record), codec.encode(record), record.ts_ms)])  # type: ignore[union-attr]  # all have one


async def follow(log: KafkaLog, store: RedisStore, number: int, *, skipped: str = "") -> None:
    """Make a generation current, and apply the log to it. skipped: a topic of which it only says that it did."""
    generation = Generation(number, REGISTRY.fingerprint)
    await store.register(generation, REGISTRY)
    await store.point(await store.pointer(), Pointer(number, REGISTRY.fingerprint))
    ingest = Ingest(store, REGISTRY)
    for topic in SOURCES:
        await ingest.positions([Source(topic.name, partition) for partition in log.end_offsets(topic)])
        for batch in log.read(topic):
            records = [record._replace(value=b"spoilt") if topic.name == skipped else record for record in batch.records]  # type: ignore[attr-defined]  # KafkaLog's are tuples
            await take(ingest, batch._replace(records=records))
            await ingest.settle([batch.source])


async def lived(log: KafkaLog, url: str, model: Model, *, skipped: str = "") -> None:
    """Generations 1 and 2 of the log; a request that was served from the second; what came of it."""
    store = RedisStore(url, REGISTRY)
    await follow(log, store, 1)
    await follow(log, store, 2, skipped=skipped)
    ranker = await on(store, model)
    await ranker.refresh()
    given = await answer(ranker, "i0", "i1", "i2", request_id="r1")
    assert given.telemetry
    log.append(RANK_TELEMETRY, [Message(b"r1", given.telemetry, NOW_MS + 60_000)])
    happen(log, LATER)
    await store.close()


@pytest.fixture
def verb(kafka_bootstrap: str, topic_prefix: str, store_db: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Verb:
    """A verb with its arguments: its exit code, and what its --json says."""

    def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        places = ["--kafka-bootstrap", kafka_bootstrap, "--topic-prefix", topic_prefix, "--store-url", store_db]
        code = cli.main(["replay", *arguments, "--json", *places, "--state-dir", str(tmp_path / "state")])
        told: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return code, told

    return run


def test_generations_of_one_log_pass(log: KafkaLog, store_db: str, model: Model, verb: Verb) -> None:
    """Against each other, and against the log."""
    asyncio.run(lived(log, store_db, model))
    code, told = verb("parity", "g1", "g2", "--as-of-ms", str(NOW_MS + 60_000), "--against-log", "100")
    report = json.loads(Path(told["report"]).read_text())

    assert (code, told["passed"], sum(line["compared"] for line in report["against_log"]) > 0) == (0, True, True)


def test_a_generation_that_lacks_something_does_not_pass(log: KafkaLog, store_db: str, model: Model, verb: Verb) -> None:
    """Its features are named, by comparison with the other one and with the log."""
    asyncio.run(lived(log, store_db, model, skipped="clicks"))
    code, told = verb("parity", "g1", "g2", "--as-of-ms", str(NOW_MS + 60_000), "--against-log", "100")

    assert (code, "ctr_7d" in told["features_off"], "ctr_7d" in told["off_against_log"]) == (1, True, True)


def test_a_generation_that_is_not_there_is_told(
    log: KafkaLog, store_db: str, model: Model, topic_prefix: str, kafka_bootstrap: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With those that are."""
    asyncio.run(lived(log, store_db, model))
    places = ["--kafka-bootstrap", kafka_bootstrap, "--topic-prefix", topic_prefix, "--store-url", store_db]
    code = cli.main(["replay", "parity", "g1", "g7", *places])

    assert (code, "no generation g7, but g1, g2" in capsys.readouterr().err) == (2, True)


@pytest.mark.parametrize("vectors", ["telemetry", "recomputed"])
def test_rows_of_what_was_served(log: KafkaLog, store_db: str, model: Model, verb: Verb, tmp_path: Path, vectors: str) -> None:
    """Those that were seen, with what came of them; what was served is what is recomputed."""
    asyncio.run(lived(log, store_db, model))
    code, told = verb("rows", str(tmp_path / "rows.parquet"), "--vectors", vectors)
    found = pl.read_parquet(tmp_path / "rows.parquet").sort("item_id").select("item_id", "clicked", "long_view", "feature_impressions_7d")

    assert (code, told["rows"], found.rows()) == (0, 2, [("i1", False, False, 2.0), ("i2", True, True, 2.0)])


def test_what_was_served_is_what_the_log_says(log: KafkaLog, store_db: str, model: Model, verb: Verb) -> None:
    """No feature is skewed, and each was looked at."""
    asyncio.run(lived(log, store_db, model))
    code, told = verb("verify")

    assert (code, told["requests"], told["skewed"], {line["name"] for line in told["features"]}) == (0, 1, [], set(REGISTRY.feature_names))


def test_what_the_log_does_not_say_is_skew(log: KafkaLog, store_db: str, model: Model, verb: Verb) -> None:
    """A store without the clicks that its guards stand for served something else."""
    asyncio.run(lived(log, store_db, model, skipped="clicks"))
    code, told = verb("verify")

    assert (code, "ctr_7d" in told["skewed"], "impressions_7d" in told["skewed"]) == (1, True, False)
