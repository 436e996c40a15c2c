"""Headers of a connection's calls: in a frame or several, decoded by hpack, or known from before."""

from collections.abc import Mapping

from hpack import Decoder, HPACKError

from ranker.fronts.rpc import frames
from ranker.fronts.rpc.frames import Frame
from schemas.errors import Http2Error

#: Room for a call's headers (bytes). gRPC's own clients send a few hundred, and take 8 KiB.
HEADERS_BYTES_MAX = 65_536
#: Blocks of headers that are not decoded again. A client has one or two for each method that it calls.
KNOWN_COUNT_MAX = 64

Said = Mapping[bytes, bytes]


class Heads:
    """What the headers of one connection say; each may refer to those before it."""

    def __init__(self) -> None:
        """None came yet."""
        self._decoder = Decoder()
        self._known: dict[bytes, Said] = {}
        #: Of headers whose rest is still to come: the frame that began them, and what came so far.
        self._begun: tuple[Frame, bytes] | None = None

    @property
    def is_within(self) -> bool:
        """Whether only more of the same headers may come now."""
        return self._begun is not None

    def take(self, frame: Frame) -> tuple[Frame, Said] | None:
        """Of a HEADERS or CONTINUATION frame that ends some: the frame that began them, and what they say.

        Raises Http2Error for one that may not come now, for too many, and for what is none.
        """
        if frame.kind == frames.HEADERS:
            first, block = frame, frames.content(frame)
        elif self._begun and self._begun[0].stream_id == frame.stream_id:
            first, block = self._begun[0], self._begun[1] + frame.payload
        else:
            raise Http2Error(frames.PROTOCOL_ERROR, f"headers go on that did not begin, on stream {frame.stream_id}")
        if len(block) > HEADERS_BYTES_MAX:
            raise Http2Error(frames.ENHANCE_YOUR_CALM, f"headers have more than {HEADERS_BYTES_MAX} bytes")
        is_whole = bool(frame.flags & frames.END_HEADERS)
        self._begun = None if is_whole else (first, block)
        return (first, self._decoded(block)) if is_whole else None

    def _decoded(self, block: bytes) -> Said:
        """One of references alone, as most are, says what it said before if no other one came meanwhile."""
        if (known := self._known.get(block)) is not None:
            return known
        try:
            said = dict(self._decoder.decode(block, raw=True))
        except HPACKError as error:
            raise Http2Error(frames.COMPRESSION_ERROR, f"headers are none: {error}") from error
        if len(self._known) < KNOWN_COUNT_MAX and _is_of_references(block):
            self._known[block] = said
        else:
            self._known.clear()
        return said


def _is_of_references(block: bytes) -> bool:
    """Whether headers are references of one byte each, which leave what is referred to as it is (RFC 7541, 6.1)."""
    return len(block) > 0 and min(block) > 0x80 and max(block) < 0xFF
