"""POST /v1/rank and what stands beside it, over real sockets: answers, problem documents, who is let in, and how it stops."""

import asyncio
import hashlib
import http.client
import json
import re
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

import pytest

from compose.serve import Server, http_socket
from ranker.fronts import http as fronts_http
from ranker.fronts.auth import Tokens, parse
from ranker.fronts.http import HttpFront
from ranker.fronts.requests import BODY_BYTES_MAX
from ranker.rank import Ranker
from schemas.features import REGISTRY
from schemas.records import CANDIDATES_COUNT_MAX, ID_BYTES_MAX, RankRequest
from tests.fronts import HOST, listening, relay
from tests.rankers import Failing, Model, away, fill, hang, on, trained
from tests.worlds import NOW_MS

GOOD: dict[str, Any] = {"request_id": "r1", "user_id": "u1", "candidate_item_ids": ["i1", "i2", "i3"], "k": 2}
RANK_HEAD = b"POST /v1/rank HTTP/1.1\r\nhost: x\r\n"
TOKEN = "a-long-random-word"  # noqa: S105  # of a file that this test writes


class Got(NamedTuple):
    """An answer."""

    status: int
    headers: dict[str, str]
    body: Any


class World(NamedTuple):
    """A front end at a port, and what stands behind it. told: whose telemetry was sent."""

    port: int
    front: HttpFront
    server: Server
    store: Failing
    ranker: Ranker
    told: list[str]

    async def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Got:
        """One request on a connection of its own."""
        return await asyncio.to_thread(self._ask, method, path, body, headers)

    def _ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Got:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        kind = answer.headers["content-type"]
        return Got(
            answer.status,
            {name.lower(): value for name, value in answer.headers.items()},
            json.loads(content or "null") if "json" in kind else content or None,
        )

    async def rank(self, **fields: Any) -> Got:  # noqa: ANN401  # whatever a client may send
        """POST /v1/rank of a good request with other fields; None leaves one out."""
        said = {name: value for name, value in {**GOOD, **fields}.items() if value is not None}
        return await self.ask("POST", "/v1/rank", json.dumps(said).encode())


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
    """A front end on a free port."""
    store = Failing()
    await fill(store)
    ranker, told = await on(store, model), list[str]()

    def tell(request: RankRequest, _: bytes) -> None:
        told.append(request.request_id)

    front = HttpFront(ranker, store, REGISTRY, tell, tokens)
    async with listening(front) as (port, server):
        yield World(port, front, server, store, ranker, told)


async def test_candidates_come_back_ranked(world: World) -> None:
    """The k best of them, with the versions that they were ranked by."""
    got = await world.rank(deadline_ms=5_000)

    assert (got.status, len(got.body["ranked_items"]), got.body["degraded"], got.body["model_version"]) == (200, 2, "NONE", "m1")


async def test_a_repeated_request_gets_the_same_answer(world: World) -> None:
    """Byte for byte, latency included, and is told once."""
    first, second = await world.rank(), await world.rank(user_id="another")

    assert (first.body == second.body, world.told) == (True, ["r1"])


async def test_a_request_without_an_id_gets_one(world: World) -> None:
    """Two of them are two requests."""
    ids = {(await world.rank(request_id=None)).body["request_id"] for _ in range(2)}

    assert len(ids) == 2


