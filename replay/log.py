"""Event logs: what was produced, in order, read again from any offset. In Kafka; replay/files.py has files that stand in for it.

A topic is named without its prefix on both sides of a log. Times are those that the records were produced with: a log of 2022 that
is appended today still says 2022.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from time import monotonic
from typing import Any, NamedTuple, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka import Message as KafkaMessage
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]  # its stubs do not export it

from schemas import codec
from schemas.errors import LogError, kafka_advice
from schemas.records import Record
from schemas.topics import Batch, Source, StoredRecord, Topic, record_of

#: Rows of a batch at most. More would only move the same rows in fewer steps; a batch is held in memory whole.
BATCH_ROWS_MAX = 5_000
#: How long Kafka may keep a record, a question or a read waiting (seconds) before the log gives up on it.
KAFKA_S = 30.0
#: Records handed to the producer between two looks at its failures: looking costs more than handing over.
SENDS_PER_POLL = 1_000
#: How often a full producer is asked for room, and a quiet consumer for records (seconds).
POLL_S = 0.1
#: What librdkafka reports and recovers from by itself.
PASSING = (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT)  # noqa: SLF001  # librdkafka's names
#: librdkafka's own lines on stderr would tear a live view, and tell what becomes a LogError if it lasts: only emergencies are let through.
QUIET = {"log_level": 0}


class Message(NamedTuple):
    """A record to be stored. value: None is a tombstone; timestamp_ms: its Kafka timestamp, milliseconds UTC, above 0."""

    key: bytes
    value: bytes | None
    timestamp_ms: int
    headers: tuple[tuple[str, bytes], ...] = ()


class ReadableLog(Protocol):
    """Topics of records in order. Records of one key stay in the order they were appended in; others may not."""

    def end_offsets(self, topic: Topic) -> dict[int, int]:
        """The offset that the next record of each partition will have. Raises LogError."""

    def offsets_at(self, topic: Topic, moment_ms: int) -> dict[int, int]:
        """The first offset of each partition whose timestamp is at or after a moment, its end where there is none. Raises LogError."""

    def read(self, topic: Topic, starts: Mapping[int, int] | None = None, batch_rows_max: int = BATCH_ROWS_MAX) -> Iterator[Batch]:
        """All records from `starts` (partition -> offset, else the first there is) to the end as it is now. Raises LogError."""


class EventLog(ReadableLog, Protocol):
    """One that can be written, too."""

    def append(self, topic: Topic, messages: Iterable[Message]) -> None:
        """Store messages; returns when all are. Raises LogError if not, some of them may be stored then."""


class Publisher:
    """A feed's end of Kafka: sends records without waiting for each."""

    def __init__(self, bootstrap: str, topic_prefix: str = "", security: Mapping[str, str] | None = None) -> None:
        """bootstrap: host:port of the brokers. security: TLS and SASL by librdkafka's names; none is plain text."""
        self._prefix = topic_prefix
        self._failures: list[KafkaError] = []
        self._sent = 0
        self._producer = Producer(
            {
                **QUIET,
                **(security or {}),
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                "compression.type": "lz4",
                "linger.ms": 5,
                "message.timeout.ms": int(KAFKA_S * 1000),
                "delivery.report.only.error": True,
                "on_delivery": self._on_delivery,
            }
        )

    def send(self, topic: Topic, record: Record, timestamp_ms: int | None = None) -> None:
        """Send a record under its key, by default with the time of now. Raises LogError for one that failed, now or before."""
        self.send_message(topic, Message(topic.key_of(record), codec.encode(record), timestamp_ms or 0))

    def send_message(self, topic: Topic, message: Message) -> None:
        """Send bytes as they are. Raises LogError as `send` does."""
        self._sent += 1
        if self._sent % SENDS_PER_POLL == 0:
            self._check()
        until_s = monotonic() + KAFKA_S
        while not self._produce(self._prefix + topic.name, message):
            self._producer.poll(POLL_S)
            if monotonic() > until_s:
                raise LogError(f"Kafka took none of {len(self._producer)} records for {KAFKA_S:.0f} s. Is it up, and its disk not full?")

    def _produce(self, name: str, message: Message) -> bool:
        """Whether there was room for it."""
        try:
            self._producer.produce(name, message.value, message.key, timestamp=message.timestamp_ms, headers=list(message.headers))
        except BufferError:
            return False
        except KafkaException as error:
            raise LogError(f"topic {name} cannot take a record of {len(message.value or b'')} bytes: {error.args[0].str()}.") from error
        return True

    def flush(self) -> None:
        """Return when everything sent is stored. Raises LogError if something is not."""
        left = self._producer.flush(2 * KAFKA_S)
        self._check()
        if left:
            raise LogError(f"{left} records are still not stored after {2 * KAFKA_S:.0f} s. Is Kafka up? Send them again.")

    def _on_delivery(self, error: KafkaError | None, _: KafkaMessage) -> None:
        if error is not None:
            self._failures.append(error)

    def _check(self) -> None:
        self._producer.poll(0)
        if self._failures:
            count, first = len(self._failures), self._failures[0]
            self._failures.clear()
            raise LogError(f"{count} records are not stored, the first because: {first.str()}. Mend that and send them again.")


