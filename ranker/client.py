"""A client of POST /v1/rank, for feeds in Python.

    with RankClient("http://ranker:8080") as client:
        ranked = client.rank("u1", ["i5", "i6", "i7"], k=2)

A request is tried again, inside its deadline, after what may pass: a lost connection, a proxy's 502 to 504, a limit. All its tries carry
one request_id, so that they are one request with one answer, byte for byte, however many arrive. A ranker that failed two requests in a row
is left alone for a while. What cannot be had is a RankError (schemas/errors.py): show something else then.
"""

import asyncio
import random
import re
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Self, TypeVar

import httpx
import msgspec

from ranker.fronts.shapes import Fault, Rank, Ranked
from ranker.reads.breaker import PAUSE_S_MAX, Breaker
from schemas.errors import RankerAwayError, RankError, SettingsError

#: What a request may take, its tries and the pauses between them together (milliseconds): the ranker's own 80, and some for the way.
DEADLINE_MS = 100
#: Of it, what the ranker is not given (milliseconds): the way there and back. Less, and an answer of the last moment comes too late.
WAY_MS = 10
#: A pause before another try is drawn from 0 to the one, then to twice as much, at most to the other (milliseconds). Longer wastes the
#: deadline; shorter, or none drawn, and all clients of a ranker that starts again are back at once.
PAUSE_MS, PAUSE_MS_MAX = 5, 1_000
#: Connections at most, all kept open: requests past them wait for one inside their deadline.
CONNECTIONS_COUNT_MAX = 100
#: Answers of a ranker, or of the balancer before it, that cannot rank now.
AWAY = (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)
#: What another try may not meet again; None is no answer at all.
PASSING = (None, HTTPStatus.TOO_MANY_REQUESTS, *AWAY)

Body = TypeVar("Body", Ranked, Fault)


