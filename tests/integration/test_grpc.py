"""millstream.v1.Ranking over real sockets: answers that are HTTP's, errors, who is let in, health, reflection, and how it stops."""

import asyncio
import gc
import hashlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import grpc
import httpx
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from compose.serve import Server, http_config, http_socket
from online_store.memory import MemoryStore
from online_store.redis import RedisStore
from online_store.store import OnlineStore
from ranker.budgets import BUDGETS
from ranker.fronts.auth import Tokens, parse
from ranker.fronts.grpc import PUSHBACK_MS, SERVICE, GrpcFront
from ranker.fronts.http import HttpFront
from ranker.fronts.requests import BODY_BYTES_MAX
from ranker.rank import Ranker
from schemas.errors import SettingsError
from schemas.features import REGISTRY
from schemas.proto.millstream.v1 import rank_pb2, rank_pb2_grpc
from schemas.records import CANDIDATES_COUNT_MAX, ID_BYTES_MAX, RankRequest
from tests.rankers import Failing, Model, away, fill, hang, on, trained
from tests.worlds import NOW_MS

GOOD: dict[str, Any] = {"request_id": "r1", "user_id": "u1", "candidate_item_ids": ["i1", "i2", "i3"], "k": 2}
TOKEN = "a-long-random-word"  # noqa: S105  # of a file that this test writes
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
#: Longer than anything here takes (seconds), on a busy machine too.
PATIENCE_S = 30.0


class Gated(Failing):
    """A store that keeps no answer until it is let go on."""

    def __init__(self) -> None:
        super().__init__()
        self.is_asked = asyncio.Event()
        self.go_on = asyncio.Event()

    async def keep_answers(self, answers: Sequence[tuple[bytes, bytes]], ttl_ms: int) -> list[bytes]:
        """As MemoryStore.keep_answers."""
        self.is_asked.set()
        await self.go_on.wait()
        return await super().keep_answers(answers, ttl_ms)


#: Whose telemetry cannot be sent.
UNTOLD = "untold"


class World(NamedTuple):
    """A front end at a port, its client, and what stands behind it. told: whose telemetry was sent. running: ends it."""

    port: int
    channel: grpc.aio.Channel
    front: GrpcFront
    store: OnlineStore
    ranker: Ranker
    told: list[RankRequest]
    running: AsyncExitStack

    async def rank(self, timeout_s: float | None = None, token: str = "", **fields: Any) -> Any:  # noqa: ANN401  # protobuf's, whatever a client may send
        """The answer to a good request with other fields; None leaves one out."""
        said = {name: value for name, value in {**GOOD, **fields}.items() if value is not None}
        metadata = [("authorization", f"Bearer {token}")] if token else []
        stub = rank_pb2_grpc.RankingStub(self.channel)
        return await stub.Rank(rank_pb2.RankRequest(**said), timeout=timeout_s, metadata=metadata)

    async def refusal(self, **fields: Any) -> grpc.aio.AioRpcError:  # noqa: ANN401  # whatever a client may send
        """Why the answer to such a request is an error."""
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await self.rank(**fields)
        return refused.value

    async def send(self, body: bytes) -> bytes:
        """Bytes in the place of a message, and those that come back."""
        found: bytes = await self.channel.unary_unary(f"/{SERVICE}/Rank")(body)
        return found

    async def health(self, service: str = "") -> int:
        """What grpc.health.v1 says."""
        found = await health_pb2_grpc.HealthStub(self.channel).Check(health_pb2.HealthCheckRequest(service=service))
        return int(found.status)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A small model over the default registry's features."""
    return trained(tmp_path_factory.mktemp("models"))


@pytest.fixture
def tokens() -> Tokens | None:
    """Everybody is let in."""
    return None


@pytest.fixture
async def store(store_db: str) -> AsyncIterator[OnlineStore]:
    """A real one, with a past."""
    found = RedisStore(store_db, REGISTRY)
    await fill(found)
    yield found
    await found.close()


@pytest.fixture
async def world(model: Model, tokens: Tokens | None, store: OnlineStore) -> AsyncIterator[World]:
    """A front end on a free port."""
    ranker, told = await on(store, model), list[RankRequest]()

    def tell(request: RankRequest, _: bytes) -> None:
        if request.request_id == UNTOLD:
            raise ValueError(request.request_id)
        told.append(request)

    front = GrpcFront(ranker, tell, tokens)
    async with AsyncExitStack() as running:
        port = await running.enter_async_context(front.listening("127.0.0.1", 0, PATIENCE_S))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield World(port, channel, front, store, ranker, told, running)


