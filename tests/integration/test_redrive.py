"""`millstream dead-letters redrive`: what was bad and is mended counts, once, as if it had been good from the start."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compose import cli, topics
from compose.redrive import SENDING, Letter, Sender, letters
from online_store.redis import RedisStore
from replay.log import KafkaLog
from schemas import codec
from schemas.features import REGISTRY
from schemas.records import Event, Impression
from schemas.topics import StoredRecord
from streams.app import IngestSettings
from tests.oracle import Oracle
from tests.property.test_exactness import windows_of
from tests.verify import compare
from tests.workers import GENERATION, SOURCE_NAMES, caught_up, counted, events, ingest_worker, log_records, send, stored

#: What a broken producer put in front of its records.
NOISE = b"noise:"
Verb = Callable[..., dict[str, Any]]


def mended(value: bytes) -> bytes | None:
    """The record without what was put in front of it; None for what has nothing in front."""
    return value.removeprefix(NOISE) if value.startswith(NOISE) else None


@pytest.fixture
def settings(kafka_bootstrap: str, topic_prefix: str) -> IngestSettings:
    """Settings of a worker on topics of this test's own, two partitions each."""
    topics.create(kafka_bootstrap, topic_prefix, partitions=2)
    return IngestSettings(kafka_bootstrap, f"{topic_prefix}ingest", topic_prefix)


@pytest.fixture
def redrive(settings: IngestSettings, capsys: pytest.CaptureFixture[str]) -> Verb:
    """The verb with flags, as its --json tells what it did."""

    def run(*flags: str) -> dict[str, Any]:
        places = ["--kafka-bootstrap", settings.kafka_bootstrap, "--topic-prefix", settings.topic_prefix]
        assert cli.main(["dead-letters", "redrive", "--json", *places, *flags]) == 0
        told: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return told

    return run


def send_poisoned(settings: IngestSettings, sent: list[Event]) -> None:
    """Send events, one in ten of them behind noise."""
    messages = [
        (topic_of(settings, event), event.user_id.encode(), (NOISE if place % 10 == 3 else b"") + codec.encode(event))
        for place, event in enumerate(sent)
    ]
    send(settings.kafka_bootstrap, messages)


def topic_of(settings: IngestSettings, event: Event) -> str:
    return f"{settings.topic_prefix}{'impressions' if isinstance(event, Impression) else 'clicks'}"


def records(settings: IngestSettings) -> list[StoredRecord]:
    """The whole log."""
    return [record for name in SOURCE_NAMES for record in log_records(settings.kafka_bootstrap, settings.topic_prefix + name)]


def ingested(settings: IngestSettings, store_url: str, folder: Path) -> None:
    """Let a worker read to the end."""
    with ingest_worker(folder, settings, store_url) as worker:
        caught_up(settings.kafka_bootstrap, settings.topic_prefix, store_url, worker)


async def test_poison_that_is_repaired_and_redriven_counts(settings: IngestSettings, store_db: str, redrive: Verb, tmp_path: Path) -> None:
    """One record in ten is poison; after repair and redrive every entity is what the oracle says of the whole log."""
    sent = events(1_000)
    send_poisoned(settings, sent)
    ingested(settings, store_db, tmp_path)
    told = redrive("--repair", "tests.integration.test_redrive:mended")
    ingested(settings, store_db, tmp_path)
    oracle = Oracle(records(settings), windows_of(REGISTRY), settings.topic_prefix)
    store = RedisStore(store_db, REGISTRY)
    differences = await compare(store, REGISTRY, GENERATION, oracle, [max(event.ts_ms for event in sent) + 1_000])
    await store.close()

    assert (told, differences, stored(store_db) == counted(sent)) == (
        {"read": 100, "redriven": 100, "skipped": 0, "unsure": []},
        [],
        True,
    )


