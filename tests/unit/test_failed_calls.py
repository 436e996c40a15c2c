"""What a failed call to the store leaves in memory: nothing of what was sent, without a search for cycles.

A worker looks for cycles seldom, and tries a store that stands still again and again with megabytes at a time.
"""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from types import FrameType

import numpy as np
import pytest

from online_store.deltas import NOTHING
from online_store.keys import Generation, Keys
from online_store.redis import RedisStore
from online_store.store import Move, Step
from schemas.errors import StoreAwayError
from schemas.features import REGISTRY
from schemas.topics import Source

Server = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

Call = Callable[[RedisStore], Awaitable[None]]

GENERATION = Generation(1, REGISTRY.fingerprint)
#: Longer than the store's own patience in these tests (seconds).
SILENCE_S = 0.3


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that does not answer."""
    await reader.read(100)
    await asyncio.sleep(SILENCE_S)
    writer.close()


async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that hangs up before it answers."""
    await reader.read(100)
    writer.transport.abort()


async def loading(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that is not ready."""
    await reader.read(100)
    writer.write(b"-LOADING the dataset\r\n")
    await asyncio.sleep(SILENCE_S)
    writer.close()


async def apply(store: RedisStore) -> None:
    """One call."""
    await store.apply(GENERATION, [Step(0, [Move(Source("clicks", 0), 0, 5)], NOTHING)])


async def read(store: RedisStore) -> None:
    """Three calls beside each other, each on its connection."""
    await store.read(Keys(np.zeros(200, np.uint8), np.arange(201)))


async def fail(store: RedisStore, call: Call) -> None:
    """A call that does not succeed."""
    with pytest.raises(StoreAwayError):
        await call(store)


@pytest.mark.parametrize("call", [apply, read], ids=lambda call: call.__name__)
@pytest.mark.parametrize(("answer", "password"), [(silent, ""), (closing, ""), (loading, ""), (silent, ":secret@"), (closing, ":secret@")])
async def test_a_failed_call_leaves_no_frame_behind(answer: Server, call: Call, password: str) -> None:
    """The frames of a call hold what it sent; none of them is in a cycle once its error was handled."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    store = RedisStore(f"redis://{password}127.0.0.1:{server.sockets[0].getsockname()[1]}", REGISTRY, timeout_s=SILENCE_S / 3)
    await fail(store, call)
    await asyncio.sleep(SILENCE_S)
    gc.collect()
    gc.disable()
    try:
        await fail(store, call)
        await asyncio.sleep(SILENCE_S)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = [found.f_code.co_qualname for found in gc.garbage if isinstance(found, FrameType)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
        await store.close()
        server.close()

    assert left == []