async def over_http(world: World, **fields: Any) -> dict[str, Any]:  # noqa: ANN401  # whatever a client may send
    """What POST /v1/rank of the same ranker answers."""
    listening = http_socket("127.0.0.1", 0)
    server = Server(http_config(HttpFront(world.ranker, world.store, REGISTRY, lambda *_: None)))
    task = asyncio.create_task(server.serve([listening]))
    async with httpx.AsyncClient() as client:
        answer = await client.post(f"http://127.0.0.1:{listening.getsockname()[1]}/v1/rank", json={**GOOD, **fields}, timeout=PATIENCE_S)
    server.should_exit = True
    await task
    found: dict[str, Any] = answer.json()
    return found


async def late(world: World) -> grpc.StatusCode:
    """What a new call gets, once it is refused."""
    while True:
        try:
            await world.health()
        except grpc.aio.AioRpcError as refused:
            return refused.code()


def fields_of(answer: Any) -> dict[str, Any]:  # noqa: ANN401  # protobuf's
    found: dict[str, Any] = MessageToDict(answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return found


async def test_candidates_come_back_ranked(world: World) -> None:
    """The k best of them, with the versions that they were ranked by."""
    got = await world.rank(deadline_ms=5_000)

    assert (len(got.ranked_items), got.degraded, got.model_version, got.generation) == (2, "NONE", "m1", "g1")


async def test_http_and_grpc_give_one_answer(world: World) -> None:
    """To one request_id, whichever is asked first and whatever else is asked: all fields of it, latency included."""
    grpc_first = (fields_of(await world.rank()), await over_http(world, user_id="another"))
    http_first = (await over_http(world, request_id="r2"), fields_of(await world.rank(request_id="r2", k=1)))

    assert [first == second for first, second in (grpc_first, http_first)] == [True, True]


async def test_two_requests_that_differ_by_front_end_alone_are_ranked_alike(world: World) -> None:
    """Each field means the same on both: what is left out as well as what is said."""
    ts_ms = time.time_ns() // 1_000_000 - 1_000
    said: dict[str, Any] = {"ts_ms": ts_ms, "context": {"surface": "home"}, "candidate_item_ids": [f"i{n}" for n in range(7)]}
    left, right = fields_of(await world.rank(**said, request_id="a", k=None)), await over_http(world, **said, request_id="b", k=7)

    assert left["ranked_items"] == right["ranked_items"]


async def test_a_repeated_request_gets_the_same_bytes(world: World) -> None:
    """And is told once."""
    body = rank_pb2.RankRequest(**GOOD).SerializeToString()
    first, second = await world.send(body), await world.send(body)

    assert (first == second, [request.request_id for request in world.told]) == (True, ["r1"])


async def test_a_request_without_an_id_gets_one(world: World) -> None:
    """Two of them are two requests."""
    ids = {(await world.rank(request_id=None)).request_id for _ in range(2)}

    assert len(ids) == 2


@pytest.mark.parametrize(
    ("fields", "at"),
    [
        ({"candidate_item_ids": []}, "candidate_item_ids"),
        ({"candidate_item_ids": ["i"] * (CANDIDATES_COUNT_MAX + 1)}, "candidate_item_ids"),
        ({"candidate_item_ids": ["i", ""]}, "candidate_item_ids[1]"),
        ({"candidate_item_ids": ["é" * ID_BYTES_MAX]}, "candidate_item_ids"),
        ({"k": 0}, "k"),
        ({"k": -1}, "k"),
        ({"user_id": None}, "user_id"),
        ({"user_id": "u" * (ID_BYTES_MAX + 1)}, "user_id"),
        ({"request_id": ""}, "request_id"),
        ({"request_id": "r" * (ID_BYTES_MAX + 1)}, "request_id"),
        ({"ts_ms": NOW_MS}, "ts_ms"),
        ({"ts_ms": 0}, "ts_ms"),
        ({"ts_ms": 9_000_000_000_000}, "ts_ms"),
        ({"ts_ms": 2**63 - 1}, "ts_ms"),
        ({"deadline_ms": 0}, "deadline_ms"),
    ],
)
async def test_a_wrong_field_is_named(world: World, fields: dict[str, Any], at: str) -> None:
    """By INVALID_ARGUMENT."""
    refused = await world.refusal(**fields)

    assert (refused.code(), at in (refused.details() or "")) == (grpc.StatusCode.INVALID_ARGUMENT, True)


@pytest.mark.parametrize("body", [b"\xff", b"\x0a\x02u", b"\x0a\x01\xff\x12\x01i", b"\x12\x02i\xc3\x0a\x01u"])
async def test_what_is_no_message_is_refused(world: World, body: bytes) -> None:
    """Whatever the bytes are: cut short, or text that is no UTF-8."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.send(body)

    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_message_that_is_too_large_is_refused(world: World) -> None:
    """Before it is looked into; one that is just not is answered."""
    room = BODY_BYTES_MAX - len(rank_pb2.RankRequest(**GOOD).SerializeToString()) - 20
    answered = await world.rank(context={"x": "y" * room})
    refused = await world.refusal(context={"x": "y" * BODY_BYTES_MAX})

    assert (answered.degraded, refused.code()) == ("NONE", grpc.StatusCode.RESOURCE_EXHAUSTED)


async def test_unknown_fields_duplicates_and_strangers_are_ranked(world: World) -> None:
    """More than there is to ask for, too: each candidate once."""
    said = rank_pb2.RankRequest(user_id="nobody", candidate_item_ids=["x", "x", "i1"], k=9)
    got = rank_pb2.RankResponse.FromString(await world.send(said.SerializeToString() + b"\xfa\x07\x03red"))

    assert sorted(item.item_id for item in got.ranked_items) == ["i1", "x"]


@pytest.mark.parametrize(
    ("deadline_ms", "timeout_s", "expected_ms"),
    [(None, None, None), (5_000, None, 5_000), (5_000, PATIENCE_S, 5_000), (None, PATIENCE_S, BUDGETS.total_ms)],
)
async def test_a_later_deadline_of_the_call_changes_nothing(
    world: World, deadline_ms: int | None, timeout_s: float | None, expected_ms: int | None
) -> None:
    """Nor does none: the request's own holds, or what one is given that names none."""
    await world.rank(timeout_s, deadline_ms=deadline_ms)

    assert [request.deadline_ms for request in world.told] == [expected_ms]


async def test_an_earlier_deadline_of_the_call_holds(world: World) -> None:
    """An answer after it would be for nobody. On its way it is rounded up, by a hundredth at most."""
    await world.rank(PATIENCE_S, deadline_ms=3_600_000)

    assert 0 < (world.told[0].deadline_ms or 0) <= PATIENCE_S * 1_010


async def test_a_fault_of_ours_ends_its_call(world: World) -> None:
    """And is told to the loop; the next one is answered."""
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, said: errors.append(said))
    refused = await world.refusal(request_id=UNTOLD)
    after = await world.rank(request_id="told")
    while not errors:
        gc.collect()
        await asyncio.sleep(0.001)

    assert (refused.code(), after.degraded, [type(said["exception"]) for said in errors]) == (grpc.StatusCode.UNKNOWN, "NONE", [ValueError])


