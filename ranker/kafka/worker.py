"""The Kafka front end: rank-requests in; answers go out by ranker/kafka/sender.py.

A thread polls for the first message and takes what else is there without waiting: an idle worker answers at once, a busy one
works in batches. Offsets are committed once their answers are in Kafka, so a request may be answered twice after a crash; the
second answer is the first one's bytes.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from ranker import metrics
from ranker.fronts.quick import avro as quick
from ranker.fronts.records import decode_request
from ranker.kafka.sender import RankSettings, Sender
from ranker.rank import Answer, Ranker
from schemas import codec
from schemas.errors import DecodeError, LogError
from schemas.records import RankRequest
from schemas.topics import RANK_REQUESTS, BadRecord, StoredRecord, record_of

#: Requests taken at once. More would let the last of a batch wait for longer than its deadline.
BATCH_ROWS_MAX = 64
#: Batches under way at once.
BATCHES_COUNT_MAX = 2
#: How long a poll waits for a first request (seconds): also how long a stop may go unnoticed.
POLL_S = 0.1
#: How often offsets are committed that were flushed since the time before (seconds), and the lag is told: twice as much is asked again
#: after a crash.
COMMIT_S = 1.0
#: How often the current generation is looked up (seconds).
LOOK_S = 1.0
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

#: What may be committed: the next offset, by topic and partition.
Offsets = dict[tuple[str, int], int]
#: Answers of a batch, and to what.
Answered = asyncio.Queue[tuple[StoredRecord, RankRequest, Answer]]

log = logging.getLogger("millstream.serve")


class RankWorker:
    """Answers rank requests from Kafka until `stop` is set."""

    def __init__(self, settings: RankSettings, ranker: Ranker, schema_ids: codec.SchemaIds | None = None) -> None:
        """Opens the clients; nothing is read before `run`."""
        self._settings = settings
        self._ranker = ranker
        self._schema_ids = schema_ids
        quick.warm()
        self.sender = Sender(settings)
        self._consumer = Consumer(
            settings.client()
            | {
                "error_cb": self.sender.said.append,
                "group.id": settings.group_id,
                "session.timeout.ms": SESSION_TIMEOUT_MS,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "allow.auto.create.topics": False,
            }
        )
        #: How many more batches may be taken; those that were, with what may be committed of each; what is being flushed of those before.
        self._wanted = threading.Semaphore(BATCHES_COUNT_MAX)
        self._taken: deque[asyncio.Task[Offsets]] = deque()
        self._beside = ThreadPoolExecutor(1, "flush")
        self._flushing: Future[Offsets] = self._beside.submit(dict)

    async def run(self, stop: asyncio.Event) -> None:
        """Answer until stopped. Raises LogError when Kafka will not let it go on."""
        await asyncio.to_thread(self.sender.open)
        await self._ranker.refresh()
        looking = asyncio.create_task(self._look())
        self._consumer.subscribe([self._settings.topic(RANK_REQUESTS.name)], on_revoke=self._on_revoke)
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

    async def _answer(self, records: Sequence[StoredRecord], received_s: float) -> Offsets:
        """Answer requests as soon as each can be: while the store hangs, each has its own deadline. Returns what may be committed then."""
        answered: Answered = asyncio.Queue()
        for _ in range(sum([self._ask(record, received_s, answered) for record in records])):
            self.sender.reply(*await answered.get())
        return {(record.topic, record.partition): record.offset + 1 for record in records}

    async def _look(self) -> None:
        """Keep up with the generation beside the answers: a store that hangs must not hold one up."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self._ranker.refresh()

    def _tick(self) -> None:
        """Commit what was flushed beside polling: a flush takes as long as Kafka does, and requests would wait for it."""
        self._commit(self._flushing.result(), asynchronous=True)
        self._flushing = self._beside.submit(self._flushed, self._answered())
        metrics.LAG.clear()
        for place in self._consumer.position(self._consumer.assignment()):
            _, end = self._consumer.get_watermark_offsets(place, cached=True)
            metrics.LAG.labels(place.partition).set(max(end - max(place.offset, 0), 0))

    def _poll(self) -> list[StoredRecord]:
        first = self._consumer.poll(POLL_S)
        self.sender.poll()
        if first is None:
            return []
        messages = [first, *self._consumer.consume(BATCH_ROWS_MAX - 1, 0)]
        for message in messages:
            error = message.error()
            if error and error.code() not in PASSING and not error.retriable():
                raise LogError(f"rank-requests cannot be read: {error}. Are the topics there? `millstream topics` creates them.")
        return [record_of(str(message.topic()), message) for message in messages if not message.error()]

    def _ask(self, record: StoredRecord, received_s: float, answered: Answered) -> bool:
        """Whether it is a request, whose answer comes there then; what is none is refused."""
        metrics.FRESHNESS.observe(max(time.time() - record.timestamp / 1000, 0))
        try:
            request = decode_request(record, self._schema_ids)
        except DecodeError as error:
            self.sender.refuse(BadRecord(record, error.reason, error.detail))
            return False
        # Its way through Kafka is longer than the wait.
        self._ranker.ask(request, received_s, lambda answer: answered.put_nowait((record, request, answer)), is_patient=True)
        return True

    def _answered(self) -> Offsets:
        """What may be committed once it is flushed, of the batches that are done."""
        due: Offsets = {}
        while self._taken and self._taken[0].done():
            # One that failed stays, and ends the worker: nothing behind it may be committed.
            due |= self._taken[0].result()
            self._taken.popleft()
        return due

    def _flushed(self, due: Offsets) -> Offsets:
        """The same, once Kafka has the answers. Raises LogError where it does not take them."""
        if due:
            self.sender.flush()
        return due

    def _commit(self, due: Offsets, *, asynchronous: bool) -> None:
        """A commit that fails costs answering again, with the same bytes.

        What was taken away meanwhile is left out: its new owner may have committed more.
        """
        ours = {(place.topic, place.partition) for place in self._consumer.assignment()}
        offsets = [TopicPartition(*place, offset) for place, offset in due.items() if place in ours]
        if not offsets:
            return
        try:
            self._consumer.commit(offsets=offsets, asynchronous=asynchronous)  # type: ignore[call-overload]  # its stubs want literals
        except KafkaException as error:
            log.info("offsets are not committed: %s", error)

    def _commit_all(self) -> None:
        flushing, self._flushing = self._flushing, self._beside.submit(dict)
        self._commit(flushing.result() | self._flushed(self._answered()), asynchronous=False)

    def _on_revoke(self, _: Consumer, __: list[TopicPartition]) -> None:
        """Commit before another worker takes over."""
        self._commit_all()

    def _close(self) -> None:
        try:
            self._commit_all()
        finally:
            # It comes to _on_revoke, which flushes.
            self._consumer.close()
            self._beside.shutdown(wait=False)