@pytest.mark.parametrize(
    ("fields", "at"),
    [
        ({"candidate_item_ids": []}, "$.candidate_item_ids"),
        ({"candidate_item_ids": ["i"] * (CANDIDATES_COUNT_MAX + 1)}, "$.candidate_item_ids"),
        ({"candidate_item_ids": ["i", 7]}, "$.candidate_item_ids[1]"),
        ({"candidate_item_ids": [""]}, "$.candidate_item_ids[0]"),
        ({"candidate_item_ids": ["é" * ID_BYTES_MAX]}, "$.candidate_item_ids"),
        ({"k": 0}, "$.k"),
        ({"k": "ten"}, "$.k"),
        ({"user_id": None}, "$"),
        ({"user_id": "u" * (ID_BYTES_MAX + 1)}, "$.user_id"),
        ({"ts_ms": NOW_MS}, "$.ts_ms"),
        ({"ts_ms": 9_000_000_000_000}, "$.ts_ms"),
        ({"deadline_ms": 0}, "$.deadline_ms"),
    ],
)
async def test_a_wrong_field_is_named(world: World, fields: dict[str, Any], at: str) -> None:
    """In a problem document, not by a 5xx."""
    got = await world.rank(**fields)

    assert (got.status, got.headers["content-type"], got.body["at"]) == (422, "application/problem+json", at)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"user_id":"\xff"}', b"null", b'{"colour":' + b"[" * 30_000, b'{"k":' + b"9" * 9_000 + b"}"]
)
async def test_what_is_no_request_is_a_problem(world: World, body: bytes) -> None:
    """Whatever the bytes are, and however deep or long."""
    got = await world.ask("POST", "/v1/rank", body)

    assert (got.status in (400, 422), got.body["status"] == got.status) == (True, True)


async def test_a_body_that_is_too_large_is_refused(world: World) -> None:
    """By what it says of itself, before it is read."""
    assert (await world.rank(context={"x": "y" * BODY_BYTES_MAX})).status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE


async def test_a_body_that_does_not_say_how_large_it_is_is_bounded_too(world: World) -> None:
    """What is read of it is counted."""
    chunk = b"%x\r\n" % BODY_BYTES_MAX + b"y" * BODY_BYTES_MAX + b"\r\n"
    got = await relay(world.port)(RANK_HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunk + chunk + b"0\r\n\r\n")

    assert got.split(b" ", 2)[1] == b"413"


async def test_as_many_candidates_as_there_may_be_are_ranked(world: World) -> None:
    """One more is refused; this many are not."""
    got = await world.rank(candidate_item_ids=[f"c{number}" for number in range(CANDIDATES_COUNT_MAX)], k=CANDIDATES_COUNT_MAX)

    assert (got.status, len(got.body["ranked_items"])) == (200, CANDIDATES_COUNT_MAX)


async def test_of_a_field_that_is_said_twice_the_last_counts(world: World) -> None:
    """As most readers of JSON have it."""
    got = await world.ask("POST", "/v1/rank", b'{"user_id":"u1","candidate_item_ids":["i2","i3"],"candidate_item_ids":["i1"]}')

    assert [item["item_id"] for item in got.body["ranked_items"]] == ["i1"]


async def test_unknown_fields_duplicates_and_strangers_are_ranked(world: World) -> None:
    """More than there is to ask for, too: each candidate once."""
    got = await world.rank(colour="red", candidate_item_ids=["x", "x", "i1"], k=9, user_id="nobody")

    assert (got.status, sorted(item["item_id"] for item in got.body["ranked_items"])) == (200, ["i1", "x"])


@pytest.mark.parametrize("fault", [away, hang])
async def test_without_the_store_an_answer_falls_back(world: World, fault: Any) -> None:  # noqa: ANN401  # as tests.rankers has them
    """Never a 5xx: what was read ahead at the start is ranked."""
    world.store.read_fault = world.store.keep_fault = fault
    got = await world.rank()

    assert (got.status, got.body["degraded"]) == (200, "STALE")


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v1/rank", 405), ("HEAD", "/v1/rank", 405), ("GET", "/v2", 404), ("POST", "/healthz", 405)]
)
async def test_what_is_not_there_is_a_problem(world: World, method: str, path: str, status: int) -> None:
    """With the method that there is."""
    got = await world.ask(method, path)

    assert (got.status, got.headers["content-type"], "allow" in got.headers) == (
        status,
        "application/problem+json",
        status == HTTPStatus.METHOD_NOT_ALLOWED,
    )


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/openapi.json", "/v1/features/item/i2"])
async def test_head_is_get_without_a_body(world: World, path: str) -> None:
    """Balancers and people with curl ask so."""
    got, whole = await world.ask("HEAD", path), await world.ask("GET", path)

    assert (got.status, got.headers["content-type"], got.body) == (whole.status, whole.headers["content-type"], None)


