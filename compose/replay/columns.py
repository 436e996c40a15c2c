"""Kafka's past as columns: replay's log of Kafka, read by the fetch of live ingest, which makes no object for a record."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from time import monotonic
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth

from replay.log import KAFKA_S, KafkaLog
from schemas.columnar.log import LogColumns, Spans
from schemas.errors import LogError
from schemas.topics import Batch, LogRecord, Source, Topic
from streams import fetch
from streams.app import credentials

#: Bytes of one answer, and of one partition in it: what is read ahead of what is taken apart, for each topic.
ANSWER_BYTES_MAX = 48 << 20
PARTITION_BYTES_MAX = 12 << 20
#: How long an answer is waited for (milliseconds), before it is looked whether the end was reached without one.
ANSWER_MS = 500


class ColumnLog(KafkaLog):
    """A KafkaLog whose batches are columns, as large as the broker's answers."""

    def __init__(self, bootstrap: str, topic_prefix: str, security: Mapping[str, str]) -> None:
        """As KafkaLog."""
        super().__init__(bootstrap, topic_prefix, security)
        fetch.install()
        self._bootstrap, self._prefix = bootstrap, topic_prefix
        self._login = credentials_to_aiokafka_auth(credentials(security))

    def _read(self, topic: Topic, places: dict[int, int], ends: dict[int, int], batch_rows_max: int) -> Iterator[Batch]:  # noqa: ARG002  # answers are bounded by bytes
        with asyncio.Runner() as runner:
            try:
                consumer = runner.run(self._begun(topic, places))
                try:
                    yield from self._batches(runner, consumer, topic, places, ends)
                finally:
                    runner.run(consumer.stop())
            except KafkaError as error:
                raise LogError(f"topic {self._prefix}{topic.name} cannot be read: {error!r}. Is Kafka up?") from error

    async def _begun(self, topic: Topic, places: Mapping[int, int]) -> AIOKafkaConsumer:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap.split(","),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            fetch_max_bytes=ANSWER_BYTES_MAX,
            max_partition_fetch_bytes=PARTITION_BYTES_MAX,
            **self._login,
        )
        await consumer.start()
        partitions = {TopicPartition(self._prefix + topic.name, partition): place for partition, place in places.items()}
        consumer.assign(list(partitions))
        for partition, place in partitions.items():
            consumer.seek(partition, place)
        return consumer

    def _batches(
        self, runner: asyncio.Runner, consumer: AIOKafkaConsumer, topic: Topic, places: dict[int, int], ends: Mapping[int, int]
    ) -> Iterator[Batch]:
        until_s = monotonic() + KAFKA_S
        while places:
            found, reached = runner.run(_answer(consumer))
            for partition, records in found.items():
                wanted = _before(records, ends[partition])
                if partition in places and len(wanted):
                    batch = Batch(Source(topic.name, partition), wanted, places[partition])
                    places[partition] = batch.following
                    yield batch
                    until_s = monotonic() + KAFKA_S
            for partition in [partition for partition in places if reached[partition] >= ends[partition]]:
                del places[partition]
            if monotonic() > until_s:
                where = f"topic {self._prefix}{topic.name} gave nothing for {KAFKA_S:.0f} s, its end unread in {places}"
                raise LogError(f"{where}. Is Kafka up?")


async def _answer(consumer: AIOKafkaConsumer) -> tuple[dict[int, Sequence[Any]], dict[int, int]]:
    """Records by partition, and where each partition is read on from: the last record before its end may be a transaction's mark."""
    found = await consumer.getmany(timeout_ms=ANSWER_MS)
    reached = {at.partition: await consumer.position(at) for at in consumer.assignment()}
    return {at.partition: records for at, records in found.items()}, reached


def _before(records: Sequence[LogRecord], end: int) -> Sequence[LogRecord]:
    """Those whose offset is below the end."""
    if not isinstance(records, LogColumns):
        return [record for record in records if record.offset < end]
    spans = records.spans
    count = int(spans.offset.searchsorted(end))
    if count == len(records):
        return records
    cut = Spans(spans.offset[:count], spans.timestamp[:count], spans.words[:, :count], spans.headers[:count], spans.named[:count])
    return LogColumns(records.topic, records.partition, records.text, cut)
