"""Events framed with ids of a schema registry: a real HTTP server that answers as Confluent's does."""

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from compose import topics
from schemas import avro, codec
from schemas.errors import LogError
from schemas.records import Click, DeadLetter, Impression, Reason
from schemas.topics import DEAD_LETTERS
from streams.app import IngestSettings
from streams.schema_registry import SCHEMAS_COUNT_MAX, RegistrySchemas, schema_ids
from tests.schema_registry import Registry
from tests.services import free_port
from tests.workers import caught_up, counted, events, ingest_worker, log_records, send, stored

IMPRESSION_ID, CLICK_ID, DWELL_ID = 11, 12, 13
NAMES = {IMPRESSION_ID: "Impression", CLICK_ID: "Click", DWELL_ID: "Dwell"}
GUIDS = {name: UUID(int=number) for number, name in NAMES.items()}
#: What other people keep in the same registry.
STRANGE = {
    21: {"schema": 'syntax = "proto3";', "schemaType": "PROTOBUF"},
    22: {"schema": '"string"'},
    23: {"schema": '{"type":"record","name":"Lone","fields":[{"name":"x","type":"elsewhere.Unknown"}]}'},
    24: {"schema": "{not JSON"},
    25: {"schema": '["null","string"]'},
}


@pytest.fixture
def registry() -> Iterator[Registry]:
    """A running registry with our schemas and other people's."""
    with Registry(NAMES, {guid: name for name, guid in GUIDS.items()}) as server, server.running():
        server.schemas |= {f"/schemas/ids/{number}": body for number, body in STRANGE.items()}
        yield server


@pytest.fixture
def settings(kafka_bootstrap: str, topic_prefix: str, registry: Registry) -> IngestSettings:
    """Settings of a worker with this registry, on topics of this test's own."""
    topics.create(kafka_bootstrap, topic_prefix, partitions=1)
    return IngestSettings(kafka_bootstrap, f"{topic_prefix}ingest", topic_prefix, schema_registry_url=registry.url)


def body(record: Impression | Click) -> bytes:
    return codec.encode_confluent(record, 0)[5:]


def impressions(count: int, seed: int) -> list[Impression]:
    return [event for event in events(count, seed) if isinstance(event, Impression)]


def test_framed_events_are_counted(settings: IngestSettings, store_db: str, tmp_path: Path) -> None:
    """An id in front of the body, an id in a header and a GUID in a header all lead to the writer's schema."""
    framed, numbered, named = (impressions(60, seed) for seed in (1, 2, 3))
    topic = f"{settings.topic_prefix}impressions"
    send(settings.kafka_bootstrap, [(topic, b"k", codec.encode_confluent(event, IMPRESSION_ID)) for event in framed])
    number = b"\x00" + IMPRESSION_ID.to_bytes(4)
    send(settings.kafka_bootstrap, [(topic, b"k", body(event)) for event in numbered], headers=[(codec.SCHEMA_ID_HEADER, number)])
    guid = b"\x01" + GUIDS["Impression"].bytes
    send(settings.kafka_bootstrap, [(topic, b"k", body(event)) for event in named], headers=[(codec.SCHEMA_ID_HEADER, guid)])
    with ingest_worker(tmp_path, settings, store_db) as worker:
        caught_up(settings.kafka_bootstrap, settings.topic_prefix, store_db, worker)

    assert stored(store_db) == counted([*framed, *numbered, *named])


def test_ids_that_lead_nowhere_are_dead_letters(settings: IngestSettings, store_db: str, tmp_path: Path) -> None:
    """An id that the registry does not have, and schemas that no record of ours can have, set aside their records and no others."""
    good = impressions(20, seed=1)
    values = [codec.encode_confluent(event, IMPRESSION_ID) for event in good]
    values += [codec.encode_confluent(good[0], number) for number in (999, *STRANGE)]
    send(settings.kafka_bootstrap, [(f"{settings.topic_prefix}impressions", b"k", value) for value in values])
    with ingest_worker(tmp_path, settings, store_db) as worker:
        caught_up(settings.kafka_bootstrap, settings.topic_prefix, store_db, worker)
    letters = [
        codec.decode(DEAD_LETTERS, record.value) for record in log_records(settings.kafka_bootstrap, settings.topic_prefix + "dead-letters")
    ]
    reasons = [letter.reason for letter in letters if isinstance(letter, DeadLetter)]

    assert (stored(store_db) == counted(good), reasons) == (True, [Reason.UNKNOWN_SCHEMA] * 6)


def test_a_registry_that_is_down_ends_the_worker(settings: IngestSettings, registry: Registry, store_db: str, tmp_path: Path) -> None:
    """What it would have said is not known: nothing is dead-lettered, nothing applied, and the process ends with 1."""
    registry.missing = (503, {"error_code": 50301, "message": "not now"})
    registry.schemas.clear()
    send(
        settings.kafka_bootstrap,
        [(f"{settings.topic_prefix}impressions", b"k", codec.encode_confluent(impressions(9, 1)[0], IMPRESSION_ID))],
    )
    with ingest_worker(tmp_path, settings, store_db) as worker:
        code = worker.exit_code()
    letters = log_records(settings.kafka_bootstrap, f"{settings.topic_prefix}dead-letters")

    assert (code, f"the schema registry {registry.url} did not give schema 11" in worker.log, letters, stored(store_db)) == (
        1,
        True,
        [],
        {},
    )


def test_a_schema_is_asked_for_once(registry: Registry) -> None:
    """Found or missed, the registry is not asked again: ids and what they name never change there."""
    schemas = RegistrySchemas(registry.url)
    found = [schema_id in schemas for schema_id in (IMPRESSION_ID, 999, GUIDS["Click"]) * 3]

    assert (found, len(registry.asked)) == ([True, False, True] * 3, 3)


def test_the_mapping_shows_what_was_found(registry: Registry) -> None:
    """Its length and its keys are those found so far; each is our newest schema of that name."""
    schemas = RegistrySchemas(registry.url)
    print_ = schemas[DWELL_ID].fingerprint

    assert (print_, len(schemas), list(schemas)) == (avro.NEWEST["Dwell"].fingerprint, 1, [DWELL_ID])


def test_a_registry_that_nobody_runs_is_named() -> None:
    """A refused connection is said with the URL, after the client's own retries."""
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(LogError, match=f"the schema registry {url} did not give schema 1: ConnectError"):
        schema_ids(url)[1]


def test_a_wrong_url_is_not_taken_for_a_missing_schema(registry: Registry) -> None:
    """A bare 404 comes from some other server: taking it for an answer would dead-letter a whole topic."""
    registry.missing = (404, {"detail": "Not Found"})
    with pytest.raises(LogError, match="did not give schema 999"):
        schema_ids(registry.url)[999]


def test_what_is_remembered_is_bounded(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Garbage that begins like an id fills no memory: past the bound the oldest is forgotten, and asked for again."""
    monkeypatch.setattr("streams.schema_registry.SCHEMAS_COUNT_MAX", 3)
    schemas = RegistrySchemas(registry.url)
    for number in (100, 101, 102, 103, 100):
        assert number not in schemas

    assert (registry.asked.count("/schemas/ids/100"), SCHEMAS_COUNT_MAX) == (2, 10_000)


def test_without_a_registry_there_are_no_ids() -> None:
    """No URL, no look-ups."""
    assert schema_ids("") == {}