class KafkaLog:
    """The log that Kafka keeps; its topics must exist."""

    def __init__(self, bootstrap: str, topic_prefix: str = "", security: Mapping[str, str] | None = None) -> None:
        """bootstrap: host:port of the brokers. security: as Publisher's."""
        self._bootstrap, self._prefix = bootstrap, topic_prefix
        self._said: deque[KafkaError] = deque(maxlen=10)
        self._client: dict[str, Any] = {**QUIET, **(security or {}), "bootstrap.servers": bootstrap}
        self._admin = AdminClient(self._client | {"error_cb": self._said.append})

    @cached_property  # opened by the first append: who only reads needs none
    def _publisher(self) -> Publisher:
        return Publisher(self._bootstrap, self._prefix, self._client)

    def append(self, topic: Topic, messages: Iterable[Message]) -> None:
        """As EventLog says."""
        for message in messages:
            self._publisher.send_message(topic, message)
        self._publisher.flush()

    def end_offsets(self, topic: Topic) -> dict[int, int]:
        """As EventLog says."""
        return self._offsets(topic, OffsetSpec.latest())  # type: ignore[no-untyped-call]  # its stubs leave it untyped

    def begin_offsets(self, topic: Topic) -> dict[int, int]:
        """The first offset of each partition that retention has left. Raises LogError."""
        return self._offsets(topic, OffsetSpec.earliest())  # type: ignore[no-untyped-call]  # as above

    def offsets_at(self, topic: Topic, moment_ms: int) -> dict[int, int]:
        """As EventLog says."""
        ends = self.end_offsets(topic)
        found = self._offsets(topic, OffsetSpec.for_timestamp(moment_ms))
        return {partition: found[partition] if found[partition] >= 0 else end for partition, end in ends.items()}

    def _offsets(self, topic: Topic, where: OffsetSpec) -> dict[int, int]:
        """What Kafka says of each partition; -1 where it has no such offset."""
        name = self._prefix + topic.name
        try:
            partitions = self._admin.list_topics(name, timeout=KAFKA_S).topics[name].partitions
            wanted = {TopicPartition(name, partition): where for partition in sorted(partitions)}
            asked = self._admin.list_offsets(wanted, request_timeout=KAFKA_S) if wanted else {}
            found = {place.partition: int(answer.result(KAFKA_S).offset) for place, answer in asked.items()}
        except KafkaException as error:
            self._admin.poll(0)
            why = f"{error.args[0].str()}. {kafka_advice(self._said)}"
            raise LogError(f"{self._bootstrap} does not say which offsets topic {name} has: {why}") from error
        if not found:
            raise LogError(f"{self._bootstrap} has no topic {name}. `millstream topics` creates it.")
        return found

    def read(self, topic: Topic, starts: Mapping[int, int] | None = None, batch_rows_max: int = BATCH_ROWS_MAX) -> Iterator[Batch]:
        """As EventLog says; partitions come mixed."""
        ends = self.end_offsets(topic)
        places = {partition: (starts or {}).get(partition, 0) for partition in ends}
        return self._read(topic, {at: place for at, place in places.items() if place < ends[at]}, ends, batch_rows_max)

    def _read(self, topic: Topic, places: dict[int, int], ends: dict[int, int], batch_rows_max: int) -> Iterator[Batch]:
        """places: partition -> next offset to read, of the partitions that are not read to their end."""
        consumer = self._consumer(topic, places)
        until_s = monotonic() + KAFKA_S
        try:
            while places:
                first = consumer.poll(POLL_S)
                taken = [] if first is None else [first, *consumer.consume(batch_rows_max - 1, 0)]
                for batch in _batches(topic, taken, places, ends):
                    yield batch
                    until_s = monotonic() + KAFKA_S
                if monotonic() > until_s:
                    raise LogError(
                        f"topic {self._prefix}{topic.name} gave nothing for {KAFKA_S:.0f} s, its end unread in {places}. Is Kafka up?"
                    )
        finally:
            consumer.close()

    def _consumer(self, topic: Topic, places: Mapping[int, int]) -> Consumer:
        consumer = Consumer(
            {
                **self._client,
                # Partitions are assigned by hand: the group is a formality, nothing is committed under it.
                "group.id": "millstream-log",
                "enable.auto.commit": False,
                # The last offset may be a transaction's mark or compacted away: only the end itself can be waited for.
                "enable.partition.eof": True,
                # Where retention has removed the start, begin with what is left.
                "auto.offset.reset": "earliest",
            }
        )
        consumer.assign([TopicPartition(self._prefix + topic.name, partition, place) for partition, place in places.items()])
        return consumer


def _batches(topic: Topic, messages: Iterable[KafkaMessage], places: dict[int, int], ends: Mapping[int, int]) -> Iterator[Batch]:
    """One batch a partition of what was taken, up to the ends; moves `places`."""
    found: dict[int, list[StoredRecord]] = defaultdict(list)
    reached: dict[int, int] = {}
    for message in messages:
        error, partition, offset = message.error(), message.partition() or 0, message.offset() or 0
        if error is None:
            reached[partition] = offset + 1
            if partition in places and offset < ends[partition]:
                found[partition].append(record_of(topic.name, message))
        elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001  # librdkafka's name
            reached[partition] = offset
        elif error.code() not in PASSING:
            raise LogError(f"topic {message.topic()}, partition {partition} cannot be read: {error.str()}.")
    for partition, records in found.items():
        yield Batch(Source(topic.name, partition), records, places[partition])
        places[partition] = records[-1].offset + 1
    for partition, offset in reached.items():
        if offset >= ends[partition]:
            places.pop(partition, None)
