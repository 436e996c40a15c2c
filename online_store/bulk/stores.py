"""Stores whose steps are merged by the caller: for who fills a generation that hardly anybody else writes to.

    guards of the shards -> their records -> merged here -> written, each shard's in one atomic step, if all its guards are as they stood

A server pays for reading a record and writing it whole a third of what the script pays for changing it. Whoever else wrote to a shard
meanwhile moved a guard of it: nothing is written then, and the step is done as any other is. An `apply` does what OnlineStore says.
"""

import asyncio
import itertools
from collections.abc import Sequence

import numpy as np

from online_store.bulk.merging import merged
from online_store.deltas import Deltas
from online_store.keys import Generation, guard_key
from online_store.memory import MemoryStore
from online_store.record import TTL_JITTER, Layout
from online_store.redis import LUA, RedisStore, Script
from online_store.servers.address import Tls
from online_store.servers.calls import answered
from online_store.servers.node import pack, unfailed
from online_store.servers.routing import Command
from online_store.store import Step
from schemas.features import Registry

WRITE = Script.of((LUA / "write.lua").read_text())
#: Records that a call touches at least to be merged here: fewer are not worth the two round trips more.
KEYS_MIN = 500


#: Guards of a shard as the server says them: source -> offset.
Guards = dict[bytes, bytes]


class BulkMemoryStore(MemoryStore):
    """A MemoryStore that merges as BulkRedisStore does."""

    def _merged(self, deltas: Deltas) -> dict[bytes, bytes]:
        values = merged(self._layouts, deltas, [self._values.get(key) for key in deltas.keys])
        return dict(zip(deltas.keys, values, strict=True))


class BulkRedisStore(RedisStore):
    """A RedisStore that merges large calls itself. keys_min: what is large."""

    def __init__(self, url: str, registry: Registry, timeout_s: float = 5.0, tls: Tls | None = None, keys_min: int = KEYS_MIN) -> None:
        """As RedisStore."""
        super().__init__(url, registry, timeout_s, tls)
        self._keys_min = keys_min
        self._turn = asyncio.Lock()

    async def apply(self, generation: Generation, steps: Sequence[Step]) -> list[list[int]]:
        """As OnlineStore.apply: two calls to read, one to write, and another for shards that somebody else wrote to meanwhile."""
        if sum(len(step.deltas.keys) for step in steps) < self._keys_min:
            return await super().apply(generation, steps)
        # Two calls on one shard would refuse each other's records.
        async with self._turn:
            written = await self._write(generation, steps)
        left = [step for step, is_written in zip(steps, written, strict=True) if not is_written]
        rest = iter(await super().apply(generation, left) if left else [])
        return [
            [move.following for move in step.moves] if is_written else next(rest) for step, is_written in zip(steps, written, strict=True)
        ]

    async def _write(self, generation: Generation, steps: Sequence[Step]) -> list[bool]:
        """Which steps were done."""
        found = await self._guards_of(generation, steps)
        due = [place for place, step in enumerate(steps) if _is_due(step, found[place])]
        raws = await self._records_of([steps[place].deltas for place in due])
        writes = [self._command(generation, steps[place], found[place], raw) for place, raw in zip(due, raws, strict=True)]
        done = {place for place, answer in zip(due, await self._run(writes), strict=True) if answer}
        return [place in done for place in range(len(steps))]

    @answered
    async def _guards_of(self, generation: Generation, steps: Sequence[Step]) -> list[Guards]:
        """All guards of each step's shard."""
        keys = [guard_key(generation, step.shard) for step in steps]
        answers = unfailed(await self._servers.run([Command(key, pack(b"HGETALL", key)) for key in keys]))
        return [dict(zip(flat[::2], flat[1::2], strict=True)) for flat in answers]

    @answered
    async def _records_of(self, deltas: Sequence[Deltas]) -> list[list[bytes | None]]:
        """The records that each touches: those of a shard are one MGET, in a cluster too."""
        return unfailed(await self._servers.run([Command(one.keys[0], pack(b"MGET", *one.keys)) for one in deltas]))

    @answered
    async def _run(self, writes: Sequence[Command]) -> list[int]:
        return unfailed(await self._servers.run(writes, WRITE.load))

    def _command(self, generation: Generation, step: Step, guards: Guards, raws: Sequence[bytes | None]) -> Command:
        """What writes a step."""
        values = merged(self._layouts, step.deltas, raws)
        ttls_ms = _ttls_ms(step, self._layouts)
        order = sorted(range(len(raws)), key=lambda place: raws[place] is not None)
        key = guard_key(generation, step.shard)
        words: list[bytes | int] = [b"EVALSHA", WRITE.sha, 1 + len(order), key, *(step.deltas.keys[place] for place in order)]
        words += [raws.count(None), len(guards), len(step.moves), *itertools.chain.from_iterable(guards.items())]
        words += [part for move in step.moves for part in (str(move.source).encode(), move.following)]
        words += [values[place] for place in order]
        words += [ttls_ms[place] for place in order]
        return Command(key, pack(*words))


def _is_due(step: Step, guards: Guards) -> bool:
    """Whether a step has records to write, and its guards are where they are expected."""
    is_expected = all(int(guards.get(str(move.source).encode(), 0)) == move.expected for move in step.moves)
    return bool(step.moves and step.deltas.keys) and is_expected


def _ttls_ms(step: Step, layouts: Sequence[Layout]) -> list[int]:
    """0.8 to 1.2 of each record's time to live: what is written together must not expire together."""
    spread = (step.moves[0].following % 65_536 * 30_011 + np.arange(len(step.deltas.keys)) * 40_503) % 65_536 / 65_536
    ttl_ms = np.array([layout.ttl_ms for layout in layouts])[np.frombuffer(step.deltas.kinds, np.uint8)]
    found: list[int] = (ttl_ms * (1 - TTL_JITTER + 2 * TTL_JITTER * spread)).astype(np.int64).tolist()
    return found
