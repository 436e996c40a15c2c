"""A call's answer on its way out: as fast as its client makes room for it (RFC 9113, 5.2)."""

from dataclasses import dataclass

from ranker.fronts.rpc import frames
from ranker.fronts.rpc.call import Call
from ranker.fronts.rpc.frames import Headers
from schemas.errors import Http2Error

#: Before an answer, or in one with how it ends where there is nothing else.
HEAD: Headers = ((b":status", b"200"), (b"content-type", b"application/grpc"))


@dataclass(slots=True)
class Stream:
    """A call, and what of its answer its client has no room for yet.

    room: for so many bytes of it the client has (negative where it changed its mind). is_whole: whether the client has said all. end: what
    follows the answer.
    """

    call: Call
    room: int
    is_whole: bool
    has_head: bool = False
    unsent: bytes | memoryview = b""
    end: Headers | None = None

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to be sent."""
        return self.end is not None and not self.unsent

    def due(self, stream_id: int, room: int) -> tuple[list[bytes], int]:
        """Frames that may go out now, and how many bytes of room they take. room: of the whole connection."""
        found, left = [], room
        if self.unsent and not self.has_head:
            self.has_head = True
            found.append(frames.headers(stream_id, HEAD, is_last=False))
        while (size := min(len(self.unsent), self.room, left, frames.FRAME_BYTES_MAX)) > 0:
            unsent = memoryview(self.unsent)
            found.append(frames.made(frames.DATA, 0, stream_id, unsent[:size]))
            self.unsent = unsent[size:]
            self.room -= size
            left -= size
        if self.end is not None and not self.unsent:
            found.append(frames.headers(stream_id, self.end if self.has_head else (*HEAD, *self.end), is_last=True))
        return found, room - left


def enlarged(room: int, more: int) -> int:
    """Room with so many bytes more, or fewer. Raises Http2Error for more than may be."""
    if room + more > frames.LARGEST:
        raise Http2Error(frames.FLOW_CONTROL_ERROR, f"there is room for more than {frames.LARGEST} bytes")
    return room + more
