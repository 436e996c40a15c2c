"""Telemetry as columns: one row for each item of each slate that was served."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from replay.log import ReadableLog
from replay.served import slates
from replay.served.slates import ITEM_NUMBERS, ITEM_WORDS, NUMBERS, WORDS, Ints, Slates, rows_of
from schemas.columnar.table import strings
from schemas.features import Registry
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
    """n served items of whole requests.

    requests: OF_REQUEST, a row a request. table: OF_REQUEST and OF_ITEM, a row an item, and `request`, which of `requests` it belongs to,
    UInt32. vectors: float32 [n, features], what was scored. scored: bool [n], False where nothing was, or by another registry: its vector
    is missing. outcomes: uint64 [n], Slates.outcomes.
    """

    requests: pl.DataFrame
    table: pl.DataFrame
    vectors: NDArray[np.float32]
    scored: NDArray[np.bool_]
    outcomes: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.scored)

    @property
    def request(self) -> NDArray[np.uint32]:
        """Which request each row belongs to, uint32 [n]."""
        return self.table["request"].to_numpy()

    def where(self, wanted: NDArray[np.bool_]) -> "Served":
        """Some of the rows. wanted: bool [n]."""
        if wanted.all():
            return self
        return Served(self.requests, self.table.filter(wanted), self.vectors[wanted], self.scored[wanted], self.outcomes[wanted])


def read(log: ReadableLog, registry: Registry, rows_count: int) -> Iterator[Served]:
    """All telemetry of a log, at least so many rows at a time but the last; a request that stands there twice is taken once."""
    known: set[int] = set()
    taken: list[Slates] = []
    for batch in log.read(RANK_TELEMETRY):
        found = slates.read(batch.records)
        taken.append(found.where(_first(found, known)))
        if sum(int(one.items_count.sum()) for one in taken) >= rows_count:
            yield served(slates.concat(taken), registry)
            taken = []
    yield served(slates.concat([*taken, slates.of([])]), registry)


def _first(found: Slates, known: set[int]) -> NDArray[np.bool_]:
    """Which requests were not known, bool [r]; they are now."""
    fresh = np.zeros(found.requests_count, np.bool_)
    for row, name in enumerate(found.names.tolist()):
        if name not in known:
            known.add(name)
            fresh[row] = True
    return fresh


def served(found: Slates, registry: Registry) -> Served:
    """These requests' items."""
    words = {name: strings(found.text, spans) for name, spans in zip(WORDS, found.words, strict=True)}
    said = words | dict(zip(NUMBERS, found.numbers, strict=True))
    requests = pl.DataFrame({name: pl.Series(said[name], dtype=dtype) for name, dtype in OF_REQUEST.items()})
    position, *bits = found.item_numbers
    item_ids = strings(found.text, found.item_words[ITEM_WORDS.index("item_id")])
    of_items = {"item_id": item_ids, **dict(zip(ITEM_NUMBERS, (position, *(one.view(np.float64) for one in bits)), strict=True))}
    table = requests.with_row_index("request")[found.request]
    table = table.with_columns(pl.Series(name, of_items[name], dtype) for name, dtype in OF_ITEM.items())
    fitting = (requests["feature_version"] == registry.fingerprint).to_numpy()[found.request]
    return Served(requests, table, *_vectors(found, fitting, len(registry.feature_names)), found.outcomes)


def _vectors(found: Slates, fitting: NDArray[np.bool_], width: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    spans: Ints = found.item_words[ITEM_WORDS.index("vector")]
    vectors = np.full((len(spans), width), np.nan, "<f4")
    scored = fitting & (spans[:, 1] == vectors.itemsize * width)
    rows_of(found.text, spans, scored, vectors.view(np.uint8))
    return vectors.astype(np.float32, copy=False), scored
