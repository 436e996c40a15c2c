"""The gRPC front end: millstream.v1.Ranking (schemas/proto), grpc.health.v1 and server reflection.

An answer says what the response's kept bytes say, so that a request_id gets the same one on every front end. A fault of the store or of
the model is never an error: the ranker falls back and says so in `degraded`. A call that its client cancels, as it does when its deadline
is over, is not ranked for any more.
"""

import asyncio
import contextlib
import functools
import math
import time
from collections.abc import AsyncIterator, Callable

import grpc
import msgspec
from google.protobuf.message import DecodeError as MessageError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from ranker.fronts.auth import ANYBODY, Caller, Tokens
from ranker.fronts.quick.answers import ranked
from ranker.fronts.requests import Tell, request_of
from ranker.fronts.rpc.call import Asked
from ranker.fronts.rpc.server import Server
from ranker.fronts.shapes import Place, Rank, Ranked
from ranker.rank import Answer, Ranker
from schemas.errors import DecodeError
from schemas.proto.millstream.v1 import rank_pb2
from schemas.records import RankRequest

SERVICE = rank_pb2.DESCRIPTOR.services_by_name["Ranking"].full_name
#: In this trailing metadata a caller that asks too often is told when to come again (milliseconds); a client of
#: gRPC's own that has a retry policy waits so long.
PUSHBACK_MS = b"grpc-retry-pushback-ms"
#: How often it is looked whether the ranker is ready (seconds): as often as the current generation is.
LOOK_S = 1.0
#: Fields of a request whose absence says something.
OPTIONAL = ("k", "request_id", "ts_ms", "deadline_ms")
ANSWERED = tuple(rank_pb2.RankResponse.DESCRIPTOR.fields_by_name)


class GrpcFront:
    """Answers gRPC requests with a ranker. tell: takes each answer's telemetry, and must not wait. tokens: None lets everybody in."""

    def __init__(self, ranker: Ranker, tell: Tell, tokens: Tokens | None = None) -> None:
        """Serving, as grpc.health.v1 has it, once the ranker knows its generation."""
        self._ranker = ranker
        self._tell = tell
        self._tokens = tokens
        self._health = health.aio.HealthServicer()

    @contextlib.asynccontextmanager
    async def listening(self, host: str, port: int, grace_s: float, *, shares_port: bool = False) -> AsyncIterator[int]:
        """Answer at this address within the block, which gets the port, of which 0 is any; at its end, what is under way is answered first.

        grace_s: then, after so many seconds, whatever is still there is cut off. shares_port: with other processes that say so, too.
        Raises SettingsError for an address that is taken.
        """
        server = Server()
        server.add_method(SERVICE, "Rank", self._rank)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflection.aio.ReflectionServicer(names), server)
        await self._tell_health()
        async with server.listening(host, port, grace_s, shares_port=shares_port) as found:
            looking = asyncio.create_task(self._look())
            try:
                yield found
            finally:
                await self.leave()
                looking.cancel()

    async def leave(self) -> None:
        """Not serving any more, to whoever asks for health; requests are still answered."""
        await self._health.enter_graceful_shutdown()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            await self._tell_health()

    async def _tell_health(self) -> None:
        statuses = health_pb2.HealthCheckResponse
        status = statuses.NOT_SERVING if self._ranker.generation is None else statuses.SERVING
        for name in (health.OVERALL_HEALTH, SERVICE):
            await self._health.set(name, status)

    def _rank(self, body: bytes, call: Asked) -> Callable[[], None]:
        """Answer a RankRequest's bytes by a RankResponse's."""
        caller = self._caller(call)
        try:
            request = _request(body, caller.tenant, time.time_ns() // 1_000_000, call.time_remaining(), self._ranker.budgets.total_ms)
        except (MessageError, msgspec.ValidationError, DecodeError) as error:
            call.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return self._ranker.ask(request, call.received_s, functools.partial(self._answer, call, request))

    def _answer(self, call: Asked, request: RankRequest, answer: Answer) -> None:
        try:
            if answer.telemetry is not None:
                self._tell(request, answer.telemetry)
            call.answer(as_message(ranked(answer)))
        except BaseException:
            # As over HTTP: others whose answers were kept with this one are told by their timers.
            call.fail()
            raise

    def _caller(self, call: Asked) -> Caller:
        """Who asks; somebody who is not known, or asks too often, goes away here."""
        if self._tokens is None:
            return ANYBODY
        caller = self._tokens.caller(call.said(b"authorization").decode("latin-1"))
        if caller is None:
            call.abort(grpc.StatusCode.UNAUTHENTICATED, "no token that is known: send metadata `authorization: Bearer TOKEN`")
        wait_s = caller.limit.wait_s(time.monotonic()) if caller.limit else 0.0
        if wait_s:
            wait_ms = b"%d" % math.ceil(wait_s * 1000)
            call.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"ask again in {wait_ms.decode()} ms", ((PUSHBACK_MS, wait_ms),))
        return caller


def _request(body: bytes, tenant: str, now_ms: int, left_s: float | None, total_ms: int) -> RankRequest:
    """A request that can be answered, before its caller gives up.

    left_s: seconds until then, None is never. total_ms: the deadline of a request that names none. Raises MessageError for bytes
    that are no RankRequest, ValidationError or DecodeError with the field at fault.
    """
    said = rank_pb2.RankRequest.FromString(body)
    given = {name: getattr(said, name) for name in OPTIONAL if said.HasField(name)}
    fields = {"user_id": said.user_id, "candidate_item_ids": list(said.candidate_item_ids), "context": dict(said.context), **given}
    request = request_of(msgspec.convert(fields, Rank), tenant, now_ms)
    if left_s is None:
        return request
    return msgspec.structs.replace(request, deadline_ms=min(request.deadline_ms or total_ms, max(int(left_s * 1000), 1)))


def as_message(found: Ranked) -> bytes:
    """What a response says as the gRPC answer: its fields of the same names."""
    named = {name: getattr(found, name) for name in ANSWERED} | {"ranked_items": list(map(_place, found.ranked_items))}
    answer: bytes = rank_pb2.RankResponse(**named).SerializeToString()
    return answer


def _place(place: Place) -> dict[str, object]:
    """A RankedItem's fields; to say that there are no reasons takes as long as all else."""
    said: dict[str, object] = {"item_id": place.item_id, "score": place.score}
    return said | {"reasons": place.reasons} if place.reasons else said
