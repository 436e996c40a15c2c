"""Runs the sink: Kafka's topics into their tables until it is told to stop.

Kafka's committed offsets are a hint for tools that show lag. Where to read from the tables say, each time partitions are assigned; what was
read and not written when they are taken away is forgotten, and read again by whoever has them next. A sink that cannot go on ends with an
error and is started again: no table is ever half written.
"""

import logging
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from threading import Event

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas.errors import LogError, kafka_advice
from schemas.topics import TOPICS, StoredRecord, Topic, record_of
from streams import metrics
from streams.lake.table import LakePlace, Table
from streams.lake.upkeep import keep
from streams.schema_registry import schema_ids

#: How long a record may wait for its commit (seconds): what the lake is behind. Less makes more and smaller files, and more commits.
COMMIT_S = 30.0
#: Rows that wait may take so much memory (bytes) before they are written. More makes larger files; while they are written, copies take
#: several times as much.
PENDING_BYTES_MAX = 32 << 20
#: What Kafka's client may hold ready (KiB): a few of our takes. Its own default is four times that.
READ_AHEAD_KIB = 16_384
#: Records taken from Kafka's client at once. Decoding costs by the call; more would only wait for longer.
TAKE_ROWS = 10_000
#: How long a poll waits (seconds): also how long a stop may go unnoticed.
POLL_S = 0.2
#: How often tables are looked after (seconds): how many commits' small files may pile up.
UPKEEP_S = 600.0
#: How long Kafka may take to answer (seconds) before a start is given up.
KAFKA_ANSWER_S = 10.0
#: What librdkafka reports and recovers from by itself.
PASSING = (
    KafkaError._ALL_BROKERS_DOWN,  # noqa: SLF001  # librdkafka's names, here and below
    KafkaError._TRANSPORT,  # noqa: SLF001  # as above
    KafkaError._PARTITION_EOF,  # noqa: SLF001  # as above
    KafkaError._MAX_POLL_EXCEEDED,  # noqa: SLF001  # as above
)

log = logging.getLogger("millstream.lake")


@dataclass(frozen=True, slots=True)
class LakeSettings:
    """kafka_bootstrap: host:port[,host:port]; group_id: sinks that share the partitions.

    retention_days: how long rows stay, by topic; those of others stay for ever. security: as of IngestSettings.
    """

    kafka_bootstrap: str
    group_id: str
    lake: LakePlace
    topic_prefix: str = ""
    schema_registry_url: str = ""
    retention_days: Mapping[str, int] = field(default_factory=dict)
    security: Mapping[str, str] = field(default_factory=dict, repr=False)
    commit_s: float = COMMIT_S
    session_timeout_s: float = 10.0


