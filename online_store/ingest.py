"""Batches of a log into one generation, each exactly once: what live workers and replay both do.

    decode -> dead letters out -> updates -> deltas a shard -> apply if the guard stands where we think

A worker may be a zombie, may be fed a batch twice or out of order, and the store may have lost what it acknowledged: the guards
that the store returns decide, and where they and the batch disagree, the answer is an offset to go back to.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from online_store.deltas import NOTHING, Deltas, deltas_of_events, deltas_of_profiles, kind_of_profiles
from online_store.keys import Generation
from online_store.record import layouts
from online_store.store import OnlineStore, Step
from schemas.aggregates import updates
from schemas.codec import SchemaIds
from schemas.columns import Profile, decode_events, decode_profiles
from schemas.errors import GenerationError
from schemas.features import Registry
from schemas.topics import CLICKS, IMPRESSIONS, SOURCES, BadRecord, Batch, Source

TOPICS = {topic.name: topic for topic in SOURCES}
EVENT_TOPICS = (IMPRESSIONS.name, CLICKS.name)


@dataclass(frozen=True, slots=True)
class Decoded:
    """A batch, decoded. bad: what belongs into dead-letters before the rest is applied."""

    batch: Batch
    updates: pl.DataFrame | None
    profiles: list[Profile]
    bad: list[BadRecord]


@dataclass(slots=True)
class Ingest:
    """Applies batches of a log to the current generation.

    schema_ids: schemas of a registry, for Confluent framing.
    """

    store: OnlineStore
    registry: Registry
    schema_ids: SchemaIds = field(default_factory=dict)
    generation: Generation | None = None
    #: Where each shard's guard stands, as far as we know; a shard without rows of late lags behind the position until `settle`.
    _guards: dict[Source, NDArray[np.int64]] = field(default_factory=dict)
    _positions: dict[Source, int] = field(default_factory=dict)

    async def start(self) -> Generation:
        """Find the current generation, or begin the first one in an empty store. Raises GenerationError if it is another registry's."""
        generation = await self.store.begin(Generation(1, self.registry.fingerprint))
        if generation.feature_version != self.registry.fingerprint:
            message = (
                f"generation {generation.name} holds records of registry {generation.feature_version}, ours is "
                f"{self.registry.fingerprint}. Set `features` to that registry, or use another store for this one."
            )
            raise GenerationError(message)
        self.generation = generation
        return generation

    async def positions(self, sources: Sequence[Source]) -> dict[Source, int]:
        """Where to read each source from: the lowest guard of its shards. Loads the guards anew; begins again in an emptied store."""
        generation = await self.start()
        found = await self.store.guards(generation, sources)
        self._guards.update(zip(sources, found, strict=True))
        positions = {source: int(guards.min()) for source, guards in zip(sources, found, strict=True)}
        self._positions.update(positions)
        return positions

    def decode(self, batch: Batch) -> Decoded:
        """Take a batch apart; never raises for what a record holds."""
        topic = TOPICS[batch.source.topic]
        if topic.name in EVENT_TOPICS:
            events = decode_events(topic, batch.records, self.schema_ids)
            return Decoded(batch, updates(events.frame), [], events.bad)
        profiles, bad = decode_profiles(topic, batch.records, self.schema_ids)
        return Decoded(batch, None, profiles, bad)

    async def apply(self, decoded: Decoded) -> int:
        """Apply a decoded batch to the shards that it has rows for and that do not have them.

        Returns the offset to read on from: the batch's following one; an earlier one where a batch before it is missing, where another
        worker moved a guard, or where the store lost what it once had.
        """
        batch = decoded.batch
        position = self._positions[batch.source]
        if batch.start > position or batch.following <= position:
            return position
        assert self.generation is not None, "positions() comes first"
        deltas = self._deltas(decoded, self.generation, self._guards[batch.source])
        return await self._step(batch.source, batch.following, deltas)

    async def settle(self, source: Source) -> int:
        """Move the guards of the shards that a source had nothing for lately, so that nobody reads that stretch again.

        Returns the offset to read on from, as `apply` does.
        """
        behind = np.flatnonzero(self._guards[source] < self._positions[source])
        if not len(behind):
            return self._positions[source]
        return await self._step(source, self._positions[source], {int(shard): NOTHING for shard in behind})

    async def check(self, source: Source) -> int:
        """Returns the offset to read on from, as `apply` does: an earlier one if a guard stands lower than we left it.

        A store that was emptied before it had any guard has lost its generation alone: it begins again.
        """
        standing = await self.store.guards(await self.start(), [source])
        if (standing[0] < self._guards[source]).any():
            return (await self.positions([source]))[source]
        return self._positions[source]

    async def _step(self, source: Source, following: int, deltas: dict[int, Deltas]) -> int:
        """Apply deltas to their shards. A guard that is not where we left it changes nothing, and sends us back to the guards.

        So do guards that were loaded anew meanwhile: a store that lost writes must not be taken to hold what came before this step.
        """
        assert self.generation is not None, "positions() comes first"
        guards = self._guards[source]
        steps = [Step(shard, int(guards[shard]), found) for shard, found in deltas.items()]
        standing = await self.store.apply(self.generation, source, following, steps)
        if self._guards[source] is not guards or any(guard != following for guard in standing):
            return (await self.positions([source]))[source]
        guards[list(deltas)] = following
        self._positions[source] = following
        return following

    def _deltas(self, decoded: Decoded, generation: Generation, guards: NDArray[np.int64]) -> dict[int, Deltas]:
        kinds = layouts(self.registry)
        if decoded.updates is not None:
            return deltas_of_events(decoded.updates, kinds, generation, guards)
        kind = kind_of_profiles(decoded.batch.source.topic)
        if kind not in kinds:
            return {}
        return deltas_of_profiles(decoded.profiles, kinds[kind], list(kinds).index(kind), generation, guards)
