"""The online store on servers that speak the Redis protocol (Valkey or Redis, 7.0 or newer): one, a cluster, or behind sentinels."""

import copy
import hashlib
import itertools
import math
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from online_store.deltas import Deltas
from online_store.keys import ANY, CURRENT, GENERATIONS, Generation, Keys, Pointer, guard_key, is_record, record_pattern
from online_store.record import Layout, layouts
from online_store.servers.address import Tls
from online_store.servers.calls import answered
from online_store.servers.node import Node, pack, pack_keys, unfailed
from online_store.servers.routing import Command, Servers
from online_store.store import Registered, Step, check_droppable, check_same, decoded_pointer, live, lowest
from schemas.features import Registry
from schemas.topics import Source

LUA = Path(__file__).parent / "lua"
#: Keys that one SCAN call looks at: more would hold the server's one thread for longer than a rank request can wait.
SCAN_COUNT = 1_000
#: Keys of one MGET among several, some 56 KiB of records: a server writes 64 KiB to a client, then sees to all others first, and beside
#: ingest such a turn takes as long as a rank request can wait. How many there are at most: each has a connection.
READ_KEYS_COUNT, READ_CALLS_COUNT_MAX = 96, 8

#: What record.Layout.head packs, as Lua's struct spells it: the record's own numbers, then each ring's.
LUA_HEAD, LUA_RING = "<Bi8i8", "BI4I4I4I4I8"


class Script(NamedTuple):
    """A Lua script: the command that loads it, and its digest."""

    load: bytes
    sha: bytes

    @classmethod
    def of(cls, text: str) -> "Script":
        """For sending."""
        return cls(pack(b"SCRIPT", b"LOAD", text.encode()), hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest().encode())


POINT = Script.of((LUA / "point.lua").read_text())


