"""The online store on servers that speak the Redis protocol (Valkey or Redis, 7.0 or newer): one, a cluster, or behind sentinels."""

import functools
import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import msgspec
import numpy as np
from hiredis import ReplyError
from numpy.typing import NDArray
from prometheus_client import Counter

from online_store.deltas import Deltas
from online_store.keys import ANY, CURRENT, Generation, guard_key, is_record, record_pattern
from online_store.record import Layout, layouts
from online_store.servers.address import Tls
from online_store.servers.node import Node, code_of, pack
from online_store.servers.routing import Command, Servers
from online_store.store import Step
from schemas.errors import StoreAwayError, StoreError
from schemas.features import Registry
from schemas.topics import Source

SCRIPT = Path(__file__).parent / "lua" / "apply.lua"
#: Keys that one SCAN call looks at: more would hold the server's one thread for longer than a rank request can wait.
SCAN_COUNT = 1_000

#: What record.Layout.head packs, as Lua's struct spells it: the record's own numbers, then each ring's.
LUA_HEAD, LUA_RING = "<Bi8i8", "BI4I4I4I4I8"

STORE_CALLS = Counter("millstream_store_calls", "Calls to the online store, by how they ended.", ["call", "outcome"])
#: Refusals that pass by themselves or when an operator acts: a restart, a failover, slots on their way, a full memory or disk.
PASSING = frozenset(
    {"LOADING", "BUSY", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "MOVED", "ASK", "TRYAGAIN", "NOREPLICAS", "OOM", "MISCONF"}
)
FULL = "ERR max number of clients"
#: What to do about refusals that do not pass; for any other, a record is at fault.
ADVICE = {
    "NOAUTH": "Put user and password into store_url: redis://user:password@host.",
    "NOPERM": "Grant that to the store's user: docs/operations.md has the whole ACL line.",
}

P = ParamSpec("P")
T = TypeVar("T")


