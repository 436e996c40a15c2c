"""Answers of the broker read as columns: what aiokafka's own reader says of them, in every form that we read and none that we do not."""

import gc
import weakref
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.record.default_records import DefaultRecordBatchBuilder, _DefaultRecordBatchBuilderPy
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition

from schemas.topics import StoredRecord
from streams import fetch
from tests.worlds import NotUtf8

TP = TopicPartition("t-clicks", 3)
NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)


def batch(random: Random, base_offset: int, count: int = 20, compression: int = NONE, *, transactional: bool = False) -> bytes:
    """One batch as a producer sends it: keys and values of all lengths and none, some with headers."""
    builder = DefaultRecordBatchBuilder(2, compression, transactional, 7 if transactional else -1, -1, 0, 1 << 20)
    for offset in range(count):
        key = random.choice([None, b"", b"k%d" % offset, b"k" * 200])
        value = random.choice([None, b"", random.randbytes(random.randrange(400))])
        headers = random.choice(
            [[], [("traceparent", b"00"), ("empty", None)], [("__value_schema_id", b"\1")], [("__value_schema_ix", b"")]]
        )
        assert builder.append(offset, 1_700_000_000_000 + random.randrange(-5, 5), key, value, headers) is not None
    raw = bytes(builder.build())
    return base_offset.to_bytes(8, "big") + raw[8:]


def told(records: Sequence[Any]) -> list[tuple[Any, ...]]:
    """What readers say of each record; a header without a value is empty to us."""
    return [
        (r.topic, r.partition, r.offset, r.timestamp, r.key, r.value, tuple((name, value or b"") for name, value in r.headers))
        for r in records
    ]


def by_aiokafka(raw: bytes, first_offset: int) -> list[tuple[Any, ...]]:
    """The same answer, read one by one."""
    return told(list(PartitionRecords(TP, MemoryRecords(raw), [], first_offset, None, None, True, 1)))


@pytest.mark.parametrize("compression", [NONE, GZIP, SNAPPY, LZ4, ZSTD])
@pytest.mark.parametrize("first_offset", [5, 17, 24])
def test_columns_say_what_aiokafka_says(compression: int, first_offset: int) -> None:
    """Several batches, the last one cut off, a gap before the third, read from the first offset on or from within the first batch."""
    random = Random(compression)
    raw = b"".join(batch(random, base, compression=compression) for base in (5, 25, 70))
    found = fetch.read(TP, raw + batch(random, 90)[:-1], first_offset)

    assert found is not None
    assert (told(found.records), found.following) == (by_aiokafka(raw, first_offset), 90)


def test_schema_ids_in_headers_are_seen() -> None:
    """By the whole name, at any place."""
    found = fetch.read(TP, batch(Random(1), 0, 200), 0)

    assert found is not None
    named = [any(name == "__value_schema_id" for name, _ in record.headers) for record in found.records]
    assert found.records.spans.named.tolist() == named


def test_a_header_whose_name_is_not_utf_8_is_shown_all_the_same() -> None:
    """It stops nobody: what is bad about its record is for dead-letters to tell."""
    builder = _DefaultRecordBatchBuilderPy(2, NONE, False, -1, -1, 0, 1 << 20)
    assert builder.append(0, 1_700_000_000_000, b"k", b"v", [(NotUtf8("name"), b"1")]) is not None
    found = fetch.read(TP, bytes(builder.build()), 0)

    assert found is not None
    assert found.records[0].headers == ((r"\xff\xfe", b"1"),)


def test_a_record_is_made_when_it_is_asked_for() -> None:
    """From the front, from behind, as a slice; past the end there is none."""
    found = fetch.read(TP, batch(Random(1), 0, 9), 0)
    assert found is not None
    records = found.records

    assert isinstance(records[0], StoredRecord)
    assert [records[-1].offset, [record.offset for record in records[2:4]], len(records)] == [8, [2, 3], 9]
    with pytest.raises(IndexError):
        records[9]


@pytest.mark.parametrize("at", [20, 40, 60, 75, -1])
def test_bytes_that_changed_on_the_way_are_left_to_aiokafka(at: int) -> None:
    """It knows the checksum as well, and says so."""
    raw = bytearray(batch(Random(2), 0))
    raw[at] ^= 0x10

    assert fetch.read(TP, bytes(raw), 0) is None


def test_transactions_are_left_to_aiokafka() -> None:
    """It knows which of them were taken back."""
    raw = batch(Random(3), 0) + batch(Random(3), 20, transactional=True)

    assert fetch.read(TP, raw, 0) is None


async def test_an_answer_is_let_go_once_it_is_read() -> None:
    """At once, though nobody looks for cycles: these are the largest things that a worker holds."""
    subscriptions = SubscriptionState()
    subscriptions.assign_from_user([TP])
    assignment = subscriptions.subscription.assignment
    assignment.state_value(TP).seek(0)
    answer = fetch.RawRecords(batch(Random(4), 0))
    result = fetch.FetchResult(
        TP, assignment=assignment, partition_records=PartitionRecords(TP, answer, [], 0, None, None, True, 1), backoff=0
    )
    held = weakref.ref(answer)
    del answer
    gc.disable()
    try:
        found = result.getall()
        assert (len(found), held()) == (20, None)
    finally:
        gc.enable()