async def test_features_are_shown(world: World) -> None:
    """As of a moment; an id may hold what URLs have to quote; an unknown one is zeros."""
    known = await world.ask("GET", f"/v1/features/item/i2?as_of_ms={NOW_MS + 60_000}")
    unknown = await world.ask("GET", "/v1/features/item/a%2Fb%25c%0Ad")

    assert (known.body["windows"]["24h"]["impressions"], unknown.body["id"], unknown.body["known"]) == (4, "a/b%c\nd", False)


async def test_a_slate_is_explained(world: World) -> None:
    """Every candidate with its features, its score, and where it would stand: where POST /v1/rank has it."""
    asked = "user_id=u1&candidate_item_ids=i1&candidate_item_ids=i2&candidate_item_ids=i7&k=1&context.seen_item_ids=i2"
    got = await world.ask("GET", f"/v1/explain?{asked}")
    ranked = await world.rank(request_id="r2", candidate_item_ids=["i1", "i2", "i7"], k=1, context={"seen_item_ids": "i2"})
    told = {item["item_id"]: (item["place"], item["reasons"]) for item in got.body["items"]}

    assert told == {"i1": (1, []), "i2": (None, ["SEEN"]), "i7": (None, ["REMOVED"])}
    assert [item["item_id"] for item in ranked.body["ranked_items"]] == ["i1"]
    assert set(got.body["items"][0]["features"]) == set(REGISTRY.feature_names)
    assert got.body["items"][0]["calibrated_score"] == pytest.approx(ranked.body["ranked_items"][0]["score"])


@pytest.mark.parametrize(
    ("asked", "at"), [("candidate_item_ids=i1", "$"), ("user_id=u1", "$"), ("user_id=u1&candidate_item_ids=i1&k=many", "$.k")]
)
async def test_what_cannot_be_explained_is_a_problem(world: World, asked: str, at: str) -> None:
    """As a body that says the same would be."""
    got = await world.ask("GET", f"/v1/explain?{asked}")

    assert (got.status, got.body["at"]) == (422, at)


async def test_without_the_store_nothing_is_explained(world: World) -> None:
    """There is nothing to say of a fallback: 503, and why."""
    world.store.read_fault = away

    assert (await world.ask("GET", "/v1/explain?user_id=u1&candidate_item_ids=i1")).status == HTTPStatus.SERVICE_UNAVAILABLE


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/features/planet/x", 404),
        ("/v1/features/item/%FF", 400),
        (f"/v1/features/item/{'i' * (ID_BYTES_MAX + 1)}", 422),
        ("/v1/features/item/x?as_of_ms=%C2%B2", 422),
        ("/v1/features/item/x?as_of_ms=0", 422),
        ("/v1/features/item/x?as_of_ms=", 422),
        ("/v1/features/item/x?as_of_ms=1&as_of_ms=2", 422),
    ],
)
async def test_what_cannot_be_shown_is_a_problem(world: World, path: str, status: int) -> None:
    """A kind that there is none of, an id that can be none, a moment that is none, or is two."""
    assert (await world.ask("GET", path)).status == status


async def test_readiness_ends_before_answers_do(world: World) -> None:
    """A balancer sees it while requests are still answered."""
    before = (await world.ask("GET", "/readyz")).status
    world.front.is_draining = True

    assert (before, (await world.ask("GET", "/readyz")).status, (await world.rank()).status) == (200, 503, 200)


async def test_a_request_under_way_is_answered_at_the_end(world: World) -> None:
    """A server that is told to stop takes no new one, and finishes what it has."""

    def stop() -> None:
        world.server.should_exit = True

    world.store.keep_fault = stop

    assert (await world.rank()).status == HTTPStatus.OK


