"""Makes what tests play with: records, logs of them on several partitions, batches, and a store of one process.

Small functions with a default for everything that the test at hand does not care about.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from online_store.ingest import Ingest
from online_store.memory import MemoryStore
from online_store.store import OnlineStore
from schemas import avro, codec
from schemas.columnar.repeats import REPEAT_OFFSETS
from schemas.features import REGISTRY, Registry
from schemas.records import Click, Content, Dwell, Impression, Record, User
from schemas.topics import SOURCES, TOPICS, Batch, Headers, Source, StoredRecord, Topic

#: A Thursday at 08:53:20 UTC: in the middle of every tile there is.
NOW_MS = 1_760_000_000_000

#: Wire forms: Avro single object, JSON, Confluent framing by a number in front, and by a number or a GUID in a header.
WIRES = ("avro", "json", "confluent", "header", "guid")

#: What a schema registry would know: our newest schemas by number and by GUID.
SCHEMA_NUMBERS = {name: 100 + place for place, name in enumerate(sorted(avro.NEWEST))}
SCHEMA_GUIDS = {name: UUID(int=number << 64) for name, number in SCHEMA_NUMBERS.items()}
SCHEMA_IDS: Mapping[int | UUID, avro.Schema] = {
    **{number: avro.NEWEST[name] for name, number in SCHEMA_NUMBERS.items()},
    **{guid: avro.NEWEST[name] for name, guid in SCHEMA_GUIDS.items()},
}


class NotUtf8(str):
    """A header's name as only a client that is wrong or wicked sends it."""

    __slots__ = ()

    def encode(self, *_: object) -> bytes:
        """Bytes that are no UTF-8."""
        return b"\xff\xfe"


def impression(user_id: str = "u1", item_id: str = "i1", ts_ms: int = NOW_MS, **rest: Any) -> Impression:  # noqa: ANN401  # any other field
    return Impression(**{"request_id": "r1", "position": 0, **rest}, user_id=user_id, item_id=item_id, ts_ms=ts_ms)


def click(user_id: str = "u1", item_id: str = "i1", ts_ms: int = NOW_MS, **rest: Any) -> Click:  # noqa: ANN401  # any other field
    return Click(**{"request_id": "r1", **rest}, user_id=user_id, item_id=item_id, ts_ms=ts_ms)


def dwell(user_id: str = "u1", item_id: str = "i1", ts_ms: int = NOW_MS, **rest: Any) -> Dwell:  # noqa: ANN401  # any other field
    return Dwell(**{"request_id": "r1", "dwell_ms": 1_000, **rest}, user_id=user_id, item_id=item_id, ts_ms=ts_ms)


def content(item_id: str = "i1", ts_ms: int = NOW_MS, **rest: Any) -> Content:  # noqa: ANN401  # any other field
    return Content(**{"author_id": "a1", "created_at_ms": NOW_MS, **rest}, item_id=item_id, ts_ms=ts_ms)


def user(user_id: str = "u1", ts_ms: int = NOW_MS, **rest: Any) -> User:  # noqa: ANN401  # any other field
    return User(**{"created_at_ms": NOW_MS, **rest}, user_id=user_id, ts_ms=ts_ms)


def topic_of(record: Record) -> Topic:
    """Where a record is published."""
    return next(topic for topic in TOPICS.values() if type(record) in topic.records)


def encoded(record: Record, wire: str = "avro") -> tuple[bytes, tuple[tuple[str, bytes], ...]]:
    """A record's value and headers in one of WIRES."""
    name = type(record).__name__
    if wire == "json":
        return codec.encode_json(record), ()
    if wire == "confluent":
        return codec.encode_confluent(record, SCHEMA_NUMBERS[name]), ()
    body = codec.encode_confluent(record, 0)[5:]
    if wire == "header":
        return body, ((codec.SCHEMA_ID_HEADER, b"\0" + SCHEMA_NUMBERS[name].to_bytes(4, "big")),)
    if wire == "guid":
        return body, ((codec.SCHEMA_ID_HEADER, b"\1" + SCHEMA_GUIDS[name].bytes),)
    return codec.encode(record), ()


