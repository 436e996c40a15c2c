"""A gRPC call: what its client said, and what it is told. What stands on the wire is defined by gRPC's PROTOCOL-HTTP2.md."""

import asyncio
import re
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NoReturn, Protocol
from urllib.parse import quote

import grpc

from ranker.fronts.requests import BODY_BYTES_MAX
from ranker.fronts.rpc.frames import Headers
from ranker.fronts.rpc.heads import Said
from ranker.reads.answers import nothing

#: Before each message: whether it is compressed, and how many bytes it has.
PREFIX = struct.Struct(">?I")
DONE: Headers = ((b"grpc-status", b"0"),)
#: What the server takes; a client whose message is compressed is told so.
ACCEPTED = (b"grpc-accept-encoding", b"identity")
#: Characters of an error's sentence that its client is told: they may become twelve times as many bytes, and gRPC's clients take 8 KiB.
DETAILS_COUNT_MAX = 500
_TIMEOUT, _UNITS_S = re.compile(rb"([0-9]{1,8})([HMSmun])"), {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


class Wire(Protocol):
    """Where answers go. Nothing is done for a stream that is over."""

    def send(self, stream_id: int, data: bytes) -> None:
        """Send more of an answer, as fast as its client takes it."""

    def end(self, stream_id: int, headers: Headers) -> None:
        """End it, behind all of it."""


class EndedError(Exception):
    """The call was ended, and its client was told."""


class Call(ABC):
    """A call under way. received_s: time.perf_counter() when its head was there."""

    def __init__(self, wire: Wire, stream_id: int, said: Said) -> None:
        """said: its headers."""
        self._wire = wire
        self._stream_id = stream_id
        self._said = said
        self.received_s = time.perf_counter()
        self._unread = b""
        #: Whether nothing that its client says is heard any more.
        self._is_over = False

    @abstractmethod
    def ended(self) -> None:
        """Its client has said all."""

    @abstractmethod
    def leave(self) -> None:
        """Its client is gone: nobody is answered."""

    @abstractmethod
    def _take(self, message: bytes) -> None:
        """One of its client's messages."""

    def received(self, data: bytes) -> None:
        """More of its client's messages."""
        unread = self._unread + data
        while len(unread) >= PREFIX.size and not self._is_over:
            is_compressed, size = PREFIX.unpack_from(unread)
            end = PREFIX.size + size
            if is_compressed:
                self.refuse(grpc.StatusCode.UNIMPLEMENTED, "messages are not decompressed: send them as they are", (ACCEPTED,))
            elif size > BODY_BYTES_MAX:
                self.refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, f"the message has {size} bytes, more than {BODY_BYTES_MAX}")
            elif len(unread) < end:
                break
            else:
                self._take(unread[PREFIX.size : end])
                unread = unread[end:]
        self._unread = b"" if self._is_over else unread

    def refuse(self, code: grpc.StatusCode, details: str, trailing: Headers = ()) -> None:
        """End it without an answer."""
        self._is_over = True
        self.leave()
        self._wire.end(self._stream_id, (*status(code, details), *trailing))

    def said(self, name: bytes) -> bytes:
        """A header, by its name in lower case; empty where there is none."""
        return self._said.get(name, b"")

    def time_remaining(self) -> float | None:
        """Seconds until the caller gives up; None where it waits for ever, or says what is no time."""
        found = _TIMEOUT.fullmatch(self.said(b"grpc-timeout"))
        return int(found[1]) * _UNITS_S[found[2]] - (time.perf_counter() - self.received_s) if found else None


class Asked(Call):
    """A call of one message that a plain function has answered by one, at once or later: it is no task."""

    def __init__(self, ask: "Ask", wire: Wire, stream_id: int, said: Said) -> None:
        """ask: runs in the round after its client has said all."""
        super().__init__(wire, stream_id, said)
        self._ask = ask
        self._message: bytes | None = None
        self._leave: Callable[[], None] = nothing

    def ended(self) -> None:
        """As Call.ended."""
        if self._message is None:
            self.refuse(grpc.StatusCode.INVALID_ARGUMENT, "there is no message: this method takes one")
        else:
            # Not here, where all that came is read: a fault of ours would end the connection.
            self._leave = asyncio.get_running_loop().call_soon(self._begin, self._message).cancel

    def leave(self) -> None:
        """As Call.leave."""
        # What leaves knows who waits, which is the call itself: a cycle.
        self._is_over, leave, self._leave = True, self._leave, nothing
        leave()

    def answer(self, message: bytes) -> None:
        """Its answer, if somebody waits for it."""
        self._is_over, self._leave = True, nothing
        self._wire.send(self._stream_id, PREFIX.pack(False, len(message)) + message)
        self._wire.end(self._stream_id, DONE)

    def abort(self, code: grpc.StatusCode, details: str, trailing: Headers = ()) -> NoReturn:
        """As refuse, for who is within `ask`. Raises EndedError."""
        self.refuse(code, details, trailing)
        raise EndedError

    def fail(self) -> None:
        """End it for a fault of ours."""
        self.refuse(grpc.StatusCode.UNKNOWN, "it failed")

    def _take(self, message: bytes) -> None:
        if self._message is not None:
            self.refuse(grpc.StatusCode.INVALID_ARGUMENT, "there is another message: this method takes one")
        self._message = message

    def _begin(self, message: bytes) -> None:
        try:
            leave = self._ask(message, self)
        except EndedError:
            return
        except BaseException:
            self.fail()
            raise
        if not self._is_over:
            self._leave = leave


#: Answers a message by its call. Returns what to call where it is not waited for any more.
Ask = Callable[[bytes, Asked], Callable[[], None]]


def status(code: grpc.StatusCode, details: str) -> Headers:
    """How a call ends, in its trailers."""
    return (b"grpc-status", b"%d" % code.value[0]), (b"grpc-message", quote(details[:DETAILS_COUNT_MAX]).encode())
