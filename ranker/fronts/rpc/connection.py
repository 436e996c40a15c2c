"""A client's connection: HTTP/2 by h2, each stream a call. What one round of the loop sends goes out in one write."""

import asyncio
import contextlib
import socket
from collections.abc import Mapping
from dataclasses import dataclass

import grpc
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingAckReceived,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError, StreamClosedError
from h2.settings import SettingCodes
from hyperframe.frame import Frame, GoAwayFrame

from ranker.fronts.requests import Headers
from ranker.fronts.rpc.call import Call, Handler, status

#: Before an answer, or in one with how it ends where there is nothing else.
HEAD = [(b":status", b"200"), (b"content-type", b"application/grpc")]
#: Calls under way on one connection. More wait at their client, where nobody sees them: the ranker's queue turns away before that.
CALLS_COUNT_MAX = 1_000
#: No stream has this number: a client that is told so begins no other, and all that it has begun are answered (RFC 9113, 6.8).
LAST_STREAM_ID = 2**31 - 1
#: Asks whether the client has read what was sent before (eight bytes).
READ = b"goodbye!"
#: Headers are ours to look at; gRPC's are the same for each call, and looking at all takes as long as all else.
_CONFIG = H2Configuration(
    client_side=False,
    header_encoding=None,
    validate_inbound_headers=False,
    validate_outbound_headers=False,
    normalize_inbound_headers=False,
    normalize_outbound_headers=False,
)


class Http2(H2Connection):
    """As h2 has it, but a GOAWAY is not the end yet: what was begun before goes on. For h2 it is (its issue 1181)."""

    def say_goodbye(self) -> None:
        """Send one."""
        state = self.state_machine.state
        self.close_connection(last_stream_id=LAST_STREAM_ID)
        self.state_machine.state = state

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:
        event = ConnectionTerminated()
        event.last_stream_id = frame.last_stream_id
        return [], [event]


@dataclass(slots=True)
class _Stream:
    """A call, and what of its answer its client has no room for yet. end: what follows that."""

    call: Call
    has_head: bool = False
    unsent: bytes | memoryview = b""
    end: Headers | None = None