async def test_a_client_who_leaves_is_not_ranked_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection is gone before it is ranked: no answer is kept or told, and the next client is served."""
    body, read = json.dumps(GOOD | {"deadline_ms": 5_000}).encode(), world.store.read
    is_read = asyncio.Event()

    async def leave(keys: Sequence[bytes]) -> list[bytes | None]:
        writer.transport.abort()
        await asyncio.sleep(0.01)
        is_read.set()
        return await read(keys)

    _, writer = await asyncio.open_connection("127.0.0.1", world.port)
    monkeypatch.setattr(world.store, "read", leave)
    writer.write(b"POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await is_read.wait()
    await asyncio.sleep(0.1)
    monkeypatch.undo()
    [kept] = await world.store.keep_answers([(b"answer::r1", b"none was")], 1_000)
    after = await world.rank(request_id="r2")

    assert (kept, after.status, world.told) == (b"none was", 200, ["r2"])


async def test_a_connection_serves_many_requests(world: World) -> None:
    """That a client may leave is looked for without eating what it sends next."""
    connection = http.client.HTTPConnection("127.0.0.1", world.port, timeout=30)

    def ask(number: int) -> int:
        connection.request("POST", "/v1/rank", json.dumps(GOOD | {"request_id": f"r{number}"}).encode())
        answer = connection.getresponse()
        answer.read()
        return answer.status

    statuses = [await asyncio.to_thread(ask, number) for number in range(5)]
    connection.close()

    assert (statuses, world.told) == ([200] * 5, [f"r{number}" for number in range(5)])


async def test_a_connection_is_kept(world: World) -> None:
    """For the next request, whatever became of the one before."""
    connection = http.client.HTTPConnection(HOST, world.port, timeout=30)

    def ask() -> list[int]:
        found = []
        for path, body in (
            ("/v1/rank", json.dumps(GOOD)),
            ("/v1/rank", "y" * 2 * BODY_BYTES_MAX),
            ("/v2", "{}"),
            ("/v1/rank", json.dumps(GOOD)),
        ):
            connection.request("POST", path, body)
            answer = connection.getresponse()
            answer.read()
            found.append(answer.status)
            assert connection.sock is not None, "the server hung up"
        connection.close()
        return found

    assert await asyncio.to_thread(ask) == [200, 413, 404, 200]


@pytest.mark.parametrize(
    ("more", "wrap"),
    [
        (b"transfer-encoding: chunked\r\n\r\n", lambda body: b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)),
        (b"connection: x-odd\r\ncontent-length: %d\r\n\r\n", lambda body: body),
    ],
)
@pytest.mark.parametrize("fields", [{}, {"k": 0}], ids=["ranked", "refused"])
async def test_what_is_not_plain_is_answered_as_what_is(
    world: World, more: bytes, wrap: Callable[[bytes], bytes], fields: dict[str, int]
) -> None:
    """To the byte, head included: a plain request goes past ASGI, these do not."""
    body = json.dumps(GOOD | fields).encode()
    plain = b"content-length: %d\r\n\r\n%b" % (len(body), body)
    odd = (more % len(body) if b"%d" in more else more) + wrap(body)
    answers = [await relay(world.port)(RANK_HEAD + rest) for rest in (plain, odd)]

    assert [sorted(answer.split(b"\r\n")) for answer in answers] == [sorted(answers[0].split(b"\r\n"))] * 2


async def test_requests_sent_at_once_are_answered_in_order(world: World) -> None:
    """A client need not wait for an answer before its next request, though that is a repeat; the last one ends the connection."""
    await world.rank(request_id="r1")
    reader, writer = await asyncio.open_connection(HOST, world.port)
    for number in range(3):
        body = json.dumps(GOOD | {"request_id": f"r{number}"}).encode()
        more = b"connection: close\r\n" if number == 2 else b""
        writer.write(RANK_HEAD + more + b"content-length: %d\r\n\r\n" % len(body) + body)
    found = await reader.read()
    writer.close()

    assert re.findall(rb'"request_id":"(r\d)"', found) == [b"r0", b"r1", b"r2"]


async def test_a_body_that_comes_in_pieces_is_one(world: World) -> None:
    """Networks cut where they like."""
    body = json.dumps(GOOD).encode()
    reader, writer = await asyncio.open_connection(HOST, world.port)
    for piece in (RANK_HEAD[:9], RANK_HEAD[9:], b"content-length: %d\r\n\r\n" % len(body), body[:7], body[7:]):
        writer.write(piece)
        await asyncio.sleep(0.02)
    status = await reader.readline()
    writer.close()

    assert status == b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize("where", [0, 1], ids=["asking", "telling"])
async def test_a_fault_that_nobody_thought_of_is_told_and_ends_the_connection(
    world: World, monkeypatch: pytest.MonkeyPatch, where: int
) -> None:
    """A client does not wait for what will not come."""

    def fault(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(*[(world.ranker, "ask"), (fronts_http, "ranked")][where], fault)
    body = json.dumps(GOOD).encode()
    reader, writer = await asyncio.open_connection(HOST, world.port)
    writer.write(RANK_HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)
    found = await reader.read()
    writer.close()

    assert (found.split(b" ", 2)[1], b"connection: close" in found) == (b"500", True)


async def test_nothing_is_compressed(world: World) -> None:
    """Not for those who would take it either: it would cost more than the ranking."""
    got = await world.ask("GET", "/openapi.json", None, **{"Accept-Encoding": "gzip, br"})

    assert ("content-encoding" in got.headers, got.headers["content-length"]) == (
        False,
        str(len(json.dumps(got.body, separators=(",", ":")))),
    )


@pytest.mark.parametrize("upgrade", ["h2c", "websocket"])
async def test_an_upgrade_is_refused_with_what_to_do_instead(world: World, upgrade: str) -> None:
    """Java's own client asks for h2c unless told otherwise, and would only see that its body is no JSON."""
    body = json.dumps(GOOD).encode()
    more = f"connection: upgrade\r\nupgrade: {upgrade}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    got = await relay(world.port)(RANK_HEAD + more + body)

    assert (got.split(b" ", 2)[1], b"HttpClient.Version.HTTP_1_1" in got, b"connection: close" in got) == (b"400", True, True)


