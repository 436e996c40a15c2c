"""Calls of services that gRPC's own packages bring, as coroutines: to those a call is what grpc.aio's context is, as far as they use it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, NoReturn, Protocol

import grpc
from google.protobuf.message import DecodeError as MessageError

from ranker.fronts.rpc.call import DONE, PREFIX, Call, EndedError, Wire, status
from ranker.fronts.rpc.heads import Said

#: Messages of a call that wait for its servicer.
MESSAGES_COUNT_MAX = 64


class Handler(Protocol):
    """What is used of grpc.RpcMethodHandler, which has no types. The one that answers is a coroutine, of streams both ways a generator."""

    request_streaming: bool
    response_streaming: bool
    request_deserializer: Any
    response_serializer: Any
    unary_unary: Any
    unary_stream: Any
    stream_stream: Any


class Served(Call):
    """A call that a servicer's task answers."""

    def __init__(self, handler: Handler, wire: Wire, stream_id: int, said: Said) -> None:
        """Its handler runs once its client has said all, or at once where requests are a stream."""
        super().__init__(wire, stream_id, said)
        self._handler = handler
        self._messages = asyncio.Queue[bytes | None]()
        self._code, self._details = grpc.StatusCode.UNKNOWN, "it failed"
        self._trailing: Sequence[tuple[str, str]] = ()
        self._task: asyncio.Task[None] | None = None
        if handler.request_streaming:
            self._begin()

    def ended(self) -> None:
        """As Call.ended."""
        self._messages.put_nowait(None)
        if self._task is None:
            self._begin()

    def leave(self) -> None:
        """As Call.leave."""
        # It keeps what it failed with, which refers to this call: a cycle.
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    async def write(self, response: Any) -> None:  # noqa: ANN401  # protobuf's, or bytes
        """Send a message."""
        encode = self._handler.response_serializer
        data = encode(response) if encode else response
        self._wire.send(self._stream_id, PREFIX.pack(False, len(data)) + data)

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Sequence[tuple[str, str]] = ()) -> NoReturn:
        """End the call with an error."""
        self._code, self._details, self._trailing = code, details, trailing_metadata
        raise EndedError

    def set_code(self, code: grpc.StatusCode) -> None:
        """What it will end with, if it is not answered."""
        self._code = code

    def set_details(self, details: str) -> None:
        """As set_code."""
        self._details = details

    def _take(self, message: bytes) -> None:
        if self._messages.qsize() == MESSAGES_COUNT_MAX:
            self.refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MESSAGES_COUNT_MAX} messages wait to be answered: say fewer at once")
        else:
            self._messages.put_nowait(message)

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._answer())

    async def _answer(self) -> None:
        said = DONE
        try:
            await self._served()
        except (EndedError, NotImplementedError):
            said = (*status(self._code, self._details), *((name.encode(), value.encode()) for name, value in self._trailing))
        except BaseException:
            said = status(self._code, self._details)
            raise
        finally:
            self._task = None
            self._wire.end(self._stream_id, said)

    async def _served(self) -> None:
        handler = self._handler
        if handler.request_streaming:
            async for response in handler.stream_stream(self._requests(), self):
                await self.write(response)
            return
        requests = [request async for request in self._requests()]
        if len(requests) != 1:
            await self.abort(grpc.StatusCode.INVALID_ARGUMENT, f"there are {len(requests)} messages: this method takes one")
        if handler.response_streaming:
            await handler.unary_stream(requests[0], self)
        else:
            await self.write(await handler.unary_unary(requests[0], self))

    async def _requests(self) -> AsyncIterator[Any]:
        decode = self._handler.request_deserializer
        while (message := await self._messages.get()) is not None:
            try:
                request = decode(message) if decode else message
            except MessageError as error:
                await self.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            yield request
