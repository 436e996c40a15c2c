"""POST /v1/rank past ASGI: uvicorn's protocol reads a request, and its answer is written at once, head and body together.

ASGI takes a task's rounds of the loop, an event and two writes for it, as long as a request of a batch is ranked. What is plain goes this
way: a whole POST /v1/rank of HTTP/1.1 that says its length and wants nothing else of its connection. Everything else goes uvicorn's own
way to the same front end. What is used of uvicorn's protocol is not what it promises to keep: tests send the same both ways.
"""

import asyncio
import functools
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from ranker.fronts import problems
from ranker.fronts.http import JSON, HttpFront
from ranker.fronts.problems import Problem
from ranker.fronts.requests import BODY_BYTES_MAX, Headers
from ranker.reads.answers import Answer, nothing
from schemas.records import RankRequest

URL = b"/v1/rank"
#: What may want more of a connection than one answer, and what says that it does not.
ODD, PLAIN = (b"connection", b"expect", b"transfer-encoding", b"upgrade"), (b"connection", b"keep-alive")


class Ranking:
    """A request under way, in the place of uvicorn's cycle; all but headers, received_s and leave are what its protocol looks at.

    leave: for when its client is gone; nobody is ranked for then.
    """

    #: Nobody waits for it.
    message_event = asyncio.Event()

    def __init__(self, headers: Headers) -> None:
        """When its head is there."""
        self.headers = headers
        self.received_s = time.perf_counter()
        self.body = bytearray()
        self.more_body = True
        self.keep_alive = True
        self.disconnected = False
        self.response_complete = False
        self.leave: Callable[[], None] = nothing

    def begin(self, protocol: "RankProtocol") -> None:
        """When its body is there."""
        # Not here, in the parser's call: a fault of ours would be told as the client's.
        protocol.loop.call_soon(self._ask, protocol, protocol.config.app)  # type: ignore[arg-type]  # we are given no other

    def _ask(self, protocol: "RankProtocol", front: HttpFront) -> None:
        try:
            request = front.request(self.headers, bytes(self.body))
            leave = front.ranker.ask(request, self.received_s, functools.partial(self._answer, protocol, front, request))
            if not self.response_complete:
                self.leave = leave
        except Problem as problem:
            self._write(protocol, problem.status, [*problem.headers, (b"content-type", problems.TYPE)], problem.body())
        except BaseException:
            self._fail(protocol)
            raise

    def _answer(self, protocol: "RankProtocol", front: HttpFront, request: RankRequest, answer: Answer) -> None:
        # Else this connection would keep what was asked until it asks again.
        self.leave = nothing
        try:
            self._write(protocol, HTTPStatus.OK, [(b"content-type", JSON)], front.said(request, answer))
        except BaseException:
            # Others whose answers were kept with this one are told by their timers then, in their deadlines.
            self._fail(protocol)
            raise

    def _fail(self, protocol: "RankProtocol") -> None:
        self.keep_alive = False
        self._write(protocol, HTTPStatus.INTERNAL_SERVER_ERROR, [(b"content-type", b"text/plain")], b"Internal Server Error")

    def _write(self, protocol: "RankProtocol", status: HTTPStatus, headers: Headers, body: bytes) -> None:
        self.response_complete = True
        if self.disconnected:
            return
        more = [] if self.keep_alive else [(b"connection", b"close")]
        named = [*protocol.server_state.default_headers, *headers, *more, (b"content-length", b"%d" % len(body))]
        protocol.transport.write(b"".join((STATUS_LINE[status], *_lines(named), b"\r\n", body)))
        if not self.keep_alive:
            protocol.transport.close()
        protocol.on_response_complete()


def _lines(headers: Headers) -> Iterable[bytes]:
    return [b"%b: %b\r\n" % header for header in headers]


class RankProtocol(HttpToolsProtocol):
    """uvicorn's protocol of a connection to an HttpFront."""

    cycle: Any

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        if self.url == URL and self._is_plain():
            self.cycle = Ranking(self.headers)
        else:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Called by the parser."""
        super().on_message_complete()
        if isinstance(self.cycle, Ranking):
            self.cycle.begin(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        super().connection_lost(exc)
        if isinstance(self.cycle, Ranking):
            # What leaves knows who waits, which is the ranking itself: a cycle.
            leave, self.cycle.leave = self.cycle.leave, nothing
            leave()

    def _is_plain(self) -> bool:
        """Whether nothing else is under way on this connection, and nothing is wanted but an answer to a body of a known, small length."""
        is_busy = self.cycle is not None and not self.cycle.response_complete
        if is_busy or self.flow.write_paused or self.parser.get_method() != b"POST" or self.parser.get_http_version() != "1.1":
            return False
        length = b""
        for name, value in self.headers:
            if name == b"content-length":
                length = value
            elif name in ODD and (name, value.lower()) != PLAIN:
                return False
        return length.isdigit() and int(length) <= BODY_BYTES_MAX
