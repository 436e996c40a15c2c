"""A bad record never stops a partition and never disappears: it is in dead-letters, and its neighbours are counted."""

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from compose import topics
from schemas import codec
from schemas.records import Click, Content, DeadLetter, Event, Impression, Reason
from schemas.topics import DEAD_LETTERS, StoredRecord
from streams.app import IngestSettings
from tests.workers import SOURCE_NAMES, caught_up, counted, events, ingest_worker, log_records, own_store, send, stored

NOW_MS = time.time_ns() // 1_000_000
IMPRESSION = Impression(request_id="r", user_id="bad", item_id="bad", ts_ms=NOW_MS, position=0)
CLICK = Click(request_id="r", user_id="bad", item_id="bad", ts_ms=NOW_MS)


class Bad(NamedTuple):
    """A record that cannot be used, and why."""

    topic: str
    value: bytes | None
    reason: Reason


def changed(record: Event | Content, **fields: object) -> bytes:
    """A record as JSON, with fields that our own encoder would not write."""
    return json.dumps({**json.loads(codec.encode_json(record)), **fields}).encode()


BAD = {
    "not one of the wire forms": Bad("impressions", b"\x01garbage", Reason.MALFORMED),
    "nothing at all": Bad("impressions", None, Reason.MALFORMED),
    "Avro cut short": Bad("impressions", codec.encode(IMPRESSION)[:-3], Reason.MALFORMED),
    "Avro with bytes left over": Bad("clicks", codec.encode(CLICK) + b"\x00", Reason.MALFORMED),
    "JSON cut short": Bad("clicks", codec.encode_json(CLICK)[:-1], Reason.MALFORMED),
    "too long": Bad("impressions", changed(IMPRESSION, context={"x": "y" * 300_000}), Reason.OVERSIZE),
    "an id too long": Bad("clicks", changed(CLICK, item_id="i" * 129), Reason.OVERSIZE),
    "a schema that nobody knows": Bad("impressions", b"\xc3\x01" + b"\x07" * 8 + b"body", Reason.UNKNOWN_SCHEMA),
    "a number of a registry, without one": Bad("clicks", codec.encode_confluent(CLICK, 7), Reason.UNKNOWN_SCHEMA),
    "a record of another topic": Bad("impressions", codec.encode(CLICK), Reason.UNKNOWN_SCHEMA),
    "an hour ahead": Bad("clicks", changed(CLICK, ts_ms=NOW_MS + 3_600_000), Reason.FUTURE_DATED),
    "an empty id": Bad("impressions", changed(IMPRESSION, item_id=""), Reason.MISSING_ID),
    "no id": Bad("impressions", b'{"request_id":"r","user_id":"u","ts_ms":1,"position":0}', Reason.MISSING_ID),
    "a word for a number": Bad("impressions", changed(IMPRESSION, position="first"), Reason.WRONG_TYPE),
    "a field that is missing": Bad("impressions", b'{"request_id":"r","user_id":"u","item_id":"i","position":0}', Reason.WRONG_TYPE),
    "a dwell before it began": Bad("clicks", changed(CLICK, dwell_ms=-1), Reason.OUT_OF_RANGE),
    "an item without its author": Bad("content", b'{"item_id":"i"}', Reason.WRONG_TYPE),
}


class Played(NamedTuple):
    """What a test of this module looks at, after good and bad records went through one worker together."""

    prefix: str
    good: list[Event]
    log: list[StoredRecord]
    letters: list[tuple[StoredRecord, DeadLetter]]
    store_url: str


def letters_of(kafka_bootstrap: str, prefix: str) -> list[tuple[StoredRecord, DeadLetter]]:
    """Each dead letter, as it stands in its topic and decoded."""
    found = []
    for record in log_records(kafka_bootstrap, prefix + DEAD_LETTERS.name):
        letter = codec.decode(DEAD_LETTERS, record.value)
        assert isinstance(letter, DeadLetter)
        found.append((record, letter))
    return found


