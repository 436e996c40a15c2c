"""The memory store that ships, behind a network that fails and a primary that forgets.

`Replicas` is the one store of a run; each process sees it through a `Connection`, which passes the steps where a process may be killed.
"""

import copy
import random
import re
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from online_store.keys import ANY, LETTERS, Generation, Pointer
from online_store.memory import MemoryStore
from online_store.store import OnlineStore, Step
from schemas.errors import StoreAwayError, StoreError
from schemas.features import FEATURES, REGISTRY, STATICS, Registry
from schemas.topics import Source
from schemas.windows import DAYS_30

#: Of a generation besides the one that begins: the default registry without the longest window.
OTHER = Registry(tuple(feature for feature in FEATURES if feature.window != DAYS_30), STATICS)
SHARD = re.compile(rb"\{g\d+\.(\d+)\}")
#: What a run may go back to: so many moments before now.
SNAPSHOTS_MAX = 4

#: Where a process may be stopped for ever: the name of the step it has come to.
Passed = Callable[[str], Awaitable[None]]


@dataclass(slots=True)
class Replicas:
    """A primary, older states of it that a replica may hold, and what is wrong with the way to it.

    shards_count: of a generation that begins here. away_until_s: when each node answers again; a node holds every second shard.
    refused, unanswered, garbled: how many steps fail next: before they were sent, after they were applied, because their bytes
    were not all there. stale_accepted: steps whose guard had moved, and
    which changed something all the same.
    """

    pick: random.Random
    shards_count: int
    now_s: Callable[[], float]
    primary: MemoryStore = field(default_factory=lambda: MemoryStore(REGISTRY))
    guards: dict[int, dict[tuple[str, str], int]] = field(default_factory=dict)
    away_until_s: list[float] = field(default_factory=lambda: [0.0, 0.0])
    refused: int = 0
    unanswered: int = 0
    garbled: int = 0
    stale_refused: int = 0
    stale_accepted: int = 0
    snapshots: deque["Snapshot"] = field(default_factory=lambda: deque(maxlen=SNAPSHOTS_MAX))

    def generations(self) -> dict[Generation, Registry]:
        """Those that a run may have."""
        registries = enumerate((REGISTRY, OTHER), 1)
        return {Generation(number, registry.fingerprint, self.shards_count): registry for number, registry in registries}

    async def apply(self, registry: Registry, generation: Generation, step: Step) -> list[int]:
        """One step. Raises StoreAwayError before or after it was applied."""
        self.answer(step.shard)
        if self.refused:
            self.refused -= 1
            raise StoreAwayError("the connection was reset before the call was sent")
        if self.garbled:
            self.garbled -= 1
            await self._garble(generation, step)
        standing = await self._apply(registry, generation, step)
        if self.pick.random() < 0.05:
            self.keep()
        if self.unanswered:
            self.unanswered -= 1
            raise StoreAwayError("the connection was reset before the answer came")
        return standing

    async def _apply(self, registry: Registry, generation: Generation, step: Step) -> list[int]:
        guards = self.guards.setdefault(step.shard, {})
        names = [(generation.name, str(move.source)) for move in step.moves]
        stale = any(guards.get(name, 0) != move.expected for name, move in zip(names, step.moves, strict=True))
        before = state(self.primary) if stale else {}
        (standing,) = await self.primary.of(registry).apply(generation, [step])
        if not stale:
            guards.update({name: move.following for name, move in zip(names, step.moves, strict=True)})
            return standing
        self.stale_refused += 1
        self.stale_accepted += state(self.primary) != before
        return standing

    async def _garble(self, generation: Generation, step: Step) -> None:
        """A step that does not fit is refused whole, and comes again whole. Raises StoreAwayError."""
        deltas = replace(step.deltas, kinds=step.deltas.kinds + b"\xff")
        try:
            await self.primary.apply(generation, [step._replace(deltas=deltas)])
        except StoreError as error:
            raise StoreAwayError("the connection was reset while the call was sent") from error

    def answer(self, shard: int | None = None) -> None:
        """Raise StoreAwayError if the node of a shard, or any node where none is named, does not answer now."""
        nodes = self.away_until_s if shard is None else [self.away_until_s[shard % 2]]
        if max(nodes) > self.now_s():
            raise StoreAwayError("the store does not answer: the simulation has taken it away")

    def keep(self) -> None:
        """What a replica that lags holds: all that is there now."""
        self.snapshots.append(Snapshot(state(self.primary), _copied(self.guards)))

    def lose(self, shards: Sequence[int] | None = None) -> None:
        """A replica takes over that lacks the last acknowledged writes, of some shards or of all and the generation pointer."""
        old = self.snapshots[0] if self.snapshots else Snapshot({}, {})
        self.snapshots.clear()
        if shards is None:
            self.primary, self.guards = restored(old.store), _copied(old.guards)
            return
        self.primary = restored(mixed(state(self.primary), old.store, set(shards)))
        for shard in shards:
            self.guards[shard] = dict(old.guards.get(shard, {}))

    async def clear(self) -> None:
        """FLUSHALL."""
        self.snapshots.clear()
        self.guards.clear()
        await self.primary.clear()

    async def lowest(self, sources: Sequence[Source]) -> dict[Source, int]:
        """The lowest guard of each source, 0 in an empty store: what a worker would read on from."""
        generation = await self.primary.current()
        if generation is None:
            return dict.fromkeys(sources, 0)
        found = await self.primary.guards(generation, sources)
        return dict(zip(sources, found.min(axis=1).tolist(), strict=True))

    async def sent(self, sources: Sequence[Source]) -> dict[Source, int]:
        """Up to where dead letters of each source were sent for sure."""
        found = await self.primary.guards(LETTERS, sources)
        return dict(zip(sources, found[:, 0].tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A store's dictionaries and the guards that stood with them."""

    store: dict[str, Any]
    guards: dict[int, dict[tuple[str, str], int]]


def state(store: MemoryStore) -> dict[str, Any]:
    """All that a memory store holds, copied; its layouts, which never change, are not. A shard without guards is none."""
    return {name: _copied(held) if isinstance(held, dict) else held for name, held in vars(store).items()}


def _copied(held: Mapping[Any, Any]) -> dict[Any, Any]:
    return {key: copy.copy(value) for key, value in held.items() if value != {}}


def restored(held: Mapping[str, Any]) -> MemoryStore:
    """A memory store that holds this."""
    store = MemoryStore(REGISTRY)
    if held:
        vars(store).update({name: _copied(value) if isinstance(value, dict) else value for name, value in held.items()})
    return store


def mixed(now: Mapping[str, Any], old: Mapping[str, Any], shards: set[int]) -> dict[str, Any]:
    """What is there now, but for some shards, which are as they were."""
    found = dict(now)
    for name, held in now.items():
        if isinstance(held, dict):
            kept = {key: value for key, value in held.items() if _shard(key) not in shards}
            back = {key: value for key, value in old.get(name, {}).items() if _shard(key) in shards}
            found[name] = {**kept, **back}
    return found


def _shard(key: bytes) -> int | None:
    named = SHARD.search(key)
    return int(named[1]) if named else None


@dataclass(slots=True)
class Connection(OnlineStore):
    """What one process sees of the store. passed: called at every step at which it may be killed or stopped. registry: of its records."""

    replicas: Replicas
    passed: Passed
    registry: Registry = REGISTRY

    async def apply(self, generation: Generation, steps: Sequence[Step]) -> list[list[int]]:
        """As OnlineStore.apply, shard after shard; where one fails the others of the call may have been applied, as in a cluster."""
        standing, fault = [], None
        for step in steps:
            await self.passed("before a shard")
            try:
                standing.append(await self.replicas.apply(self.registry, generation, step))
            except StoreAwayError as error:
                fault = error
            await self.passed("after a shard")
        await self.passed("after apply")
        if fault:
            raise fault
        return standing

    async def guards(self, generation: Generation, sources: Sequence[Source]) -> NDArray[np.int64]:
        """As OnlineStore.guards."""
        await self.passed("guards")
        self.replicas.answer()
        found = await self.replicas.primary.guards(generation, sources)
        await self.passed("after guards")
        return found

    async def begin(self, generation: Generation) -> Generation:
        """As OnlineStore.begin, with the run's number of shards."""
        await self.passed("begin")
        self.replicas.answer()
        return await self.replicas.primary.begin(msgspec.structs.replace(generation, shards=self.replicas.shards_count))

    async def applied(self, generation: Generation) -> dict[Source, int]:
        """As OnlineStore.applied."""
        return await self.replicas.primary.applied(generation)

    async def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """As OnlineStore.read."""
        return await self.replicas.primary.read(keys)

    def of(self, registry: Registry) -> "Connection":
        """As OnlineStore.of."""
        return replace(self, registry=registry)

    async def current(self) -> Generation | None:
        """As OnlineStore.current."""
        return await self.replicas.primary.current()

    async def pointer(self) -> Pointer | None:
        """As OnlineStore.pointer."""
        await self.passed("pointer")
        self.replicas.answer()
        return await self.replicas.primary.pointer()

    async def point(self, expected: Pointer | None, wanted: Pointer) -> bool:
        """As OnlineStore.point."""
        return await self.replicas.primary.point(expected, wanted)

    async def register(self, generation: Generation, registry: Registry) -> None:
        """As OnlineStore.register."""
        self.replicas.answer()
        await self.replicas.primary.register(generation, registry)

    async def generations(self) -> dict[Generation, Registry]:
        """As OnlineStore.generations."""
        self.replicas.answer()
        return await self.replicas.primary.generations()

    async def drop(self, number: int, shown: Callable[[int], None] = lambda _: None) -> int:
        """As OnlineStore.drop."""
        return await self.replicas.primary.drop(number, shown)

    def records(self, generation: Generation, kind: str = ANY) -> AsyncIterator[bytes]:
        """As OnlineStore.records."""
        return self.replicas.primary.records(generation, kind)

    async def keep_answers(self, answers: Sequence[tuple[bytes, bytes]], ttl_ms: int) -> list[bytes]:
        """As OnlineStore.keep_answers."""
        return await self.replicas.primary.keep_answers(answers, ttl_ms)

    async def close(self) -> None:
        """As OnlineStore.close: nothing is held."""
