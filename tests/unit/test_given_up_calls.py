"""What becomes of a connection to the store whose caller did not wait for the answer."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from online_store.redis import RedisStore
from schemas.features import REGISTRY


class Slow:
    """A server that answers what it is asked by how many questions came before, once it may."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.connections_count = self.questions_count = self.gone_count = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections_count += 1
        with contextlib.suppress(ConnectionError):
            while await reader.read(1_000):
                number, self.questions_count = self.questions_count, self.questions_count + 1
                await self.may.wait()
                writer.write(b"*1\r\n$1\r\n%d\r\n" % number)
        self.gone_count += 1
        writer.close()


@pytest.fixture
async def server() -> Slow:
    """A server that may not answer yet."""
    return Slow()


@pytest.fixture
async def store(server: Slow) -> AsyncIterator[RedisStore]:
    """A store there, whose first reader has given up."""
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
        made = RedisStore(f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}", REGISTRY)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await made.read([b"key"])
        yield made
        await made.close()


async def test_once_it_is_answered_it_is_as_good_as_any(server: Slow, store: RedisStore) -> None:
    """The next call asks on it, and gets its own answer."""
    server.may.set()
    await asyncio.sleep(0.1)

    assert (await store.read([b"key"]), server.connections_count) == ([b"1"], 1)


@pytest.mark.parametrize(("rest_s", "gone"), [(60.0, 0), (0.0, 1)])
async def test_until_then_nobody_asks_on_it(
    server: Slow, store: RedisStore, monkeypatch: pytest.MonkeyPatch, rest_s: float, gone: int
) -> None:
    """The next call opens another; what is never answered is let go of when its time is over."""
    monkeypatch.setattr("online_store.servers.node.REST_S", rest_s)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await store.read([b"key"])
    reading = asyncio.create_task(store.read([b"key"]))
    await asyncio.sleep(0.1)
    server.may.set()
    await asyncio.sleep(0.1)

    assert (await reading, server.connections_count, server.gone_count) == ([b"2"], 3, gone)