@pytest.fixture(scope="module")
def played(kafka_bootstrap: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    """Good events with every kind of bad record among them, in batches of one worker."""
    prefix, folder = f"dead{NOW_MS}-", tmp_path_factory.mktemp("dead")
    topics.create(kafka_bootstrap, prefix, partitions=1)
    good = events(400)
    messages: list[tuple[str, bytes | None, bytes | None]] = [
        (f"{prefix}{'impressions' if isinstance(event, Impression) else 'clicks'}", event.user_id.encode(), codec.encode(event))
        for event in good
    ]
    tombstones = [(f"{prefix}content", b"removed", None), (f"{prefix}users", b"forgotten", None)]
    places = random.Random(5).sample(range(len(messages)), len(BAD))
    for place, bad in zip(sorted(places, reverse=True), BAD.values(), strict=True):
        messages.insert(place, (prefix + bad.topic, b"its key", bad.value))
    send(kafka_bootstrap, [*messages, *tombstones])
    settings = IngestSettings(kafka_bootstrap, f"{prefix}ingest", prefix)
    with own_store(folder) as (_, _, url):
        with ingest_worker(folder, settings, url) as worker:
            caught_up(kafka_bootstrap, prefix, url, worker)
        log = [record for name in SOURCE_NAMES for record in log_records(kafka_bootstrap, prefix + name)]
        yield Played(prefix, good, log, letters_of(kafka_bootstrap, prefix), url)


def test_good_records_beside_bad_ones_are_counted(played: Played) -> None:
    """What stands in the same batches as every kind of bad record is applied as if it stood alone."""
    found = {entity: windows for entity, windows in stored(played.store_url).items() if windows != {(0, 0, 0, 0)}}

    assert found == counted(played.good)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_kept_with_its_reason_and_bytes(played: Played, name: str) -> None:
    """Each is in dead-letters once, with its reason, where it stood, and its value and key byte for byte."""
    bad = BAD[name]
    record = next(r for r in played.log if r.topic == played.prefix + bad.topic and r.value == bad.value)
    found = [letter for _, letter in played.letters if (letter.topic, letter.offset) == (record.topic, record.offset)]

    assert [(letter.reason, letter.partition, letter.value, letter.key) for letter in found] == [(bad.reason, 0, bad.value, b"its key")]


def test_nothing_else_is_in_dead_letters(played: Played) -> None:
    """Good records and tombstones of content and users are not bad."""
    assert len(played.letters) == len(BAD)


def test_a_dead_letter_has_the_key_of_its_record(played: Played) -> None:
    """Letters of one key keep their order, as their records did."""
    assert {record.key for record, _ in played.letters} == {b"its key"}


def test_headers_are_those_of_kafka_connect(played: Played) -> None:
    """Tools that read Connect's dead letters find where each came from and what was wrong."""
    stamps = {(record.topic, record.offset): record.timestamp for record in played.log}
    expected = [
        {
            "__connect.errors.topic": letter.topic.encode(),
            "__connect.errors.partition": b"0",
            "__connect.errors.offset": b"%d" % letter.offset,
            "__connect.errors.exception.class.name": letter.reason.encode(),
            "__connect.errors.exception.message": letter.detail.encode(),
            "__connect.errors.timestamp": b"%d" % stamps[letter.topic, letter.offset],
        }
        for _, letter in played.letters
    ]

    assert [dict(record.headers) for record, _ in played.letters] == expected


def test_a_record_as_long_as_kafka_takes_fits_into_a_letter(kafka_bootstrap: str, topic_prefix: str, store_db: str, tmp_path: Path) -> None:
    """The longest record that the broker lets in, of bytes that no codec shortens, goes to dead-letters whole."""
    topics.create(kafka_bootstrap, topic_prefix, partitions=1)
    longest = random.Random(1).randbytes(1_048_400)
    send(kafka_bootstrap, [(f"{topic_prefix}impressions", b"key", longest)], **{"message.max.bytes": 2_000_000})
    with ingest_worker(tmp_path, IngestSettings(kafka_bootstrap, f"{topic_prefix}ingest", topic_prefix), store_db) as worker:
        caught_up(kafka_bootstrap, topic_prefix, store_db, worker)
    letters = letters_of(kafka_bootstrap, topic_prefix)

    assert [(letter.reason, letter.value == longest) for _, letter in letters] == [(Reason.OVERSIZE, True)]