def test_an_answer_is_sent_at_once() -> None:
    """Its body waits for no acknowledgement of its head."""
    with http_socket("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        connection, _ = listening.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


async def test_the_document_says_what_there_is(world: World) -> None:
    """Every path of it answers, and its bodies are described."""
    found = (await world.ask("GET", "/openapi.json")).body

    shapes = ["Described", "Fault", "Place", "Rank", "Ranked", "Status"]
    assert (found["openapi"], sorted(found["components"]["schemas"])) == ("3.1.0", shapes)


async def test_metrics_are_there(world: World) -> None:
    """For Prometheus."""
    await world.rank()

    assert b"millstream_rank_requests_total" in (await world.ask("GET", "/metrics")).body


class TestTokens:
    """With a file of tokens."""

    @pytest.fixture
    def tokens(self) -> Tokens:
        """One token, of a tenant that may ask twice a second."""
        return parse([f"{hashlib.sha256(TOKEN.encode()).hexdigest()} acme 2"], "tokens")

    async def test_strangers_are_sent_away(self, world: World) -> None:
        """And told how to come in."""
        got = await world.rank()

        assert (got.status, got.headers["www-authenticate"]) == (401, "Bearer")

    async def test_a_tenant_is_let_in_and_not_too_often(self, world: World) -> None:
        """Its third request within a second is told when to come again."""
        body = json.dumps({**GOOD, "request_id": None}).encode()
        got = [await world.ask("POST", "/v1/rank", body, Authorization=f"Bearer {TOKEN}") for _ in range(3)]

        assert ([one.status for one in got], got[2].headers["retry-after"]) == ([200, 200, 429], "1")

    async def test_a_tenant_sees_its_own(self, world: World) -> None:
        """What other tenants' entities did is not there for it."""
        got = await world.ask("GET", f"/v1/features/item/i2?as_of_ms={NOW_MS + 60_000}", None, Authorization=f"Bearer {TOKEN}")

        assert got.body["known"] is False
