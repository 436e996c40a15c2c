"""What the platform asks of an online store. online_store/memory.py and online_store/redis.py both are one, and pass one suite."""

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from online_store.deltas import Deltas
from online_store.keys import ANY, Generation
from schemas.topics import Source


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


class OnlineStore(Protocol):
    """Records, guards and the generation pointer. Every call may raise StoreError; a lost connection does."""

    async def apply(self, generation: Generation, steps: Sequence[Step]) -> list[list[int]]:
        """Each step applies its deltas and moves its shard's guards, or changes nothing.

        Returns each step's guards after the call, in the order of its moves: all `following` where it was applied, else what stands there.
        """

    async def guards(self, generation: Generation, sources: Sequence[Source]) -> NDArray[np.int64]:
        """The next offset that each shard wants of each source, int64 [sources, shards]; 0 where none stands."""

    async def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values under keys, in one call; None where there is none."""

    async def current(self) -> Generation | None:
        """The generation that is read; None where the store is empty."""

    async def begin(self, generation: Generation) -> Generation:
        """Make a generation the current one if there is none. Returns the current one."""

    def records(self, generation: Generation, kind: str = ANY) -> AsyncIterator[bytes]:
        """The keys of all records of a generation, or of those of one kind, each once, in no order."""

    async def keep_answers(self, answers: Sequence[tuple[bytes, bytes]], ttl_ms: int) -> list[bytes]:
        """Keep each answer under its key unless one is kept there already. Returns those that are kept."""

    async def close(self) -> None:
        """Let go of connections."""
