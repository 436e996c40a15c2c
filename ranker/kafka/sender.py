"""What a ranking worker says to Kafka: answers at once, telemetry once there is more of it, and what it cannot read to dead-letters.

Reply headers are Spring's (kafka_replyTopic, kafka_replyPartition, kafka_correlationId); traceparent is carried on.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from ranker import metrics
from ranker.fronts.records import CORRELATION_ID, REPLY_TOPIC, TRACE, reply_place
from ranker.rank import Answer
from schemas import codec
from schemas.errors import LogError, kafka_advice
from schemas.records import LETTER_BYTES_MAX, RankRequest
from schemas.topics import DEAD_LETTERS, RANK_REQUESTS, RANK_RESPONSES, RANK_TELEMETRY, BadRecord, StoredRecord

#: How long telemetry waits for more of its partition (milliseconds): nobody waits for it, and a message by itself costs Kafka and its
#: client a request. Longer, and more of it is lost when a worker is killed.
TELEMETRY_LINGER_MS = 500
#: How long a flush may take (seconds) before the worker gives up on Kafka.
FLUSH_S = 30.0
#: How long Kafka may take to say what partitions a reply topic has (seconds).
KAFKA_ANSWER_S = 10.0


@dataclass(frozen=True, slots=True)
class RankSettings:
    """reply_topics: topics that a request may name for its answer, prefix included; they must be there when the worker starts.

    security: TLS and SASL by librdkafka's names; none is plain text.
    """

    kafka_bootstrap: str
    group_id: str
    topic_prefix: str = ""
    reply_topics: frozenset[str] = frozenset()
    security: Mapping[str, str] = field(default_factory=dict, repr=False)

    def client(self) -> dict[str, Any]:
        """What every client of this Kafka is told."""
        return {"bootstrap.servers": self.kafka_bootstrap, **self.security}

    def topic(self, name: str) -> str:
        """A topic's name in this Kafka."""
        return self.topic_prefix + name


class Sender:
    """Sends what a worker says; any thread may."""

    def __init__(self, settings: RankSettings) -> None:
        """Opens the clients; nothing is looked up before `open`."""
        self._settings = settings
        #: What the clients complained of lately.
        self.said: deque[KafkaError] = deque(maxlen=10)
        sending = {"enable.idempotence": True, "compression.type": "lz4", "message.max.bytes": LETTER_BYTES_MAX}
        # What Kafka took needs no call of ours: a flush says that there is nothing else.
        sending |= {"linger.ms": 0, "delivery.report.only.error": True, "error_cb": self.said.append}
        self._answers = Producer(settings.client() | sending)
        self._telemetry = Producer(settings.client() | sending | {"linger.ms": TELEMETRY_LINGER_MS})
        self._refused: KafkaError | None = None
        self._reply_partitions: dict[str, int] = {}

    def open(self) -> None:
        """Look up how many partitions each reply topic has. Raises LogError where one, or one of ours, is not there."""
        try:
            there = self._answers.list_topics(timeout=KAFKA_ANSWER_S).topics
        except KafkaException as error:
            self._answers.poll(0)
            message = f"Kafka at {self._settings.kafka_bootstrap} does not answer: {error}. {kafka_advice(self.said)}"
            raise LogError(message) from error
        ours = {self._settings.topic(topic.name) for topic in (RANK_REQUESTS, RANK_RESPONSES, RANK_TELEMETRY, DEAD_LETTERS)}
        missing = sorted((ours | self._settings.reply_topics) - set(there))
        if missing:
            message = f"Kafka at {self._settings.kafka_bootstrap} has no topic {', '.join(missing)}. `millstream topics` creates ours."
            raise LogError(message)
        self._reply_partitions = {name: len(there[name].partitions) for name in self._settings.reply_topics}

    def reply(self, record: StoredRecord, request: RankRequest, answer: Answer) -> None:
        """Send the answer to a request that came by Kafka."""
        headers = dict(record.headers)
        trace = [(name, headers[name]) for name in (TRACE,) if name in headers]
        carried = [(name, headers[name]) for name in (CORRELATION_ID,) if name in headers] + trace
        key = RANK_RESPONSES.key_of(request)
        self._produce(self._answers, self._destination(headers), key, answer.response, record.timestamp, carried)
        if answer.telemetry is not None:
            key = RANK_TELEMETRY.key_of(request)
            self._produce(self._telemetry, (self._settings.topic(RANK_TELEMETRY.name), -1), key, answer.telemetry, record.timestamp, trace)

    def refuse(self, bad: BadRecord) -> None:
        """Send a record that is no request to dead-letters."""
        value, headers = codec.dead_letter(bad)
        self._produce(self._answers, (self._settings.topic(DEAD_LETTERS.name), -1), bad.record.key, value, bad.record.timestamp, headers)
        metrics.DEAD_LETTERS.labels(bad.reason).inc()

    def tell(self, request: RankRequest, telemetry: bytes) -> None:
        """Send the telemetry of an answer that another front end gave; dropped where Kafka does not keep up, for nobody may wait for it."""
        key = RANK_TELEMETRY.key_of(request)
        try:
            self._telemetry.produce(self._settings.topic(RANK_TELEMETRY.name), telemetry, key, timestamp=request.ts_ms)
        except BufferError:
            metrics.TELEMETRY_DROPPED.inc()

    def poll(self) -> None:
        """Take in what Kafka refused."""
        self._answers.poll(0)
        self._telemetry.poll(0)

    def flush(self) -> None:
        """Wait until Kafka has all that was sent. Raises LogError where it does not take it."""
        if self._answers.flush(FLUSH_S) or self._telemetry.flush(FLUSH_S):
            raise LogError(f"Kafka took no answer for {FLUSH_S} s. Is {self._settings.kafka_bootstrap} up?")
        if self._refused:
            raise LogError(f"Kafka refused an answer: {self._refused}. Are the topics and the reply topics there?")

    def flush_telemetry(self) -> None:
        """Wait until Kafka has the telemetry of the last answers that other front ends gave."""
        self._telemetry.flush(FLUSH_S)

    def _destination(self, headers: dict[str, bytes]) -> tuple[str, int]:
        """Where an answer goes: where the request asks, if that is allowed."""
        found = reply_place(headers, self._reply_partitions)
        if found is None and headers.get(REPLY_TOPIC):
            metrics.REPLIES_REFUSED.inc()
        return found or (self._settings.topic(RANK_RESPONSES.name), -1)

    def _produce(  # what a message is made of
        self, by: Producer, to: tuple[str, int], key: bytes | None, value: bytes, timestamp: int, headers: Sequence[tuple[str, bytes]]
    ) -> None:
        """to: topic and partition, -1 is that of the key."""
        place: dict[str, Any] = {"timestamp": timestamp, "partition": to[1], "headers": list(headers)}
        while True:
            try:
                by.produce(to[0], value, key, on_delivery=self._delivered, **place)
            except BufferError:
                by.poll(0.01)
            else:
                return

    def _delivered(self, error: KafkaError | None, _: Message) -> None:
        self._refused = error or self._refused
