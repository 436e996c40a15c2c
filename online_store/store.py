"""What the platform asks of an online store. online_store/memory.py and online_store/redis.py both are one, and pass one suite."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from online_store.deltas import Deltas
from online_store.keys import ANY, CURRENT, GENERATIONS, Generation, Pointer
from schemas.errors import GenerationError, StoreError
from schemas.features import Registry
from schemas.topics import Source, source_of


class Move(NamedTuple):
    """A guard's way: of one source, from where it is thought to stand."""

    source: Source
    expected: int
    following: int


class Step(NamedTuple):
    """One atomic step: apply deltas to a shard and move its guards, if each stands where it is expected. moves: one a source."""

    shard: int
    moves: Sequence[Move]
    deltas: Deltas


class Registered(msgspec.Struct, frozen=True, omit_defaults=True):
    """A generation with the registry that it is made for. dropping: somebody has begun to drop it, and nobody works on it any more."""

    generation: Generation
    registry: Registry
    dropping: bool = False


class OnlineStore(Protocol):
    """Records, guards and generations, for records of one registry. Every call may raise StoreError; a lost connection does."""

    async def apply(self, generation: Generation, steps: Sequence[Step]) -> list[list[int]]:
        """Each step applies its deltas and moves its shard's guards, or changes nothing.

        Returns each step's guards after the call, in the order of its moves: all `following` where it was applied, else what stands there.
        """

    async def guards(self, generation: Generation, sources: Sequence[Source]) -> NDArray[np.int64]:
        """The next offset that each shard wants of each source, int64 [sources, shards]; 0 where none stands."""

    async def applied(self, generation: Generation) -> dict[Source, int]:
        """Of each source that some shard has applied something of, the lowest guard: every record has what stands before it."""

    async def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values under keys, in one call; None where there is none."""

    def of(self, registry: Registry) -> Self:
        """The same store for records of another registry, on the same connections."""

    async def current(self) -> Generation | None:
        """The generation that is read; None where the store is empty."""

    async def begin(self, generation: Generation) -> Generation:
        """Make a generation the current one if there is none, and register it if it is of our registry. Returns the current one."""

    async def pointer(self) -> Pointer | None:
        """The current generation with the model that ranks by it; None where the store is empty."""

    async def point(self, expected: Pointer | None, wanted: Pointer) -> bool:
        """Make what is wanted current if the pointer is as expected, in one atomic step. Returns whether it did."""

    async def register(self, generation: Generation, registry: Registry) -> None:
        """Keep the registry of a generation, for whoever works on it; again is nothing.

        Raises GenerationError where that number is another generation's, or one's that is being dropped.
        """

    async def generations(self) -> dict[Generation, Registry]:
        """All registered generations with their registries, by number, without those that are being dropped."""

    async def drop(self, number: int, shown: Callable[[int], None] = lambda _: None) -> int:
        """Remove a generation: its records a few at a time, then its guards, then its registration. Called again it goes on.

        Returns how many records it removed. shown: told so far how many. Raises GenerationError for the current generation, and for one
        that is not registered.
        """

    def records(self, generation: Generation, kind: str = ANY) -> AsyncIterator[bytes]:
        """The keys of all records of a generation, or of those of one kind, each once, in no order."""

    async def keep_answers(self, answers: Sequence[tuple[bytes, bytes]], ttl_ms: int) -> list[bytes]:
        """Keep each answer under its key unless one is kept there already. Returns those that are kept."""

    async def close(self) -> None:
        """Let go of connections."""


def decoded_pointer(raw: bytes) -> Pointer:
    """What stands under CURRENT. Raises StoreError where that is no generation."""
    try:
        return msgspec.json.decode(raw, type=Pointer)
    except msgspec.DecodeError as error:
        message = f"{CURRENT.decode()} holds {raw[:100]!r}, no generation ({error}). Somebody else writes to this store: delete the key."
        raise StoreError(message) from error


def decoded_registration(raw: bytes) -> Registered:
    """What stands in a field of GENERATIONS. Raises StoreError where that is no registration."""
    try:
        found = msgspec.json.decode(raw, type=Registered)
    except msgspec.DecodeError as error:
        message = f"{GENERATIONS.decode()} holds {raw[:100]!r}, no registration ({error}). Somebody else writes there: delete it."
        raise StoreError(message) from error
    if found.registry.fingerprint != found.generation.feature_version:
        message = (
            f"{GENERATIONS.decode()} says that {found.generation.name} is of registry {found.generation.feature_version}, and holds "
            f"registry {found.registry.fingerprint}: another version wrote it. Rebuild that generation with this one, or drop it."
        )
        raise StoreError(message)
    return found


def live(raws: Sequence[bytes]) -> dict[Generation, Registry]:
    """What OnlineStore.generations returns, from all fields of GENERATIONS."""
    found = sorted(map(decoded_registration, raws), key=lambda one: one.generation.number)
    return {one.generation: one.registry for one in found if not one.dropping}


def check_same(standing: bytes, generation: Generation) -> None:
    """Raise GenerationError unless this registration is that generation's, and it is not being dropped."""
    found = decoded_registration(standing)
    if found.generation != generation or found.dropping:
        what = "being dropped" if found.dropping else f"of registry {found.generation.feature_version}"
        raise GenerationError(f"{generation.name} is taken: it is {what}, ours is {generation.feature_version}. Take the next number.")


def check_droppable(number: int, standing: bytes | None, current: Generation | None) -> Registered:
    """The registration of a generation that may go. Raises GenerationError for one that may not."""
    if standing is None:
        raise GenerationError(f"g{number} is not registered. `millstream replay generations` lists those that are.")
    if current and current.number == number:
        raise GenerationError(f"g{number} is current, and everybody reads it. `millstream replay cutover` or `rollback` leaves it first.")
    return decoded_registration(standing)


def lowest(shards: Sequence[Mapping[str, int]]) -> dict[Source, int]:
    """What OnlineStore.applied returns, from the guards of each shard by source."""
    names = sorted(set().union(*shards))
    return {source_of(name): min(guards.get(name, 0) for guards in shards) for name in names}
