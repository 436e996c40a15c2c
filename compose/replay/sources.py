"""Which log an action reads: Kafka, the lake, or the lake as far as it goes and Kafka from there on."""

from collections.abc import Iterator, Mapping

from compose.settings import Settings
from replay.log import BATCH_ROWS_MAX, KafkaLog, ReadableLog
from schemas.errors import LogError
from schemas.topics import SOURCES, Batch, Topic


class LakeThenKafka:
    """A ReadableLog: what retention took from Kafka is in the lake, what came just now is in Kafka alone."""

    def __init__(self, lake: ReadableLog, kafka: ReadableLog) -> None:
        self._lake = lake
        self._kafka = kafka

    def end_offsets(self, topic: Topic) -> dict[int, int]:
        """As ReadableLog says."""
        return self._kafka.end_offsets(topic)

    def offsets_at(self, topic: Topic, moment_ms: int) -> dict[int, int]:
        """As ReadableLog says."""
        ends = self._lake.end_offsets(topic)
        in_lake = {partition: offset for partition, offset in self._lake.offsets_at(topic, moment_ms).items() if offset < ends[partition]}
        return self._kafka.offsets_at(topic, moment_ms) | in_lake

    def read(self, topic: Topic, starts: Mapping[int, int] | None = None, batch_rows_max: int = BATCH_ROWS_MAX) -> Iterator[Batch]:
        """As ReadableLog says."""
        following = dict(starts or {})
        for batch in self._lake.read(topic, starts, batch_rows_max):
            following[batch.source.partition] = batch.following
            yield batch
        yield from self._kafka.read(topic, following, batch_rows_max)


def lake_of(settings: Settings, source: str) -> ReadableLog | None:
    """The lake, if `--source` reads it and anything was ever written to it. Raises LogError where there must be one."""
    if source == "kafka":
        return None
    from replay.lake import Lake  # noqa: PLC0415  # deltalake and pyarrow are 80 MB: other verbs do without

    lake = Lake(*settings.lake)
    if any(lake.end_offsets(topic) for topic in SOURCES):
        return lake
    if source == "lake":
        raise LogError(f"there is no lake in {settings.lake[0]}. `millstream lake` writes one; `--source kafka` does without.")
    return None


def chosen(settings: Settings, source: str) -> ReadableLog:
    """The log that `--source` names. Raises LogError where there is no lake to read."""
    lake = lake_of(settings, source)
    if lake and source == "lake":
        return lake
    kafka = KafkaLog(settings.kafka_bootstrap, settings.topic_prefix, settings.kafka_security)
    return LakeThenKafka(lake, kafka) if lake else kafka
