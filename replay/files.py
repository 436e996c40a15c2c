"""An event log in a folder, for one writer: what tests and small replays have in Kafka's place."""

import os
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from replay.log import BATCH_ROWS_MAX, Message
from schemas.errors import LogError
from schemas.topics import Batch, Source, StoredRecord, Topic


class FileLog:
    """A log in a folder, for one writer: <topic>/<partition>/<first offset>-<following offset>.msgpack, a file an append."""

    def __init__(self, folder: Path, partitions: int = 4) -> None:
        """folder: made when first written to."""
        self._folder, self._partitions = folder, partitions

    def append(self, topic: Topic, messages: Iterable[Message]) -> None:
        """As EventLog says. A key's partition is the one that librdkafka would choose."""
        parts: dict[int, list[Message]] = defaultdict(list)
        for message in messages:
            parts[zlib.crc32(message.key) % self._partitions].append(message)
        ends = self.end_offsets(topic)
        for partition, part in parts.items():
            self._write(topic, partition, ends[partition], part)

    def _write(self, topic: Topic, partition: int, first: int, messages: list[Message]) -> None:
        """A file appears under its name when it is whole and on the disk."""
        path = self._of(topic, partition) / f"{first:020}-{first + len(messages):020}.msgpack"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.with_suffix(".part").open("wb") as file:
                file.write(msgspec.msgpack.encode(messages))
                file.flush()
                os.fsync(file.fileno())
            path.with_suffix(".part").rename(path)
        except OSError as error:
            raise LogError(f"{len(messages)} records cannot be stored in {path}: {error}. Mend that and append them again.") from error

    def end_offsets(self, topic: Topic) -> dict[int, int]:
        """As EventLog says."""
        return {partition: max((end for _, end, _ in self._files(topic, partition)), default=0) for partition in range(self._partitions)}

    def offsets_at(self, topic: Topic, moment_ms: int) -> dict[int, int]:
        """As EventLog says."""
        found = self.end_offsets(topic)
        for batch in self.read(topic):
            late = [record.offset for record in batch.records if record.timestamp >= moment_ms]
            found[batch.source.partition] = min([found[batch.source.partition], *late])
        return found

    def read(self, topic: Topic, starts: Mapping[int, int] | None = None, batch_rows_max: int = BATCH_ROWS_MAX) -> Iterator[Batch]:
        """As EventLog says; one partition after the other."""
        files = [(partition, *file) for partition in range(self._partitions) for file in self._files(topic, partition)]
        return self._read(topic, files, starts or {}, batch_rows_max)

    @staticmethod
    def _read(topic: Topic, files: list[tuple[int, int, int, Path]], starts: Mapping[int, int], rows_max: int) -> Iterator[Batch]:
        for partition, first, end, path in files:
            messages = _load(path)
            for start in range(max(first, starts.get(partition, 0)), end, rows_max):
                part = enumerate(messages[start - first :][:rows_max], start)
                records = [
                    StoredRecord(topic.name, partition, offset, timestamp_ms, key, value, headers)
                    for offset, (key, value, timestamp_ms, headers) in part
                ]
                yield Batch(Source(topic.name, partition), records, start)

    def _files(self, topic: Topic, partition: int) -> list[tuple[int, int, Path]]:
        """First and following offset of each file, in order."""
        paths = sorted(self._of(topic, partition).glob("*.msgpack"))
        return [(int(first), int(end), path) for path in paths for first, end in [path.stem.split("-")]]

    def _of(self, topic: Topic, partition: int) -> Path:
        return self._folder / topic.name / str(partition)


def _load(path: Path) -> list[Message]:
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=list[Message])
    except (OSError, msgspec.MsgspecError) as error:
        raise LogError(f"{path} cannot be read: {error}. Restore it from a copy: without it the log has a gap.") from error
