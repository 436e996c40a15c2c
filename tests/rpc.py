"""A service that says what it is told, and a client of bare HTTP/2 that may do what no library of gRPC lets it."""

import asyncio
import contextlib
import functools
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import grpc
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, Event, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
from h2.settings import SettingCodes
from hpack import Encoder
from hyperframe.frame import Frame, GoAwayFrame, PingFrame

from ranker.fronts.rpc.call import PREFIX, Ask, Asked
from ranker.fronts.rpc.frames import LARGEST
from ranker.fronts.rpc.served import Served
from ranker.fronts.rpc.server import Server

HEADERS = [(":method", "POST"), (":scheme", "http"), (":authority", "here"), ("content-type", "application/grpc"), ("te", "trailers")]
#: As large as a frame may be where nothing else was said.
FRAME_BYTES = 16_384


def message(said: bytes, *, is_compressed: bool = False) -> bytes:
    """As gRPC has it on the wire."""
    return PREFIX.pack(is_compressed, len(said)) + said


class Echo:
    """Says what it is told, each method in its way. go_on: Slow answers then; begun, left: who asked it, and who gave up."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.begun = asyncio.Queue[bytes]()
        self.left = asyncio.Queue[bytes]()

    def methods(self) -> dict[str, Any]:
        """As a servicer is registered."""
        return {
            "Say": grpc.unary_unary_rpc_method_handler(self._say),
            "Slow": grpc.unary_unary_rpc_method_handler(self._slow),
            "Large": grpc.unary_unary_rpc_method_handler(self._large),
            "Fail": grpc.unary_unary_rpc_method_handler(self._fail),
            "Refuse": grpc.unary_unary_rpc_method_handler(self._refuse),
            "Twice": grpc.unary_stream_rpc_method_handler(self._twice),
            "Each": grpc.stream_stream_rpc_method_handler(self._each),
        }

    def plain(self) -> dict[str, Ask]:
        """Some of the same by functions."""
        return {"SayNow": self._say_now, "SlowNow": self._slow_now, "FailNow": self._fail_now, "RefuseNow": self._refuse_now}

    def _say_now(self, said: bytes, call: Asked) -> Callable[[], None]:
        call.answer(said)
        # Refers to the call, as what a ranker returns does.
        return lambda: self.left.put_nowait(said + repr(call).encode())

    def _slow_now(self, said: bytes, call: Asked) -> Callable[[], None]:
        self.begun.put_nowait(said)
        waiting = asyncio.ensure_future(self.go_on.wait())
        waiting.add_done_callback(lambda ended: None if ended.cancelled() else call.answer(said))
        return functools.partial(self._let_go, said, waiting)

    def _let_go(self, said: bytes, waiting: asyncio.Future[Any]) -> None:
        waiting.cancel()
        self.left.put_nowait(said)

    def _fail_now(self, said: bytes, _: Asked) -> Callable[[], None]:
        raise ValueError(said)

    def _refuse_now(self, said: bytes, call: Asked) -> Callable[[], None]:
        call.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, said.decode(), ((b"after", b"9"),))

    async def _say(self, said: bytes, _: Served) -> bytes:
        return said

    async def _slow(self, said: bytes, _: Served) -> bytes:
        self.begun.put_nowait(said)
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.left.put_nowait(said)
            raise
        return said

    async def _large(self, said: bytes, _: Served) -> bytes:
        return said * int(said)

    async def _fail(self, said: bytes, _: Served) -> bytes:
        raise ValueError(said)

    async def _refuse(self, said: bytes, call: Served) -> bytes:
        await call.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, said.decode(), (("after", "9"),))

    async def _twice(self, said: bytes, call: Served) -> None:
        await call.write(said)
        await call.write(said)

    async def _each(self, said: AsyncIterator[bytes], _: Served) -> AsyncIterator[bytes]:
        async for one in said:
            yield one


class Http2(H2Connection):
    """As h2 has it, but a GOAWAY is not the end yet: what was begun before goes on. For h2 it is (its issue 1181)."""

    def say_goodbye(self) -> None:
        """Send one."""
        state = self.state_machine.state
        self.close_connection(last_stream_id=LARGEST)
        self.state_machine.state = state

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:
        event = ConnectionTerminated()
        event.last_stream_id, event.error_code = frame.last_stream_id, frame.error_code
        return [], [event]


class Bare:
    """A client of HTTP/2 alone. heard: by stream, what was said; told: what is of no stream. makes_room: for more, by itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.http2 = Http2(H2Configuration(header_encoding=None))
        self._unsent: list[tuple[int, bytes, bool]] = []
        self.heard: dict[int, list[Event]] = {}
        self.told: list[Event] = []
        self.is_over = False
        self.makes_room = True

    def ask(self, method: str, *data: bytes, is_whole: bool = True, headers: Any = HEADERS) -> int:  # noqa: ANN401  # pairs of text
        """Begin a call whose bytes go out as there is room for them; its stream."""
        stream_id = self.http2.get_next_available_stream_id()
        self.http2.send_headers(stream_id, [(":path", f"/test.Echo/{method}"), *headers])
        frames = [part[at : at + FRAME_BYTES] for part in data for at in range(0, len(part), FRAME_BYTES)]
        self._unsent += [(stream_id, frame, False) for frame in frames] + ([(stream_id, b"", True)] if is_whole else [])
        return stream_id

    async def flush(self, size: int = 2**31) -> None:
        """Send what waits and has room, so many bytes at a time."""
        while self._unsent and self.http2.local_flow_control_window(self._unsent[0][0]) >= len(self._unsent[0][1]):
            stream_id, frame, is_last = self._unsent.pop(0)
            self.http2.send_data(stream_id, frame, end_stream=is_last)
        said = self.http2.data_to_send()
        for at in range(0, len(said), size):
            await self.write(said[at : at + size])
            await asyncio.sleep(0)

    async def write(self, said: bytes) -> None:
        """Send what may be no HTTP/2."""
        self._writer.write(said)
        await self._writer.drain()

    def close(self) -> None:
        """Leave."""
        self._writer.close()

    async def hear(self) -> None:
        """Read once."""
        said = await self._reader.read(65_536)
        assert said or not self.is_over, self.told
        self.is_over = not said
        for event in self.http2.receive_data(said):
            stream_id = getattr(event, "stream_id", None) or 0
            (self.heard.setdefault(stream_id, []) if stream_id else self.told).append(event)
            if self.makes_room and isinstance(event, DataReceived):
                self.http2.acknowledge_received_data(event.flow_controlled_length, stream_id)
        await self.flush()

    async def answer(self, stream_id: int) -> tuple[bytes, dict[bytes, bytes]]:
        """Data and last headers of a call, once it is over."""
        while not any(isinstance(event, (StreamEnded, StreamReset)) for event in self.heard.get(stream_id, [])):
            await self.hear()
        heard = self.heard[stream_id]
        data = b"".join(event.data for event in heard if isinstance(event, DataReceived))
        ends = [event for event in heard if isinstance(event, (ResponseReceived, TrailersReceived))]
        return data, dict(ends[-1].headers)

    async def say(self, method: str, *data: bytes, **said: Any) -> tuple[bytes, bytes]:  # noqa: ANN401  # as ask
        """Data and status of a call."""
        stream_id = self.ask(method, *data, **said)
        await self.flush()
        found, ends = await self.answer(stream_id)
        return found, ends.get(b"grpc-status", ends.get(b":status", b""))


