"""One server: raw connections that take packed bytes, and give answers in their order."""

import asyncio
import re
import ssl
from collections.abc import Sequence
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


class Connection(asyncio.Protocol):
    """One raw connection: bytes out, answers back in their order. For one caller at a time."""

    def __init__(self) -> None:
        self._reader = Reader()
        self._transport: asyncio.Transport
        self._wanted = 0
        self._answers: list[Any] = []
        self._answered: asyncio.Future[list[Any]] | None = None
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

    async def ask(self, packed: bytes, answers: int, timeout_s: float) -> list[Any]:
        """Send commands and wait for as many answers. Raises OSError."""
        if self.gone.done():
            raise ConnectionError("connection closed")
        loop = asyncio.get_running_loop()
        self._answers, self._wanted = [], answers
        self._answered = loop.create_future()
        self._transport.write(packed)
        # A timeout of the task would cost as much as the rest of this.
        timer = loop.call_later(timeout_s, self._give_up)
        try:
            return await self._answered
        finally:
            timer.cancel()
            # A failure kept here would refer to this frame, and the frame to it: a cycle, with all of `packed` in it.
            self._answered = None

    def _give_up(self) -> None:
        if self._answered and not self._answered.done():
            self._answered.set_exception(TimeoutError())

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

    async def execute(self, packed: bytes, answers: int) -> list[Any]:
        """Send packed commands and return as many answers, what the server refuses as ReplyError objects.

        Raises OSError where it does not answer in time, StoreError where it does not let us in.
        """
        try:
            if self._has_idle() and not self._free.locked():
                found = await self._execute(packed, answers)
            else:
                async with asyncio.timeout(self._timeout_s):
                    found = await self._execute(packed, answers)
        except OSError as error:
            self.failed = True
            # Its traceback holds the timeout, the timeout this task, the task its failure: a cycle with all of `packed` in it.
            raise self._told(error) from error.with_traceback(None)
        self.failed = False
        return found

    def _has_idle(self) -> bool:
        """Whether a connection is open that nobody uses."""
        while self._idle and self._idle[-1].gone.done():
            self._idle.pop()
        return bool(self._idle)

    async def _execute(self, packed: bytes, answers: int) -> list[Any]:
        async with self._free:
            connection = self._idle.pop() if self._has_idle() else await self._open()
            try:
                found = await connection.ask(packed, answers, self._timeout_s)
            except BaseException:
                connection.abort()
                raise
            self._idle.append(connection)
            return found

    async def _open(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, self.address.host, self.address.port, ssl=self._tls)
        try:
            answers = await connection.ask(b"".join(self._greeting), len(self._greeting), self._timeout_s) if self._greeting else []
            self._check(answers)
        except BaseException:
            connection.abort()
            raise
        return connection

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
