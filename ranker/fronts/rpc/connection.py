"""A client's connection: HTTP/2, each stream a call. What one round of the loop sends goes out in one write."""

import asyncio
import socket
from collections.abc import Callable, Mapping

import grpc

from ranker.fronts.rpc import frames
from ranker.fronts.rpc.call import Call, Wire, status
from ranker.fronts.rpc.frames import Frame, Frames, Headers
from ranker.fronts.rpc.heads import HEADERS_BYTES_MAX, Heads, Said
from ranker.fronts.rpc.stream import HEAD, Stream, enlarged
from schemas.errors import Http2Error

#: Calls under way on one connection. More wait at their client, where nobody sees them: the ranker's queue turns away before that.
CALLS_COUNT_MAX = 1_000
#: What a connection's calls may say ahead of our reading it, together (bytes): some 250 requests of 200 candidates.
ROOM_BYTES = 1 << 20
#: What may wait for room on a stream whose answer goes on (bytes).
UNSENT_BYTES_MAX = 1 << 20
#: Asks whether the client has read what was sent before (eight bytes).
READ = b"goodbye!"

#: Begins a call, on its stream, by its headers.
Begin = Callable[[Wire, int, Said], Call]


class Connection(asyncio.Protocol):
    """One connection. methods: by path. connections: those that are open, this one among them."""

    def __init__(self, methods: Mapping[bytes, Begin], connections: set["Connection"]) -> None:
        """Until `connection_made`, it is none."""
        self._methods = methods
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self.closed = self._loop.create_future()
        self._transport: asyncio.Transport
        self._frames, self._heads = Frames(), Heads()
        self._streams: dict[int, Stream] = {}
        self._last_id = 0
        #: What the client has room for on all streams together, and on one that begins; what it said that it is not given back yet.
        self._room = self._room_first = frames.WINDOW_BYTES
        self._taken_bytes = 0
        self._unsent: list[bytes] = []
        self._is_leaving = self._has_left = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        # Of a client whose machine is gone nothing is heard otherwise, for ever.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._connections.add(self)
        wanted = {frames.MAX_CONCURRENT_STREAMS: CALLS_COUNT_MAX, frames.MAX_HEADER_LIST_SIZE: HEADERS_BYTES_MAX}
        self._say(frames.settings(wanted))
        self._say(frames.window_update(0, ROOM_BYTES - frames.WINDOW_BYTES))

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        if self._has_left:
            return
        try:
            for frame in self._frames.of(data):
                self._see(frame)
                if self._has_left:
                    return
        except Http2Error as error:
            self._say(frames.goaway(self._last_id, error.code))
            self._flush()
            self._has_left = True
            self._end_all()
            self._transport.close()
            return
        if self._taken_bytes:
            self._say(frames.window_update(0, self._taken_bytes))
            self._taken_bytes = 0

    def pause_writing(self) -> None:
        """Called by asyncio: the client does not read. What it says meanwhile we would have to answer."""
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Called by asyncio."""
        self._transport.resume_reading()

    def connection_lost(self, _: Exception | None) -> None:
        """Called by asyncio."""
        self._connections.discard(self)
        self._end_all()
        self.closed.set_result(None)

    def drain(self) -> None:
        """Take no new calls; leave once those under way are answered."""
        # A client that is told so begins no other, and all that it has begun are answered (RFC 9113, 6.8).
        self._say(frames.goaway(frames.LARGEST, frames.NO_ERROR))
        self._say(frames.made(frames.PING, 0, 0, READ))

    def abort(self) -> None:
        """Leave at once."""
        self._transport.abort()

    def send(self, stream_id: int, data: bytes) -> None:
        """As Wire.send."""
        if stream := self._streams.get(stream_id):
            if len(stream.unsent) > UNSENT_BYTES_MAX:
                self._say(frames.reset(stream_id, frames.ENHANCE_YOUR_CALM))
                self._give_up(stream_id)
                return
            stream.unsent = bytes(stream.unsent) + data if stream.unsent else data
            self._push(stream_id, stream)

    def end(self, stream_id: int, headers: Headers) -> None:
        """As Wire.end; the first end holds."""
        stream = self._streams.get(stream_id)
        if stream and stream.end is None:
            stream.end = headers
            self._push(stream_id, stream)

    def _see(self, frame: Frame) -> None:
        """Take a frame in. Raises Http2Error where it may not come now, or says what it may not."""
        if self._heads.is_within and frame.kind != frames.CONTINUATION:
            raise Http2Error(frames.PROTOCOL_ERROR, f"frame {frame.kind} comes where headers go on")
        match frame.kind:
            case frames.DATA:
                self._take(frame)
            case frames.HEADERS | frames.CONTINUATION:
                if whole := self._heads.take(frame):
                    self._head(*whole)
            case frames.RST_STREAM:
                self._of(frame)
                self._give_up(frame.stream_id)
            case frames.WINDOW_UPDATE:
                self._make_room(frame)
            case frames.SETTINGS | frames.PING | frames.GOAWAY | frames.PUSH_PROMISE:
                self._be_told(frame)

    def _of(self, frame: Frame) -> Stream | None:
        """The stream that a frame is for; None for one that is over. Raises Http2Error for one that was not begun."""
        if frame.stream_id > self._last_id or not frame.stream_id % 2:
            raise Http2Error(frames.PROTOCOL_ERROR, f"frame {frame.kind} is for stream {frame.stream_id}, which was not begun")
        return self._streams.get(frame.stream_id)

    def _be_told(self, frame: Frame) -> None:
        """What is of no stream."""
        if frame.stream_id or frame.kind == frames.PUSH_PROMISE:
            raise Http2Error(frames.PROTOCOL_ERROR, f"frame {frame.kind} is for stream {frame.stream_id}")
        match frame.kind, frame.flags & frames.ACK:
            case frames.SETTINGS, _:
                self._settle(frame)
            case frames.PING, 0:
                self._say(frames.made(frames.PING, frames.ACK, 0, frame.payload))
            case frames.PING, _ if frame.payload != READ:
                pass
            case _:
                # It begins no call any more.
                self._is_leaving = True
                self._leave_if_done()

    def _settle(self, frame: Frame) -> None:
        """Do as the client wants."""
        first = frames.settings_of(frame).get(frames.INITIAL_WINDOW_SIZE, self._room_first)
        if frame.flags & frames.ACK:
            return
        self._say(frames.made(frames.SETTINGS, frames.ACK, 0))
        if more := first - self._room_first:
            self._room_first = first
            for stream in self._streams.values():
                stream.room = enlarged(stream.room, more)
            self._push_all()

    def _make_room(self, frame: Frame) -> None:
        """The client has room for more, on one stream or on all."""
        size = frames.number_of(frame)
        if not size:
            raise Http2Error(frames.PROTOCOL_ERROR, "there is room for 0 bytes more")
        if frame.stream_id == 0:
            was_full, self._room = self._room <= 0, enlarged(self._room, size)
            if was_full:
                self._push_all()
        elif stream := self._of(frame):
            stream.room = enlarged(stream.room, size)
            self._push(frame.stream_id, stream)

    def _head(self, frame: Frame, said: Said) -> None:
        """A call begins; or something stands behind one, which says nothing but that it ends."""
        if frame.stream_id > self._last_id and frame.stream_id % 2:
            self._last_id = frame.stream_id
            self._accept(frame.stream_id, said, is_whole=bool(frame.flags & frames.END_STREAM))
        elif stream := self._of(frame):
            self._hear(frame, stream, b"")

    def _accept(self, stream_id: int, said: Said, *, is_whole: bool) -> None:
        path = said.get(b":path", b"")
        begin = self._methods.get(path)
        if len(self._streams) >= CALLS_COUNT_MAX:
            self._say(frames.reset(stream_id, frames.REFUSED_STREAM))
        elif said.get(b":method") != b"POST" or not said.get(b"content-type", b"").startswith(b"application/grpc"):
            self._refuse(stream_id, ((b":status", b"415"),), is_whole=is_whole)
        elif begin is None:
            details = f"there is no method {path.decode('latin-1')}: reflection says which there are"
            self._refuse(stream_id, (*HEAD, *status(grpc.StatusCode.UNIMPLEMENTED, details)), is_whole=is_whole)
        else:
            call = begin(self, stream_id, said)
            self._streams[stream_id] = Stream(call, self._room_first, is_whole)
            if is_whole:
                call.ended()

    def _refuse(self, stream_id: int, headers: Headers, *, is_whole: bool) -> None:
        self._say(frames.headers(stream_id, headers, is_last=True))
        if not is_whole:
            self._cut_short(stream_id)

    def _take(self, frame: Frame) -> None:
        """Data, for which its client gets room again at once: what a call may say has bounds of its own."""
        self._taken_bytes += len(frame.payload)
        if stream := self._of(frame):
            self._hear(frame, stream, frames.content(frame))
            if frame.payload and not stream.is_whole and frame.stream_id in self._streams:
                self._say(frames.window_update(frame.stream_id, len(frame.payload)))

    def _hear(self, frame: Frame, stream: Stream, data: bytes) -> None:
        """More of a call, or its end."""
        if stream.is_whole:
            raise Http2Error(frames.STREAM_CLOSED, f"stream {frame.stream_id} goes on behind its end")
        stream.is_whole = bool(frame.flags & frames.END_STREAM)
        stream.call.received(data)
        if stream.is_whole and stream.end is None:
            stream.call.ended()

    def _push_all(self) -> None:
        for stream_id, stream in list(self._streams.items()):
            if self._room <= 0:
                return
            self._push(stream_id, stream)

    def _push(self, stream_id: int, stream: Stream) -> None:
        """Send what its client has room for."""
        due, size = stream.due(stream_id, self._room)
        self._room -= size
        for frame in due:
            self._say(frame)
        if stream.is_done:
            del self._streams[stream_id]
            if not stream.is_whole:
                self._cut_short(stream_id)
            self._leave_if_done()

    def _cut_short(self, stream_id: int) -> None:
        """Its client need not send the rest."""
        self._say(frames.reset(stream_id, frames.NO_ERROR))

    def _give_up(self, stream_id: int) -> None:
        if stream := self._streams.pop(stream_id, None):
            stream.call.leave()
            self._leave_if_done()

    def _say(self, frame: bytes) -> None:
        """Send a frame with all else that this round sends."""
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(frame)

    def _flush(self) -> None:
        if self._unsent and not self._has_left:
            self._transport.write(b"".join(self._unsent))
        self._unsent.clear()

    def _leave_if_done(self) -> None:
        if self._is_leaving and not self._streams:
            self._say(frames.goaway(self._last_id, frames.NO_ERROR))
            self._flush()
            self._has_left = True
            # Its client closes: were there something of it that we have not read, answers that it has not read would be lost.
            self._transport.write_eof()

    def _end_all(self) -> None:
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.call.leave()