class Raw:
    """A client of bytes. It says what it is told, and hears frames as hyperframe reads them."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._block = Encoder()

    async def say(self, said: bytes) -> None:
        """Send bytes."""
        self._writer.write(said)
        await self._writer.drain()

    def head(self, method: str = "Say", *others: tuple[str, str]) -> bytes:
        """A call's headers as a block."""
        return self._block.encode([(":path", f"/test.Echo/{method}"), *HEADERS, *others])

    async def hear(self) -> Frame | None:
        """The next frame; None at the end of all."""
        try:
            frame, size = Frame.parse_frame_header(memoryview(await self._reader.readexactly(9)))
        except asyncio.IncompleteReadError:
            return None
        frame.parse_body(memoryview(await self._reader.readexactly(size)))
        return frame

    async def until(self, kind: type[Frame], stream_id: int = 0) -> Any:  # noqa: ANN401  # of that kind
        """The next frame of this kind and stream. Raises AssertionError where the connection ends before."""
        while frame := await self.hear():
            if isinstance(frame, kind) and frame.stream_id == stream_id:
                return frame
        raise AssertionError(f"no {kind.__name__} came")

    async def answers(self) -> list[Frame]:
        """All until a ping comes back."""
        found: list[Frame] = []
        while not isinstance(said := await self.hear(), PingFrame):
            assert said is not None, found
            found.append(said)
        return found

    def close(self) -> None:
        """Leave."""
        self._writer.close()


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"", size: int | None = None) -> bytes:
    """Any frame (RFC 9113, 4.1). size: what it says that it has, where that is not so.

    kind: 0 DATA, 1 HEADERS, 2 PRIORITY, 3 RST_STREAM, 4 SETTINGS, 5 PUSH_PROMISE, 6 PING, 7 GOAWAY, 8 WINDOW_UPDATE, 9 CONTINUATION.
    flags: 1 the stream's end or an acknowledgement, 4 the headers' end, 8 padding, 32 a priority.
    """
    return struct.pack(">I", len(payload) if size is None else size)[1:] + struct.pack(">BBI", kind, flags, stream_id) + payload


#: A frame that ends a connection (RFC 9113, 6.1).
DATA_OF_NO_STREAM = frame(0, 0, 0, b"x")
PING = frame(6, 0, 0, b"12345678")
#: What every client begins with.
BEGIN = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0)


class World(NamedTuple):
    """A server at a port, what answers there, and what ends it, and its clients."""

    port: int
    echo: Echo
    running: contextlib.AsyncExitStack
    clients: contextlib.ExitStack

    async def bare(self, **settings: int) -> Bare:
        """A client with settings of its own."""
        found = Bare(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.callback(found.close)
        found.http2.initiate_connection()
        found.http2.update_settings({SettingCodes[name]: value for name, value in settings.items()})
        await found.flush()
        return found

    async def raw(self) -> Raw:
        """A client that is held to no rule, and has begun as it should."""
        found = Raw(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.callback(found.close)
        await found.say(BEGIN)
        return found


@contextlib.asynccontextmanager
async def serving(grace_s: float) -> AsyncIterator[World]:
    """A server on a free port, its clients gone before it ends."""
    server, echo = Server(), Echo()
    server.add_registered_method_handlers("test.Echo", echo.methods())
    for name, ask in echo.plain().items():
        server.add_method("test.Echo", name, ask)
    async with contextlib.AsyncExitStack() as running:
        port = await running.enter_async_context(server.listening("127.0.0.1", 0, grace_s))
        with contextlib.ExitStack() as clients:
            yield World(port, echo, running, clients)
