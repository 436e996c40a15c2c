"""A gRPC call: what its client said, and what it is told. To its servicer it is what grpc.aio's context is, as far as ours use that.

What stands on the wire is defined by gRPC's PROTOCOL-HTTP2.md.
"""

import asyncio
import re
import struct
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, NoReturn, Protocol
from urllib.parse import quote

import grpc
from google.protobuf.message import DecodeError as MessageError

from ranker.fronts.requests import BODY_BYTES_MAX
from ranker.fronts.rpc.frames import Headers
from ranker.fronts.rpc.heads import Said

#: Before each message: whether it is compressed, and how many bytes it has.
PREFIX = struct.Struct(">?I")
DONE: Headers = ((b"grpc-status", b"0"),)
#: What the server takes; a client whose message is compressed is told so.
ACCEPTED = (b"grpc-accept-encoding", b"identity")
#: Characters of an error's sentence that its client is told: they may become twelve times as many bytes, and fit into a frame.
DETAILS_COUNT_MAX = 1_000
_TIMEOUT, _UNITS_S = re.compile(rb"([0-9]{1,8})([HMSmun])"), {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


class Wire(Protocol):
    """Where answers go. Nothing is done for a stream that is over."""

    def send(self, stream_id: int, data: bytes) -> None:
        """Send more of an answer, as fast as its client takes it."""

    def end(self, stream_id: int, headers: Headers) -> None:
        """End it, behind all of it."""


class Handler(Protocol):
    """What is used of grpc.RpcMethodHandler, which has no types. The one that answers is a coroutine, of streams both ways a generator."""

    request_streaming: bool
    response_streaming: bool
    request_deserializer: Any
    response_serializer: Any
    unary_unary: Any
    unary_stream: Any
    stream_stream: Any


class _Ended(Exception):  # noqa: N818  # it is an answer, not a failure of ours
    """The servicer ended the call."""


class Call:
    """A call under way. received_s: time.perf_counter() when its head was there."""

    def __init__(self, wire: Wire, stream_id: int, handler: Handler, said: Said) -> None:
        """Its handler runs once `ended`, or at once where requests are a stream. said: its headers."""
        self._wire = wire
        self._stream_id = stream_id
        self._handler = handler
        self._said = said
        self.received_s = time.perf_counter()
        self._unread = b""
        self._messages = asyncio.Queue[bytes | None]()
        self._code, self._details = grpc.StatusCode.UNKNOWN, "it failed"
        self._trailing: Sequence[tuple[str, str]] = ()
        self._task: asyncio.Task[None] | None = None
        if handler.request_streaming:
            self._begin()

    def received(self, data: bytes) -> None:
        """More of its client's messages."""
        unread = self._unread + data
        while len(unread) >= PREFIX.size:
            is_compressed, size = PREFIX.unpack_from(unread)
            if is_compressed:
                self.refuse(grpc.StatusCode.UNIMPLEMENTED, "messages are not decompressed: send them as they are", (ACCEPTED,))
                return
            if size > BODY_BYTES_MAX:
                self.refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, f"the message has {size} bytes, more than {BODY_BYTES_MAX}")
                return
            end = PREFIX.size + size
            if len(unread) < end:
                break
            self._messages.put_nowait(unread[PREFIX.size : end])
            unread = unread[end:]
        self._unread = unread

    def ended(self) -> None:
        """Its client has said all."""
        self._messages.put_nowait(None)
        if self._task is None:
            self._begin()

    def leave(self) -> None:
        """Its client is gone: nobody is answered."""
        if self._task is not None:
            self._task.cancel()

    def refuse(self, code: grpc.StatusCode, details: str, trailing: Headers = ()) -> None:
        """End it before it is answered."""
        self.leave()
        self._wire.end(self._stream_id, (*status(code, details), *trailing))

    async def write(self, response: Any) -> None:  # noqa: ANN401  # protobuf's, or bytes
        """Send a message."""
        encode = self._handler.response_serializer
        data = encode(response) if encode else response
        self._wire.send(self._stream_id, PREFIX.pack(False, len(data)) + data)

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Sequence[tuple[str, str]] = ()) -> NoReturn:
        """End the call with an error."""
        self._code, self._details, self._trailing = code, details, trailing_metadata
        raise _Ended

    def set_code(self, code: grpc.StatusCode) -> None:
        """What it will end with, if it is not answered."""
        self._code = code

    def set_details(self, details: str) -> None:
        """As set_code."""
        self._details = details

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        """What the caller said beside the message, names in lower case."""
        return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self._said.items()]

    def time_remaining(self) -> float | None:
        """Seconds until the caller gives up; None where it waits for ever, or says what is no time."""
        found = _TIMEOUT.fullmatch(self._said.get(b"grpc-timeout", b""))
        return int(found[1]) * _UNITS_S[found[2]] - (time.perf_counter() - self.received_s) if found else None

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._answer())

    async def _answer(self) -> None:
        said = DONE
        try:
            await self._served()
        except (_Ended, NotImplementedError):
            said = (*status(self._code, self._details), *((name.encode(), value.encode()) for name, value in self._trailing))
        except BaseException:
            said = status(self._code, self._details)
            raise
        finally:
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


def status(code: grpc.StatusCode, details: str) -> Headers:
    """How a call ends, in its trailers."""
    return (b"grpc-status", b"%d" % code.value[0]), (b"grpc-message", quote(details[:DETAILS_COUNT_MAX]).encode())
