"""The online store on a server that speaks the Redis protocol (Valkey or Redis, 7.0 or newer)."""

import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import msgspec
import numpy as np
from numpy.typing import NDArray
from prometheus_client import Counter
from redis import asyncio as client
from redis.exceptions import (
    BusyLoadingError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as LostConnectionError
from redis.exceptions import TimeoutError as NoAnswerError

from online_store.deltas import Deltas
from online_store.keys import CURRENT, Generation, guard_key, is_record, record_pattern
from online_store.record import Layout, layouts
from online_store.store import Step
from schemas.errors import SettingsError, StoreAwayError, StoreError
from schemas.features import Registry
from schemas.topics import Source

SCRIPT = Path(__file__).parent / "lua" / "apply.lua"
#: Keys that one SCAN call looks at: more would hold the server's one thread for longer than a rank request can wait.
SCAN_COUNT = 1_000

#: What record.Layout.head packs, as Lua's struct spells it: the record's own numbers, then each ring's.
LUA_HEAD, LUA_RING = "<Bi8i8", "BI4I4I4I4I8"

STORE_CALLS = Counter("millstream_store_calls", "Calls to the online store, by how they ended.", ["call", "outcome"])
#: What passes by itself or when an operator acts: a restart, a failover, a full memory.
PASSING = (LostConnectionError, NoAnswerError, BusyLoadingError, ReadOnlyError, TryAgainError, OutOfMemoryError, OSError)

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
        except PASSING as error:
            outcome = "away"
            message = f"the store did not answer {call.__name__}: {error!r}. Is it up? `millstream stack status` tells."
            raise StoreAwayError(message) from error
        except RedisError as error:
            message = f"the store refused {call.__name__}: {error!r}. Rebuild the generation from the log if a record is at fault."
            raise StoreError(message) from error
        finally:
            STORE_CALLS.labels(call.__name__, outcome).inc()
        return answer

    return answered


class RedisStore:
    """An OnlineStore on a Redis-protocol server.

    url: redis://host:port/database. timeout_s: for each call, connecting included.
    """

    def __init__(self, url: str, registry: Registry, timeout_s: float = 5.0) -> None:
        """Connects at the first call. Raises SettingsError for a url that is none."""
        try:
            self._client: Any = client.Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)
        except ValueError as error:
            message = f"store_url is {url!r}: {error}. Try redis://localhost:6379, or `millstream stack up`."
            raise SettingsError(message) from error
        self._layouts = list(layouts(registry).values())
        self._script = lua_layouts(self._layouts) + SCRIPT.read_text()
        self._sha = ""

    @_answered
    async def apply(self, generation: Generation, source: Source, following: int, steps: Sequence[Step]) -> list[int]:
        """As OnlineStore.apply: one pipelined round trip, one script call a shard."""
        calls = [_script_call(generation, source, following, step) for step in steps]
        answers = await self._run_scripts(calls) if self._sha else [NoScriptError()]
        if any(isinstance(answer, NoScriptError) for answer in answers):
            self._sha = await self._client.script_load(self._script)
            answers = await self._run_scripts(calls)
        failed = next((answer for answer in answers if isinstance(answer, Exception)), None)
        if failed is not None:
            raise failed
        return [int(cast("int", answer)) for answer in answers]

    async def _run_scripts(self, calls: list[tuple[int, list[bytes]]]) -> list[Any]:
        async with self._client.pipeline(transaction=False) as pipeline:
            for keys_count, arguments in calls:
                pipeline.evalsha(self._sha, keys_count, *arguments)
            return cast("list[Any]", await pipeline.execute(raise_on_error=False))

    @_answered
    async def guards(self, generation: Generation, sources: Sequence[Source]) -> NDArray[np.int64]:
        """As OnlineStore.guards."""
        if not sources:
            return np.zeros((0, generation.shards), dtype=np.int64)
        async with self._client.pipeline(transaction=False) as pipeline:
            for shard in range(generation.shards):
                pipeline.hmget(guard_key(generation, shard), [str(source) for source in sources])
            answers = await pipeline.execute()
        return np.array([[int(guard or 0) for guard in answer] for answer in answers], dtype=np.int64).T

    @_answered
    async def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """As OnlineStore.read: one MGET."""
        return cast("list[bytes | None]", await self._client.mget(keys)) if keys else []

    @_answered
    async def current(self) -> Generation | None:
        """As OnlineStore.current."""
        found = await self._client.get(CURRENT)
        return msgspec.json.decode(found, type=Generation) if found else None

    @_answered
    async def begin(self, generation: Generation) -> Generation:
        """As OnlineStore.begin."""
        found = await self._client.set(CURRENT, msgspec.json.encode(generation), nx=True, get=True)
        return msgspec.json.decode(found, type=Generation) if found else generation

    async def records(self, generation: Generation) -> AsyncIterator[bytes]:
        """As OnlineStore.records."""
        seen: set[bytes] = set()
        cursor = -1
        while cursor:
            cursor, keys = await self._scan(max(cursor, 0), record_pattern(generation))
            for key in keys:
                if key not in seen and is_record(key, generation):
                    seen.add(key)
                    yield key

    @_answered
    async def _scan(self, cursor: int, pattern: bytes) -> tuple[int, list[bytes]]:
        return cast("tuple[int, list[bytes]]", await self._client.scan(cursor, match=pattern, count=SCAN_COUNT))

    @_answered
    async def keep_answer(self, key: bytes, answer: bytes, ttl_ms: int) -> bytes:
        """As OnlineStore.keep_answer."""
        kept = await self._client.set(key, answer, nx=True, get=True, px=ttl_ms)
        return cast("bytes", kept) if kept is not None else answer

    async def close(self) -> None:
        """As OnlineStore.close."""
        await self._client.aclose()


def _script_call(generation: Generation, source: Source, following: int, step: Step) -> tuple[int, list[bytes]]:
    keys = [guard_key(generation, step.shard), *step.deltas.keys]
    numbers = [str(source).encode(), b"%d" % step.expected, b"%d" % following]
    return len(keys), [*keys, *numbers, *_packed(step.deltas)]


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
