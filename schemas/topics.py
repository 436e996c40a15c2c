"""The eight topics, and a record as it stands in one of them before it is decoded.

Names here carry no prefix: the prefix is a setting, put in front where a client is opened. aiokafka's own message objects are used as
they come, for anything with a LogRecord's attributes is one; confluent-kafka's become a StoredRecord.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from schemas.records import (
    Click,
    Content,
    DeadLetter,
    Dwell,
    Impression,
    RankRequest,
    RankResponse,
    RankTelemetry,
    Record,
    User,
)


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic. records: what it may carry, the first is what JSON without a "type" is; key: the field whose bytes are the key."""

    name: str
    records: tuple[type[Record], ...]
    key: str

    def key_of(self, record: Record) -> bytes:
        """The Kafka key under which a record is sent."""
        key = getattr(record, self.key)
        return key if isinstance(key, bytes) else str(key).encode()


IMPRESSIONS = Topic("impressions", (Impression,), "user_id")
CLICKS = Topic("clicks", (Click, Dwell), "user_id")
CONTENT = Topic("content", (Content,), "item_id")
USERS = Topic("users", (User,), "user_id")
RANK_REQUESTS = Topic("rank-requests", (RankRequest,), "user_id")
RANK_RESPONSES = Topic("rank-responses", (RankResponse,), "user_id")
RANK_TELEMETRY = Topic("rank-telemetry", (RankTelemetry,), "request_id")
DEAD_LETTERS = Topic("dead-letters", (DeadLetter,), "key")

#: The topics that change features: what ingest and replay read.
SOURCES = (IMPRESSIONS, CLICKS, CONTENT, USERS)
TOPICS = {topic.name: topic for topic in (*SOURCES, RANK_REQUESTS, RANK_RESPONSES, RANK_TELEMETRY, DEAD_LETTERS)}


Headers = Sequence[tuple[str, bytes]]


class LogRecord(Protocol):
    """One record of a log; named as aiokafka names them, so that its ConsumerRecord is one.

    timestamp: Kafka's, milliseconds UTC. key, value: bytes as produced, None where the producer sent none.
    """

    @property
    def topic(self) -> str:
        """Its name, prefix included."""

    @property
    def partition(self) -> int:
        """Which partition of it."""

    @property
    def offset(self) -> int:
        """Where in the partition."""

    @property
    def timestamp(self) -> int:
        """Kafka's, milliseconds UTC."""

    @property
    def key(self) -> bytes | None:
        """As produced."""

    @property
    def value(self) -> bytes | None:
        """As produced; None is a tombstone."""

    @property
    def headers(self) -> Headers:
        """Name and bytes, in order."""


class StoredRecord(NamedTuple):
    """A LogRecord of our own: what files and tests hold, and what a confluent-kafka message is turned into."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


class KafkaMessage(Protocol):
    """What confluent-kafka hands over, as far as it becomes a record."""

    def partition(self) -> Any:  # noqa: ANN401  # its stubs allow for messages that are errors
        """Which partition."""

    def offset(self) -> Any:  # noqa: ANN401  # as above
        """Where in it."""

    def timestamp(self) -> tuple[int, int]:
        """What sort of time, and milliseconds UTC."""

    def key(self) -> bytes | None:
        """As produced."""

    def value(self) -> bytes | None:
        """As produced."""

    def headers(self) -> Any:  # noqa: ANN401  # its stubs allow for words
        """Pairs, or None."""


#: What stands in place of headers of which one's name is not UTF-8: confluent-kafka fails on it, and gives none of them.
UNREADABLE: tuple[tuple[str, bytes], ...] = (("unreadable", b""),)
#: Called plainly it gives a list with a hole and leaves an error set, which a warm interpreter sees too late; called so, it is seen.
_headers = operator.methodcaller("headers")


def record_of(topic: str, message: KafkaMessage) -> StoredRecord:
    """A message of confluent-kafka's, no error, as a record of ours. topic: with or without the prefix, as its reader names it."""
    try:
        found = _headers(message)
    except SystemError:
        headers = UNREADABLE
    else:
        headers = tuple((name, value or b"") for name, value in found) if found else ()
    return StoredRecord(topic, message.partition(), message.offset(), message.timestamp()[1], message.key(), message.value(), headers)


class Source(NamedTuple):
    """One partition of one topic (without the topic prefix): the unit that guards count offsets for."""

    topic: str
    partition: int

    def __str__(self) -> str:
        """The name under which a guard stands in the store."""
        return f"{self.topic}/{self.partition}"


def source_of(name: str) -> Source:
    """The source that has this name: the inverse of str()."""
    topic, _, partition = name.rpartition("/")
    return Source(topic, int(partition))


class Batch(NamedTuple):
    """All that one source holds in [start, following): offsets ascending, never empty.

    start: the offset that was fetched from. It may lie before the first record's: compaction and transaction marks leave holes.
    """

    source: Source
    records: Sequence[LogRecord]
    start: int

    @property
    def following(self) -> int:
        """The offset after the last record: what a guard holds once the batch is applied."""
        return self.records[-1].offset + 1


class BadRecord(NamedTuple):
    """A record for dead-letters. reason: one of schemas.records.Reason; detail: one sentence with the offending value."""

    record: LogRecord
    reason: str
    detail: str