class AsyncRankClient:
    """Asks a ranker from an event loop. One serves all tasks of a process, and keeps their connections open."""

    def __init__(self, url: str, token: str | None = None) -> None:
        """Nothing is sent yet. url: of a front end, or of the balancer before several. token: whose hash is in its tokens_file.

        Raises SettingsError for what is no URL.
        """
        if not re.match("https?://.", url):
            raise SettingsError(f"the ranker's URL is {url!r}: it begins with http:// or https://, for one http://localhost:8080.")
        self._url = url
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
        limits = httpx.Limits(max_connections=CONNECTIONS_COUNT_MAX, max_keepalive_connections=CONNECTIONS_COUNT_MAX)
        self._http = httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=None)  # noqa: S113  # asyncio.timeout has it all
        self._breaker = Breaker()

    async def rank(
        self,
        user_id: str,
        candidate_item_ids: Sequence[str],
        k: int,
        *,
        request_id: str | None = None,
        deadline_ms: int = DEADLINE_MS,
        context: Mapping[str, str] | None = None,
    ) -> Ranked:
        """The k best candidates, best first. request_id: asked again with it, the same answer comes back; one is made if none is given.

        Raises RankerAwayError where there is no answer within deadline_ms, RankError where the ranker refuses the request.
        """
        if not self._breaker.allows(time.monotonic()):
            count = self._breaker.failures
            raise RankerAwayError(f"{self._url} failed {count} requests in a row and is left alone, for {PAUSE_S_MAX} s at most. Is it up?")
        said = Rank(
            user_id=user_id,
            candidate_item_ids=list(candidate_item_ids),
            k=k,
            request_id=request_id or str(uuid.uuid4()),
            context=dict(context or {}),
        )
        try:
            ranked = await self._ranked(said, deadline_ms)
        except RankerAwayError:
            self._breaker.failed(time.monotonic())
            raise
        except RankError:
            self._breaker.succeeded()
            raise
        except BaseException:
            self._breaker.probing = False
            raise
        self._breaker.succeeded()
        return ranked

    async def _ranked(self, said: Rank, deadline_ms: int) -> Ranked:
        """Try until it is answered, refused or too late."""
        until_s = time.monotonic() + deadline_ms / 1000
        pause_ms_max, met = PAUSE_MS, ""
        try:
            async with asyncio.timeout(deadline_ms / 1000):
                while True:
                    try:
                        return await self._try(said, until_s)
                    except RankError as error:
                        pause_s = error.retry_after_s + random.uniform(0, pause_ms_max) / 1000  # noqa: S311  # spreads load, keeps no secret
                        if error.status not in PASSING or time.monotonic() + pause_s >= until_s:
                            raise
                        pause_ms_max, met = min(2 * pause_ms_max, PAUSE_MS_MAX), f" Before that: {error}"
                    await asyncio.sleep(pause_s)
        except TimeoutError as error:
            raise RankerAwayError(f"{self._url} did not answer within {deadline_ms} ms. Is it up, or the deadline short?{met}") from error

    async def _try(self, said: Rank, until_s: float) -> Ranked:
        """Ask once. Raises RankError, also where there is no answer."""
        left_ms = int((until_s - time.monotonic()) * 1000) - WAY_MS
        content = msgspec.json.encode(msgspec.structs.replace(said, deadline_ms=max(left_ms, 1)))
        try:
            response = await self._http.post("/v1/rank", content=content)
        except httpx.RequestError as error:
            raise RankerAwayError(f"{self._url} did not answer: {error!r}. Is it up?") from error
        if response.status_code != HTTPStatus.OK:
            raise _refusal(self._url, response)
        ranked = _decoded(response.content, Ranked)
        if ranked is None:
            message = f"{self._url} answered with no ranking but {response.content[:100]!r}. Is it a ranker's URL?"
            raise RankError(message, status=response.status_code)
        return ranked

    async def close(self) -> None:
        """Let go of the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        """Closed with the block."""
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class RankClient:
    """The same for programs without an event loop: any thread may call it. Made anew after a fork.

    Its loop runs in a thread of its own: a socket's timeout bounds each step of a request, and only a loop bounds the whole.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        """As AsyncRankClient."""
        self._client = AsyncRankClient(url, token)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rank-client", daemon=True)
        self._thread.start()

    def rank(
        self,
        user_id: str,
        candidate_item_ids: Sequence[str],
        k: int,
        *,
        request_id: str | None = None,
        deadline_ms: int = DEADLINE_MS,
        context: Mapping[str, str] | None = None,
    ) -> Ranked:
        """As AsyncRankClient.rank."""
        asked = self._client.rank(user_id, candidate_item_ids, k, request_id=request_id, deadline_ms=deadline_ms, context=context)
        return asyncio.run_coroutine_threadsafe(asked, self._loop).result()

    def close(self) -> None:
        """Let go of the connections and of the thread."""
        asyncio.run_coroutine_threadsafe(self._client.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        """Closed with the block."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _refusal(url: str, response: httpx.Response) -> RankError:
    """What an answer other than a ranking says, by its problem document if it has one."""
    fault = _decoded(response.content, Fault)
    detail, at = (fault.detail, fault.at or "") if fault else (response.reason_phrase, "")
    message = f"{url} answered {response.status_code}: {detail}{f' (at {at})' if at else ''}."
    kind = RankerAwayError if response.status_code in AWAY else RankError
    return kind(message, status=response.status_code, detail=detail, at=at, retry_after_s=_retry_after_s(response))


def _retry_after_s(response: httpx.Response) -> float:
    """How long the ranker wants to be left alone (seconds); a date in place of seconds is past every deadline."""
    said = response.headers.get("retry-after", "0")
    return float(said) if said.isdecimal() else float("inf")


def _decoded(content: bytes, body: type[Body]) -> Body | None:
    """A body as what it should be; None where it is something else."""
    try:
        return msgspec.json.decode(content, type=body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
