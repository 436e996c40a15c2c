"""One server: raw connections that take packed bytes, and give answers in their order."""

import asyncio
import re
import ssl
from collections.abc import Sequence
from itertools import chain
from typing import Any, cast

import numba
import numpy as np
from hiredis import Reader, ReplyError, pack_command
from numpy.typing import NDArray

from online_store.keys import Keys
from online_store.servers.address import Address
from schemas.columnar.words import Buffer
from schemas.errors import StoreError

#: Connections to one node. A call beyond them waits for one inside its own time; a read of a ranker takes eight at most.
CONNECTIONS_MAX = 64
#: What frames a key of up to 999 bytes: "$", its length, and two ends of lines. A key has an id, a tenant, and some words.
KEY_FRAME_BYTES_MAX = 8
#: What OpenSSL calls a failure that does not pass by itself, besides a certificate that it refuses.
LASTING_TLS = re.compile("ALERT|WRONG_VERSION_NUMBER|UNKNOWN_PROTOCOL")


def pack(*words: bytes | str | int) -> bytes:
    """One command as it goes over the wire."""
    return bytes(pack_command(words))  # type: ignore[arg-type]  # its stub allows one word only


def pack_keys(name: bytes, keys: Keys) -> bytes:
    """One command on keys as it goes over the wire."""
    head = b"*%d\r\n$%d\r\n%b\r\n" % (1 + len(keys), len(name), name)
    packed = np.empty(len(head) + len(keys.text) + len(keys) * KEY_FRAME_BYTES_MAX, np.uint8)
    packed[: len(head)] = np.frombuffer(head, np.uint8)
    return packed[: _frame(keys.text, keys.starts, packed, len(head))].tobytes()


@numba.njit(cache=True, nogil=True)
def _frame(text: Buffer, starts: NDArray[np.int64], packed: Buffer, at: int) -> int:
    """Put keys into packed from there on, each as a bulk string; returns where they end."""
    for row in range(len(starts) - 1):
        length = starts[row + 1] - starts[row]
        digits = 1 if length < 10 else 2 if length < 100 else 3
        packed[at] = ord("$")
        for place in range(digits):
            packed[at + digits - place] = ord("0") + length % 10
            length //= 10
        at += 1 + digits
        packed[at], packed[at + 1] = 13, 10
        at += 2
        for place in range(starts[row], starts[row + 1]):
            packed[at] = text[place]
            at += 1
        packed[at], packed[at + 1] = 13, 10
        at += 2
    return at


def code_of(answer: object) -> str:
    """The first word of an error that a server answered with; empty for anything else."""
    return str(answer).partition(" ")[0] if isinstance(answer, ReplyError) else ""


def unfailed(answers: list[Any]) -> list[Any]:
    """Answers, unless one of them is a failure: raises the first that is."""
    failure = next((answer for answer in answers if isinstance(answer, Exception)), None)
    if failure is None:
        return answers
    try:
        raise failure
    finally:
        # It refers to this frame, and the frames to what was sent: named here it would be a cycle, and stay until somebody looks for those.
        del failure, answers


class Connection(asyncio.Protocol):
    """One raw connection: bytes out, answers back in their order. For one caller at a time."""

    def __init__(self) -> None:
        self._reader = Reader()
        self._transport: asyncio.Transport
        self._wanted = 0
        self._answers: list[Any] = []
        self._answered: asyncio.Future[list[Any]] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self._reader.feed(data)
        while (answer := self._reader.gets()) is not False:
            self._answers.append(answer)
        if self._answered and not self._answered.done() and len(self._answers) >= self._wanted:
            self._answered.set_result(self._answers)

    def connection_lost(self, error: Exception | None) -> None:
        """Called by asyncio."""
        if self._answered and not self._answered.done():
            self._answered.set_exception(error if isinstance(error, OSError) else ConnectionError(f"connection closed ({error!r})"))
        if not self.gone.done():
            self.gone.set_result(None)

    def ask(self, packed: bytes, answers: int, timeout_s: float) -> asyncio.Future[list[Any]]:
        """Send commands, and get as many answers, or OSError; `let_go` comes next. Raises ConnectionError."""
        if self.gone.done():
            raise ConnectionError("connection closed")
        loop = asyncio.get_running_loop()
        self._answers, self._wanted = [], answers
        self._answered = loop.create_future()
        self._transport.write(packed)
        # A timeout of the task would cost as much as the rest of this.
        self._timer = loop.call_later(timeout_s, self._give_up)
        return self._answered

    def _give_up(self) -> None:
        if self._answered and not self._answered.done():
            self._answered.set_exception(TimeoutError())

    def let_go(self) -> bool:
        """Wait for nothing any more. Returns whether all that was asked for is here: else its answers would be taken for the next one's."""
        # A failure kept here would refer to the caller's frame, and the frame to it: a cycle, with all that was sent in it.
        answered, self._answered = self._answered, None
        if self._timer:
            self._timer.cancel()
        is_answered = answered is not None and answered.done() and not answered.cancelled() and answered.exception() is None
        if not is_answered:
            self.abort()
        return is_answered

    def abort(self) -> None:
        """Let go of it; `gone` tells when."""
        self._transport.abort()


