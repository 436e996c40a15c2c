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
from schemas.errors import GenerationError, StoreError
from schemas.features import Registry
from schemas.topics import CLICKS, IMPRESSIONS, SOURCES, BadRecord, Batch, Source

#: How often one batch is grouped anew because another worker moved a guard under it. More than a few means two live workers own
#: one partition, and going on would only heat the store.
GUARD_RACES_MAX = 20
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
    _guards: dict[Source, NDArray[np.int64]] = field(default_factory=dict)

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
        return {source: int(guards.min()) for source, guards in zip(sources, found, strict=True)}

    def decode(self, batch: Batch) -> Decoded:
        """Take a batch apart; never raises for what a record holds."""
        topic = TOPICS[batch.source.topic]
        if topic.name in EVENT_TOPICS:
            events = decode_events(topic, batch.records, self.schema_ids)
            return Decoded(batch, updates(events.frame), [], events.bad)
        profiles, bad = decode_profiles(topic, batch.records, self.schema_ids)
        return Decoded(batch, None, profiles, bad)

    async def apply(self, decoded: Decoded) -> int:
        """Apply a decoded batch to every shard that does not have it.

        Returns the offset to read on from: the batch's following one, or an earlier one where the store turned out to have
        lost what it once had. Raises StoreError when other workers keep moving the guards.
        """
        start, following, source = decoded.batch.start, decoded.batch.following, decoded.batch.source
        for _ in range(GUARD_RACES_MAX):
            guards = self._guards[source]
            if guards.min() < start:
                return min((await self.positions([source])).values())
            if guards.min() >= following:
                return following
            await self._apply(decoded, guards)
        message = (
            f"the guards of {source} moved {GUARD_RACES_MAX} times under one batch: another worker owns this partition too. "
            "Give every worker of one store the same group id, then restart this one."
        )
        raise StoreError(message)

    async def _apply(self, decoded: Decoded, guards: NDArray[np.int64]) -> None:
        assert self.generation is not None, "positions() comes first"
        deltas = self._deltas(decoded, self.generation, guards)
        behind = np.flatnonzero(guards < decoded.batch.following)
        steps = [Step(int(shard), int(guards[shard]), deltas.get(int(shard), NOTHING)) for shard in behind]
        guards[behind] = await self.store.apply(self.generation, decoded.batch.source, decoded.batch.following, steps)

    def _deltas(self, decoded: Decoded, generation: Generation, guards: NDArray[np.int64]) -> dict[int, Deltas]:
        kinds = layouts(self.registry)
        if decoded.updates is not None:
            return deltas_of_events(decoded.updates, kinds, generation, guards)
        kind = kind_of_profiles(decoded.batch.source.topic)
        return deltas_of_profiles(decoded.profiles, kinds[kind], list(kinds).index(kind), generation, guards)