async def test_health_is_told_by_service(world: World) -> None:
    """Of all and of ours; of another there is none."""
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await world.health("other")

    assert (await world.health(), await world.health(SERVICE), unknown.value.code()) == (SERVING, SERVING, grpc.StatusCode.NOT_FOUND)


@pytest.mark.parametrize(
    ("method", "body", "code"),
    [("List", b"", grpc.StatusCode.UNIMPLEMENTED), ("Check", b"\xff", grpc.StatusCode.INVALID_ARGUMENT)],
)
async def test_what_health_cannot_answer_is_refused(world: World, method: str, body: bytes, code: grpc.StatusCode) -> None:
    """A method that its package leaves open, and what is no message: neither is a fault of ours, which the loop would tell."""
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, said: told.append(said))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.channel.unary_unary(f"/grpc.health.v1.Health/{method}")(body)
    gc.collect()

    assert (refused.value.code(), told) == (code, [])


async def test_health_ends_before_answers_do(world: World) -> None:
    """A balancer sees it while requests are still answered."""
    await world.front.leave()

    assert (await world.health(), await world.health(SERVICE), (await world.rank()).degraded) == (NOT_SERVING, NOT_SERVING, "NONE")


async def test_reflection_shows_the_service(world: World) -> None:
    """Its name, and its method with its messages: grpcurl needs no .proto."""

    def found() -> tuple[bool, str, list[str]]:
        with grpc.insecure_channel(f"127.0.0.1:{world.port}") as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            method = DescriptorPool(database).FindServiceByName(SERVICE).methods_by_name["Rank"]
            return SERVICE in database.get_services(), method.output_type.full_name, [field.name for field in method.input_type.fields]

    fields = ["user_id", "candidate_item_ids", "k", "request_id", "ts_ms", "deadline_ms", "context"]
    assert await asyncio.to_thread(found) == (True, "millstream.v1.RankResponse", fields)