def _answered(call: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Count a call, and turn the client's errors into ours, in one place."""

    @functools.wraps(call)
    async def answered(*args: P.args, **kwargs: P.kwargs) -> T:
        outcome = "error"
        try:
            answer = await call(*args, **kwargs)
            outcome = "ok"
        except OSError as error:
            outcome = "away"
            message = f"the store did not answer {call.__name__}: {error!r}. Is it up? `millstream stack status` tells."
            raise StoreAwayError(message) from error
        except ReplyError as error:
            if code_of(error) in PASSING or str(error).startswith(FULL):
                outcome = "away"
                raise StoreAwayError(
                    f"the store cannot do {call.__name__} now: {error}. It is tried again; an operator may have to act."
                ) from error
            advice = ADVICE.get(code_of(error), "Rebuild the generation from the log if a record is at fault.")
            raise StoreError(f"the store refused {call.__name__}: {error}. {advice}") from error
        finally:
            STORE_CALLS.labels(call.__name__, outcome).inc()
        return answer

    return answered


class RedisStore:
    """An OnlineStore on Redis-protocol servers.

    url: as online_store/servers/address.py says. timeout_s: for each call to a node, connecting included. tls: for rediss URLs.
    """

    def __init__(self, url: str, registry: Registry, timeout_s: float = 5.0, tls: Tls | None = None) -> None:
        """Connects at the first call. Raises SettingsError for a url that is none."""
        self._servers = Servers(url, timeout_s, tls or Tls())
        self._layouts = list(layouts(registry).values())
        script = (lua_layouts(self._layouts) + SCRIPT.read_text()).encode()
        self._script = pack(b"SCRIPT", b"LOAD", script)
        self._sha = hashlib.sha1(script, usedforsecurity=False).hexdigest().encode()

    @_answered
    async def apply(self, generation: Generation, steps: Sequence[Step]) -> list[list[int]]:
        """As OnlineStore.apply: one script call a shard, one pipelined round trip a node, all nodes at once.

        Where it raises, some steps may be applied: asked again, they answer `following`, for that is where their guards stand.
        """
        calls = [_script_call(generation, step) for step in steps]
        evals = [Command(arguments[0], pack(b"EVALSHA", self._sha, count, *arguments)) for count, arguments in calls]
        return cast("list[list[int]]", _unfailed(await self._servers.run(evals, self._script)))

    @_answered
    async def guards(self, generation: Generation, sources: Sequence[Source]) -> NDArray[np.int64]:
        """As OnlineStore.guards."""
        if not sources:
            return np.zeros((0, generation.shards), dtype=np.int64)
        names = [str(source) for source in sources]
        keys = [guard_key(generation, shard) for shard in range(generation.shards)]
        answers = _unfailed(await self._servers.run([Command(key, pack(b"HMGET", key, *names)) for key in keys]))
        return np.array([[int(guard or 0) for guard in answer] for answer in answers], dtype=np.int64).T

    @_answered
    async def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """As OnlineStore.read: one MGET; in a cluster, one pipelined round trip a node."""
        if not keys:
            return []
        if self._servers.is_cluster:
            return _unfailed(await self._servers.run([Command(key, pack(b"GET", key)) for key in keys]))
        return cast("list[bytes | None]", await self._do(b"MGET", *keys))

    @_answered
    async def current(self) -> Generation | None:
        """As OnlineStore.current."""
        found = await self._do(b"GET", CURRENT)
        return _generation(found) if found else None

    @_answered
    async def begin(self, generation: Generation) -> Generation:
        """As OnlineStore.begin."""
        found = await self._do(b"SET", CURRENT, msgspec.json.encode(generation), b"NX", b"GET")
        return _generation(found) if found else generation

    async def records(self, generation: Generation, kind: str = ANY) -> AsyncIterator[bytes]:
        """As OnlineStore.records: node by node. Keys that move to another node meanwhile may be left out."""
        seen: set[bytes] = set()
        for node in await self._primaries():
            cursor = b""
            while cursor != b"0":
                cursor, keys = await self._scan(node, cursor or b"0", record_pattern(generation, kind))
                for key in keys:
                    if key not in seen and is_record(key, generation, kind):
                        seen.add(key)
                        yield key

    @_answered
    async def _primaries(self) -> list[Node]:
        return await self._servers.primaries()

    @_answered
    async def _scan(self, node: Node, cursor: bytes, pattern: bytes) -> tuple[bytes, list[bytes]]:
        command = pack(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", SCAN_COUNT)
        return cast("tuple[bytes, list[bytes]]", _unfailed(await node.execute(command, 1))[0])

    @_answered
    async def keep_answers(self, answers: Sequence[tuple[bytes, bytes]], ttl_ms: int) -> list[bytes]:
        """As OnlineStore.keep_answers."""
        commands = [Command(key, pack(b"SET", key, answer, b"NX", b"GET", b"PX", ttl_ms)) for key, answer in answers]
        kept = _unfailed(await self._servers.run(commands))
        return [answer if found is None else cast("bytes", found) for found, (_, answer) in zip(kept, answers, strict=True)]

    async def close(self) -> None:
        """As OnlineStore.close."""
        await self._servers.close()

    async def _do(self, name: bytes, key: bytes, *arguments: bytes | int) -> Any:  # noqa: ANN401  # whatever that command answers
        """One command on one key."""
        return _unfailed(await self._servers.run([Command(key, pack(name, key, *arguments))]))[0]


def _unfailed(answers: list[Any]) -> list[Any]:
    """Answers, unless one of them is a failure: raises the first that is."""
    failure = next((answer for answer in answers if isinstance(answer, Exception)), None)
    if failure is None:
        return answers
    try:
        raise failure
    finally:
        # It refers to this frame, and the frames to what was sent: named here it would be a cycle, and stay until somebody looks for those.
        del failure, answers


def _generation(raw: bytes) -> Generation:
    try:
        return msgspec.json.decode(raw, type=Generation)
    except msgspec.DecodeError as error:
        message = f"{CURRENT.decode()} holds {raw[:100]!r}, no generation ({error}). Somebody else writes to this store: delete the key."
        raise StoreError(message) from error


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
