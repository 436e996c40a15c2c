"""The client of POST /v1/rank against real servers: the product's front end, and one that loses, resets, hangs and refuses."""

import asyncio
import hashlib
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from ranker.client import AWAY, WAY_MS, AsyncRankClient, RankClient
from ranker.fronts.auth import Tokens, parse
from ranker.fronts.http import HttpFront
from ranker.fronts.shapes import Ranked
from ranker.reads.breaker import FAILURES_MAX, PAUSE_S
from schemas.errors import RankerAwayError, RankError, SettingsError
from schemas.features import REGISTRY
from schemas.records import RankRequest
from tests.fronts import HOST, Odd, answer, hang, listening, relay
from tests.rankers import Failing, Model, fill, on, trained

ITEMS = ["i1", "i2", "i3"]
GOOD = answer(
    200,
    {
        "ranked_items": [{"item_id": "i2", "score": 0.5, "reasons": []}],
        "model_version": "m1",
        "feature_version": "f",
        "latency_ms": 1.5,
        "request_id": "r1",
        "degraded": "NONE",
        "generation": "g1",
        "of_a_later_version": True,
    },
)
TOKEN = "a-long-random-word"  # noqa: S105  # of a file that this test writes
#: Longer than anything here takes, on a busy machine too (milliseconds).
PATIENCE_MS = 20_000
#: Longer than a try takes, and what a test waits in vain for (milliseconds).
SHORT_MS = 300
Ask = Callable[..., Awaitable[Ranked]]


