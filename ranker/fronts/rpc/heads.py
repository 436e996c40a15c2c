"""Headers of a connection's calls: in a frame or several, decoded by hpack, or known from before."""

from collections.abc import Mapping

from hpack import Decoder, HPACKError, OversizedHeaderListError

from ranker.fronts.rpc import frames
from ranker.fronts.rpc.frames import Frame
from schemas.errors import Http2Error

#: Room for a call's headers (bytes), packed and unpacked; and frames that they may come in. gRPC's own clients send a few hundred bytes.
HEADERS_BYTES_MAX, PARTS_COUNT_MAX = 65_536, 64
#: Blocks of headers that are not decoded again. A client has one or two for each method that it calls.
KNOWN_COUNT_MAX = 64

Said = Mapping[bytes, bytes]


class Heads:
    """What the headers of one connection say; each may refer to those before it."""

    def __init__(self) -> None:
        """None came yet."""
        self._decoder = Decoder(HEADERS_BYTES_MAX)
        self._known: dict[bytes, Said] = {}
        #: Of headers whose rest is still to come: the frame that began them, and what came so far.
        self._first: Frame | None = None
        self._parts: list[bytes] = []

    @property
    def is_within(self) -> bool:
        """Whether only more of the same headers may come now."""
        return self._first is not None

    def take(self, frame: Frame) -> tuple[Frame, Said] | None:
        """Of a HEADERS or CONTINUATION frame that ends some: the frame that began them, and what they say.

        Raises Http2Error for one that may not come now, for too many, and for what is none.
        """
        if frame.kind == frames.HEADERS:
            self._first, self._parts = frame, [frames.content(frame)]
        elif self._first and self._first.stream_id == frame.stream_id:
            self._parts.append(frame.payload)
        else:
            raise Http2Error(frames.PROTOCOL_ERROR, f"headers go on that did not begin, on stream {frame.stream_id}")
        if len(self._parts) > PARTS_COUNT_MAX or sum(map(len, self._parts)) > HEADERS_BYTES_MAX:
            raise _too_large()
        if not frame.flags & frames.END_HEADERS:
            return None
        first, self._first = self._first, None
        return first, self._decoded(b"".join(self._parts))

    def _decoded(self, block: bytes) -> Said:
        """One of references alone, as most are, says what it said before if no other one came meanwhile."""
        if (known := self._known.get(block)) is not None:
            return known
        try:
            said = dict(self._decoder.decode(block, raw=True))
        except OversizedHeaderListError as error:
            raise _too_large() from error
        except HPACKError as error:
            raise Http2Error(frames.COMPRESSION_ERROR, f"headers are none: {error}") from error
        if len(self._known) < KNOWN_COUNT_MAX and _is_of_references(block):
            self._known[block] = said
        else:
            self._known.clear()
        return said


def _too_large() -> Http2Error:
    message = f"headers have more than {HEADERS_BYTES_MAX} bytes, or come in more than {PARTS_COUNT_MAX} frames"
    return Http2Error(frames.ENHANCE_YOUR_CALM, message)


def _is_of_references(block: bytes) -> bool:
    """Whether headers are references of one byte each, which leave what is referred to as it is (RFC 7541, 6.1)."""
    return len(block) > 0 and min(block) > 0x80 and max(block) < 0xFF