class Connection(asyncio.Protocol):
    """One connection. methods: by path. connections: those that are open, this one among them."""

    def __init__(self, methods: Mapping[bytes, Handler], connections: set["Connection"]) -> None:
        """Until `connection_made`, it is none."""
        self._methods = methods
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self.closed = self._loop.create_future()
        self._http2 = Http2(_CONFIG)
        self._transport: asyncio.Transport
        self._streams: dict[int, _Stream] = {}
        self._is_paused = self._is_dirty = self._is_leaving = self._has_left = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        # Of a client whose machine is gone nothing is heard otherwise, for ever.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._connections.add(self)
        self._http2.initiate_connection()
        self._http2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: CALLS_COUNT_MAX})
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        if self._has_left:
            return
        try:
            for event in self._http2.receive_data(data):
                self._see(event)
        except ProtocolError:
            # h2 has said why.
            self._flush()
            self._has_left = True
            self._end_all()
            self._transport.close()
        else:
            self._flush()

    def pause_writing(self) -> None:
        """Called by asyncio: the client does not read."""
        self._is_paused = True

    def resume_writing(self) -> None:
        """Called by asyncio."""
        self._is_paused = False
        self._push_all()

    def connection_lost(self, _: Exception | None) -> None:
        """Called by asyncio."""
        self._connections.discard(self)
        self._end_all()
        self.closed.set_result(None)

    def drain(self) -> None:
        """Take no new calls; leave once those under way are answered."""
        if not self._has_left:
            self._http2.say_goodbye()
            self._http2.ping(READ)
            self._flush()

    def abort(self) -> None:
        """Leave at once."""
        self._transport.abort()

    def send(self, stream_id: int, data: bytes) -> None:
        """As Wire.send."""
        if stream := self._streams.get(stream_id):
            stream.unsent = bytes(stream.unsent) + data if stream.unsent else data
            self._push(stream_id, stream)

    def end(self, stream_id: int, headers: Headers) -> None:
        """As Wire.end."""
        if stream := self._streams.get(stream_id):
            stream.end = headers
            self._push(stream_id, stream)

    def _see(self, event: Event) -> None:
        match event:
            case RequestReceived():
                self._accept(event)
            case DataReceived():
                self._receive(event)
            case StreamEnded():
                if stream := self._streams.get(event.stream_id):
                    stream.call.ended()
            case StreamReset():
                self._give_up(event.stream_id)
            case WindowUpdated() | RemoteSettingsChanged():
                self._push_all()
            case ConnectionTerminated() | PingAckReceived():
                # No call is begun any more.
                self._is_leaving = True
                self._leave_if_done()

    def _accept(self, event: RequestReceived) -> None:
        said = dict(event.headers)
        path = said.get(b":path", b"")
        handler = self._methods.get(path)
        if said.get(b":method") != b"POST" or not said.get(b"content-type", b"").startswith(b"application/grpc"):
            self._refuse(event, [(b":status", b"415")])
        elif handler is None:
            details = f"there is no method {path.decode('latin-1')}: reflection says which there are"
            self._refuse(event, [*HEAD, *status(grpc.StatusCode.UNIMPLEMENTED, details)])
        else:
            self._streams[event.stream_id] = _Stream(Call(self, event.stream_id, handler, event.headers))

    def _refuse(self, event: RequestReceived, headers: Headers) -> None:
        self._http2.send_headers(event.stream_id, headers, end_stream=True)
        self._cut_short(event.stream_id)

    def _receive(self, event: DataReceived) -> None:
        self._http2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        if stream := self._streams.get(event.stream_id):
            stream.call.received(event.data)

    def _push_all(self) -> None:
        for stream_id, stream in list(self._streams.items()):
            if stream.unsent:
                self._push(stream_id, stream)

    def _push(self, stream_id: int, stream: _Stream) -> None:
        """Send what its client has room for."""
        try:
            self._send(stream_id, stream)
        except StreamClosedError:
            # Reset by its client, which we are about to see.
            self._give_up(stream_id)
        if not self._is_dirty:
            self._is_dirty = True
            self._loop.call_soon(self._flush)

    def _send(self, stream_id: int, stream: _Stream) -> None:
        http2 = self._http2
        if not stream.has_head and stream.unsent:
            stream.has_head = True
            http2.send_headers(stream_id, HEAD)
        while stream.unsent and not self._is_paused:
            room = min(http2.local_flow_control_window(stream_id), http2.max_outbound_frame_size)
            if room <= 0:
                return
            unsent = memoryview(stream.unsent)
            http2.send_data(stream_id, unsent[:room])
            stream.unsent = unsent[room:]
        if stream.end is not None and not stream.unsent:
            http2.send_headers(stream_id, stream.end if stream.has_head else [*HEAD, *stream.end], end_stream=True)
            del self._streams[stream_id]
            if not stream.call.is_whole:
                self._cut_short(stream_id)
            self._leave_if_done()

    def _cut_short(self, stream_id: int) -> None:
        """Its client need not send the rest, if there is any."""
        with contextlib.suppress(StreamClosedError):
            self._http2.reset_stream(stream_id)

    def _give_up(self, stream_id: int) -> None:
        if stream := self._streams.pop(stream_id, None):
            stream.call.leave()
            self._leave_if_done()

    def _flush(self) -> None:
        self._is_dirty = False
        if data := self._http2.data_to_send():
            self._transport.write(data)

    def _leave_if_done(self) -> None:
        if self._is_leaving and not self._streams:
            self._http2.close_connection()
            self._flush()
            self._has_left = True
            # Its client closes: were there something of it that we have not read, answers that it has not read would be lost.
            self._transport.write_eof()

    def _end_all(self) -> None:
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.call.leave()
