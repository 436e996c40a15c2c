"""A read of many keys goes out in parts, each on a connection of its own."""

import asyncio
import gc
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import numpy as np
import pytest
from hiredis import Reader

from online_store.keys import Keys
from online_store.redis import RedisStore
from ranker.reads.asking import RETRY_MS_MAX, ask
from schemas.errors import StoreAwayError
from schemas.features import REGISTRY
from tests.rankers import Failing, away

#: The store's patience in these tests (seconds), and for how long the server holds back what it holds back.
TIMEOUT_S, HELD_S = 0.2, 0.4
#: Connections that a store may have in these tests.
CONNECTIONS_MAX = 8


class Echo:
    """A server that says of each key the key itself. held, cut: a command with this key is answered late, or its connection closed."""

    def __init__(self) -> None:
        self.held = self.cut = b""
        self.connections_count = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections_count += 1
        parser = Reader()
        while data := await reader.read(1 << 16):
            parser.feed(data)
            while (command := parser.gets()) is not False:
                keys = command[1:]
                if self.cut in keys:
                    writer.close()
                    return
                await asyncio.sleep(HELD_S if self.held in keys else 0)
                writer.write(b"*%d\r\n" % len(keys) + b"".join(b"$%d\r\n%b\r\n" % (len(key), key) for key in keys))
        writer.close()


@pytest.fixture
async def echo() -> Echo:
    """Nothing is held back."""
    return Echo()


@pytest.fixture
async def store(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RedisStore]:
    """Reads go in parts of two keys."""
    monkeypatch.setattr("online_store.redis.READ_KEYS_COUNT", 2)
    monkeypatch.setattr("online_store.servers.node.CONNECTIONS_MAX", CONNECTIONS_MAX)
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    found = RedisStore(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}", REGISTRY, timeout_s=TIMEOUT_S)
    yield found
    await found.close()
    server.close()
    # The server's ends of what was closed.
    await asyncio.sleep(0.05)


def words(*texts: str) -> Keys:
    """Keys as they lie for a read."""
    raw = [text.encode() for text in texts]
    return Keys(np.frombuffer(b"".join(raw), np.uint8), np.cumsum([0, *map(len, raw)]))


async def test_connections_are_used_again(echo: Echo, store: RedisStore) -> None:
    """Three parts, three connections; fewer parts need no other, nor do more reads than there may be connections."""
    texts = ["abcdef", "ghijk", "l", "mnopqr"] * CONNECTIONS_MAX
    found = [await store.read(words(*text)) for text in texts]

    assert (found, echo.connections_count) == ([[letter.encode() for letter in text] for text in texts], 3)


async def test_reads_beside_each_other_have_their_own(echo: Echo, store: RedisStore) -> None:
    """Each its own values, whoever opened the connections, and none waits for what another one holds."""
    texts = ["abcdef", "ghijkl", "mn", "opqr"] * 8
    found = await asyncio.gather(*(store.read(words(*text)) for text in texts))

    assert found == [[letter.encode() for letter in text] for text in texts]
    assert echo.connections_count <= CONNECTIONS_MAX


@pytest.mark.parametrize("fault", ["held", "cut"])
async def test_a_part_without_an_answer_fails_the_read(echo: Echo, store: RedisStore, fault: str) -> None:
    """And what its connections bring later is not taken for the next one's."""
    await store.read(words(*"abcdef"))
    setattr(echo, fault, b"j")
    with pytest.raises(StoreAwayError):
        await store.read(words(*"ghijkl"))
    setattr(echo, fault, b"")
    found = [await store.read(words(*"mnopqr")) for _ in range(3)]
    await asyncio.sleep(HELD_S)
    found.append(await store.read(words(*"mnopqr")))

    assert found == [[letter.encode() for letter in "mnopqr"]] * 4


async def test_a_read_that_is_given_up_leaves_no_answer(echo: Echo, store: RedisStore) -> None:
    """Cancelled while one part is there and another one is not."""
    await store.read(words(*"abcdef"))
    echo.held = b"j"
    given_up = asyncio.create_task(store.read(words(*"ghijkl")))
    await asyncio.sleep(HELD_S / 10)
    given_up.cancel()
    await asyncio.wait([given_up])
    echo.held = b""
    await asyncio.sleep(HELD_S)

    assert await store.read(words(*"mnopqr")) == [letter.encode() for letter in "mnopqr"]


async def test_a_failure_that_comes_too_late_is_nobodys() -> None:
    """Who waited has gone on without the store; the loop is told of no fault."""
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    store = Failing()
    store.read_fault = away
    asked = asyncio.create_task(ask(store, [b"a"], 60.0, lambda _: None))
    await asyncio.sleep(0)
    asked.cancel()
    await asyncio.wait([asked])
    await asyncio.sleep(2 * RETRY_MS_MAX / 1000)
    gc.collect()

    assert faults == []


async def test_a_read_on_open_connections_is_one_task(store: RedisStore) -> None:
    """A task for each part is a turn of the loop to begin and one to end, and turns are long where hundreds ask."""
    await store.read(words(*"abcdef"))
    loop, made = asyncio.get_running_loop(), list[object]()

    def noted(_: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        made.append(work)
        return asyncio.Task(work, loop=loop)

    loop.set_task_factory(noted)  # type: ignore[arg-type]  # its stub knows more arguments
    try:
        await ask(store, words(*"ghijkl"), TIMEOUT_S, lambda _: None)
    finally:
        loop.set_task_factory(None)

    assert len(made) == 1
