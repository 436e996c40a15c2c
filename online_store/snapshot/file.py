"""The snapshot file: items' records of one generation, for when the store has lost some. Arrow IPC, read through a memory map.

    hash    uint64, ascending: xxHash3 of the key
    key     large_binary: kind:tenant:id, which tells apart keys of one hash, and is the same in every generation
    record  large_binary: the bytes that the store held

The schema's metadata says what it was made of (`Made`). A file has one batch of rows or more, is written whole or not at all, and is never
changed, for workers map it.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from online_store.keys import Entity, entity_key
from online_store.record import RECORD_VERSION, layouts
from schemas.aggregates import ITEM
from schemas.errors import SettingsError
from schemas.features import Registry

if TYPE_CHECKING:  # pyarrow is 40 MB: only a process that has a snapshot imports it, where it opens one
    import pyarrow as pa

#: Where a schema's metadata has `Made`.
MADE = b"millstream"
#: Takes the keys and records of a batch, whose hashes follow those of the batch before.
Write = Callable[[Sequence[bytes], Sequence[bytes]], None]


class Place(NamedTuple):
    """A file as it stood under its name. It is never changed, only replaced."""

    file: Path
    inode: int
    changed_ns: int

    @classmethod
    def of(cls, file: Path) -> "Place":
        """What stands under a name now. Raises OSError."""
        found = file.stat()
        return cls(file, found.st_ino, found.st_mtime_ns)


class Made(msgspec.Struct, frozen=True):
    """What a snapshot was made of. made_at_ms: when that began; what was written to the store since may be missing."""

    generation: str
    feature_version: str
    made_at_ms: int
    record_version: int = RECORD_VERSION


class Snapshot:
    """An open snapshot. until_ms: the last moment for which it may be asked. place: of its file, not of one that took its name since."""

    def __init__(self, made: Made, until_ms: int, table: "pa.Table", place: Place) -> None:
        """table: hash, key and record, in the order of hashes. Hashes are copied (8 bytes a record); the rest stays in the file."""
        self.made = made
        self.until_ms = until_ms
        self.place = place
        self._hashes: NDArray[np.uint64] = table["hash"].to_numpy()
        self._batches: list[pa.RecordBatch] = table.select(["key", "record"]).to_batches()
        self._starts = np.cumsum([0, *(len(batch) for batch in self._batches)])

    def __len__(self) -> int:
        return len(self._hashes)

    def look_up(self, entities: Sequence[Entity]) -> list[bytes | None]:
        """Their records, None for each that is not here. Waits for the disk where the file's pages are not in memory."""
        keys = [entity_key(entity) for entity in entities]
        wanted = hashes_of(keys)
        found: list[bytes | None] = [None] * len(keys)
        rows, ends = np.searchsorted(self._hashes, wanted), np.searchsorted(self._hashes, wanted, "right")
        while len(places := np.flatnonzero(rows < ends)):
            for place, key, record in self._take(places, rows[places]):
                if key == keys[place]:
                    found[place] = record
            rows[places] += 1
        return found

    def _take(self, places: NDArray[np.intp], rows: NDArray[np.intp]) -> Iterator[tuple[int, bytes, bytes]]:
        """Key and record of rows, each with its place; pyarrow lets go of the interpreter while it reads them."""
        numbers = np.searchsorted(self._starts, rows, "right") - 1
        for number in np.unique(numbers):
            here = np.flatnonzero(numbers == number)
            taken = self._batches[number].take(rows[here] - self._starts[number])
            yield from zip(places[here].tolist(), *(column.to_pylist() for column in taken.columns), strict=True)


def hashes_of(keys: Iterable[bytes]) -> NDArray[np.uint64]:
    """By which a snapshot is sorted, uint64 [n]; stable for ever."""
    return np.fromiter(map(xxhash.xxh3_64_intdigest, keys), np.uint64)


@contextmanager
def writing(file: Path, made: Made) -> Iterator[Write]:
    """Write a snapshot to a file beside, which takes this one's place at the end of the block. Raises SettingsError where it cannot."""
    import pyarrow as pa  # noqa: PLC0415  # as above

    columns = {"hash": pa.uint64(), "key": pa.large_binary(), "record": pa.large_binary()}
    schema = pa.schema(columns.items(), metadata={MADE: msgspec.json.encode(made)})
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".", dir=file.parent) as beside:
            partial = Path(beside) / file.name
            with partial.open("wb") as out:
                with pa.ipc.new_file(out, schema) as writer:
                    yield lambda keys, records: writer.write_batch(pa.record_batch([hashes_of(keys), keys, records], schema=schema))
                out.flush()
                os.fsync(out.fileno())
            partial.replace(file)
    except OSError as error:
        raise SettingsError(f"snapshot_file {file} cannot be written: {error}. Name a file in a folder that we may write to.") from error


def load(file: Path, registry: Registry) -> Snapshot:
    """Open a snapshot. Raises SettingsError for a file that is none, or one of another registry or another layout of records."""
    import pyarrow as pa  # noqa: PLC0415  # as above
    import pyarrow.compute  # noqa: PLC0415  # rows are taken by it: the first look-up has no time for its import

    try:
        place = Place.of(file)
        table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
        table.validate(full=True)
        made = msgspec.json.decode((table.schema.metadata or {})[MADE], type=Made)
    except (OSError, KeyError, pa.ArrowException, msgspec.DecodeError) as error:
        message = f"snapshot_file {file} is no snapshot: {error}. Make it with `millstream replay backfill-snapshot`, or set none."
        raise SettingsError(message) from error
    if (made.feature_version, made.record_version) != (registry.fingerprint, RECORD_VERSION):
        message = (
            f"snapshot_file {file} is of feature_version {made.feature_version} and record version {made.record_version}, "
            f"ours are {registry.fingerprint} and {RECORD_VERSION}. Make it anew with `millstream replay backfill-snapshot`, or set none."
        )
        raise SettingsError(message)
    # A removal from then on leaves a tombstone for that long at least: before this moment no record here can outlive its own removal.
    return Snapshot(made, made.made_at_ms + layouts(registry)[ITEM].ttl_ms_min, table, place)


def newest(snapshot: Snapshot, registry: Registry) -> Snapshot:
    """What stands under a snapshot's name now: itself, if nothing took its place. Raises SettingsError as `load` does."""
    file = snapshot.place.file
    try:
        return snapshot if Place.of(file) == snapshot.place else load(file, registry)
    except OSError as error:
        raise SettingsError(f"snapshot_file {file} is not there any more: {error}. The one that was loaded is kept.") from error