class World(NamedTuple):
    """A front end at a URL. told: whose telemetry was sent."""

    url: str
    port: int
    told: list[str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A small model over the default registry's features."""
    return trained(tmp_path_factory.mktemp("models"))


@pytest.fixture
def tokens() -> Tokens | None:
    """Everybody is let in."""
    return None


@pytest.fixture
async def world(model: Model, tokens: Tokens | None) -> AsyncIterator[World]:
    """The product's front end."""
    store, told = Failing(), list[str]()
    await fill(store)

    def tell(request: RankRequest, _: bytes) -> None:
        told.append(request.request_id)

    async with listening(HttpFront(await on(store, model), store, REGISTRY, tell, tokens)) as (port, _):
        yield World(f"http://{HOST}:{port}", port, told)


@pytest.fixture(params=["sync", "async"])
async def client_of(request: pytest.FixtureRequest) -> AsyncIterator[Callable[..., Ask]]:
    """How a client of either kind is made; what comes back is its `rank`, to be awaited."""
    closing: list[Callable[[], Awaitable[None]]] = []

    def make(url: str, token: str | None = None) -> Ask:
        if request.param == "async":
            client = AsyncRankClient(url, token)
            closing.append(client.close)
            return client.rank
        blocking = RankClient(url, token)
        closing.append(lambda: asyncio.to_thread(blocking.close))
        return lambda *args, **more: asyncio.to_thread(blocking.rank, *args, **more)

    yield make
    for close in closing:
        await close()


async def test_candidates_come_back_ranked(world: World, client_of: Callable[..., Ask]) -> None:
    """As values with types, the k best of them."""
    ranked = await client_of(world.url)("u1", ITEMS, 2, deadline_ms=PATIENCE_MS, context={"surface": "home"})

    assert (len(ranked.ranked_items), {item.item_id for item in ranked.ranked_items} <= set(ITEMS), ranked.model_version) == (2, True, "m1")


async def test_an_answer_that_was_lost_is_got_again(world: World, client_of: Callable[..., Ask]) -> None:
    """The second try gets the answer that the first one made: the ranker ranked once."""
    ask, lost = relay(world.port), list[bytes]()

    async def lose(request: bytes) -> None:
        lost.append(await ask(request))

    async with Odd(lose, ask) as odd:
        ranked = await client_of(odd.url)("u1", ITEMS, 3, deadline_ms=PATIENCE_MS)

    assert (f'"latency_ms":{ranked.latency_ms},'.encode() in lost[0], world.told) == (True, [ranked.request_id])


@pytest.mark.parametrize("passing", [None, *(answer(status, {}) for status in AWAY), answer(429, b"")])
async def test_what_may_pass_is_tried_again_as_the_same_request(client_of: Callable[..., Ask], passing: bytes | None) -> None:
    """Under one id, though nobody gave it any."""
    async with Odd(passing, passing, GOOD) as odd:
        await client_of(odd.url)("u1", ITEMS, 2, deadline_ms=PATIENCE_MS)

    assert ([body["request_id"] for body in odd.bodies], len(odd.bodies)) == ([odd.bodies[0]["request_id"]] * 3, 3)


async def test_the_ranker_is_given_what_is_left(client_of: Callable[..., Ask]) -> None:
    """Less with every try, and never all of it: the way back takes time, too."""
    async with Odd(answer(503, {}), GOOD) as odd:
        await client_of(odd.url)("u1", ITEMS, 2, deadline_ms=PATIENCE_MS)
    first, second = (body["deadline_ms"] for body in odd.bodies)

    assert PATIENCE_MS - WAY_MS >= first >= second


async def test_a_ranker_that_comes_back_in_time_answers(client_of: Callable[..., Ask]) -> None:
    """A connection that is refused is tried again, too."""
    odd = Odd(GOOD)
    asked = asyncio.ensure_future(client_of(odd.url)("u1", ITEMS, 2, deadline_ms=PATIENCE_MS))
    await asyncio.sleep(0.1)
    async with odd:
        ranked = await asked

    assert (ranked.request_id, len(odd.bodies)) == ("r1", 1)


async def test_a_limit_is_honoured(client_of: Callable[..., Ask]) -> None:
    """Who is told to come again in a second comes again in a second, and not in between."""
    until_s = asyncio.get_running_loop().time() + 1

    async def limited(_: bytes) -> bytes:
        return GOOD if asyncio.get_running_loop().time() >= until_s else answer(429, {}, "retry-after: 1")

    async with Odd(limited) as odd:
        await client_of(odd.url)("u1", ITEMS, 2, deadline_ms=PATIENCE_MS)

    assert len(odd.bodies) == 2


@pytest.mark.parametrize("after", ["30", "Fri, 31 Dec 2100 23:59:59 GMT", "soon"])
async def test_a_limit_past_the_deadline_is_said_at_once(client_of: Callable[..., Ask], after: str) -> None:
    """Waiting would be for nothing."""
    async with Odd(answer(429, {"title": "", "status": 429, "detail": "ask later"}, f"retry-after: {after}"), GOOD) as odd:
        with pytest.raises(RankError, match="ask later") as caught:
            await client_of(odd.url)("u1", ITEMS, 2, deadline_ms=PATIENCE_MS)

    assert (caught.value.status, isinstance(caught.value, RankerAwayError), len(odd.bodies)) == (429, False, 1)


async def test_a_ranker_that_hangs_costs_the_deadline(client_of: Callable[..., Ask]) -> None:
    """And no more."""
    async with Odd(hang) as odd:
        with pytest.raises(RankerAwayError, match=f"within {SHORT_MS} ms") as caught:
            await client_of(odd.url)("u1", ITEMS, 2, deadline_ms=SHORT_MS)

    assert caught.value.status is None


async def test_a_ranker_that_dawdles_costs_the_deadline(client_of: Callable[..., Ask]) -> None:
    """Each byte comes in time; the answer does not."""
    async with Odd(GOOD, drip_s=0.01) as odd:
        with pytest.raises(RankerAwayError, match=f"within {SHORT_MS} ms"):
            await client_of(odd.url)("u1", ITEMS, 2, deadline_ms=SHORT_MS)


async def test_what_went_before_a_missed_deadline_is_said(client_of: Callable[..., Ask]) -> None:
    """A hang alone would send somebody to look in the wrong place."""
    async with Odd(answer(503, {"title": "", "status": 503, "detail": "it is about to stop"}), hang) as odd:
        with pytest.raises(RankerAwayError, match=r"Before that: .* it is about to stop"):
            await client_of(odd.url)("u1", ITEMS, 2, deadline_ms=SHORT_MS)


async def test_a_refusal_names_the_field_and_is_not_repeated(world: World, client_of: Callable[..., Ask]) -> None:
    """It would be refused again."""
    async with Odd(relay(world.port)) as odd:
        with pytest.raises(RankError) as caught:
            await client_of(odd.url)("u1", ITEMS, 0, deadline_ms=PATIENCE_MS)

    assert (caught.value.status, caught.value.at, caught.value.detail, len(odd.bodies)) == (422, "$.k", "Expected `int` >= 1", 1)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (answer(200, b"<html>"), "no ranking"),
        (answer(200, {}), "no ranking"),
        (answer(302, b"", "location: /"), "302"),
        (answer(500, b"\xff"), "500"),
    ],
)
async def test_what_no_ranker_says_is_an_error(client_of: Callable[..., Ask], found: bytes, said: str) -> None:
    """Of our tree, with the answer's status."""
    async with Odd(found) as odd:
        with pytest.raises(RankError, match=said):
            await client_of(odd.url)("u1", ITEMS, 2, deadline_ms=PATIENCE_MS)

    assert len(odd.bodies) == 1


async def test_a_ranker_that_failed_is_left_alone(client_of: Callable[..., Ask]) -> None:
    """After requests in a row that got no answer, the next one does not ask."""
    async with Odd(hang) as odd:
        ask = client_of(odd.url)
        for _ in range(FAILURES_MAX):
            with pytest.raises(RankerAwayError, match="did not answer"):
                await ask("u1", ITEMS, 2, deadline_ms=SHORT_MS)
        with pytest.raises(RankerAwayError, match="left alone"):
            await ask("u1", ITEMS, 2, deadline_ms=SHORT_MS)

    assert len(odd.bodies) == FAILURES_MAX


