"""Lakes for tests: filled without Kafka by the sink's own tables, or by sinks in processes of their own."""

import json
import logging
import signal
import sys
import zlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, date, datetime
from pathlib import Path
from threading import Event
from typing import Any

from replay.lake import Lake
from replay.log import Message
from schemas.topics import TOPICS, StoredRecord, Topic
from streams.lake.sink import LakeSettings, Sink
from streams.lake.table import LakePlace, Table
from tests.workers import Process, log_file

#: Later than all that tests write.
TODAY = date(2100, 1, 1)


class SunkLog(Lake):
    """The lake as an EventLog: what is appended is written as the sink writes it, a commit an append."""

    def __init__(self, folder: Path, partitions: int) -> None:
        """Makes the tables of all topics."""
        super().__init__(str(folder))
        self._partitions = partitions
        self._tables = {name: Table(LakePlace(str(folder)), topic, partitions) for name, topic in TOPICS.items()}
        for table in self._tables.values():
            table.begin(range(partitions))

    def append(self, topic: Topic, messages: Iterable[Message]) -> None:
        """As EventLog says; offsets begin at 0 and leave none out."""
        ends = self.end_offsets(topic)
        records: dict[int, list[StoredRecord]] = defaultdict(list)
        for key, value, timestamp_ms, headers in messages:
            partition = zlib.crc32(key) % self._partitions
            place = (topic.name, partition, ends[partition] + len(records[partition]))
            records[partition].append(StoredRecord(*place, timestamp_ms, key, value, headers))
        for found in records.values():
            self._tables[topic.name].take(found)
        self._tables[topic.name].commit(TODAY)


def sink(folder: Path, topic: Topic, records: Iterable[StoredRecord], today: date = TODAY) -> None:
    """Write records of a topic as one commit."""
    found = list(records)
    partitions = max(record.partition for record in found) + 1
    table = Table(LakePlace(str(folder)), topic, partitions)
    table.begin(range(partitions))
    table.take(found)
    table.commit(today)


def day_of(timestamp_ms: int) -> date:
    """The day of a moment, UTC."""
    return datetime.fromtimestamp(timestamp_ms / 1000, UTC).date()


def lake_sink(folder: Path, settings: LakeSettings, **environment: str) -> Process:
    """A sink in a process of its own: streams.lake.sink.Sink with these settings."""
    return Process(["-m", "tests.lakes", json.dumps(asdict(settings))], log_file(folder), **environment)


def _run(said: dict[str, Any]) -> None:
    stop = Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    Sink(LakeSettings(**said | {"lake": LakePlace(*said["lake"])})).run(stop)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    _run(json.loads(sys.argv[1]))