def stored(record: Record, offset: int = 0, partition: int = 0, timestamp: int | None = None, wire: str = "avro") -> StoredRecord:
    """A record as it stands in its topic; its Kafka timestamp is its own time where none is given."""
    topic, (value, headers) = topic_of(record), encoded(record, wire)
    stamp = record.ts_ms if timestamp is None and not hasattr(record, "offset") else timestamp or 0
    return StoredRecord(topic.name, partition, offset, stamp, topic.key_of(record), value, headers)


def raw(value: bytes | None, topic: str = "clicks", offset: int = 0, *, key: bytes | None = b"u1", headers: Headers = ()) -> StoredRecord:
    """Bytes as they stand in a topic, whatever they are."""
    return StoredRecord(topic, 0, offset, NOW_MS, key, value, tuple(headers))


def batch(records: Sequence[StoredRecord], start: int | None = None) -> Batch:
    """Records of one source, fetched from `start` on, or from the first of them."""
    source = Source(records[0].topic, records[0].partition)
    return Batch(source, records, records[0].offset if start is None else start)


@dataclass(slots=True)
class Log:
    """Topics and partitions of one process. gap: offsets that every record skips, as transaction marks do."""

    gap: int = 0
    partitions: dict[Source, list[StoredRecord]] = field(default_factory=lambda: defaultdict(list))

    def add(self, record: Record, partition: int = 0, timestamp: int | None = None, wire: str = "avro") -> StoredRecord:
        """Append a record to its topic."""
        return self.append(stored(record, 0, partition, timestamp, wire))

    def forget(self, topic: str, key: bytes | None, timestamp: int = NOW_MS, partition: int = 0) -> StoredRecord:
        """Append a tombstone."""
        return self.append(StoredRecord(topic, partition, 0, timestamp, key, None))

    def append(self, record: StoredRecord) -> StoredRecord:
        """Append what stands nowhere yet; its offset is given here."""
        held = self.partitions[Source(record.topic, record.partition)]
        record = record._replace(offset=held[-1].offset + 1 + self.gap if held else self.gap)
        held.append(record)
        return record

    @property
    def sources(self) -> list[Source]:
        """Every partition that holds something."""
        return sorted(self.partitions)

    def end(self, source: Source) -> int:
        """The offset after the last record."""
        return self.partitions[source][-1].offset + 1

    def fetch(self, source: Source, start: int, rows_max: int) -> Batch | None:
        """What a consumer gets that reads on from `start`; None at the end."""
        found = [record for record in self.partitions[source] if record.offset >= start][:rows_max]
        return Batch(source, found, start) if found else None

    def __iter__(self) -> Iterator[StoredRecord]:
        """Every record of every partition."""
        return (record for source in self.sources for record in self.partitions[source])


async def take(ingest: Ingest, batch: Batch) -> int:
    """Decode and apply one batch. Returns where its source is to be read on from."""
    return (await ingest.apply([ingest.decode(batch)]))[batch.source]


async def replay(
    log: Log, store: OnlineStore, registry: Registry = REGISTRY, rows_max: int = 1_000, repeat_offsets: int = REPEAT_OFFSETS
) -> Ingest:
    """Read a log from where the store stands to its end."""
    ingest = Ingest(store, registry, SCHEMA_IDS, repeat_offsets)
    for source, start in (await ingest.positions(log.sources)).items():
        position = start
        while (found := log.fetch(source, position, rows_max)) is not None:
            position = await take(ingest, found)
            assert position == found.following, "nobody else is there"
    return ingest


async def replayed(log: Log, registry: Registry = REGISTRY, repeat_offsets: int = REPEAT_OFFSETS) -> dict[bytes, bytes]:
    """Every record that a log says, by key."""
    store = MemoryStore(registry)
    await replay(log, store, registry, repeat_offsets=repeat_offsets)
    return await dump(store)


async def dump(store: OnlineStore) -> dict[bytes, bytes]:
    """Every record of a store's current generation, by key."""
    generation = await store.current()
    assert generation is not None
    keys = [key async for key in store.records(generation)]
    values = await store.read(keys)
    return {key: value for key, value in zip(keys, values, strict=True) if value is not None}


SOURCE_TOPICS = tuple(topic.name for topic in SOURCES)
