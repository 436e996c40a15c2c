"""HTTP/2 as it is on the wire, as far as a server of gRPC meets it (RFC 9113): frames, and what makes a connection end."""

import functools
import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from hpack import Encoder, NeverIndexedHeaderTuple

from schemas.errors import Http2Error

#: Kinds of frames (6). What is none of these is passed over (4.1).
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
#: Flags: of SETTINGS and PING; of DATA and HEADERS; of HEADERS and CONTINUATION; of DATA and HEADERS; of HEADERS.
ACK, END_STREAM, END_HEADERS, PADDED, HAS_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
#: Error codes (7).
NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM = 0x0, 0x1, 0x3, 0x5, 0x6, 0x7
COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 0x9, 0xB
#: Settings (6.5.2).
ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 0x2, 0x3, 0x4, 0x5, 0x6

#: What a client says first (3.4).
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
#: What a frame may hold where nobody says otherwise (4.2): we never do, and send none that is larger.
FRAME_BYTES_MAX = 16_384
#: What there is room for at first (6.9.2), and the largest number of a stream, or of bytes of room.
WINDOW_BYTES, LARGEST = 65_535, 2**31 - 1
#: Frames of these kinds have so many bytes, no more and no less.
_SIZES = {PRIORITY: 5, RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}
#: Before headers: the table that others may refer to is empty (RFC 7541, 6.3). Who wants a smaller one than there is at first must be told.
NO_TABLE = b"\x20"
#: Least, most, and which error another value is (6.5.2).
_ALLOWED = {
    ENABLE_PUSH: (0, 1, PROTOCOL_ERROR),
    INITIAL_WINDOW_SIZE: (0, LARGEST, FLOW_CONTROL_ERROR),
    MAX_FRAME_SIZE: (FRAME_BYTES_MAX, 2**24 - 1, PROTOCOL_ERROR),
}
#: A frame's head (4.1): its size, in two parts, its kind, flags and stream.
_HEAD = struct.Struct(">HBBBI")
_NUMBER, _SETTING = struct.Struct(">I"), struct.Struct(">HI")
_ENCODER = Encoder()

#: Ours, which can be looked up as a whole: each block of them is made once.
Headers = tuple[tuple[bytes, bytes], ...]


class Frame(NamedTuple):
    """A frame that came in. stream_id: 0 is the connection."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes


class Frames:
    """What comes in on a connection, frame by frame."""

    def __init__(self) -> None:
        """Nothing came yet."""
        self._unread = b""
        self._is_begun = False

    def of(self, data: bytes) -> Iterator[Frame]:
        """What is whole now. Raises Http2Error where it is no HTTP/2, or too large."""
        self._unread += data
        if not self._is_begun:
            begin = self._unread[: len(PREFACE)]
            if not PREFACE.startswith(begin):
                raise Http2Error(PROTOCOL_ERROR, f"a client begins with {begin!r}, which is no HTTP/2")
            if len(begin) < len(PREFACE):
                return
            self._is_begun, self._unread = True, self._unread[len(PREFACE) :]
        unread, at = self._unread, 0
        while len(unread) >= (begins := at + _HEAD.size):
            high, low, kind, flags, stream_id = _HEAD.unpack_from(unread, at)
            if (size := high << 8 | low) > FRAME_BYTES_MAX or size != _SIZES.get(kind, size):
                raise Http2Error(FRAME_SIZE_ERROR, f"a frame of kind {kind} has {size} bytes")
            if len(unread) < begins + size:
                break
            at = begins + size
            yield Frame(kind, flags, stream_id & LARGEST, unread[begins:at])
        self._unread = unread[at:]


def content(frame: Frame) -> bytes:
    """What a DATA or HEADERS frame holds besides its padding and priority. Raises Http2Error where it lacks room for those."""
    payload = frame.payload
    begins = 1 if frame.flags & PADDED else 0
    ends = len(payload) - (payload[0] if begins and payload else 0)
    if frame.flags & HAS_PRIORITY and frame.kind == HEADERS:
        begins += _SIZES[PRIORITY]
    if begins > ends:
        raise Http2Error(PROTOCOL_ERROR, f"a frame of {len(payload)} bytes has more padding than that")
    return payload[begins:ends]


def settings_of(frame: Frame) -> dict[int, int]:
    """What a client wants to be so; the last word of each holds. Raises Http2Error for what nobody may want."""
    if len(frame.payload) % _SETTING.size or (frame.flags & ACK and frame.payload):
        raise Http2Error(FRAME_SIZE_ERROR, f"settings have {len(frame.payload)} bytes")
    found = dict(_SETTING.iter_unpack(frame.payload))
    for setting, (least, most, code) in _ALLOWED.items():
        if not least <= (value := found.get(setting, least)) <= most:
            raise Http2Error(code, f"setting {setting} is {value}: it is {least} at least and {most} at most")
    return found


def number_of(frame: Frame) -> int:
    """What the four bytes of a WINDOW_UPDATE say."""
    found: int = _NUMBER.unpack(frame.payload)[0] & LARGEST
    return found


def made(kind: int, flags: int, stream_id: int, payload: bytes | memoryview = b"") -> bytes:
    """A frame as it goes out."""
    size = len(payload)
    return b"".join((_HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream_id), payload))


def settings(wanted: Mapping[int, int]) -> bytes:
    """Our settings."""
    return made(SETTINGS, 0, 0, b"".join([_SETTING.pack(*pair) for pair in wanted.items()]))


def headers(stream_id: int, said: Headers, *, is_last: bool) -> bytes:
    """What stands before an answer, or how it ends: together no larger than a frame."""
    return made(HEADERS, END_HEADERS | (END_STREAM if is_last else 0), stream_id, _block(said))


def window_update(stream_id: int, size: int) -> bytes:
    """Room for so many bytes more."""
    return made(WINDOW_UPDATE, 0, stream_id, _NUMBER.pack(size))


def reset(stream_id: int, code: int) -> bytes:
    """The end of a stream."""
    return made(RST_STREAM, 0, stream_id, _NUMBER.pack(code))


def goaway(stream_id: int, code: int) -> bytes:
    """No stream above this one is answered."""
    return made(GOAWAY, 0, 0, _NUMBER.pack(stream_id) + _NUMBER.pack(code))


@functools.lru_cache(maxsize=64)
def _block(said: Headers) -> bytes:
    """Headers for any connection, whatever was said on it before: none of them enters a table that both sides would have to keep."""
    return NO_TABLE + _ENCODER.encode([NeverIndexedHeaderTuple(name, value) for name, value in said])
