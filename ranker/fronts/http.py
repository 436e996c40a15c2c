"""The HTTP front end, a plain ASGI app: POST /v1/rank, and what operators look at.

An answer says what the response's kept bytes say, so that a request_id gets the same one on every front end. A fault of the store or of
the model is never a 5xx to a rank request: the ranker falls back and says so in `degraded`.
"""

import asyncio
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, unquote_to_bytes

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from online_store.keys import Entity
from online_store.store import OnlineStore
from online_store.view import describe
from ranker.fronts import openapi, problems
from ranker.fronts.auth import ANYBODY, Caller, Tokens
from ranker.fronts.problems import Problem
from ranker.fronts.quick.answers import ranked
from ranker.fronts.requests import BODY_BYTES_MAX, Headers, Tell, request_of
from ranker.fronts.shapes import Rank, Status
from ranker.rank import Answer, Ranker
from schemas.errors import BundleError, DecodeError, SettingsError, StoreError
from schemas.features import Registry
from schemas.records import ID_BYTES_MAX, TS_MS_MAX, RankRequest

JSON = b"application/json"
#: How long a request is ranked before it is looked whether its client is still there (seconds): most are answered by then, and looking
#: takes a task. Longer, and more is ranked for nobody.
WATCHED_AFTER_S = 0.005

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Reply = tuple[bytes, bytes]

_BODY = msgspec.json.Decoder(Rank)