async def test_a_port_that_is_taken_is_said(world: World) -> None:
    """Unless both share it."""
    with pytest.raises(SettingsError, match=f"grpc_port {world.port} on 127.0.0.1 cannot be listened at"):
        async with world.front.listening("127.0.0.1", world.port, PATIENCE_S):
            pass


class TestFaults:
    """With a store that can be told to fail."""

    @pytest.fixture
    async def store(self) -> Failing:
        """In memory, with a past."""
        found = Failing()
        await fill(found)
        return found

    @pytest.mark.parametrize("fault", [away, hang])
    async def test_without_the_store_an_answer_falls_back(self, world: World, store: Failing, fault: Any) -> None:  # noqa: ANN401  # as tests.rankers has them
        """Never an error: what was read ahead at the start is ranked."""
        store.read_fault = store.keep_fault = fault

        assert (await world.rank()).degraded == "STALE"


class TestUnderWay:
    """With a store that holds answers up."""

    @pytest.fixture
    async def store(self) -> Gated:
        """In memory, with a past, shut."""
        found = Gated()
        await fill(found)
        return found

    async def test_a_request_under_way_is_answered_at_the_end(self, world: World, store: Gated) -> None:
        """A server that is told to stop takes no new one, and finishes what it has."""
        asked = asyncio.create_task(world.rank(deadline_ms=60_000))
        await store.is_asked.wait()
        stopping = asyncio.create_task(world.running.aclose())
        refused = await late(world)
        store.go_on.set()
        await stopping

        assert ((await asked).degraded, refused) == ("NONE", grpc.StatusCode.UNAVAILABLE)

    async def test_one_who_cancels_is_let_go(self, world: World, store: Gated) -> None:
        """Nothing is told of an answer that nobody got."""
        asked = asyncio.create_task(world.rank(deadline_ms=60_000))
        await store.is_asked.wait()
        asked.cancel()
        # The server hears of both in the order in which they were sent.
        await asyncio.wait([asked])
        await world.health()
        store.go_on.set()
        await world.rank(request_id="after")

        assert (asked.cancelled(), [request.request_id for request in world.told]) == (True, ["after"])


class TestNothingYet:
    """With a store in which no generation was begun."""

    @pytest.fixture
    async def store(self) -> MemoryStore:
        """Empty."""
        return MemoryStore(REGISTRY)

    async def test_it_serves_once_there_is_a_generation(self, world: World, store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
        """Health says so by itself; requests are answered before that, too."""
        before, answered = await world.health(), (await world.rank()).degraded
        monkeypatch.setattr("ranker.fronts.grpc.LOOK_S", 0.01)
        await fill(store)
        await world.ranker.refresh()
        watched = health_pb2_grpc.HealthStub(world.channel).Watch(health_pb2.HealthCheckRequest())
        while (await watched.read()).status != SERVING:
            pass

        assert (before, answered) == (NOT_SERVING, "POPULARITY")


class TestTokens:
    """With a file of tokens."""

    @pytest.fixture
    def tokens(self) -> Tokens:
        """One token, of a tenant that may ask twice a second."""
        return parse([f"{hashlib.sha256(TOKEN.encode()).hexdigest()} acme 2"], "tokens")

    @pytest.mark.parametrize("token", ["", "another"])
    async def test_strangers_are_sent_away(self, world: World, token: str) -> None:
        """And told how to come in."""
        refused = await world.refusal(token=token)

        assert (refused.code(), "Bearer" in (refused.details() or "")) == (grpc.StatusCode.UNAUTHENTICATED, True)

    async def test_a_tenant_is_let_in_and_not_too_often(self, world: World) -> None:
        """Its third request within a second is told when to come again; what is told is its tenant's."""
        for number in range(2):
            await world.rank(token=TOKEN, request_id=f"r{number}")
        refused = await world.refusal(token=TOKEN)
        wait_ms = int(dict(refused.trailing_metadata())[PUSHBACK_MS.decode()])

        assert (refused.code(), 0 < wait_ms <= 500) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
        assert {request.tenant for request in world.told} == {"acme"}

    async def test_health_and_reflection_need_no_token(self, world: World) -> None:
        """A balancer has none."""
        assert await world.health(SERVICE) == SERVING