class RedisStore:
    """An OnlineStore on Redis-protocol servers.

    url: as online_store/servers/address.py says. timeout_s: for each call to a node, connecting included. tls: for rediss URLs.
    """

    def __init__(self, url: str, registry: Registry, timeout_s: float = 5.0, tls: Tls | None = None) -> None:
        """Connects at the first call. Raises SettingsError for a url that is none."""
        self._servers = Servers(url, timeout_s, tls or Tls())
        self._lay_out(registry)
        # Compiled here: inside the first read it would be taken for a store that does not answer.
        pack_keys(b"MGET", Keys(np.zeros(0, np.uint8), np.zeros(1, np.int64)))

    def _lay_out(self, registry: Registry) -> None:
        self._registry = registry
        self._layouts: list[Layout] = list(layouts(registry).values())
        self._apply = Script.of(lua_layouts(self._layouts) + (LUA / "apply.lua").read_text())

    def of(self, registry: Registry) -> Self:
        """As OnlineStore.of."""
        other = copy.copy(self)
        other._lay_out(registry)  # noqa: SLF001  # it is one of us
        return other

    @answered
    async def apply(self, generation: Generation, steps: Sequence[Step]) -> list[list[int]]:
        """As OnlineStore.apply: one script call a shard, one pipelined round trip a node, all nodes at once.

        Where it raises, some steps may be applied: asked again, they answer `following`, for that is where their guards stand.
        """
        calls = [_script_call(generation, step) for step in steps]
        evals = [Command(arguments[0], pack(b"EVALSHA", self._apply.sha, count, *arguments)) for count, arguments in calls]
        return cast("list[list[int]]", unfailed(await self._servers.run(evals, self._apply.load)))

    @answered
    async def guards(self, generation: Generation, sources: Sequence[Source]) -> NDArray[np.int64]:
        """As OnlineStore.guards."""
        if not sources:
            return np.zeros((0, generation.shards), dtype=np.int64)
        names = [str(source) for source in sources]
        keys = [guard_key(generation, shard) for shard in range(generation.shards)]
        answers = unfailed(await self._servers.run([Command(key, pack(b"HMGET", key, *names)) for key in keys]))
        return np.array([[int(guard or 0) for guard in answer] for answer in answers], dtype=np.int64).T

    @answered
    async def applied(self, generation: Generation) -> dict[Source, int]:
        """As OnlineStore.applied."""
        keys = [guard_key(generation, shard) for shard in range(generation.shards)]
        answers = unfailed(await self._servers.run([Command(key, pack(b"HGETALL", key)) for key in keys]))
        return lowest([{name.decode(): int(guard) for name, guard in zip(flat[::2], flat[1::2], strict=True)} for flat in answers])

    @answered
    async def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """As OnlineStore.read: an MGET, several beside each other for many keys; in a cluster, one pipelined round trip a node."""
        if not keys:
            return []
        if self._servers.is_cluster:
            return unfailed(await self._servers.run([Command(key, pack(b"GET", key)) for key in keys]))
        if not isinstance(keys, Keys):
            (found,) = unfailed(await self._servers.run([Command(keys[0], pack(b"MGET", *keys))]))
            return cast("list[bytes | None]", found)
        size = max(READ_KEYS_COUNT, math.ceil(len(keys) / READ_CALLS_COUNT_MAX))
        commands = [Command(part[0], pack_keys(b"MGET", part)) for part in keys.parts(size)]
        found = unfailed(await self._servers.run(commands, beside=True))
        return found[0] if len(found) == 1 else list(itertools.chain.from_iterable(found))

    async def current(self) -> Generation | None:
        """As OnlineStore.current."""
        pointer = await self.pointer()
        return pointer.generation if pointer else None

    @answered
    async def begin(self, generation: Generation) -> Generation:
        """As OnlineStore.begin."""
        found = await self._do(b"SET", CURRENT, msgspec.json.encode(generation), b"NX", b"GET")
        if not found and generation.feature_version == self._registry.fingerprint:
            await self.register(generation, self._registry)
        return decoded_pointer(found).generation if found else generation

    @answered
    async def pointer(self) -> Pointer | None:
        """As OnlineStore.pointer."""
        found = await self._do(b"GET", CURRENT)
        return decoded_pointer(found) if found else None

    @answered
    async def point(self, expected: Pointer | None, wanted: Pointer) -> bool:
        """As OnlineStore.point."""
        standing: bytes | None = await self._do(b"GET", CURRENT)
        if (decoded_pointer(standing) if standing else None) != expected:
            return False
        moving = pack(b"EVALSHA", POINT.sha, 1, CURRENT, standing or b"", msgspec.json.encode(wanted))
        return unfailed(await self._servers.run([Command(CURRENT, moving)], POINT.load)) == [1]

    @answered
    async def register(self, generation: Generation, registry: Registry) -> None:
        """As OnlineStore.register."""
        raw, name = msgspec.json.encode(Registered(generation, registry)), generation.name.encode()
        if not await self._do(b"HSETNX", GENERATIONS, name, raw):
            check_same(await self._do(b"HGET", GENERATIONS, name) or raw, generation)

    @answered
    async def generations(self) -> dict[Generation, Registry]:
        """As OnlineStore.generations."""
        return live(await self._do(b"HVALS", GENERATIONS))

    async def drop(self, number: int, shown: Callable[[int], None] = lambda _: None) -> int:
        """As OnlineStore.drop. It looks again until nothing is left: who worked on it may not have heard at once."""
        generation, count = await self._dropping(number), 0
        before = -1
        while count > before:
            before = count
            async for keys in self._pages(generation, ANY):
                count += await self._unlink(keys)
                shown(count)
        await self._unlink([guard_key(generation, shard) for shard in range(generation.shards)])
        await self._unregister(generation)
        return count

    @answered
    async def _dropping(self, number: int) -> Generation:
        """The generation, from now on one that is being dropped."""
        name = f"g{number}".encode()
        found = check_droppable(number, await self._do(b"HGET", GENERATIONS, name), await self.current())
        await self._do(b"HSET", GENERATIONS, name, msgspec.json.encode(msgspec.structs.replace(found, dropping=True)))
        return found.generation

    @answered
    async def _unlink(self, keys: Sequence[bytes]) -> int:
        """How many were there. A key a command: those of a page may be on several nodes, and the server does others' commands between."""
        return sum(unfailed(await self._servers.run([Command(key, pack(b"UNLINK", key)) for key in keys])))

    @answered
    async def _unregister(self, generation: Generation) -> None:
        await self._do(b"HDEL", GENERATIONS, generation.name.encode())

    async def records(self, generation: Generation, kind: str = ANY) -> AsyncIterator[bytes]:
        """As OnlineStore.records: node by node. Keys that move to another node meanwhile may be left out."""
        seen: set[bytes] = set()
        async for keys in self._pages(generation, kind):
            for key in keys:
                if key not in seen:
                    seen.add(key)
                    yield key

    async def _pages(self, generation: Generation, kind: str) -> AsyncIterator[list[bytes]]:
        """The keys of records as the servers list them: some may come twice."""
        for node in await self._primaries():
            cursor = b""
            while cursor != b"0":
                cursor, keys = await self._scan(node, cursor or b"0", record_pattern(generation, kind))
                yield [key for key in keys if is_record(key, generation, kind)]

    @answered
    async def _primaries(self) -> list[Node]:
        return await self._servers.primaries()

    @answered
    async def _scan(self, node: Node, cursor: bytes, pattern: bytes) -> tuple[bytes, list[bytes]]:
        command = pack(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", SCAN_COUNT)
        return cast("tuple[bytes, list[bytes]]", unfailed(await node.execute([command], 1))[0])

    @answered
    async def keep_answers(self, answers: Sequence[tuple[bytes, bytes]], ttl_ms: int) -> list[bytes]:
        """As OnlineStore.keep_answers."""
        commands = [Command(key, pack(b"SET", key, answer, b"NX", b"GET", b"PX", ttl_ms)) for key, answer in answers]
        kept = unfailed(await self._servers.run(commands))
        return [answer if found is None else cast("bytes", found) for found, (_, answer) in zip(kept, answers, strict=True)]

    async def close(self) -> None:
        """As OnlineStore.close."""
        await self._servers.close()

    async def _do(self, name: bytes, key: bytes, *arguments: bytes | int) -> Any:  # noqa: ANN401  # whatever that command answers
        """One command on one key."""
        return unfailed(await self._servers.run([Command(key, pack(name, key, *arguments))]))[0]


def _script_call(generation: Generation, step: Step) -> tuple[int, list[bytes]]:
    keys = [guard_key(generation, step.shard), *step.deltas.keys]
    moves = [part for move in step.moves for part in (str(move.source).encode(), b"%d" % move.expected, b"%d" % move.following)]
    return len(keys), [*keys, *_packed(step.deltas), *moves]


def _packed(deltas: Deltas) -> tuple[bytes, bytes, bytes]:
    """Deltas as lua/apply.lua reads them: kinds from 1, rows, static sections behind the place of their record."""
    kinds = bytes(kind + 1 for kind in deltas.kinds)
    sections = b"".join(place.to_bytes(4, "little") + section.tobytes() for place, section in deltas.sections)
    return kinds, deltas.rows.tobytes(), sections


def lua_layouts(kinds: Sequence[Layout]) -> str:
    """The table LAYOUTS that lua/apply.lua works by."""
    return f"local LAYOUTS = {{{','.join(_lua_layout(layout) for layout in kinds)}}}\n"


def _lua_layout(layout: Layout) -> str:
    blank = "".join(f"\\{byte:03d}" for byte in layout.blank)
    rings = "".join(f",{{slots={window.slots_count},hop_ms={window.hop_ms}}}" for window in layout.windows)
    return (
        f"{{head='{LUA_HEAD}{LUA_RING * len(layout.windows)}',head_bytes={layout.head.size},front_bytes={layout.dtype.itemsize},"
        f"static_bytes={layout.static_dtype.itemsize},tile_ms={layout.tile_ms},ttl_ms={layout.ttl_ms},blank='{blank}'{rings}}}"
    )
