"""An event log gives back what was appended, from wherever it is asked: files, the lake and Kafka alike."""

import time
import zlib
from collections.abc import Iterable
from itertools import chain, pairwise
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy

from compose import topics
from replay.files import FileLog
from replay.log import EventLog, KafkaLog, Message, Publisher
from schemas import codec
from schemas.errors import LogError
from schemas.records import Content, Impression
from schemas.topics import CLICKS, CONTENT, IMPRESSIONS, UNREADABLE, Batch, StoredRecord, Topic
from tests.lakes import SunkLog
from tests.worlds import NotUtf8

PARTITIONS = 3
APRIL_2022_MS = 1_650_816_000_000
NOBODY = Topic("nobody-made-this", (Impression,), "user_id")


@pytest.fixture(params=["file", "lake", "kafka"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> EventLog:
    if request.param == "file":
        return FileLog(tmp_path, PARTITIONS)
    if request.param == "lake":
        return SunkLog(tmp_path, PARTITIONS)
    log: EventLog = request.getfixturevalue("kafka_log")
    return log


@pytest.fixture
def kafka_log(kafka_bootstrap: str, topic_prefix: str) -> KafkaLog:
    topics.create(kafka_bootstrap, topic_prefix, PARTITIONS, retention_ms=-1)
    return KafkaLog(kafka_bootstrap, topic_prefix)


def messages(count: int, first: int = 0) -> list[Message]:
    return [Message(b"u%d" % (number % 11), b"v%d" % number, APRIL_2022_MS + number) for number in range(first, first + count)]


def values(batches: Iterable[Batch]) -> list[bytes]:
    return sorted(record.value or b"" for batch in batches for record in batch.records)


def contents(found: Iterable[Message]) -> list[bytes]:
    return sorted(message.value or b"" for message in found)


def test_what_is_appended_is_read(log: EventLog) -> None:
    """Key, value, timestamp and headers come back as they were given, and topic names have no prefix."""
    log.append(IMPRESSIONS, [Message(b"u1", b"v1", APRIL_2022_MS, (("traceparent", b"00-1"), ("empty", b"")))])

    (batch,) = log.read(IMPRESSIONS)

    partition = zlib.crc32(b"u1") % PARTITIONS
    assert batch.source == (IMPRESSIONS.name, partition)
    headers = (("traceparent", b"00-1"), ("empty", b""))
    assert list(batch.records) == [StoredRecord(IMPRESSIONS.name, partition, 0, APRIL_2022_MS, b"u1", b"v1", headers)]


async def test_headers_that_cannot_be_read_do_not_hide_their_record(
    kafka_bootstrap: str, topic_prefix: str, kafka_log: KafkaLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A header's name that is no UTF-8 costs the record its headers, and nothing else."""
    monkeypatch.setattr("aiokafka.producer.producer.DefaultRecordBatchBuilder", _DefaultRecordBatchBuilderPy)
    monkeypatch.setattr("aiokafka.producer.message_accumulator.DefaultRecordBatchBuilder", _DefaultRecordBatchBuilderPy)
    async with AIOKafkaProducer(bootstrap_servers=kafka_bootstrap) as producer:
        await producer.send_and_wait(topic_prefix + CLICKS.name, b"v1", headers=[(NotUtf8("name"), b"value")], timestamp_ms=APRIL_2022_MS)

    (batch,) = kafka_log.read(CLICKS)

    assert list(batch.records) == [StoredRecord(CLICKS.name, batch.source.partition, 0, APRIL_2022_MS, None, b"v1", UNREADABLE)]


def test_a_tombstone_has_no_value(log: EventLog) -> None:
    """A null value is not an empty one."""
    log.append(CONTENT, [Message(b"i1", None, APRIL_2022_MS), Message(b"i1", b"", APRIL_2022_MS)])

    assert [record.value for batch in log.read(CONTENT) for record in batch.records] == [None, b""]


def test_one_key_stays_in_order_in_one_partition(log: EventLog) -> None:
    """The partition of a key is its CRC-32, over several appends."""
    log.append(IMPRESSIONS, messages(40))
    log.append(IMPRESSIONS, messages(40, first=40))

    for key in {message.key for message in messages(11)}:
        found = [record for batch in log.read(IMPRESSIONS) for record in batch.records if record.key == key]
        assert {record.partition for record in found} == {zlib.crc32(key) % PARTITIONS}
        assert [record.value for record in found] == [message.value for message in messages(80) if message.key == key]


def test_batches_join_without_a_gap(log: EventLog) -> None:
    """A batch starts where the one before it ended, its offsets are those from start to following."""
    log.append(IMPRESSIONS, messages(100))

    for partition in range(PARTITIONS):
        batches = [batch for batch in log.read(IMPRESSIONS, batch_rows_max=8) if batch.source.partition == partition]
        assert batches[0].start == 0
        assert all(before.following == after.start for before, after in pairwise(batches))
        assert [record.offset for batch in batches for record in batch.records] == list(range(batches[-1].following))


@pytest.mark.parametrize("rows_max", [1, 7])
def test_a_batch_has_its_bound(log: EventLog, rows_max: int) -> None:
    """No batch is longer than asked, and none is empty."""
    log.append(IMPRESSIONS, messages(50))

    lengths = [len(batch.records) for batch in log.read(IMPRESSIONS, batch_rows_max=rows_max)]

    assert sum(lengths) == 50
    assert all(0 < length <= rows_max for length in lengths)


def test_end_offsets_count_every_partition(log: EventLog) -> None:
    """The end is one past the last record, 0 where there is none; topics do not mix."""
    log.append(CLICKS, messages(1))
    log.append(IMPRESSIONS, messages(30))

    assert log.end_offsets(CONTENT) == dict.fromkeys(range(PARTITIONS), 0)
    assert sum(log.end_offsets(IMPRESSIONS).values()) == 30
    assert log.end_offsets(CLICKS) == {at: int(at == zlib.crc32(b"u0") % PARTITIONS) for at in range(PARTITIONS)}


def test_offsets_at_a_moment_are_the_first_at_or_after_it(log: EventLog) -> None:
    """By the records' timestamps; the start where all are later, the end where none is, and where nothing was ever stored."""
    log.append(IMPRESSIONS, messages(40))
    found = log.offsets_at(IMPRESSIONS, APRIL_2022_MS + 20)
    records = [record for batch in log.read(IMPRESSIONS) for record in batch.records]
    late = {at: [record.offset for record in records if record.partition == at and record.timestamp >= APRIL_2022_MS + 20] for at in found}

    assert found == {at: min(offsets) for at, offsets in late.items()}
    assert log.offsets_at(IMPRESSIONS, 1) == dict.fromkeys(range(PARTITIONS), 0)
    assert log.offsets_at(IMPRESSIONS, APRIL_2022_MS + 40) == log.end_offsets(IMPRESSIONS)
    assert log.offsets_at(CONTENT, 1) == dict.fromkeys(range(PARTITIONS), 0)


def test_reading_goes_on_where_it_ended(log: EventLog) -> None:
    """From earlier end offsets only what came after is read; a partition without a start is read whole."""
    log.append(IMPRESSIONS, messages(30))
    ends = log.end_offsets(IMPRESSIONS)
    log.append(IMPRESSIONS, messages(30, first=30))

    assert values(log.read(IMPRESSIONS, ends)) == contents(messages(30, first=30))
    missing = max(ends)
    whole = [record for record in chain(*(batch.records for batch in log.read(IMPRESSIONS))) if record.partition == missing]
    rest = log.read(IMPRESSIONS, {partition: end for partition, end in ends.items() if partition != missing})
    assert [record for batch in rest if batch.source.partition == missing for record in batch.records] == whole


def test_a_start_at_the_end_reads_nothing(log: EventLog) -> None:
    """Nothing is new, so nothing comes, at once."""
    log.append(IMPRESSIONS, messages(30))

    assert list(log.read(IMPRESSIONS, log.end_offsets(IMPRESSIONS))) == []


def test_a_read_ends_where_the_log_ended_when_it_was_called(log: EventLog) -> None:
    """What is appended while reading is left for the next read."""
    log.append(IMPRESSIONS, messages(30))
    reading = log.read(IMPRESSIONS)
    log.append(IMPRESSIONS, messages(30, first=30))

    assert values(reading) == contents(messages(30))


def test_an_empty_topic_reads_as_nothing(log: EventLog) -> None:
    """No record, no batch."""
    assert list(log.read(CONTENT)) == []


def test_kafka_takes_more_than_the_producer_holds(kafka_log: KafkaLog) -> None:
    """A full producer is waited for: 120,000 records, where librdkafka holds 100,000, are all stored."""
    kafka_log.append(IMPRESSIONS, messages(120_000))

    assert sum(kafka_log.end_offsets(IMPRESSIONS).values()) == 120_000


def test_kafka_refuses_a_timestamp_ahead_of_its_clock(kafka_log: KafkaLog) -> None:
    """What the broker refuses is an error of append, not a record less."""
    ahead = Message(b"u1", b"v1", time.time_ns() // 1_000_000 + 600_000)

    with pytest.raises(LogError, match="1 records are not stored"):
        kafka_log.append(IMPRESSIONS, [ahead])


def test_kafka_refuses_a_record_larger_than_its_limit(kafka_log: KafkaLog) -> None:
    """A value that no broker takes is named with its size."""
    with pytest.raises(LogError, match="record of 2000000 bytes"):
        kafka_log.append(IMPRESSIONS, [Message(b"u1", bytes(2_000_000), APRIL_2022_MS)])


def test_kafka_names_a_topic_that_does_not_exist(kafka_log: KafkaLog) -> None:
    """Reading what nobody created says so, and how to create it."""
    with pytest.raises(LogError, match=r"no topic .*nobody-made-this"):
        kafka_log.read(NOBODY)


def test_a_publisher_sends_records_that_decode(kafka_bootstrap: str, topic_prefix: str, kafka_log: KafkaLog) -> None:
    """A record published with a time stands under its key, with that time, and decodes to itself."""
    item = Content(item_id="i1", author_id="a1", created_at_ms=APRIL_2022_MS, ts_ms=APRIL_2022_MS, topic_tags=["a"])
    publisher = Publisher(kafka_bootstrap, topic_prefix)
    publisher.send(CONTENT, item, APRIL_2022_MS)
    publisher.flush()

    ((record,),) = (batch.records for batch in kafka_log.read(CONTENT))
    assert (record.key, record.timestamp) == (b"i1", APRIL_2022_MS)
    assert codec.decode(CONTENT, record.value, record.headers) == item


def test_a_publisher_without_a_time_sends_now(kafka_bootstrap: str, topic_prefix: str, kafka_log: KafkaLog) -> None:
    """The Kafka timestamp is the moment of sending."""
    before_ms = time.time_ns() // 1_000_000
    publisher = Publisher(kafka_bootstrap, topic_prefix)
    publisher.send(IMPRESSIONS, Impression(request_id="r", user_id="u", item_id="i", ts_ms=1, position=0))
    publisher.flush()

    ((record,),) = (batch.records for batch in kafka_log.read(IMPRESSIONS))
    assert before_ms <= record.timestamp <= time.time_ns() // 1_000_000


def test_files_are_read_by_another_process(tmp_path: Path) -> None:
    """A file log is nothing but its folder."""
    FileLog(tmp_path, PARTITIONS).append(IMPRESSIONS, messages(30))

    assert values(FileLog(tmp_path, PARTITIONS).read(IMPRESSIONS)) == contents(messages(30))


def test_a_half_written_file_is_not_read(tmp_path: Path) -> None:
    """What a crash left behind was never appended; the next append takes its place."""
    log = FileLog(tmp_path, 1)
    log.append(IMPRESSIONS, messages(3))
    (half,) = (tmp_path / IMPRESSIONS.name / "0").glob("*.msgpack")
    half.rename(half.with_suffix(".part"))

    assert log.end_offsets(IMPRESSIONS) == {0: 0}
    log.append(IMPRESSIONS, messages(3))
    assert values(log.read(IMPRESSIONS)) == contents(messages(3))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    """A log with a broken file raises instead of reading past it."""
    log = FileLog(tmp_path, 1)
    log.append(IMPRESSIONS, messages(3))
    (path,) = (tmp_path / IMPRESSIONS.name / "0").glob("*.msgpack")
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(LogError, match=path.name):
        list(log.read(IMPRESSIONS))


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """A file in the folder's place is named in the error."""
    (tmp_path / "taken").write_text("")

    with pytest.raises(LogError, match="taken"):
        FileLog(tmp_path / "taken", 1).append(IMPRESSIONS, messages(1))