class Sink:
    """Reads every topic and writes its table."""

    def __init__(self, settings: LakeSettings) -> None:
        """Opens the tables, and makes those that are not there. Raises LogError where Kafka, its topics or the lake are not there."""
        self._settings = settings
        self._said: deque[KafkaError] = deque(maxlen=10)
        self._consumer = Consumer(
            {
                "bootstrap.servers": settings.kafka_bootstrap,
                "error_cb": self._said.append,
                **settings.security,
                "group.id": settings.group_id,
                "session.timeout.ms": int(settings.session_timeout_s * 1000),
                "heartbeat.interval.ms": int(settings.session_timeout_s * 1000 / 4),
                "queued.max.messages.kbytes": READ_AHEAD_KIB,
                "isolation.level": "read_committed",
                # Where retention has removed what comes next, go on with what is left.
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "allow.auto.create.topics": False,
            }
        )
        partitions, ids = self._count_partitions(), schema_ids(settings.schema_registry_url)
        self._tables = {name: Table(settings.lake, TOPICS[name], count, ids) for name, count in partitions.items()}
        self._ours: set[str] = set()
        self._assigned: list[TopicPartition] | None = None

    def run(self, stop: Event) -> None:
        """Write until stopped, then what is pending. Raises LogError when it cannot go on."""
        names = [self._kafka_name(topic) for topic in TOPICS.values()]
        self._consumer.subscribe(names, on_assign=self._on_assign, on_revoke=self._on_revoke)
        try:
            with ThreadPoolExecutor(1, "upkeep") as beside:
                self._write_until(stop, beside)
        finally:
            self._consumer.close()

    def _write_until(self, stop: Event, beside: ThreadPoolExecutor) -> None:
        """Take and commit; look after the tables beside that, for it may take longer than Kafka waits for a poll."""
        committed_s, looked_s = time.monotonic(), time.monotonic()
        under_way: Future[None] = beside.submit(lambda: None)
        while not stop.is_set():
            self._poll()
            now_s = time.monotonic()
            if now_s - committed_s > self._settings.commit_s or self._pending_bytes() > PENDING_BYTES_MAX:
                self._commit()
                committed_s = now_s
            if under_way.done() and now_s - looked_s > UPKEEP_S:
                under_way.result()
                under_way = beside.submit(self._look_after, sorted(self._ours))
                looked_s = now_s
        self._commit()
        under_way.result()

    def _poll(self) -> None:
        """Take what there is. Where partitions changed hands meanwhile, it may be from before that: all is read again then."""
        messages = self._consumer.consume(TAKE_ROWS, POLL_S)
        if self._assigned is None:
            self._take(messages)
        else:
            places, self._assigned = self._assigned, None
            self._begin(places)

    def _look_after(self, names: Sequence[str]) -> None:
        for name in names:
            keep(self._settings.lake, TOPICS[name], _today(), self._settings.retention_days.get(name))

    def _pending_bytes(self) -> int:
        return sum(table.pending_bytes for table in self._tables.values())

    def _take(self, messages: Sequence[Message]) -> None:
        found: dict[str, list[StoredRecord]] = defaultdict(list)
        for message in messages:
            error = message.error()
            if error is None:
                record = record_of(str(message.topic()), message)
                found[self._name(record)].append(record)
            elif error.code() not in PASSING and not error.retriable():
                raise LogError(f"topic {message.topic()} cannot be read: {error}. Are the topics there? `millstream topics` creates them.")
        for name, records in found.items():
            self._tables[name].take(records)

    def _commit(self) -> None:
        """Write what is pending, a transaction a table, and tell Kafka how far we are."""
        for table in self._tables.values():
            reached = table.commit(_today())
            places = [TopicPartition(self._kafka_name(table.topic), partition, offset) for partition, offset in reached.items()]
            if places:
                self._hint(places)
        self._tell_lag()

    def _hint(self, places: list[TopicPartition]) -> None:
        try:
            self._consumer.commit(offsets=places, asynchronous=True)
        except KafkaException as error:
            log.info("Kafka does not take how far the lake is: %s", error)

    def _tell_lag(self) -> None:
        for place in self._consumer.assignment():
            name = self._name(place)
            _, end = self._consumer.get_watermark_offsets(place, cached=True)
            metrics.LAKE_LAG.labels(name, place.partition).set(max(end - self._tables[name].reached(place.partition), 0))

    def _on_assign(self, _: Consumer, places: list[TopicPartition]) -> None:
        self._assigned = places

    def _on_revoke(self, _: Consumer, __: list[TopicPartition]) -> None:
        self._assigned = []

    def _begin(self, places: list[TopicPartition]) -> None:
        """Read each partition from where its table ends. Raises LogError where the topic ends before that."""
        metrics.LAKE_LAG.clear()
        for table in self._tables.values():
            ours = [place for place in places if place.topic == self._kafka_name(table.topic)]
            starts = table.begin(place.partition for place in ours)
            for place in ours:
                place.offset = self._start(place, starts[place.partition])
        # Of several sinks the one that has a table's first partition looks after the table.
        self._ours = {self._name(place) for place in places if place.partition == 0}
        self._consumer.assign(places)
        log.info("the sink has partitions %s", ", ".join(sorted(f"{place.topic}/{place.partition}" for place in places)) or "none")

    def _start(self, place: TopicPartition, start: int | None) -> int:
        if start is None:
            return OFFSET_BEGINNING
        try:
            first, end = self._consumer.get_watermark_offsets(place, KAFKA_ANSWER_S)
        except KafkaException as error:
            message = f"Kafka does not say where {place.topic}/{place.partition} ends: {error}. {kafka_advice(self._said)}"
            raise LogError(message) from error
        if end < start:
            raise LogError(
                f"{place.topic}/{place.partition} ends at offset {end}, and the lake has it up to {start}: the topic was made anew, or "
                "lost its end. Move the lake's table away, or set lake_uri to another place."
            )
        if first > start:
            metrics.LAKE_MISSED.labels(self._name(place)).inc(first - start)
            log.warning("%s/%s: Kafka removed offsets %s to %s before the lake had them", place.topic, place.partition, start, first - 1)
        return start

    def _count_partitions(self) -> dict[str, int]:
        """How many partitions each topic has. Raises LogError unless Kafka answers and has all."""
        try:
            there = self._consumer.list_topics(timeout=KAFKA_ANSWER_S).topics
        except KafkaException as error:
            message = f"Kafka at {self._settings.kafka_bootstrap} does not answer: {error}. {kafka_advice(self._said)}"
            raise LogError(message) from error
        missing = [name for name, topic in TOPICS.items() if self._kafka_name(topic) not in there]
        if missing:
            message = f"Kafka at {self._settings.kafka_bootstrap} has no topic {', '.join(missing)}. `millstream topics` creates them."
            raise LogError(message)
        return {name: len(there[self._kafka_name(topic)].partitions) for name, topic in TOPICS.items()}

    def _kafka_name(self, topic: Topic) -> str:
        return self._settings.topic_prefix + topic.name

    def _name(self, place: TopicPartition | StoredRecord) -> str:
        """A topic without its prefix."""
        return str(place.topic).removeprefix(self._settings.topic_prefix)


def _today() -> date:
    return datetime.now(UTC).date()
