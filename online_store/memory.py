"""The online store in this process: for tests, for replay on a laptop, and as the plainest statement of what the store does.

Nothing expires here: it lives no longer than its process.
"""

import copy
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from online_store.deltas import Deltas
from online_store.keys import ANY, CURRENT, Generation, Pointer, guard_key, is_record
from online_store.record import Layout, layouts, merge
from online_store.store import Registered, Step, check_droppable, check_same, decoded_pointer, live, lowest
from schemas.errors import StoreError
from schemas.features import Registry
from schemas.topics import Source


class MemoryStore:
    """An OnlineStore in dictionaries."""

    def __init__(self, registry: Registry) -> None:
        """Empty, for records of one registry."""
        self._lay_out(registry)
        self._values: dict[bytes, bytes] = {}
        self._guards: dict[bytes, dict[str, int]] = {}
        self._generations: dict[bytes, bytes] = {}

    def _lay_out(self, registry: Registry) -> None:
        self._registry = registry
        self._layouts: list[Layout] = list(layouts(registry).values())

    def of(self, registry: Registry) -> Self:
        """As OnlineStore.of: both see what either does."""
        other = copy.copy(self)
        other._lay_out(registry)  # noqa: SLF001  # it is one of us
        return other

    async def apply(self, generation: Generation, steps: Sequence[Step]) -> list[list[int]]:
        """As OnlineStore.apply."""
        return [self._apply(guard_key(generation, step.shard), step) for step in steps]

    def _apply(self, guard: bytes, step: Step) -> list[int]:
        if not step.moves:
            raise StoreError("a step moves no guard: what it adds would be added again. It was not made by online_store.ingest.")
        guards = self._guards.setdefault(guard, {})
        standing = [guards.get(str(move.source), 0) for move in step.moves]
        if standing != [move.expected for move in step.moves]:
            return standing
        self._values.update(self._merged(step.deltas))
        guards.update({str(move.source): move.following for move in step.moves})
        return [move.following for move in step.moves]

    def _merged(self, deltas: Deltas) -> dict[bytes, bytes]:
        self._check(deltas)
        merged = {}
        for place, (key, kind) in enumerate(zip(deltas.keys, deltas.kinds, strict=True)):
            rows = deltas.rows[deltas.rows["key"] == place]
            sections = [section for number, section in deltas.sections if number == place]
            merged[key] = merge(self._layouts[kind], self._values.get(key), rows, sections)
        return merged

    def _check(self, deltas: Deltas) -> None:
        """Raises StoreError for deltas that do not fit together, as lua/apply.lua does."""
        count = len(deltas.keys)
        places = [*deltas.rows["key"].tolist(), *(place for place, _ in deltas.sections)]
        if len(deltas.kinds) != count or max(deltas.kinds, default=0) >= len(self._layouts) or max(places, default=-1) >= count:
            message = (
                f"deltas do not fit: {count} keys, {len(deltas.kinds)} kinds, places {places}. They were not made by online_store.deltas."
            )
            raise StoreError(message)

    async def guards(self, generation: Generation, sources: Sequence[Source]) -> NDArray[np.int64]:
        """As OnlineStore.guards."""
        shards = [self._guards.get(guard_key(generation, shard), {}) for shard in range(generation.shards)]
        rows = [[guards.get(str(source), 0) for guards in shards] for source in sources]
        return np.array(rows, dtype=np.int64).reshape(len(sources), generation.shards)

    async def applied(self, generation: Generation) -> dict[Source, int]:
        """As OnlineStore.applied."""
        return lowest([self._guards.get(guard_key(generation, shard), {}) for shard in range(generation.shards)])

    async def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """As OnlineStore.read."""
        return [self._values.get(key) for key in keys]

    async def current(self) -> Generation | None:
        """As OnlineStore.current."""
        pointer = await self.pointer()
        return pointer.generation if pointer else None

    async def begin(self, generation: Generation) -> Generation:
        """As OnlineStore.begin."""
        if CURRENT not in self._values:
            self._values[CURRENT] = msgspec.json.encode(generation)
            if generation.feature_version == self._registry.fingerprint:
                await self.register(generation, self._registry)
        return decoded_pointer(self._values[CURRENT]).generation

    async def pointer(self) -> Pointer | None:
        """As OnlineStore.pointer."""
        found = self._values.get(CURRENT)
        return decoded_pointer(found) if found else None

    async def point(self, expected: Pointer | None, wanted: Pointer) -> bool:
        """As OnlineStore.point."""
        if await self.pointer() != expected:
            return False
        self._values[CURRENT] = msgspec.json.encode(wanted)
        return True

    async def register(self, generation: Generation, registry: Registry) -> None:
        """As OnlineStore.register."""
        raw = msgspec.json.encode(Registered(generation, registry))
        check_same(self._generations.setdefault(generation.name.encode(), raw), generation)

    async def generations(self) -> dict[Generation, Registry]:
        """As OnlineStore.generations."""
        return live(list(self._generations.values()))

    async def drop(self, number: int, shown: Callable[[int], None] = lambda _: None) -> int:
        """As OnlineStore.drop."""
        name = f"g{number}".encode()
        generation = check_droppable(number, self._generations.get(name), await self.current()).generation
        found = [key for key in self._values if is_record(key, generation)]
        for key in found:
            del self._values[key]
        for shard in range(generation.shards):
            self._guards.pop(guard_key(generation, shard), None)
        del self._generations[name]
        shown(len(found))
        return len(found)

    async def records(self, generation: Generation, kind: str = ANY) -> AsyncIterator[bytes]:
        """As OnlineStore.records."""
        for key in list(self._values):
            if is_record(key, generation, kind):
                yield key

    async def keep_answers(self, answers: Sequence[tuple[bytes, bytes]], ttl_ms: int) -> list[bytes]:  # noqa: ARG002  # nothing expires here
        """As OnlineStore.keep_answers."""
        return [self._values.setdefault(key, answer) for key, answer in answers]

    async def clear(self) -> None:
        """Lose everything, as a store does that comes back empty."""
        self._values.clear()
        self._guards.clear()
        self._generations.clear()

    async def close(self) -> None:
        """As OnlineStore.close: nothing is held."""
