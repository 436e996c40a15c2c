"""HTTP servers of tests: the product's front end at a free port, and one that misbehaves as it is told."""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Self

from compose.serve import Server, http_config
from ranker.fronts.http import HttpFront
from tests.services import free_port

HOST = "127.0.0.1"
#: What becomes of a request: bytes to answer with, or what may be done with its own bytes that ends in some; None resets the connection.
Act = bytes | None | Callable[[bytes], Awaitable[bytes | None]]


@asynccontextmanager
async def listening(front: HttpFront) -> AsyncIterator[tuple[int, Server]]:
    """A front end at a port of its own, on the test's loop; at the end, what is under way is answered."""
    listener = socket.create_server((HOST, 0))
    server = Server(http_config(front))
    task = asyncio.create_task(server.serve([listener]))
    yield listener.getsockname()[1], server
    server.should_exit = True
    await task


def answer(status: int, body: object, *headers: str) -> bytes:
    """An answer of HTTP/1.1."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [f"HTTP/1.1 {status} Whatever", f"content-length: {len(content)}", *headers, "", ""]
    return "\r\n".join(head).encode() + content


async def hang(_: bytes) -> bytes | None:
    """The server is there and says nothing."""
    await asyncio.sleep(3_600)
    return None


def relay(port: int) -> Callable[[bytes], Awaitable[bytes]]:
    """What a server at this port answers."""

    async def ask(request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(request)
        found = await _message(reader)
        writer.close()
        return found

    return ask


class Odd:
    """A real server that does with one request after the other as `acts` say, the last act again and again. It listens within its block.

    bodies: of the requests so far; connections: how many there were; drip_s: pauses between the bytes of an answer (seconds).
    """

    def __init__(self, *acts: Act, drip_s: float = 0.0) -> None:
        self.acts = list(acts)
        self.bodies: list[dict[str, Any]] = []
        self.connections = 0
        self._drip_s = drip_s
        self._port = free_port()
        self.url = f"http://{HOST}:{self._port}"
        self._open: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, HOST, self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.hang_up()
        await asyncio.gather(*self._open, return_exceptions=True)

    def hang_up(self) -> None:
        """End every connection."""
        for task in self._open:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        self.connections += 1
        try:
            while request := await _message(reader):
                self.bodies.append(json.loads(request.partition(b"\r\n\r\n")[2]))
                act = self.acts.pop(0) if len(self.acts) > 1 else self.acts[0]
                await self._answer(writer, await act(request) if callable(act) else act)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()

    async def _answer(self, writer: asyncio.StreamWriter, found: bytes | None) -> None:
        if found is None:
            # No time to linger: the client's socket sees a reset, not an end.
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raise ConnectionAbortedError
        for at in range(0, len(found), 1 if self._drip_s else len(found)):
            writer.write(found[at : at + (1 if self._drip_s else len(found))])
            await writer.drain()
            await asyncio.sleep(self._drip_s)


async def _message(reader: asyncio.StreamReader) -> bytes:
    """A request or an answer, whole; empty at the connection's end."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
    length = next((line.partition(b":")[2] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b"0")
    return head + await reader.readexactly(int(length))
