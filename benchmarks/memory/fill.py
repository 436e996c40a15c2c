"""Fills a store through the product's own ingest, from memory: no Kafka, everything else as in a worker."""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from benchmarks import wire
from benchmarks.feed import PARTITIONS_COUNT, Feed
from online_store.ingest import Ingest
from schemas import codec
from schemas.records import Content
from schemas.topics import CLICKS, CONTENT, IMPRESSIONS, Batch, Source, StoredRecord

#: Records of a batch: about what a worker under load takes at once.
BATCH_RECORDS = 5_000
SOURCES = [Source(topic.name, partition) for topic in (IMPRESSIONS, CLICKS, CONTENT) for partition in range(PARTITIONS_COUNT)]


class Log:
    """Hands batches to ingest, each at its source's next offset."""

    def __init__(self, ingest: Ingest) -> None:
        """At the beginning."""
        self.ingest = ingest
        self._offsets: dict[Source, int] = defaultdict(int)

    async def begin(self) -> None:
        """Begin the store's generation."""
        await self.ingest.positions(SOURCES)

    async def take_feed(self, feed: Feed) -> None:
        """A day's events, each topic by itself, in batches that go round the partitions."""
        values, partition = wire.values(feed), feed.partition
        for topic, wanted in ((IMPRESSIONS.name, ~feed.is_click), (CLICKS.name, feed.is_click)):
            for number in range(PARTITIONS_COUNT):
                rows = np.flatnonzero(wanted & (partition == number)).tolist()
                await self._take(Source(topic, number), [(int(feed.ts_ms[row]), values[row]) for row in rows])

    async def take_content(self, items_count: int, ts_ms: int) -> None:
        """What is known of every item."""
        ids = wire.texts(wire.item_ids(np.arange(items_count)))
        for partition in range(PARTITIONS_COUNT):
            await self._take(Source(CONTENT.name, partition), [(ts_ms, _content(name, ts_ms)) for name in ids[partition::PARTITIONS_COUNT]])

    async def _take(self, source: Source, sent: list[tuple[int, bytes]]) -> None:
        for batch in self._batches(source, sent):
            following = (await self.ingest.apply([self.ingest.decode(batch)]))[batch.source]
            assert following == batch.following, (source, batch.start, following)

    def _batches(self, source: Source, sent: list[tuple[int, bytes]]) -> Iterator[Batch]:
        for at in range(0, len(sent), BATCH_RECORDS):
            start = self._offsets[source]
            part = enumerate(sent[at : at + BATCH_RECORDS], start)
            records = [StoredRecord(source.topic, source.partition, offset, ts_ms, None, value) for offset, (ts_ms, value) in part]
            self._offsets[source] += len(records)
            yield Batch(source, records, start)


def _content(item_id: str, ts_ms: int) -> bytes:
    content = Content(
        item_id=item_id,
        author_id=f"a{item_id}",
        created_at_ms=ts_ms,
        ts_ms=ts_ms,
        language="en",
        topic_tags=["a", item_id],
        quality_score=0.5,
    )
    return codec.encode(content)
