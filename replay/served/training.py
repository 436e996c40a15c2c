"""Point-in-time training rows in a Parquet file: each served item that somebody saw, its vector as of the request, and what came of it.

The file says in its metadata what it was made of (`Made`). Rows are written a group at a time, so that a file may be larger than memory.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from replay.log import ReadableLog
from replay.served import telemetry
from replay.served.labels import Labels, Outcome
from replay.served.telemetry import OF_ITEM, OF_REQUEST, Served
from replay.served.vectors import Recomputed
from schemas.errors import SettingsError
from schemas.features import Registry

#: Served items that are looked at together, and become one row group: some 20 MB with the default registry. More takes more memory, fewer
#: makes readers of the file slower.
GROUP_ROWS = 131_072
#: Where a file's metadata has `Made`.
MADE = b"millstream"
ARROW: dict[Any, Any] = {pl.String: pa.large_string(), pl.Int64: pa.int64(), pl.Float64: pa.float64()}
#: Before the names of features, so that no feature is taken for anything else.
FEATURE = "feature_"


class Made(msgspec.Struct, frozen=True):
    """What a file of rows was made of.

    vectors: "telemetry", what was served, or "recomputed", what this registry would have served. source: the log. attribution_ms: how long
    after its request an act is a label: of requests younger than that before made_at_ms, some may be still to come.
    """

    feature_version: str
    vectors: str
    source: str
    attribution_ms: int
    long_view_ms: int
    made_at_ms: int


def write(file: Path, registry: Registry, made: Made, groups: Iterator["Group"]) -> int:
    """Write rows to a file, which appears under its name when it is whole. Returns how many. Raises SettingsError where it cannot."""
    schema = schema_of(registry, made)
    count = 0
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".", dir=file.parent) as beside:
            partial = Path(beside) / file.name
            # A dictionary of a feature's values would be given up each time, once it is as large as they are.
            words = [column.name for column in schema if column.type == pa.large_string()]
            with pq.ParquetWriter(partial, schema, compression="zstd", use_dictionary=words) as writer:
                for group in groups:
                    batch = group.batch(schema)
                    writer.write_batch(batch, row_group_size=GROUP_ROWS)
                    count += len(batch)
            partial.replace(file)
    except OSError as error:
        raise SettingsError(f"{file} cannot be written: {error}. Name a file in a folder that we may write to.") from error
    return count


def schema_of(registry: Registry, made: Made) -> pa.Schema:
    """The columns of a file: what the telemetry says, what came of it, and of each feature a float32, NaN where it is missing."""
    said = [(name, ARROW[dtype]) for name, dtype in (OF_REQUEST | OF_ITEM).items()]
    labels = [("clicked", pa.bool_()), ("dwell_ms", pa.int64()), ("long_view", pa.bool_())]
    features = [(FEATURE + name, pa.float32()) for name in registry.feature_names]
    return pa.schema([*said, *labels, *features], metadata={MADE: msgspec.json.encode(made)})


class Group(NamedTuple):
    """Rows that are written together. vectors: float32 [n, features]."""

    served: Served
    outcome: Outcome
    vectors: NDArray[np.float32]

    def batch(self, schema: pa.Schema) -> pa.RecordBatch:
        """As Arrow."""
        said = [self.served.table[name].to_arrow() for name in OF_REQUEST | OF_ITEM]
        labels = (self.outcome.clicked, self.outcome.dwell_ms, self.outcome.long_view)
        return pa.record_batch([*said, *map(pa.array, (*labels, *np.asfortranarray(self.vectors).T))], schema=schema)


def groups(
    log: ReadableLog, registry: Registry, labels: Labels, recomputed: Recomputed | None, shown: Callable[[int], None]
) -> Iterator[Group]:
    """Of every served item that somebody saw: what was served, or what is recomputed. shown: told how many more served items were read."""
    for found in telemetry.read(log, registry, GROUP_ROWS):
        outcome = labels.of(found.outcomes, found.table["ts_ms"].to_numpy())
        kept = outcome.shown if recomputed else outcome.shown & found.scored
        served = found.where(kept)
        vectors = recomputed.vectors(served) if recomputed else served.vectors
        yield Group(served, outcome.where(kept), vectors)
        shown(len(found))