class Node:
    """One server and the connections to it. greeting: commands that open each one; role: what ROLE, the last of them, must answer."""

    def __init__(
        self, address: Address, timeout_s: float, tls: ssl.SSLContext | None, greeting: Sequence[bytes] = (), role: bytes = b""
    ) -> None:
        self.address = address
        self.failed = False
        self._timeout_s = timeout_s
        self._tls = tls
        self._greeting = greeting
        self._role = role
        self._idle: list[Connection] = []
        self._free = asyncio.Semaphore(CONNECTIONS_MAX)

    async def execute(self, parts: Sequence[bytes], answers: int) -> list[Any]:
        """Send packed commands, each part on a connection of its own, and return all answers, so many of each part.

        What the server refuses is among them as ReplyError objects. Raises OSError where it does not answer in time, StoreError where it
        does not let us in.
        """
        try:
            if self._has_idle(len(parts)):
                found = await self._ask([await self._taken() for _ in parts], parts, answers)
            else:
                async with asyncio.timeout(self._timeout_s):
                    asked = (self._ask_anew(part, answers) for part in parts)
                    found = list(chain.from_iterable(unfailed(await asyncio.gather(*asked, return_exceptions=True))))
        except OSError as error:
            self.failed = True
            # Its traceback holds the timeout, the timeout this task, the task its failure: a cycle with all that was sent in it.
            raise self._told(error) from error.with_traceback(None)
        self.failed = False
        return found

    def _has_idle(self, count: int) -> bool:
        """Whether so many connections are open that nobody uses, and nobody waits for one."""
        return self._open_count() >= count and not self._free.locked()

    def _open_count(self) -> int:
        self._idle = [connection for connection in self._idle if not connection.gone.done()]
        return len(self._idle)

    async def _ask(self, connections: Sequence[Connection], parts: Sequence[bytes], answers: int) -> list[Any]:
        """Ask on open connections, all at once: a task for each would be some turns of the loop more before a read is here."""
        try:
            asked = [connection.ask(part, answers, self._timeout_s) for connection, part in zip(connections, parts, strict=True)]
            found: list[Any] = []
            while asked:
                # Taken out before it is waited for: its failure would refer to this frame, and this frame to it.
                found += await asked.pop(0)
            return found
        finally:
            for connection in connections:
                self._let_go(connection)
                self._free.release()

    async def _taken(self) -> Connection:
        """One that is open and idle: then nobody has to be waited for."""
        await self._free.acquire()
        return self._idle.pop()

    def _let_go(self, connection: Connection) -> None:
        if connection.let_go():
            self._idle.append(connection)

    async def _ask_anew(self, part: bytes, answers: int) -> list[Any]:
        """Ask on a connection that is free by now, else on a new one."""
        async with self._free:
            connection = self._idle.pop() if self._open_count() else await self._open()
            try:
                return await connection.ask(part, answers, self._timeout_s)
            finally:
                self._let_go(connection)

    async def _open(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, self.address.host, self.address.port, ssl=self._tls)
        try:
            await self._greet(connection)
        except BaseException:
            connection.abort()
            raise
        return connection

    async def _greet(self, connection: Connection) -> None:
        if self._greeting:
            try:
                answers = await connection.ask(b"".join(self._greeting), len(self._greeting), self._timeout_s)
            finally:
                connection.let_go()
            self._check(answers)

    def _check(self, answers: Sequence[Any]) -> None:
        refused = next((answer for answer in answers if isinstance(answer, ReplyError)), None)
        if refused is not None:
            raise StoreError(f"the store at {self.address} does not let us in: {refused}. Mend user, password or database in store_url.")
        if self._role and answers[-1][0] != self._role:
            raise ConnectionError(f"{self.address} is a {answers[-1][0].decode()} now")

    def _told(self, error: OSError) -> Exception:
        """What went wrong, with the address; what will not pass by itself is no OSError."""
        if isinstance(error, TimeoutError):
            return TimeoutError(f"{self.address} did not answer within {self._timeout_s} s")
        if isinstance(error, ssl.SSLCertVerificationError) or (isinstance(error, ssl.SSLError) and LASTING_TLS.search(error.reason or "")):
            return StoreError(
                f"no TLS with the store at {self.address}: {error}. store_tls_ca_file must be the CA that signed its certificate, "
                "which must name that host; store_tls_cert_file is for a store that asks for ours; redis:// is for a port without TLS."
            )
        return ConnectionError(f"{self.address}: {error!r}")

    async def close(self) -> None:
        """Let go of all connections."""
        while self._idle:
            connection = self._idle.pop()
            connection.abort()
            await connection.gone
