"""A TCP port whose far end can be changed, slowed, held up and cut while clients are connected: what fails over and fails in between."""

import asyncio
import threading
from dataclasses import dataclass
from typing import Literal, Self

from compose.stack.kafka_jars import HOST

#: Bytes taken from a connection at once.
CHUNK_BYTES = 65_536
#: What a client sends when it calls the script.
SCRIPT_CALL = b"EVALSHA"

#: Which half of a script's call is cut: the request half sent, or the answer to a script that has run.
Cut = Literal["request", "answer"]


@dataclass(slots=True, eq=False)
class Link:
    """A client's connection and ours behind it. doomed: cut it when the server next answers."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    doomed: bool = False

    def abort(self) -> None:
        """End both halves at once."""
        self.client.transport.abort()
        self.server.transport.abort()


class Proxy:
    """Passes a port of its own on to another, in a thread of its own. target: that port; None refuses every client.

    delay_ms: added to every answer. cuts: script calls that were cut so far.
    """

    def __init__(self, target: int | None) -> None:
        """Not listening yet."""
        self.target = target
        self.port = self.delay_ms = self.cuts = 0
        self._wanted: Cut | None = None
        self._links: set[Link] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        self._server: asyncio.Server

    def __enter__(self) -> Self:
        """Listen."""
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, HOST, 0))
        self.port = self._server.sockets[0].getsockname()[1]
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Cut everything and stop."""
        self._server.close()
        self.switch(None)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def switch(self, target: int | None) -> None:
        """Cut every connection; new ones go to another port, or nowhere."""
        self.target = target
        asyncio.run_coroutine_threadsafe(self._abort(), self._loop).result()

    def cut_script(self, part: Cut) -> None:
        """Cut the next script call, once."""
        self._wanted = part

    async def _abort(self) -> None:
        for link in list(self._links):
            link.abort()
        # Those who accepted or were cut come to their end before whoever asked goes on.
        while self._links:  # noqa: ASYNC110  # nobody tells of the last one
            await asyncio.sleep(0.001)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self.target is None:
                raise ConnectionRefusedError
            answers, server = await asyncio.open_connection(HOST, self.target)
        except OSError:
            writer.transport.abort()
            return
        link = Link(writer, server)
        self._links.add(link)
        await asyncio.gather(self._requests(reader, link), self._answers(answers, link))
        self._links.discard(link)

    async def _requests(self, reader: asyncio.StreamReader, link: Link) -> None:
        try:
            while data := await reader.read(CHUNK_BYTES):
                cut = self._wanted if SCRIPT_CALL in data else None
                if cut is not None:
                    self._wanted = None
                    self.cuts += 1
                link.doomed = link.doomed or cut == "answer"
                link.server.write(data[: len(data) // 2] if cut == "request" else data)
                await link.server.drain()
                if cut == "request":
                    break
        except OSError:
            pass
        link.abort()

    async def _answers(self, reader: asyncio.StreamReader, link: Link) -> None:
        try:
            while (data := await reader.read(CHUNK_BYTES)) and not link.doomed:
                await asyncio.sleep(self.delay_ms / 1000)
                link.client.write(data)
                await link.client.drain()
        except OSError:
            pass
        link.abort()
