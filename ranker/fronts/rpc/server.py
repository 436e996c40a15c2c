"""A port where registered services answer; what generated code needs of a grpc.aio.Server, and no more."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Mapping

from ranker.fronts.rpc.call import Ask, Asked
from ranker.fronts.rpc.connection import Begin, Connection
from ranker.fronts.rpc.served import Handler, Served
from schemas.errors import SettingsError

#: Connections that the kernel keeps until they are accepted: callers may all come at once, after another process has ended.
BACKLOG_COUNT = 1_024


class Server:
    """Answers calls of methods that were added."""

    def __init__(self) -> None:
        """No method is there."""
        self._methods: dict[bytes, Begin] = {}
        self._connections: set[Connection] = set()

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Nothing: generated code names the same methods one by one as well."""

    def add_registered_method_handlers(self, service: str, methods: Mapping[str, Handler]) -> None:
        """Answer methods of a service by coroutines."""
        self._methods |= {f"/{service}/{name}".encode(): functools.partial(Served, handler) for name, handler in methods.items()}

    def add_method(self, service: str, name: str, ask: Ask) -> None:
        """Answer a method by a plain function."""
        self._methods[f"/{service}/{name}".encode()] = functools.partial(Asked, ask)

    @contextlib.asynccontextmanager
    async def listening(self, host: str, port: int, grace_s: float, *, shares_port: bool = False) -> AsyncIterator[int]:
        """As GrpcFront.listening."""
        loop = asyncio.get_running_loop()
        try:
            listening = await loop.create_server(self._connection, host, port, backlog=BACKLOG_COUNT, reuse_port=shares_port or None)
        except OSError as error:
            raise SettingsError(f"grpc_port {port} on {host} cannot be listened at: {error.strerror}. Set another one.") from error
        try:
            yield listening.sockets[0].getsockname()[1]
        finally:
            listening.close()
            await self._drain(grace_s)

    def _connection(self) -> Connection:
        return Connection(self._methods, self._connections)

    async def _drain(self, grace_s: float) -> None:
        closed = {connection.closed for connection in self._connections}
        if not closed:
            return
        for connection in list(self._connections):
            connection.drain()
        await asyncio.wait(closed, timeout=grace_s)
        for connection in list(self._connections):
            connection.abort()
        await asyncio.wait(closed)