class HttpFront:
    """Answers HTTP requests with a ranker. tell: takes each answer's telemetry, and must not wait. tokens: None lets everybody in."""

    def __init__(self, ranker: Ranker, store: OnlineStore, registry: Registry, tell: Tell, tokens: Tokens | None = None) -> None:
        """Ready once the ranker knows its generation; `is_draining` says that it will stop soon."""
        self.ranker = ranker
        self._store = store
        self._registry = registry
        self._tell = tell
        self._tokens = tokens
        self.is_draining = False
        self._routes: tuple[tuple[str, re.Pattern[str], Callable[..., Awaitable[Reply]]], ...] = (
            ("POST", re.compile("/v1/rank"), self._rank),
            ("GET", re.compile("/v1/explain"), self._explain),
            ("GET", re.compile("/v1/features/(?P<kind>[^/]+)/(?P<entity_id>.+)", re.DOTALL), self._features),
            ("GET", re.compile("/healthz"), self._health),
            ("GET", re.compile("/readyz"), self._ready),
            ("GET", re.compile("/metrics"), self._metrics),
            ("GET", re.compile(r"/openapi\.json"), self._openapi),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI 3 has it."""
        assert scope["type"] == "http", scope["type"]
        headers: list[tuple[bytes, bytes]] = []
        try:
            status, (kind, body) = HTTPStatus.OK, await self._answer(scope, receive)
        except Problem as problem:
            status, kind, body, headers = problem.status, problems.TYPE, problem.body(), problem.headers
        headers = [*headers, (b"content-type", kind), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": int(status), "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Scope, receive: Receive) -> Reply:
        path = _path(scope)
        found = next(((wanted, match, handle) for wanted, pattern, handle in self._routes if (match := pattern.fullmatch(path))), None)
        if found is None:
            raise Problem(HTTPStatus.NOT_FOUND, f"there is no {path}: /openapi.json says what there is")
        wanted, match, handle = found
        # The server leaves the body of an answer to HEAD out.
        taken = ("GET", "HEAD") if wanted == "GET" else (wanted,)
        if scope["method"] not in taken:
            allow = ", ".join(taken)
            raise Problem(HTTPStatus.METHOD_NOT_ALLOWED, f"{path} takes {allow} only", headers=[(b"allow", allow.encode())])
        return await handle(scope, receive, **match.groupdict())

    def _caller(self, headers: Headers) -> Caller:
        """Who asks. Raises Problem for somebody who is not known, or asks too often."""
        if self._tokens is None:
            return ANYBODY
        caller = self._tokens.caller(_header(headers, b"authorization"))
        if caller is None:
            challenge = [(b"www-authenticate", b"Bearer")]
            raise Problem(HTTPStatus.UNAUTHORIZED, "no token that is known: send `Authorization: Bearer TOKEN`", headers=challenge)
        wait_s = caller.limit.wait_s(time.monotonic()) if caller.limit else 0.0
        if wait_s:
            after = b"%d" % math.ceil(wait_s)
            raise Problem(HTTPStatus.TOO_MANY_REQUESTS, f"ask again in {after.decode()} s", headers=[(b"retry-after", after)])
        return caller

    def request(self, headers: Headers, body: bytes) -> RankRequest:
        """What POST /v1/rank asks for. Raises Problem."""
        return _request(body, self._caller(headers).tenant, time.time_ns() // 1_000_000)

    def said(self, request: RankRequest, answer: Answer) -> bytes:
        """The JSON that answers it; its telemetry is on its way then."""
        if answer.telemetry is not None:
            self._tell(request, answer.telemetry)
        return msgspec.json.encode(ranked(answer))

    async def _rank(self, scope: Scope, receive: Receive) -> Reply:
        received_s = time.perf_counter()
        request = self.request(scope["headers"], await _body(scope["headers"], receive))
        return JSON, self.said(request, await self._unless_gone(receive, self.ranker.answer(request, received_s)))

    @staticmethod
    async def _unless_gone(receive: Receive, answering: Awaitable[Answer]) -> Answer:
        """The answer; it is cancelled where the client leaves first, and raises Problem for nobody to read."""
        asking, leaving = asyncio.current_task(), None
        assert asking is not None

        def give_up(_: object) -> None:
            asking.cancel()

        def watch() -> None:
            nonlocal leaving
            leaving = asyncio.ensure_future(receive())
            leaving.add_done_callback(give_up)

        timer = asyncio.get_running_loop().call_later(WATCHED_AFTER_S, watch)
        try:
            return await answering
        except asyncio.CancelledError:
            if leaving is None or not leaving.done() or asking.uncancel():
                raise
            raise Problem(HTTPStatus.BAD_REQUEST, "the client left before its answer was here") from None
        finally:
            timer.cancel()
            if leaving is not None:
                leaving.remove_done_callback(give_up)
                leaving.cancel()

    async def _explain(self, scope: Scope, _: Receive) -> Reply:
        """What POST /v1/rank would answer, and why, with its body as a query: lists are repeated, `context.tab` is one of the context."""
        caller = self._caller(scope["headers"])
        body = openapi.body_of(parse_qs(scope["query_string"].decode("ascii", "replace"), keep_blank_values=True))
        request = _request(body, caller.tenant, time.time_ns() // 1_000_000)
        try:
            return JSON, msgspec.json.encode(await self.ranker.explain(request))
        except (StoreError, BundleError, TimeoutError) as error:
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, f"a request would fall back now, and there is no more to say: {error}") from error

    async def _features(self, scope: Scope, _: Receive, kind: str, entity_id: str) -> Reply:
        caller = self._caller(scope["headers"])
        if len(entity_id.encode()) > ID_BYTES_MAX:
            raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"id is longer than {ID_BYTES_MAX} bytes", "id")
        asked = parse_qs(scope["query_string"].decode("ascii", "replace"), keep_blank_values=True)
        as_of = ",".join(asked.get("as_of_ms", [str(time.time_ns() // 1_000_000)]))
        if not re.fullmatch("[0-9]{1,13}", as_of) or not 0 < int(as_of) <= TS_MS_MAX:
            raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"as_of_ms is {as_of!r}: milliseconds since 1970", "as_of_ms")
        try:
            found = await describe(self._store, self._registry, Entity(caller.tenant, kind, entity_id), int(as_of))
        except SettingsError as error:
            raise Problem(HTTPStatus.NOT_FOUND, str(error), "kind") from error
        except StoreError as error:
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from error
        return JSON, msgspec.json.encode(found)

    async def _health(self, _: Scope, __: Receive) -> Reply:
        return JSON, msgspec.json.encode(Status("alive"))

    async def _ready(self, _: Scope, __: Receive) -> Reply:
        if self.is_draining or self.ranker.generation is None:
            why = "it is about to stop" if self.is_draining else "no generation of the store is known yet: start `millstream ingest`"
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, why)
        return JSON, msgspec.json.encode(Status("ready"))

    async def _metrics(self, _: Scope, __: Receive) -> Reply:
        return CONTENT_TYPE_LATEST.encode(), generate_latest()

    async def _openapi(self, _: Scope, __: Receive) -> Reply:
        return JSON, msgspec.json.encode(openapi.document(self._registry.kinds))


def _path(scope: Scope) -> str:
    """The path, its quoted bytes as what they stand for. Raises Problem where they are not UTF-8: an id would be shown as another one."""
    try:
        return unquote_to_bytes(scope["raw_path"]).decode()
    except UnicodeDecodeError as error:
        raise Problem(HTTPStatus.BAD_REQUEST, f"the path is not UTF-8: {error}") from error


def _header(headers: Headers, name: bytes) -> str:
    """A header's value, empty where there is none."""
    return next((value.decode("latin-1") for found, value in headers if found == name), "")


async def _body(headers: Headers, receive: Receive) -> bytes:
    if "upgrade" in _header(headers, b"connection").lower():
        # httptools takes what follows for the other protocol, and gives no body.
        said = f"there is no upgrade to {_header(headers, b'upgrade')}: ask without it, in Java by HttpClient.Version.HTTP_1_1"
        raise Problem(HTTPStatus.BAD_REQUEST, said, headers=[(b"connection", b"close")])
    length = _header(headers, b"content-length")
    body, more = b"", True
    while more:
        if len(body) > BODY_BYTES_MAX or (length.isdecimal() and int(length) > BODY_BYTES_MAX):
            raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has more than {BODY_BYTES_MAX} bytes")
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Problem(HTTPStatus.BAD_REQUEST, "the client left before its body was here")
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def _request(body: bytes, tenant: str, now_ms: int) -> RankRequest:
    """A request that can be answered. Raises Problem with the field at fault."""
    try:
        return request_of(_BODY.decode(body), tenant, now_ms)
    except UnicodeDecodeError as error:
        raise Problem(HTTPStatus.BAD_REQUEST, f"the body is not UTF-8: {error}") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise problems.of_invalid(error) from error
    except DecodeError as error:
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, error.detail, f"$.{error.detail.partition(' ')[0]}") from error
