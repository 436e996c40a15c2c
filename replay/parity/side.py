"""One of two generations that are compared, and what it says of the entities of one kind, as of one moment."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from online_store.keys import Generation, entity_of, record_key, shard_of
from online_store.reading import read
from online_store.record import Layout, layouts
from online_store.store import OnlineStore
from replay.parity.tally import Floats
from replay.past import vectors
from schemas.aggregates import Tiles
from schemas.features import Feature, Registry
from schemas.topics import Source
from schemas.windows import Window

#: Keys that one call reads, as in online_store/snapshot/take.py: rank requests wait for the same thread of the store.
READ_COUNT = 500

Ints = NDArray[np.int64]


class Side(NamedTuple):
    """A generation with the registry that it is made for."""

    generation: Generation
    registry: Registry


class Said(NamedTuple):
    """Of n entities. values: float32 [n, features], missing (NaN) for who has no record. present: bool [n], who has one."""

    raws: list[bytes | None]
    tiles: Tiles
    values: Floats
    present: NDArray[np.bool_]


@dataclass(frozen=True)
class Reader:
    """Reads the records of one kind. features: those that are compared, as this generation's registry defines them."""

    store: OnlineStore
    side: Side
    kind: str
    features: tuple[Feature, ...]
    as_of_ms: int

    @property
    def layout(self) -> Layout:
        """Of its records."""
        return layouts(self.side.registry)[self.kind]

    def everybody(self) -> AsyncIterator[bytes]:
        """The keys of its records, each once."""
        return self.store.records(self.side.generation, self.kind)

    def key(self, other: bytes) -> bytes:
        """Of the entity whose record has this key in another generation."""
        return record_key(self.side.generation, entity_of(other))

    def shards(self, keys: Sequence[bytes]) -> Ints:
        """In which shard each entity is, int64 [n]. keys: of its record in any generation."""
        entities = map(entity_of, keys)
        return np.array([shard_of(entity.tenant, entity.id, self.side.generation.shards) for entity in entities], np.int64)

    async def guards(self, sources: Sequence[Source], shards: Ints) -> Ints:
        """The next offset that each of n shards wants of each source, int64 [sources, n]."""
        return (await self.store.guards(self.side.generation, sources))[:, shards]

    async def read(self, keys: Sequence[bytes]) -> Said:
        """What it says now. keys: of its own records."""
        raws: list[bytes | None] = []
        for at in range(0, len(keys), READ_COUNT):
            raws += await self.store.read(keys[at : at + READ_COUNT])
        present = np.fromiter((raw is not None for raw in raws), np.bool_, len(raws))
        return self.said(raws, read(self.layout, raws, self.as_of_ms), present)

    def said(self, raws: list[bytes | None], tiles: Tiles, present: NDArray[np.bool_]) -> Said:
        """What tiles say, of those who are present."""
        values = vectors(self.side.registry, self.features, tiles, self.as_of_ms)
        values[~present] = np.nan
        return Said(raws, tiles, values, present)

    def counts(self, said: Said, window: Window) -> Ints:
        """What it counts in one window, int64 [n, counters]."""
        return said.tiles.counts[:, self.side.registry.windows(self.kind).index(window)]

    def may_have_expired(self, other: Said, layout: Layout) -> NDArray[np.bool_]:
        """Of whom it may have let the record expire that another generation still has, bool [n]. layout: that one's."""
        return np.array([raw is not None and self._touched_ms(raw, layout) + self.layout.ttl_ms_min < self.as_of_ms for raw in other.raws])

    @staticmethod
    def _touched_ms(raw: bytes, layout: Layout) -> int:
        """The time of the newest thing that a record knows."""
        front: Any = np.frombuffer(raw[: layout.dtype.itemsize], layout.dtype)[0]
        return int(max(front["last_active_ms"], front["floor_ms"], front["static"]["ts_ms"]))
