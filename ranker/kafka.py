"""The Kafka front end: rank-requests in, rank-responses and rank-telemetry out.

A thread polls for the first message and takes what else is there without waiting: an idle worker answers at once, a busy one
works in batches. Offsets are committed once their answers are in Kafka, so a request may be answered twice after a crash; the
second answer is the first one's bytes. Reply headers are Spring's (kafka_replyTopic, kafka_replyPartition,
kafka_correlationId); traceparent is carried on.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from ranker import metrics
from ranker.fronts.quick import avro as quick
from ranker.fronts.records import CORRELATION_ID, REPLY_TOPIC, TRACE, decode_request, reply_place
from ranker.rank import Answer, Ranker
from schemas import codec
from schemas.errors import DecodeError, LogError, kafka_advice
from schemas.records import LETTER_BYTES_MAX, RankRequest
from schemas.topics import DEAD_LETTERS, RANK_REQUESTS, RANK_RESPONSES, RANK_TELEMETRY, BadRecord, StoredRecord, record_of

#: Requests taken at once. More would let the last of a batch wait for longer than its deadline.
BATCH_ROWS_MAX = 64
#: Batches under way at once.
BATCHES_COUNT_MAX = 2
#: How long a poll waits for a first request (seconds): also how long a stop may go unnoticed.
POLL_S = 0.1
#: How often answers are flushed, offsets committed and the lag is told (seconds): what is asked again after a crash.
COMMIT_S = 1.0
#: How often the current generation is looked up (seconds).
LOOK_S = 1.0
#: How long telemetry waits for more of its partition (milliseconds): nobody waits for it, and a message by itself costs Kafka and its
#: client a request. Longer, and more of it is lost when a worker is killed.
TELEMETRY_LINGER_MS = 500
#: How long a flush may take (seconds) before the worker gives up on Kafka.
FLUSH_S = 30.0
#: How long Kafka may take to say what partitions a reply topic has (seconds).
KAFKA_ANSWER_S = 10.0
#: After how long the group gives a worker up that does not answer (milliseconds): until then nobody answers its partitions. The least
#: that a broker allows unless told otherwise.
SESSION_TIMEOUT_MS = 6_000
#: What librdkafka reports and recovers from by itself.
PASSING = (
    KafkaError._ALL_BROKERS_DOWN,  # noqa: SLF001  # librdkafka's names, here and below
    KafkaError._TRANSPORT,  # noqa: SLF001  # as above
    KafkaError._PARTITION_EOF,  # noqa: SLF001  # as above
    KafkaError._MAX_POLL_EXCEEDED,  # noqa: SLF001  # as above
)

log = logging.getLogger("millstream.serve")


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


class RankWorker:
    """Answers rank requests from Kafka until `stop` is set."""

    def __init__(self, settings: RankSettings, ranker: Ranker, schema_ids: codec.SchemaIds | None = None) -> None:
        """Opens the clients; nothing is read before `run`."""
        self._settings = settings
        self._ranker = ranker
        self._schema_ids = schema_ids
        quick.warm()
        self._said: deque[KafkaError] = deque(maxlen=10)
        common = {"bootstrap.servers": settings.kafka_bootstrap, "error_cb": self._said.append, **settings.security}
        self._consumer = Consumer(
            common
            | {
                "group.id": settings.group_id,
                "session.timeout.ms": SESSION_TIMEOUT_MS,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "allow.auto.create.topics": False,
            }
        )
        sending = {"enable.idempotence": True, "compression.type": "lz4", "message.max.bytes": LETTER_BYTES_MAX}
        # What Kafka took needs no call of ours: a flush says that there is nothing else.
        sending |= {"linger.ms": 0, "delivery.report.only.error": True}
        self._producer = Producer(common | sending)
        self._telemetry = Producer(common | sending | {"linger.ms": TELEMETRY_LINGER_MS})
        #: How many more batches may be taken; those that were, with what may be committed of each; and what may be of those before.
        self._wanted = threading.Semaphore(BATCHES_COUNT_MAX)
        self._taken: deque[asyncio.Task[dict[tuple[str, int], int]]] = deque()
        self._due: dict[tuple[str, int], int] = {}
        self._refused: KafkaError | None = None
        self._reply_partitions: dict[str, int] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Answer until stopped. Raises LogError when Kafka will not let it go on."""
        self._reply_partitions = await asyncio.to_thread(self._count_reply_partitions)
        await self._ranker.refresh()
        looking = asyncio.create_task(self._look())
        self._consumer.subscribe([self._topic(RANK_REQUESTS.name)], on_revoke=self._on_revoke)
        try:
            await self._answer_until(stop)
        finally:
            looking.cancel()
            await asyncio.to_thread(self._close)

    async def _answer_until(self, stop: asyncio.Event) -> None:
        """Answer what is polled, some batches at once: with one under way the store would be waited for idly."""
        loop = asyncio.get_running_loop()

        def take(records: Sequence[StoredRecord], received_s: float) -> None:
            batch = loop.create_task(self._answer(records, received_s))
            self._taken.append(batch)
            batch.add_done_callback(lambda _: self._wanted.release())

        def hand_over(records: Sequence[StoredRecord], received_s: float) -> None:
            loop.call_soon_threadsafe(take, records, received_s)

        polling = loop.create_task(asyncio.to_thread(self._poll_until, stop, hand_over))
        try:
            await asyncio.wait((polling,))
        finally:
            stop.set()
            self._wanted.release()
            await polling
        await asyncio.gather(*self._taken)

    def _poll_until(self, stop: asyncio.Event, hand_over: Callable[[Sequence[StoredRecord], float], None]) -> None:
        """Poll, in a thread of its own, whenever another batch may be taken; all that the consumer does is done here."""
        committed_s = 0.0
        while not stop.is_set():
            self._wanted.acquire()
            records, received_s = self._poll(), time.perf_counter()
            if records:
                hand_over(records, received_s)
            else:
                self._wanted.release()
            if received_s - committed_s > COMMIT_S:
                self._tick()
                committed_s = received_s

    async def _answer(self, records: Sequence[StoredRecord], received_s: float) -> dict[tuple[str, int], int]:
        """Answer requests side by side: while the store hangs, each waits for its own deadline. Returns what may be committed then."""
        if len(records) == 1:
            await self._handle(records[0], received_s)
        else:
            await asyncio.gather(*(self._handle(record, received_s) for record in records))
        return {(record.topic, record.partition): record.offset + 1 for record in records}

    async def _look(self) -> None:
        """Keep up with the generation beside the answers: a store that hangs must not hold one up."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self._ranker.refresh()

    def _tick(self) -> None:
        self._commit(asynchronous=True)
        metrics.LAG.clear()
        for place in self._consumer.position(self._consumer.assignment()):
            _, end = self._consumer.get_watermark_offsets(place, cached=True)
            metrics.LAG.labels(place.partition).set(max(end - max(place.offset, 0), 0))

    def _poll(self) -> list[StoredRecord]:
        first = self._consumer.poll(POLL_S)
        self._producer.poll(0)
        self._telemetry.poll(0)
        if first is None:
            return []
        messages = [first, *self._consumer.consume(BATCH_ROWS_MAX - 1, 0)]
        for message in messages:
            error = message.error()
            if error and error.code() not in PASSING and not error.retriable():
                raise LogError(f"rank-requests cannot be read: {error}. Are the topics there? `millstream topics` creates them.")
        return [record_of(str(message.topic()), message) for message in messages if not message.error()]

    async def _handle(self, record: StoredRecord, received_s: float) -> None:
        metrics.FRESHNESS.observe(max(time.time() - record.timestamp / 1000, 0))
        try:
            request = decode_request(record, self._schema_ids)
        except DecodeError as error:
            self._refuse(BadRecord(record, error.reason, error.detail))
        else:
            answer = await self._ranker.answer(request, received_s)
            self._reply(record, request, answer)

    def _reply(self, record: StoredRecord, request: RankRequest, answer: Answer) -> None:
        headers = dict(record.headers)
        trace = [(name, headers[name]) for name in (TRACE,) if name in headers]
        carried = [(name, headers[name]) for name in (CORRELATION_ID,) if name in headers] + trace
        key = RANK_RESPONSES.key_of(request)
        self._produce(self._producer, self._destination(headers), key, answer.response, record.timestamp, carried)
        if answer.telemetry is not None:
            key = RANK_TELEMETRY.key_of(request)
            self._produce(self._telemetry, (self._topic(RANK_TELEMETRY.name), -1), key, answer.telemetry, record.timestamp, trace)

    def tell(self, request: RankRequest, telemetry: bytes) -> None:
        """Send the telemetry of an answer that another front end gave; dropped where Kafka does not keep up, for nobody may wait for it."""
        key = RANK_TELEMETRY.key_of(request)
        try:
            self._telemetry.produce(self._topic(RANK_TELEMETRY.name), telemetry, key, timestamp=request.ts_ms)
        except BufferError:
            metrics.TELEMETRY_DROPPED.inc()

    def flush(self) -> None:
        """Wait until Kafka has the telemetry of the last answers that other front ends gave."""
        self._telemetry.flush(FLUSH_S)

    def _destination(self, headers: dict[str, bytes]) -> tuple[str, int]:
        """Where an answer goes: where the request asks, if that is allowed."""
        found = reply_place(headers, self._reply_partitions)
        if found is None and headers.get(REPLY_TOPIC):
            metrics.REPLIES_REFUSED.inc()
        return found or (self._topic(RANK_RESPONSES.name), -1)

    def _refuse(self, bad: BadRecord) -> None:
        value, headers = codec.dead_letter(bad)
        self._produce(self._producer, (self._topic(DEAD_LETTERS.name), -1), bad.record.key, value, bad.record.timestamp, headers)
        metrics.DEAD_LETTERS.labels(bad.reason).inc()

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

    def _commit(self, *, asynchronous: bool) -> None:
        """Commit what is answered, once Kafka has the answers. A commit that fails costs answering again, with the same bytes.

        What was taken away meanwhile is left out: its new owner may have committed more.
        """
        while self._taken and self._taken[0].done():
            # One that failed stays, and ends the worker: nothing behind it may be committed.
            self._due |= self._taken[0].result()
            self._taken.popleft()
        due, self._due = self._due, {}
        if not due:
            return
        if self._producer.flush(FLUSH_S) or self._telemetry.flush(FLUSH_S):
            raise LogError(f"Kafka took no answer for {FLUSH_S} s. Is {self._settings.kafka_bootstrap} up?")
        if self._refused:
            raise LogError(f"Kafka refused an answer: {self._refused}. Are the topics and the reply topics there?")
        ours = {(place.topic, place.partition) for place in self._consumer.assignment()}
        offsets = [TopicPartition(*place, offset) for place, offset in due.items() if place in ours]
        try:
            self._consumer.commit(offsets=offsets, asynchronous=asynchronous)  # type: ignore[call-overload]  # its stubs want literals
        except KafkaException as error:
            log.info("offsets are not committed: %s", error)

    def _on_revoke(self, _: Consumer, __: list[TopicPartition]) -> None:
        """Commit before another worker takes over."""
        self._commit(asynchronous=False)

    def _close(self) -> None:
        try:
            self._commit(asynchronous=False)
        finally:
            self._consumer.close()

    def _count_reply_partitions(self) -> dict[str, int]:
        """How many partitions each reply topic has. Raises LogError where one is not there."""
        try:
            there = self._producer.list_topics(timeout=KAFKA_ANSWER_S).topics
        except KafkaException as error:
            self._producer.poll(0)
            message = f"Kafka at {self._settings.kafka_bootstrap} does not answer: {error}. {kafka_advice(self._said)}"
            raise LogError(message) from error
        ours = {self._topic(topic.name) for topic in (RANK_REQUESTS, RANK_RESPONSES, RANK_TELEMETRY, DEAD_LETTERS)}
        missing = sorted((ours | self._settings.reply_topics) - set(there))
        if missing:
            message = f"Kafka at {self._settings.kafka_bootstrap} has no topic {', '.join(missing)}. `millstream topics` creates ours."
            raise LogError(message)
        return {name: len(there[name].partitions) for name in self._settings.reply_topics}

    def _topic(self, name: str) -> str:
        return self._settings.topic_prefix + name
