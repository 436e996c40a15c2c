"""Telemetry as columns: one row for each item of each slate that was served."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import xxhash
from numpy.typing import NDArray

from replay.log import ReadableLog
from schemas import codec
from schemas.errors import DecodeError
from schemas.features import Registry
from schemas.records import RankTelemetry
from schemas.topics import RANK_TELEMETRY

#: What a row says of its request, as RankTelemetry has it; ts_ms is the moment that it was ranked as of.
OF_REQUEST = {
    "tenant": pl.String,
    "request_id": pl.String,
    "user_id": pl.String,
    "ts_ms": pl.Int64,
    "model_version": pl.String,
    "feature_version": pl.String,
    "generation": pl.String,
    "degraded": pl.String,
    "arm": pl.String,
    "staleness_ms": pl.Int64,
}
#: And of its item, as ServedItem has it. position: the place in the slate, 0 is the top.
OF_ITEM = {"item_id": pl.String, "position": pl.Int64, "score": pl.Float64, "propensity": pl.Float64}


@dataclass(frozen=True, slots=True)
class Served:
    """n served items of whole requests. table: OF_REQUEST and OF_ITEM, and `request`, which of `requests` a row belongs to, UInt32.

    vectors: float32 [n, features], what was scored. scored: bool [n], False where nothing was, or by another registry: its vector is
    missing.
    """

    requests: Sequence[RankTelemetry]
    table: pl.DataFrame
    vectors: NDArray[np.float32]
    scored: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.scored)

    @property
    def request(self) -> NDArray[np.uint32]:
        """Which request each row belongs to, uint32 [n]."""
        return self.table["request"].to_numpy()

    def where(self, wanted: NDArray[np.bool_]) -> "Served":
        """Some of the rows. wanted: bool [n]."""
        return Served(self.requests, self.table.filter(wanted), self.vectors[wanted], self.scored[wanted])


def read(log: ReadableLog, registry: Registry, rows_count: int) -> Iterator[Served]:
    """All telemetry of a log, at least so many rows at a time but the last; a request that stands there twice is taken once."""
    # By 64 bits, which a million requests share with a probability of 3e-8: their names would take three times the memory.
    known: set[int] = set()
    taken: list[RankTelemetry] = []
    for batch in log.read(RANK_TELEMETRY):
        for record in batch.records:
            found = decoded(record.value)
            if found is not None and (name := xxhash.xxh3_64_intdigest(f"{found.tenant}:{found.request_id}".encode())) not in known:
                known.add(name)
                taken.append(found)
        if sum(len(one.items) for one in taken) >= rows_count:
            yield served(taken, registry)
            taken = []
    yield served(taken, registry)


def served(requests: Sequence[RankTelemetry], registry: Registry) -> Served:
    """These requests' items."""
    heads = pl.DataFrame({name: [getattr(one, name) for one in requests] for name in OF_REQUEST}, OF_REQUEST).with_row_index("request")
    items = [item for one in requests for item in one.items]
    table = heads[np.repeat(np.arange(len(requests)), [len(one.items) for one in requests])]
    said = [pl.Series(name, [getattr(item, name) for item in items], dtype) for name, dtype in OF_ITEM.items()]
    return Served(requests, table.with_columns(said), *_vectors(requests, registry))


def _vectors(requests: Sequence[RankTelemetry], registry: Registry) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    width = len(registry.feature_names)
    missing = np.full(width, np.nan, "<f4").tobytes()
    raws = [item.vector if one.feature_version == registry.fingerprint else b"" for one in requests for item in one.items]
    scored = np.array([len(raw) == len(missing) for raw in raws], np.bool_)
    packed = b"".join(raw if is_whole else missing for raw, is_whole in zip(raws, scored.tolist(), strict=True))
    return np.frombuffer(packed, "<f4").reshape(len(raws), width).astype(np.float32, copy=False), scored


def decoded(value: bytes | None) -> RankTelemetry | None:
    """None for what is no telemetry: nobody promised that a topic holds nothing else."""
    try:
        found = codec.decode(RANK_TELEMETRY, value)
    except DecodeError:
        return None
    assert isinstance(found, RankTelemetry), found
    return found
