"""Batches of a log into one generation, each exactly once: what live workers and replay both do.

    decode -> dead letters and repeats out -> deltas a shard -> apply if the guard stands where we think

A worker may be a zombie, may be fed a batch twice or out of order, and the store may have lost what it acknowledged: the guards
that the store returns decide, and where they and the batch disagree, the answer is an offset to go back to. Events are read from a
stretch before the guards on, only to know again what a producer may repeat: a shard takes nothing of it. What is known of the log holds
in every generation, and so do dead letters: who goes over to another generation takes both along.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from online_store.deltas import NOTHING, Deltas, deltas_of_events, deltas_of_profiles, kind_of_profiles
from online_store.keys import LETTERS, Generation
from online_store.record import layouts
from online_store.sources.decoded import EVENT_TOPICS, Decoded, decode
from online_store.sources.progress import ALL_SENT, Reading, begun
from online_store.store import Move, OnlineStore, Step
from schemas.codec import SchemaIds
from schemas.columnar.repeats import REPEAT_OFFSETS
from schemas.errors import GenerationError
from schemas.features import Registry
from schemas.topics import Batch, Source

#: Records that one call to the store touches. More would not be done in one call's time where the store is slow, and a batch never; fewer
#: cost a round trip each. A store that keeps up takes 25 ms for so many.
KEYS_MAX = 4_000
#: The same while the store is slow: one that works 20 ms in four seconds does these in a call's time, and not those. As many as a bulk
#: store merges: with fewer, a rebuild would go the long way.
KEYS_SLOW_MAX = 500
#: Shards of one call that touches fewer records: a script costs the store 0.1 ms for however few, and it sees to nobody else meanwhile.
SHARDS_MAX = 16
#: How often we look whether a rival has passed us (seconds): its guards of shards without rows move four times a second.
LOOK_S = 0.05
#: A call that takes longer (seconds) shows a store that does not keep up, well before a call misses its time.
SLOW_S = 0.5


@dataclass(slots=True)
class Ingest:
    """Applies batches of a log to the current generation, or to a target.

    registry: of the first generation in an empty store; any other brings its own. schema_ids: schemas of a registry, for Confluent framing.
    repeat_offsets: how far back in its partition an event is looked for that its producer sent before; 0 takes every event. target: a
    registered generation to fill, whatever is current; nothing of it goes to dead-letters, for that is done where the current one is.
    patience_s: how long a rival on the same generation is given to pass what we have decoded, so that it need not be decoded again.
    """

    store: OnlineStore
    registry: Registry
    schema_ids: SchemaIds = field(default_factory=dict)
    repeat_offsets: int = REPEAT_OFFSETS
    target: Generation | None = None
    patience_s: float = 0.0
    generation: Generation | None = None
    _readings: dict[Source, Reading] = field(default_factory=dict)
    _is_slow: bool = False
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def start(self) -> Generation:
        """Take on the target, or the current generation, or the first one in an empty store, with its registry. Nothing may be under way.

        Raises GenerationError where its registry is not known.
        """
        generation = self.target or await self.store.begin(self.generation or Generation(1, self.registry.fingerprint))
        if self.target is None and generation.feature_version == self.registry.fingerprint:
            # A store from before generations were registered has the pointer alone.
            await self.store.register(generation, self.registry)
        registry = (await self.store.generations()).get(generation)
        if registry is None:
            message = (
                f"{generation.name} of registry {generation.feature_version} is not registered, and ours is {self.registry.fingerprint}. "
                "Set `features` to that registry if it is current; if it was dropped, `millstream replay rebuild` makes another."
            )
            raise GenerationError(message)
        if registry != self.registry:
            self.store, self.registry = self.store.of(registry), registry
        self.generation = generation
        return generation

    async def is_left(self) -> bool:
        """Whether another generation is current than the one that we work on, and we are to work on the current one."""
        return not self.target and self.generation is not None and await self.store.current() not in (None, self.generation)

    async def switch(self) -> Generation:
        """Take on the generation that is current now, and return it; `positions` of every source comes next. Nothing may be under way."""
        generation = await self.start()
        for reading in self._readings.values():
            # Below every guard: of the new ones nothing is known, and whoever keeps that generation up to date may pass us.
            reading.guards = np.full(generation.shards, -1)
        return generation

    async def positions(self, sources: Sequence[Source]) -> dict[Source, int]:
        """Where to read each source from: the lowest guard of its shards, events a stretch before it; earlier if bad records are unsent.

        Loads the guards anew; begins again in an emptied store. Who comes back to guards that stand as it left them goes on where it was.
        """
        generation = await self._confirmed()
        found = await self._guards(generation, sources)
        sent_guards = (await self.store.guards(LETTERS, sources))[:, 0].tolist()
        # A store from before there were letters' guards has one generation, whose guards say as much.
        is_first = 0 in sent_guards and len(await self.store.generations()) == 1
        for source, guards, letters in zip(sources, found, sent_guards, strict=True):
            known = self._readings.get(source)
            if known is None or not known.is_current(guards):
                sent = letters or (int(guards.min()) if is_first else 0)
                self._readings[source] = self._begun(source, guards, sent, letters)
        return {source: self._readings[source].position for source in sources}

    async def _confirmed(self) -> Generation:
        """Our generation, begun again in an emptied store. Raises GenerationError where it was dropped."""
        if self.generation is None:
            return await self.start()
        if self.target is None and await self.store.begin(self.generation) == self.generation:
            return self.generation
        if self.generation not in await self.store.generations():
            raise GenerationError(f"{self.generation.name} was dropped while we worked on it. Start again, on a generation that is there.")
        return self.generation

    async def _guards(self, generation: Generation, sources: Sequence[Source]) -> NDArray[np.int64]:
        """All guards of some sources, once no rival is about to pass us any more."""
        found = await self.store.guards(generation, sources)
        for _ in range(round(self.patience_s / LOOK_S)):
            readings = map(self._readings.get, sources)
            if not any(reading and reading.is_being_passed(guards) for reading, guards in zip(readings, found, strict=True)):
                break
            await asyncio.sleep(LOOK_S)
            found = await self.store.guards(generation, sources)
        return found

    def _begun(self, source: Source, guards: NDArray[np.int64], sent: int, sent_guard: int) -> Reading:
        known = self._readings.get(source)
        sent = ALL_SENT if self.target else max(sent, known.sent) if known else sent
        return begun(known, guards, sent, sent_guard, self.repeat_offsets if source.topic in EVENT_TOPICS else 0)

    def sent(self, decoded: Decoded) -> None:
        """Note that what is bad in a decoded batch stands in dead-letters now."""
        if decoded.reading is not None and decoded.start <= decoded.reading.sent:
            decoded.reading.sent = max(decoded.reading.sent, decoded.batch.following)

    async def send_again(self, source: Source, end: int) -> None:
        """A log that ends before what was sent of it is another one: send what is bad in it."""
        reading = self._readings[source]
        if not self.target and reading.sent > end:
            reading.sent = reading.lowest
            await self._tell_sent({source: reading})

    async def keep_sent(self, sources: Sequence[Source]) -> None:
        """Keep in the store what was sent to dead-letters, for whoever reads the sources next, in whatever generation."""
        readings = {source: self._readings[source] for source in sources}
        untold = {source: reading for source, reading in readings.items() if reading.sent_guard < reading.sent}
        if untold and not self.target:
            await self._tell_sent(untold)

    async def _tell_sent(self, readings: Mapping[Source, Reading]) -> None:
        """Where a guard is not where we left it all stay, and are told from where they stand the next time."""
        moves = [Move(source, reading.sent_guard, reading.sent) for source, reading in readings.items()]
        (standing,) = await self.store.apply(LETTERS, [Step(0, moves, NOTHING)])
        for reading, guard in zip(readings.values(), standing, strict=True):
            reading.sent_guard = guard

    def progress(self, source: Source) -> int:
        """A number that grows with whatever the store takes of a source, a part of a batch included."""
        return int(self._readings[source].guards.sum())

    def lowest_guard(self, source: Source) -> int:
        """Where the lowest guard of a source stood when its position was last taken from the guards."""
        return self._readings[source].lowest

    def decode(self, batch: Batch) -> Decoded:
        """Take a batch apart; never raises for what a record holds. One that does not follow what was decoded before is empty."""
        return decode(batch, self._readings[batch.source], self.schema_ids)

    async def apply(self, batches: Sequence[Decoded]) -> dict[Source, int]:
        """Apply decoded batches, one a source at most, to the shards that they have rows for and that do not have them.

        Events of several sources go to the store together: what they share it touches once.
        Returns the offset to read each source on from: its batch's following one; an earlier one where a batch before it is missing,
        where another worker moved a guard, or where the store lost what it once had.
        """
        due = [decoded for decoded in batches if self._is_due(decoded.batch)]
        # Where something between decoding and here was given up, it is not known for sure what stands in the log before the batch.
        unsure = [decoded.batch.source for decoded in due if not self._is_sure(decoded)]
        if unsure:
            await self.positions(unsure)
        sure = [decoded for decoded in due if decoded.batch.source not in unsure]
        events = [decoded for decoded in sure if decoded.events is not None]
        for together in filter(None, [events, *([decoded] for decoded in sure if decoded.events is None)]):
            await self.step({decoded.batch.source: decoded.batch.following for decoded in together}, self._deltas(together))
        return {decoded.batch.source: self._readings[decoded.batch.source].position for decoded in batches}

    def _is_due(self, batch: Batch) -> bool:
        """Whether a batch goes on from where its source stands."""
        return batch.start <= self._readings[batch.source].position < batch.following

    def _is_sure(self, decoded: Decoded) -> bool:
        """Whether a batch was decoded right behind all that was applied."""
        reading = self._readings[decoded.batch.source]
        return decoded.reading is reading and decoded.start == reading.position

    async def settle(self, sources: Sequence[Source]) -> dict[Source, int]:
        """Move the guards of the shards that sources had nothing for lately, so that nobody reads that stretch again.

        Returns the offsets to read on from, as `apply` does.
        """
        followings = {source: self._readings[source].position for source in sources}
        behind = [self._readings[source].guards < position for source, position in followings.items()]
        shards = np.flatnonzero(np.any(behind, axis=0))
        return await self.step(followings, {int(shard): NOTHING for shard in shards})

    async def check(self, sources: Sequence[Source]) -> dict[Source, int]:
        """Returns the offsets to read on from, as `apply` does: an earlier one if a guard stands lower than we left it.

        A store that was emptied before it had any guard has lost its generation alone: it begins again.
        """
        standing = await self.store.guards(await self._confirmed(), sources)
        sent_guards = (await self.store.guards(LETTERS, sources))[:, 0].tolist()
        for source, sent_guard in zip(sources, sent_guards, strict=True):
            self._readings[source].sent_guard = sent_guard
        lost = [source for source, guards in zip(sources, standing, strict=True) if (guards < self._readings[source].guards).any()]
        if lost:
            await self.positions(lost)
        return {source: self._readings[source].position for source in sources}

    async def step(self, followings: Mapping[Source, int], deltas: Mapping[int, Deltas]) -> dict[Source, int]:
        """Apply deltas by shard: of each source all that the shard lacks from the source's position on, up to what follows.

        A guard that is not where we left it changes nothing, and sends us back to the guards. So does a reading that began meanwhile: a
        store that lost writes must not be taken to hold what came before this step. Returns the offsets to read on from, as `apply`.
        """
        readings = {source: self._readings[source] for source in followings}
        steps = [Step(shard, _moves(shard, readings, followings), found) for shard, found in deltas.items()]
        is_refused = False
        for part in _parts(steps, KEYS_SLOW_MAX if self._is_slow else KEYS_MAX):
            standing = await self._write(part)
            if any(self._readings[source] is not reading for source, reading in readings.items()):
                return await self.positions(list(followings))
            # Noted step by step: what the store took is not sent again if it goes away now, nor is a source read again for another's guard.
            taken = [step for step, guards in zip(part, standing, strict=True) if guards == [move.following for move in step.moves]]
            for move, shard in ((move, step.shard) for step in taken for move in step.moves):
                readings[move.source].guards[shard] = move.following
            is_refused |= len(taken) < len(part)
        if is_refused:
            return await self.positions(list(followings))
        for source, reading in readings.items():
            reading.position = followings[source]
        return dict(followings)

    async def _write(self, part: Sequence[Step]) -> list[list[int]]:
        """Call the store. Small calls take turns: with several before it, a rank request's read would not be answered in its time.

        So do all while the store is slow: two beside each other would take twice as long, and both miss their time.
        """
        assert self.generation is not None, "positions() comes first"
        is_large = sum(len(step.deltas.keys) for step in part) >= KEYS_MAX
        async with nullcontext() if is_large and not self._is_slow else self._turn:
            loop = asyncio.get_running_loop()
            began = loop.time()
            try:
                return await self.store.apply(self.generation, part)
            finally:
                self._is_slow = loop.time() - began > SLOW_S

    def _deltas(self, together: Sequence[Decoded]) -> dict[int, Deltas]:
        """Of batches of events, or of one of profiles."""
        assert self.generation is not None, "positions() comes first"
        kinds, guards = layouts(self.registry), np.stack([self._readings[decoded.batch.source].guards for decoded in together])
        events = [decoded.events for decoded in together if decoded.events is not None]
        if events:
            return deltas_of_events(events, kinds, self.generation, guards)
        (decoded,) = together
        kind = kind_of_profiles(decoded.batch.source.topic)
        if kind not in kinds:
            return {}
        return deltas_of_profiles(decoded.profiles, kinds[kind], list(kinds).index(kind), self.generation, guards[0])


def _moves(shard: int, readings: Mapping[Source, Reading], followings: Mapping[Source, int]) -> list[Move]:
    """The guards of a shard that are behind; one that is not has nothing to add there either."""
    found = [Move(source, int(reading.guards[shard]), followings[source]) for source, reading in readings.items()]
    return [move for move in found if move.expected < move.following]


def _parts(steps: Sequence[Step], keys_max: int) -> Iterator[list[Step]]:
    """Steps in their order, so many together that they touch so many records, or one step more; SHARDS_MAX where all touch fewer."""
    steps_max = SHARDS_MAX if sum(len(step.deltas.keys) for step in steps) < keys_max else len(steps)
    part, keys_count = list[Step](), 0
    for step in steps:
        part.append(step)
        keys_count += len(step.deltas.keys)
        if keys_count >= keys_max or len(part) == steps_max or step is steps[-1]:
            yield part
            part, keys_count = [], 0