async def test_a_ranker_that_is_back_is_asked_again(client_of: Callable[..., Ask]) -> None:
    """After a pause by one request, then by all."""
    async with Odd(*[hang] * FAILURES_MAX, GOOD) as odd:
        ask = client_of(odd.url)
        for _ in range(FAILURES_MAX):
            with pytest.raises(RankerAwayError):
                await ask("u1", ITEMS, 2, deadline_ms=SHORT_MS)
        await asyncio.sleep(PAUSE_S)
        found = [(await ask("u1", ITEMS, 2, deadline_ms=PATIENCE_MS)).request_id for _ in range(3)]

    assert found == ["r1"] * 3


async def test_refusals_are_no_failures(client_of: Callable[..., Ask]) -> None:
    """A ranker that says no is there: others are not kept from it."""
    async with Odd(*[answer(422, {})] * 2 * FAILURES_MAX, GOOD) as odd:
        ask = client_of(odd.url)
        for _ in range(2 * FAILURES_MAX):
            with pytest.raises(RankError):
                await ask("u1", ITEMS, 2, deadline_ms=PATIENCE_MS)
        found = await ask("u1", ITEMS, 2, deadline_ms=PATIENCE_MS)

    assert found.request_id == "r1"


async def test_a_probe_that_was_cancelled_leaves_its_place() -> None:
    """To the next request: nobody else would ever ask."""
    async with Odd(*[hang] * (FAILURES_MAX + 1), GOOD) as odd, AsyncRankClient(odd.url) as client:
        for _ in range(FAILURES_MAX):
            with pytest.raises(RankerAwayError):
                await client.rank("u1", ITEMS, 2, deadline_ms=SHORT_MS)
        await asyncio.sleep(PAUSE_S)
        probe = asyncio.ensure_future(client.rank("u1", ITEMS, 2, deadline_ms=PATIENCE_MS))
        await asyncio.sleep(0.1)
        probe.cancel()
        await asyncio.wait([probe])
        found = await client.rank("u1", ITEMS, 2, deadline_ms=PATIENCE_MS)

    assert found.request_id == "r1"


async def test_connections_are_kept(client_of: Callable[..., Ask]) -> None:
    """One after the other, requests share one."""
    async with Odd(GOOD) as odd:
        ask = client_of(odd.url)
        for _ in range(5):
            await ask("u1", ITEMS, 2, deadline_ms=PATIENCE_MS)

    assert (odd.connections, len(odd.bodies)) == (1, 5)


async def test_a_connection_that_was_closed_meanwhile_costs_no_answer(client_of: Callable[..., Ask]) -> None:
    """A server gives idle connections up when it likes."""
    async with Odd(GOOD) as odd:
        ask = client_of(odd.url)
        await ask("u1", ITEMS, 2, deadline_ms=PATIENCE_MS)
        odd.hang_up()
        found = await ask("u1", ITEMS, 2, deadline_ms=PATIENCE_MS)

    assert (found.request_id, odd.connections) == ("r1", 2)


def test_threads_share_a_client(model: Model) -> None:
    """Each gets the answer to its own request."""

    async def asked() -> list[str]:
        store = Failing()
        await fill(store)
        async with listening(HttpFront(await on(store, model), store, REGISTRY, lambda *_: None)) as (port, _):
            with RankClient(f"http://{HOST}:{port}") as client, ThreadPoolExecutor(8) as pool:
                loop = asyncio.get_running_loop()

                def one(name: str) -> str:
                    return client.rank("u1", ITEMS, 2, request_id=name, deadline_ms=PATIENCE_MS).request_id

                return await asyncio.gather(*(loop.run_in_executor(pool, one, f"r{number}") for number in range(40)))

    assert asyncio.run(asked()) == [f"r{number}" for number in range(40)]


@pytest.mark.parametrize("url", ["localhost:8080", "", "http://", "redis://localhost"])
def test_what_is_no_url_is_said_at_once(url: str) -> None:
    """Before the first request."""
    with pytest.raises(SettingsError, match="http://"):
        RankClient(url)


def test_the_client_is_light() -> None:
    """A feed that imports it gets no model, no store and no server with it."""
    heavy = "onnxruntime numba numpy polars uvicorn grpc redis hiredis confluent_kafka fastavro prometheus_client"
    command = "import ranker.client, sys; print(*{name.split('.')[0] for name in sys.modules})"
    found = subprocess.run([sys.executable, "-c", command], check=True, capture_output=True, text=True).stdout  # noqa: S603  # our own line

    assert set(heavy.split()) & set(found.split()) == set()


class TestTokens:
    """With a file of tokens."""

    @pytest.fixture
    def tokens(self) -> Tokens:
        """One token."""
        return parse([f"{hashlib.sha256(TOKEN.encode()).hexdigest()} acme"], "tokens")

    async def test_a_token_lets_in(self, world: World, client_of: Callable[..., Ask]) -> None:
        """And without it one is told so."""
        ranked = await client_of(world.url, TOKEN)("u1", ITEMS, 2, deadline_ms=PATIENCE_MS)
        with pytest.raises(RankError, match="401: no token that is known"):
            await client_of(world.url)("u1", ITEMS, 2, deadline_ms=PATIENCE_MS)

        assert world.told == [ranked.request_id]