def test_a_record_is_redriven_as_it_was(settings: IngestSettings, store_db: str, redrive: Verb, tmp_path: Path) -> None:
    """Without repair: value, key, headers, partition and Kafka timestamp are those of the original, byte for byte."""
    value, stamp = random.Random(1).randbytes(300), 1_700_000_000_000
    place = {"partition": 1, "timestamp": stamp, "headers": [("trace", b"\xff\x00"), ("trace", b"2"), ("__value_schema_id", b"\0\0\0\0\7")]}
    send(settings.kafka_bootstrap, [(f"{settings.topic_prefix}clicks", b"\xfe key", value)], **place)
    ingested(settings, store_db, tmp_path)
    redrive()
    first, again = records(settings)

    assert (again, again.headers != ()) == (first._replace(offset=1), True)


def test_a_letter_is_redriven_once(settings: IngestSettings, store_db: str, redrive: Verb, tmp_path: Path) -> None:
    """Asked again, with other filters or none, what was redriven is passed over; what was left by a filter is not."""
    send_poisoned(settings, events(200))
    ingested(settings, store_db, tmp_path)
    flags = ("--repair", "tests.integration.test_redrive:mended")
    by_topic = [redrive("--topic", name, *flags)["redriven"] for name in ("impressions", "clicks", "content")]
    rest = redrive(*flags)

    assert (sum(by_topic), by_topic[0] > 0, by_topic[2], rest["redriven"], rest["skipped"]) == (20, True, 0, 0, 20)


def test_a_letter_that_was_written_twice_is_redriven_once(settings: IngestSettings, store_db: str, redrive: Verb, tmp_path: Path) -> None:
    """A worker that is killed may write its letters again: they name one record."""
    send_poisoned(settings, events(100))
    ingested(settings, store_db, tmp_path)
    name = f"{settings.topic_prefix}dead-letters"
    for letter in log_records(settings.kafka_bootstrap, name):
        send(settings.kafka_bootstrap, [(name, letter.key, letter.value)], headers=list(letter.headers))
    told = redrive("--repair", "tests.integration.test_redrive:mended")

    assert (told["read"], told["redriven"]) == (20, 10)


def test_letters_are_chosen_by_reason_and_offset(settings: IngestSettings, store_db: str, redrive: Verb, tmp_path: Path) -> None:
    """What does not fit is skipped and stays."""
    send_poisoned(settings, events(100))
    ingested(settings, store_db, tmp_path)
    chosen = [redrive(*flags)["redriven"] for flags in (("--reason", "OVERSIZE"), ("--from-offset", "1000"), ("--reason", "MALFORMED"))]

    assert chosen == [0, 0, 10]


def test_what_a_repair_declines_stays(settings: IngestSettings, store_db: str, redrive: Verb, tmp_path: Path) -> None:
    """None from the repair leaves the letter for a better one."""
    send(settings.kafka_bootstrap, [(f"{settings.topic_prefix}clicks", b"u", b"beyond"), (f"{settings.topic_prefix}clicks", b"u", None)])
    ingested(settings, store_db, tmp_path)
    told = redrive("--repair", "tests.integration.test_redrive:mended")

    assert (told["redriven"], told["skipped"], len(records(settings))) == (0, 2, 2)


def test_letters_of_a_redrive_that_was_killed_are_told(settings: IngestSettings, store_db: str, redrive: Verb, tmp_path: Path) -> None:
    """Marked as under way and never as sent: they may have arrived, so they are not sent again, and named."""
    send_poisoned(settings, events(100))
    ingested(settings, store_db, tmp_path)
    log = KafkaLog(settings.kafka_bootstrap, settings.topic_prefix)
    under_way: list[Letter] = list(letters(log))[:1]
    Sender(settings.kafka_bootstrap, settings.topic_prefix).mark(under_way, SENDING)
    told = redrive("--repair", "tests.integration.test_redrive:mended")

    assert (told["redriven"], told["unsure"]) == (9, ["{}/{}/{}".format(*under_way[0].name)])


def test_a_repair_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Called wrongly is 2, with what would be right."""
    code = cli.main(["dead-letters", "redrive", "--repair", "nowhere:nothing"])

    assert (code, "it takes module:function" in capsys.readouterr().err) == (2, True)
