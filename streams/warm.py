"""What a worker does once before it joins its group: it takes answers of the broker, of its own making, the whole way.

The first batch of a process reads compiled loops from numba's cache, a second of a core, or compiles them, some twenty. A member of the
group that does that keeps its partitions waiting, and its heartbeats; one that is not a member yet keeps nobody.
"""

import msgspec
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.structs import TopicPartition

from online_store.ingest import Ingest
from online_store.memory import MemoryStore
from schemas.codec import encode, encode_json
from schemas.features import Registry
from schemas.records import Click, Dwell, Impression
from schemas.topics import CLICKS, IMPRESSIONS, Batch, Source, Topic
from streams import fetch

#: When all of it happens, an hour apart: tiles are closed.
MOMENTS_MS = (1_700_000_000_000, 1_700_003_600_000)
#: aiokafka's numbers for the newest format of Kafka's batches, and for a batch as it is: not compressed, in no transaction, nobody's, at
#: most so long.
MAGIC, PLAIN, NO_TRANSACTION, NOBODY, ANSWER_BYTES_MAX = 2, 0, False, -1, 1 << 16

EVENTS: dict[Topic, list[Impression | Click | Dwell]] = {
    IMPRESSIONS: [Impression(request_id="r", user_id="u", item_id="i", ts_ms=0, position=0, model_version="m")],
    CLICKS: [
        Click(request_id="r", user_id="u", item_id="i", ts_ms=0, dwell_ms=1),
        Dwell(request_id="r", user_id="u", item_id="i", ts_ms=0, dwell_ms=1),
    ],
}


async def warm(registry: Registry) -> None:
    """Decode, group and count events of each kind, as Avro and again as JSON, which are repeats, and what is no event."""
    ingest = Ingest(MemoryStore(registry), registry)
    for topic, events in EVENTS.items():
        source = Source(topic.name, 0)
        offset = (await ingest.positions([source]))[source]
        for ts_ms in MOMENTS_MS:
            now = [msgspec.structs.replace(event, ts_ms=ts_ms, request_id=str(ts_ms)) for event in events]
            batch = _batch(source, offset, ts_ms, [*map(encode, now), *map(encode_json, now), b"none"])
            offset = (await ingest.apply([ingest.decode(batch)]))[source]


def _batch(source: Source, start: int, ts_ms: int, values: list[bytes]) -> Batch:
    """Values as the broker answers with them."""
    builder = DefaultRecordBatchBuilder(MAGIC, PLAIN, NO_TRANSACTION, NOBODY, NOBODY, NOBODY, ANSWER_BYTES_MAX)
    for place, value in enumerate(values):
        builder.append(place, ts_ms, b"u", value, [])
    # It counts its offsets from 0; the broker writes them anew.
    found = fetch.read(TopicPartition(*source), start.to_bytes(8, "big") + bytes(builder.build())[8:], start)
    assert found is not None, "what aiokafka writes is the format that we read"
    return Batch(source, found.records, start)
