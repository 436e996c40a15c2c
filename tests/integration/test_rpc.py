"""ranker.fronts.rpc over real sockets: gRPC's own client, and one of bare HTTP/2."""

import asyncio
import contextlib
import gc
import random
import socket
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import grpc
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, DataReceived, RemoteSettingsChanged, StreamReset
from h2.settings import SettingCodes
from hpack import Decoder, Encoder
from hyperframe.frame import DataFrame, GoAwayFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame, WindowUpdateFrame

from ranker.fronts.requests import BODY_BYTES_MAX
from ranker.fronts.rpc.call import DETAILS_COUNT_MAX, PREFIX, Call
from ranker.fronts.rpc.connection import CALLS_COUNT_MAX, ROOM_BYTES, Connection
from ranker.fronts.rpc.frames import LARGEST
from ranker.fronts.rpc.heads import HEADERS_BYTES_MAX, PARTS_COUNT_MAX
from ranker.fronts.rpc.served import MESSAGES_COUNT_MAX
from ranker.fronts.rpc.server import Server
from tests.rpc import HEADERS, Bare, Echo, Raw, frame, message

#: A frame that ends a connection (RFC 9113, 6.1).
DATA_OF_NO_STREAM = frame(0, 0, 0, b"x")
PING = frame(6, 0, 0, b"12345678")
BEGIN = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0)
OK, INVALID, UNIMPLEMENTED, TOO_LARGE, UNKNOWN = b"0", b"3", b"12", b"8", b"2"


class World(NamedTuple):
    """A server at a port, what answers there, and what ends it, and its clients."""

    port: int
    echo: Echo
    running: contextlib.AsyncExitStack
    clients: contextlib.ExitStack

    async def bare(self, **settings: int) -> Bare:
        """A client with settings of its own."""
        found = Bare(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.callback(found.close)
        found.http2.initiate_connection()
        found.http2.update_settings({SettingCodes[name]: value for name, value in settings.items()})
        await found.flush()
        return found

    async def raw(self) -> Raw:
        """A client that is held to no rule, and has begun as it should."""
        found = Raw(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.callback(found.close)
        await found.say(BEGIN)
        return found


@pytest.fixture
def grace_s() -> float:
    """What the server waits at its end, longer than anything here takes on a busy machine."""
    return 30.0


@pytest.fixture
async def world(grace_s: float) -> AsyncIterator[World]:
    """A server on a free port, its clients gone before it ends."""
    server, echo = Server(), Echo()
    server.add_registered_method_handlers("test.Echo", echo.methods())
    for name, ask in echo.plain().items():
        server.add_method("test.Echo", name, ask)
    async with contextlib.AsyncExitStack() as running:
        port = await running.enter_async_context(server.listening("127.0.0.1", 0, grace_s))
        with contextlib.ExitStack() as clients:
            yield World(port, echo, running, clients)


async def test_streams_both_ways_are_as_grpc_has_them(world: World) -> None:
    """Each message is answered before the next one is said."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{world.port}") as channel:
        call = channel.stream_stream("/test.Echo/Each")()
        heard = []
        for said in (b"one", b"", b"three"):
            await call.write(said)
            heard.append(await call.read())
        await call.done_writing()
        twice = [said async for said in channel.unary_stream("/test.Echo/Twice")(b"again")]

        assert (heard, await call.read(), twice) == ([b"one", b"", b"three"], grpc.aio.EOF, [b"again", b"again"])


@pytest.mark.parametrize("count", [1, 64, 300])
async def test_answers_larger_than_a_window_arrive_whole(world: World, count: int) -> None:
    """Many at once on one connection: what a client has no room for waits."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{world.port}") as channel:
        large = channel.unary_unary("/test.Echo/Large")
        found = await asyncio.gather(*(large(b"%d" % (20_000 + number)) for number in range(count)))

    assert [len(said) for said in found] == [5 * (20_000 + number) for number in range(count)]


@pytest.mark.parametrize("is_by_settings", [True, False])
async def test_a_window_may_be_opened_later(world: World, *, is_by_settings: bool) -> None:
    """By settings, or byte by byte."""
    client = await world.bare(INITIAL_WINDOW_SIZE=1)
    client.makes_room = False
    asked = client.ask("Say", message(b"12345"))
    await client.flush()
    while not any(isinstance(event, DataReceived) for event in client.heard.get(asked, [])):
        await client.hear()
    if is_by_settings:
        client.http2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 100})
        await client.flush()
    else:
        for _ in message(b"12345")[1:]:
            client.http2.increment_flow_control_window(1, asked)
            await client.flush()
            await client.hear()

    assert await client.answer(asked) == (message(b"12345"), {b"grpc-status": OK})


async def test_who_gives_up_as_its_window_opens_harms_no_other(world: World) -> None:
    """We hear of room for an answer that nobody waits for any more."""
    client = await world.bare(INITIAL_WINDOW_SIZE=1)
    client.makes_room = False
    asked, other = client.ask("Say", message(b"12345")), client.ask("Say", message(b"other"))
    await client.flush()
    while not any(isinstance(event, DataReceived) for event in client.heard.get(other, [])):
        await client.hear()
    client.http2.increment_flow_control_window(100, asked)
    client.http2.reset_stream(asked, ErrorCodes.CANCEL)
    client.http2.increment_flow_control_window(100, other)
    await client.flush()

    assert await client.answer(other) == (message(b"other"), {b"grpc-status": OK})


async def test_who_does_not_read_holds_up_nobody(world: World) -> None:
    """And gets all once it does."""
    client, other = await world.bare(INITIAL_WINDOW_SIZE=2**31 - 1), await world.bare()
    client.http2.increment_flow_control_window(2**31 - 1 - 65_535)
    client.makes_room = False
    asked, found = [], []
    for _ in range(99):
        asked.append(client.ask("Large", message(b"30000")))
        await client.flush()
        found.append(await other.say("Say", message(b"x")))
    heard = [await client.answer(stream_id) for stream_id in asked]

    assert (found, {len(data) for data, _ in heard}) == ([(message(b"x"), OK)] * 99, {len(message(b"30000" * 30_000))})


@pytest.mark.parametrize("method", ["Say", "SayNow", "Refuse", "RefuseNow", "Fail"])
async def test_a_call_leaves_nothing_to_look_for(world: World, method: str) -> None:
    """The garbage collector seldom runs where it is served."""
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    client = await world.bare()
    await client.say(method, message(b"x"))
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            await client.say(method, message(b"x"))
        found = gc.collect()
    finally:
        gc.enable()

    assert found == 0


@pytest.mark.parametrize("is_begun", [True, False])
@pytest.mark.parametrize("method", ["Slow", "SlowNow", "Each"])
async def test_nor_does_one_that_is_given_up(world: World, method: str, *, is_begun: bool) -> None:
    """Whether it was begun or not."""
    client = await world.raw()
    gc.collect()
    gc.disable()
    try:
        call = frame(1, 4, 1, client.head(method)) + frame(0, int(method != "Each"), 1, message(b"x"))
        given_up = frame(3, 0, 1, b"\0\0\0\x08") + PING
        await client.say(call + PING if is_begun else call + given_up)
        await client.answers()
        await client.say(given_up if is_begun else PING)
        await client.answers()
        found = [one for one in gc.get_objects() if isinstance(one, Call)]
    finally:
        gc.enable()

    assert found == []


@pytest.mark.parametrize("size", [1, 2, 7, 100])
async def test_bytes_may_come_as_they_please(world: World, size: int) -> None:
    """Frames and messages in pieces."""
    client = await world.bare()
    asked = [client.ask("Say", message(b"a" * 50)[:3], message(b"a" * 50)[3:]), client.ask("Each", message(b"b") + message(b""))]
    await client.flush(size)

    assert [await client.answer(stream_id) for stream_id in asked] == [
        (message(b"a" * 50), {b"grpc-status": OK}),
        (message(b"b") + message(b""), {b"grpc-status": OK}),
    ]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        ([message(b"x" * BODY_BYTES_MAX)], OK),
        ([PREFIX.pack(False, BODY_BYTES_MAX + 1)], TOO_LARGE),
        ([PREFIX.pack(False, 2**32 - 1), b"x"], TOO_LARGE),
        ([message(b"x", is_compressed=True)], UNIMPLEMENTED),
        ([], INVALID),
        ([message(b"x")[:-1]], INVALID),
        ([message(b"x"), message(b"y")], INVALID),
    ],
)
@pytest.mark.parametrize("method", ["Say", "SayNow"])
async def test_what_is_not_one_message_is_refused(world: World, data: list[bytes], status: bytes, method: str) -> None:
    """And the connection goes on, for those that were begun before as well."""
    client = await world.bare()
    before = client.ask("Slow", message(b"before"))
    stream_id = client.ask(method, *data)
    await client.flush()
    _, ends = await client.answer(stream_id)
    world.echo.go_on.set()
    (first, _), after = await client.answer(before), await client.say("Say", message(b"after"))

    assert (ends[b"grpc-status"], first, after) == (status, message(b"before"), (message(b"after"), OK))


@pytest.mark.parametrize(("method", "count", "status"), [("SayNow", 2, INVALID), ("Say", MESSAGES_COUNT_MAX + 1, TOO_LARGE)])
async def test_messages_without_end_are_refused(world: World, method: str, count: int, status: bytes) -> None:
    """Before they are a burden; those of a stream are answered meanwhile."""
    client = await world.bare()
    found = await client.say(method, *[message(b"x")] * count, is_whole=False)
    each = [await client.say("Each", *[message(b"x")] * MESSAGES_COUNT_MAX) for _ in range(2)]

    assert (found, each) == ((b"", status), [(message(b"x") * MESSAGES_COUNT_MAX, OK)] * 2)


async def test_an_answer_that_is_never_taken_is_cut_off(world: World) -> None:
    """Its client says what is to be answered, and has no room for that; others are answered."""
    client = await world.bare(INITIAL_WINDOW_SIZE=0)
    asked = client.ask("Each", is_whole=False)
    resets: list[StreamReset] = []
    for _ in range(200):
        if resets := [event for event in client.heard.get(asked, []) if isinstance(event, StreamReset)]:
            break
        client.http2.send_data(asked, message(b"x" * 16_000))
        await client.flush()
        await client.hear()
    other = await world.bare()

    assert ([event.error_code for event in resets], await other.say("Say", message(b"x"))) == (
        [ErrorCodes.ENHANCE_YOUR_CALM],
        (message(b"x"), OK),
    )


async def test_the_first_end_of_a_call_holds(world: World) -> None:
    """Its task is cancelled for it, and has another one."""
    client = await world.raw()
    await client.say(frame(4, 0, 0, b"\0\4\0\0\0\0") + frame(1, 4, 1, client.head("Each")) + frame(0, 0, 1, message(b"x")) + PING)
    await client.answers()
    await client.say(frame(0, 1, 1, PREFIX.pack(False, BODY_BYTES_MAX + 1)) + PING)
    await client.answers()
    await client.say(frame(8, 0, 1, b"\0\0\1\0"))
    said = Decoder().decode((await client.until(HeadersFrame, 1)).data, raw=True)

    assert dict(said)[b"grpc-status"] == TOO_LARGE


async def test_who_does_not_read_is_not_heard(world: World) -> None:
    """What would have to be said to it does not pile up here."""
    ours, theirs = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().connect_accepted_socket(lambda: Connection({}, set()), ours)
    world.clients.callback(transport.abort)
    world.clients.callback(theirs.close)
    theirs.setblocking(False)  # socket takes no name
    said = memoryview(BEGIN + PING * 500_000)
    for _ in range(400):
        with contextlib.suppress(BlockingIOError):
            said = said[theirs.send(said) :]
        await asyncio.sleep(0.001)

    assert (transport.get_write_buffer_size() < 1 << 20, len(said) > 1 << 20) == (True, True)


async def test_a_client_that_compresses_is_told_what_is_taken(world: World) -> None:
    """As gRPC has it, for it to ask again."""
    client = await world.bare()
    asked = client.ask("Say", message(b"x", is_compressed=True))
    await client.flush()
    _, ends = await client.answer(asked)

    assert ends[b"grpc-accept-encoding"] == b"identity"


async def test_a_call_that_goes_on_after_its_answer_is_cut_short(world: World) -> None:
    """Its client need not say the rest."""
    client = await world.bare()
    asked = client.ask("Say", PREFIX.pack(False, BODY_BYTES_MAX + 1), is_whole=False)
    await client.flush()
    await client.answer(asked)
    while not (resets := [event for event in client.heard[asked] if isinstance(event, StreamReset)]):
        await client.hear()

    assert [event.error_code for event in resets] == [ErrorCodes.NO_ERROR]


@pytest.mark.parametrize(
    ("wrong", "status"),
    [((":method", "GET"), b"415"), (("content-type", "application/json"), b"415"), ((":path", "/test.Echo/Other"), UNIMPLEMENTED)],
)
@pytest.mark.parametrize("is_whole", [True, False])
async def test_what_is_no_call_of_ours_is_refused(world: World, wrong: tuple[str, str], status: bytes, *, is_whole: bool) -> None:
    """And the connection goes on."""
    client = await world.bare()
    headers = [*({name: value for name, value in [*HEADERS, wrong] if name != ":path"}).items()]
    found = await client.say("Other" if wrong[0] == ":path" else "Say", message(b"x"), headers=headers, is_whole=is_whole)

    assert (found, await client.say("Say", message(b"x"))) == ((b"", status), (message(b"x"), OK))


@pytest.mark.parametrize("method", ["Refuse", "RefuseNow"])
async def test_what_a_servicer_ends_a_call_with_arrives(world: World, method: str) -> None:
    """Letters of all kinds, and what goes with them."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{world.port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary(f"/test.Echo/{method}")("50 % zu spät\n".encode())
        found = refused.value

    assert (found.code(), found.details(), dict(found.trailing_metadata())) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "50 % zu spät\n",
        {"after": "9"},
    )


@pytest.mark.parametrize("method", ["Fail", "FailNow"])
async def test_a_servicer_that_fails_ends_its_call_alone(world: World, method: str) -> None:
    """Its error goes where a task's goes that nobody awaits."""
    errors = asyncio.Queue[BaseException]()
    asyncio.get_running_loop().set_exception_handler(lambda _, said: errors.put_nowait(said["exception"]))
    client = await world.bare()
    found, after, error = await client.say(method, message(b"x")), await client.say("Say", message(b"x")), await errors.get()

    assert (found, after, [type(error)]) == ((b"", UNKNOWN), (message(b"x"), OK), [ValueError])


@pytest.mark.parametrize("method", ["Slow", "SlowNow"])
async def test_who_gives_up_is_let_go(world: World, method: str) -> None:
    """By a reset, or by leaving altogether."""
    client, other = await world.bare(), await world.bare()
    asked = client.ask(method, message(b"reset"))
    await client.flush()
    await world.echo.begun.get()
    client.http2.reset_stream(asked, ErrorCodes.CANCEL)
    await client.flush()
    reset = await world.echo.left.get()
    other.ask(method, message(b"gone"))
    await other.flush()
    await world.echo.begun.get()
    other.close()

    assert (reset, await world.echo.left.get(), await client.say("Say", message(b"x"))) == (b"reset", b"gone", (message(b"x"), OK))


async def test_who_gives_up_at_once_is_not_begun_for(world: World) -> None:
    """Nobody waits when it would be."""
    client = await world.raw()
    await client.say(frame(1, 4, 1, client.head("SlowNow")) + frame(0, 1, 1, message(b"x")) + frame(3, 0, 1, b"\0\0\0\x08"))
    await client.say(PING)
    await client.answers()

    assert world.echo.begun.empty()


async def test_who_was_answered_is_not_let_go(world: World) -> None:
    """It has left by itself."""
    client = await world.bare()
    asked = client.ask("SlowNow", message(b"x"))
    await client.flush()
    await world.echo.begun.get()
    world.echo.go_on.set()
    await client.answer(asked)
    said = await client.say("SayNow", message(b"y"))
    client.close()
    await (await world.bare()).say("Say", message(b"z"))

    assert (said, world.echo.left.empty()) == ((message(b"y"), OK), True)


async def test_how_many_calls_are_taken_at_once_is_announced(world: World) -> None:
    """A client lets more of them wait."""
    client = await world.bare()
    while not any(isinstance(event, RemoteSettingsChanged) for event in client.told):
        await client.hear()

    settings = client.http2.remote_settings
    assert (settings.max_concurrent_streams, settings.max_header_list_size) == (CALLS_COUNT_MAX, HEADERS_BYTES_MAX)


async def test_a_client_that_says_goodbye_is_answered_first(world: World) -> None:
    """Java's says so when it is shut down, and waits for what it has asked."""
    client = await world.bare()
    asked = client.ask("Slow", message(b"x"))
    client.http2.say_goodbye()
    await client.flush()
    await world.echo.begun.get()
    world.echo.go_on.set()
    found = await client.answer(asked)
    while not client.is_over:
        await client.hear()

    assert found == (message(b"x"), {b"grpc-status": OK})


async def test_at_the_end_what_was_begun_is_answered(world: World) -> None:
    """What comes in before its client has read the goodbye, too; then the connection is closed."""
    client = await world.bare()
    asked = client.ask("Slow", message(b"before"))
    await client.flush()
    await world.echo.begun.get()
    stopping = asyncio.create_task(world.running.aclose())
    await asyncio.sleep(0.05)
    late = client.ask("Say", message(b"late"))
    world.echo.go_on.set()
    await client.flush()
    while not any(isinstance(event, ConnectionTerminated) for event in client.told):
        await client.hear()
    goodbye = next(event for event in client.told if isinstance(event, ConnectionTerminated))
    found = [await client.answer(stream_id) for stream_id in (asked, late)]
    while not client.is_over:
        await client.hear()
    client.close()
    await stopping

    assert (goodbye.last_stream_id, [data for data, _ in found]) == (LARGEST, [message(b"before"), message(b"late")])


@pytest.mark.parametrize("grace_s", [0.2])
async def test_who_does_not_read_the_goodbye_is_cut_off(world: World) -> None:
    """After the grace, with what it has asked."""
    client = await world.bare()
    client.ask("Slow", message(b"x"))
    await client.flush()
    await world.echo.begun.get()
    await world.running.aclose()

    assert await world.echo.left.get() == b"x"


@pytest.mark.parametrize("grace_s", [0.2])
async def test_who_broke_the_rules_and_does_not_read_holds_up_no_end(world: World) -> None:
    """Its connection is closed, but what was said to it before has not gone out; others are told goodbye all the same."""
    client, other = await world.bare(INITIAL_WINDOW_SIZE=2**31 - 1), await world.bare()
    client.http2.increment_flow_control_window(2**31 - 1 - 65_535)
    for _ in range(99):
        client.ask("Large", message(b"30000"))
        await client.flush()
        await other.say("Say", message(b"x"))
    await client.write(DATA_OF_NO_STREAM)
    await other.say("Say", message(b"x"))
    await world.running.aclose()
    while not any(isinstance(event, ConnectionTerminated) for event in other.told):
        await other.hear()

    assert not client.is_over


#: A call's headers as any connection's first ones may be: `:method: POST`, `:scheme: http`, a path, a content-type.
HEAD = b"\x83\x86\x04\x0e/test.Echo/Say\x0f\x10\x10application/grpc"
SLOW = HEAD.replace(b"\x0e/test.Echo/Say", b"\x0f/test.Echo/Slow")
PROTOCOL, FLOW_CONTROL, CLOSED, SIZE, COMPRESSION, CALM = 0x1, 0x3, 0x5, 0x6, 0x9, 0xB


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (DATA_OF_NO_STREAM, PROTOCOL),
        (frame(0, 0, 1, b"x"), PROTOCOL),
        (frame(1, 4, 0, HEAD), PROTOCOL),
        (frame(1, 4, 2, HEAD), PROTOCOL),
        (frame(1, 4, 3, HEAD) + frame(0, 0, 2, b"x"), PROTOCOL),
        (frame(1, 4, 1, b"\x80"), COMPRESSION),
        (frame(1, 4, 1, HEAD[:-1]), COMPRESSION),
        (frame(1, 0, 1, HEAD) + frame(6, 0, 0, b"12345678"), PROTOCOL),
        (frame(1, 0, 1, HEAD) + frame(9, 4, 3, b""), PROTOCOL),
        (frame(9, 4, 1, HEAD), PROTOCOL),
        (frame(1, 4, 1, HEAD) + frame(9, 4, 1, b""), PROTOCOL),
        (frame(1, 0, 1, HEAD) + frame(9, 0, 1, b"\x83" * 16_384) * (HEADERS_BYTES_MAX // 16_384), CALM),
        (frame(1, 0, 1, HEAD) + frame(9, 0, 1) * PARTS_COUNT_MAX, CALM),
        (frame(1, 4, 1, Encoder().encode([("a", "b" * 200)] * 400)), CALM),
        (frame(1, 12, 1, b"\xff" + HEAD), PROTOCOL),
        (frame(1, 12, 1, b""), PROTOCOL),
        (frame(1, 0x24, 1, b"1234"), PROTOCOL),
        (frame(1, 4, 1, HEAD) + frame(0, 8, 1, b"\x02x"), PROTOCOL),
        (frame(1, 5, 1, SLOW) + frame(0, 0, 1, b"x"), CLOSED),
        (frame(1, 5, 1, SLOW) + frame(1, 5, 1, b""), CLOSED),
        (frame(2, 0, 1, b"1234"), SIZE),
        (frame(3, 0, 1, b"123"), SIZE),
        (frame(3, 0, 1, b"1234"), PROTOCOL),
        (frame(4, 0, 0, b"12345"), SIZE),
        (frame(4, 1, 0, b"\0\x03\0\0\0\1"), SIZE),
        (frame(4, 0, 1), PROTOCOL),
        (frame(4, 0, 0, b"\0\x02\0\0\0\2"), PROTOCOL),
        (frame(4, 0, 0, b"\0\x04\x80\0\0\0"), FLOW_CONTROL),
        (frame(4, 0, 0, b"\0\x05\0\0\x3f\xff"), PROTOCOL),
        (frame(4, 0, 0, b"\0\x05\1\0\0\0"), PROTOCOL),
        (frame(5, 4, 1, b"1234" + HEAD), PROTOCOL),
        (frame(6, 0, 0, b"1234567"), SIZE),
        (frame(6, 0, 1, b"12345678"), PROTOCOL),
        (frame(7, 0, 1, b"12345678"), PROTOCOL),
        (frame(8, 0, 0, b"123"), SIZE),
        (frame(8, 0, 0, b"\0\0\0\0"), PROTOCOL),
        (frame(8, 0, 1, b"\0\0\0\1"), PROTOCOL),
        (frame(8, 0, 0, b"\x7f\xff\xff\xff"), FLOW_CONTROL),
        (frame(1, 4, 1, HEAD) + frame(8, 0, 1, b"\x7f\xff\xff\xff"), FLOW_CONTROL),
        (frame(1, 4, 1, HEAD) + frame(8, 0, 1, b"\x7f\xff\0\0") + frame(4, 0, 0, b"\0\4\0\1\0\0"), FLOW_CONTROL),
        (frame(0, 0, 1, b"", size=16_385), SIZE),
        (frame(0x20, 0, 0, b"", size=16_385), SIZE),
    ],
)
async def test_who_breaks_the_rules_is_told_which(world: World, said: bytes, code: int) -> None:
    """And cut off; nobody else is."""
    client, other = await world.raw(), await world.bare()
    await client.say(said)
    found = (await client.until(GoAwayFrame)).error_code
    while await client.hear():
        pass

    assert (found, await other.say("Say", message(b"x"))) == (code, (message(b"x"), OK))


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\n\n"])
async def test_what_is_no_http2_is_cut_off(world: World, said: bytes) -> None:
    """As soon as it can be told."""
    client = Raw(*await asyncio.open_connection("127.0.0.1", world.port))
    world.clients.callback(client.close)
    await client.say(said)

    assert (await client.until(GoAwayFrame)).error_code == PROTOCOL


@pytest.mark.parametrize(
    "said",
    [
        [frame(0x20, 0xFF, 3, b"what is that?"), frame(1, 4, 1, HEAD), frame(0, 1, 1, message(b"hello"))],
        [frame(2, 0, 1, b"12345"), frame(1, 4, 1, HEAD), frame(2, 0, 1, b"12345"), frame(0, 1, 1, message(b"hello"))],
        [frame(1, 0x2C, 1, b"\x03" + b"12345" + HEAD + b"\0\0\0"), frame(0, 9, 1, b"\x02" + message(b"hello") + b"\0\0")],
        [frame(1, 0, 1, HEAD[:5]), frame(9, 0, 1, b""), frame(9, 4, 1, HEAD[5:]), frame(0, 1, 1, message(b"hello"))],
        [frame(1, 4, 1, HEAD), frame(0, 0, 1, message(b"hello")), frame(1, 5, 1, b"\0\1a\1b")],
        [frame(1, 4, 1, HEAD), frame(0, 0, 1, message(b"hello")), frame(0, 1, 1, b"")],
        [frame(1, 4, 1, HEAD), *[frame(0, 0, 1, bytes([byte])) for byte in message(b"hello")], frame(0, 1, 1, b"")],
        [frame(6, 1, 0, b"whatever"), frame(1, 4, 1, HEAD), frame(0, 1, 1, message(b"hello"))],
    ],
)
async def test_a_call_may_be_said_in_other_ways(world: World, said: list[bytes]) -> None:
    """With frames of no kind we know, priorities, padding, headers in parts, and some behind it."""
    client = await world.raw()
    await client.say(b"".join(said))

    assert (await client.until(DataFrame, 1)).data == message(b"hello")


async def test_what_still_comes_for_a_call_that_is_over_is_passed_over(world: World) -> None:
    """Headers change what the next ones refer to all the same."""
    client = await world.raw()
    await client.say(frame(1, 5, 1, client.head()))
    await client.until(HeadersFrame, 1)
    late = [
        frame(0, 0, 1, b"x"),
        frame(3, 0, 1, b"\0\0\0\x08"),
        frame(8, 0, 1, b"\0\0\0\1"),
        frame(1, 5, 1, client.head("Say", ("a", "b"))),
    ]
    await client.say(b"".join([*late, frame(1, 4, 3, client.head("Say", ("a", "b"))), frame(0, 1, 3, message(b"hello"))]))

    assert (await client.until(DataFrame, 3)).data == message(b"hello")


async def test_headers_say_what_they_refer_to_now(world: World) -> None:
    """The same bytes are another method's once something else came into the table."""
    client = await world.raw()
    begin, references = b"\x83\x86\x44\x0e/test.Echo/Say\x5f\x10application/grpc", b"\x83\x86\xbf\xbe"
    for number, block in enumerate([begin, references, references]):
        await client.say(frame(1, 4, 2 * number + 1, block) + frame(0, 1, 2 * number + 1, message(b"%d" % number)))
    said = [(await client.until(DataFrame, stream_id)).data for stream_id in (1, 3, 5)]
    await client.say(frame(1, 5, 7, b"\x83\x86\x44\x0f/test.Echo/None\xbf") + frame(1, 5, 9, references))
    other = Decoder().decode((await client.until(HeadersFrame, 9)).data, raw=True)

    assert (said, dict(other)[b"grpc-status"]) == ([message(b"0"), message(b"1"), message(b"2")], UNIMPLEMENTED)


async def test_a_client_may_want_a_small_table(world: World) -> None:
    """It is told of none that it would have to keep, before it hears any headers."""
    client, heard = await world.raw(), Decoder()
    heard.max_allowed_table_size = 0
    await client.say(
        frame(4, 0, 0, b"\0\1\0\0\0\0") + frame(1, 5, 1, client.head()) + frame(1, 4, 3, client.head()) + frame(0, 1, 3, message(b"x"))
    )
    found = [dict(heard.decode((await client.until(HeadersFrame, stream_id)).data, raw=True)) for stream_id in (1, 3, 3)]

    assert [said.get(b"grpc-status") for said in found] == [INVALID, None, OK]


async def test_a_ping_comes_back(world: World) -> None:
    """With its bytes."""
    client = await world.raw()
    await client.say(PING)
    found = await client.until(PingFrame)

    assert (found.opaque_data, found.flags) == (b"12345678", {"ACK"})


async def test_a_whole_call_gets_its_answer_and_no_more(world: World) -> None:
    """It need not be cut short."""
    client = await world.raw()
    await client.say(frame(1, 4, 1, client.head()) + frame(0, 1, 1, message(b"hello")))
    await client.until(DataFrame, 1)
    await client.say(PING)
    found = await client.answers()

    assert [(type(said), said.stream_id) for said in found] == [(HeadersFrame, 1)]


async def test_who_is_refused_within_a_call_is_not_served(world: World) -> None:
    """Nothing is done for the messages before."""
    client = await world.raw()
    await client.say(frame(1, 4, 1, client.head("Slow")) + frame(0, 1, 1, message(b"x") + message(b"y", is_compressed=True)))
    said = Decoder().decode((await client.until(HeadersFrame, 1)).data, raw=True)
    await client.say(PING)
    await client.answers()

    assert (dict(said)[b"grpc-status"], world.echo.begun.empty()) == (UNIMPLEMENTED, True)


async def test_a_long_sentence_is_told_in_part(world: World) -> None:
    """As much as gRPC's clients take, whatever its letters are."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{world.port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary("/test.Echo/Refuse")(("\N{OGHAM SPACE MARK}" * 20_000).encode())

    assert (refused.value.code(), refused.value.details()) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "\N{OGHAM SPACE MARK}" * DETAILS_COUNT_MAX,
    )


@pytest.mark.parametrize("more", [b"", PING, frame(7, 0, 0, b"\0" * 8), frame(1, 4, 3, SLOW) + frame(0, 1, 3, message(b"x"))])
async def test_who_says_goodbye_with_nothing_under_way_is_left(world: World, more: bytes) -> None:
    """And hears nothing more, whatever else it said."""
    errors: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, said: errors.append(said))
    client = await world.raw()
    await client.say(frame(1, 4, 1, client.head("Slow")) + frame(0, 1, 1, message(b"x")))
    await world.echo.begun.get()
    await client.say(frame(7, 0, 0, b"\0" * 8) + frame(3, 0, 1, b"\0\0\0\x08") + more)
    await client.until(GoAwayFrame)

    assert (await client.hear(), world.echo.begun.empty(), errors) == (None, True, [])


async def test_more_calls_than_are_taken_are_refused(world: World) -> None:
    """For a client to ask again; those before go on."""
    client = await world.raw()
    calls = [frame(1, 4, 2 * number + 1, client.head()) for number in range(CALLS_COUNT_MAX + 1)]
    await client.say(b"".join(calls))
    refused = await client.until(RstStreamFrame, 2 * CALLS_COUNT_MAX + 1)
    await client.say(frame(0, 1, 1, message(b"hello")))
    found = await client.until(DataFrame, 1)
    await client.say(frame(1, 4, 2 * CALLS_COUNT_MAX + 3, client.head()) + frame(0, 1, 2 * CALLS_COUNT_MAX + 3, message(b"now")))

    assert (refused.error_code, found.data) == (ErrorCodes.REFUSED_STREAM, message(b"hello"))
    assert (await client.until(DataFrame, 2 * CALLS_COUNT_MAX + 3)).data == message(b"now")


async def test_calls_say_more_than_one_window_ahead(world: World) -> None:
    """And a client gets back what it used: on its connection at once, on a stream while that goes on."""
    client = await world.raw()
    ahead = (await client.until(WindowUpdateFrame)).window_increment + 65_535
    await client.say(frame(1, 4, 1, client.head("Slow")) + frame(0, 0, 1, message(b"x" * 1_000)[:500]))
    first = [(await client.until(WindowUpdateFrame, stream_id)).window_increment for stream_id in (1, 0)]
    await client.say(frame(0, 1, 1, message(b"x" * 1_000)[500:]))
    then: list[tuple[int, int]] = []
    while not then or then[-1][0]:
        found = await client.hear()
        then += [(found.stream_id, found.window_increment)] if isinstance(found, WindowUpdateFrame) else []

    assert (ahead, first, then) == (ROOM_BYTES, [500, 500], [(0, 505)])


async def test_settings_are_agreed_to(world: World) -> None:
    """Once each."""
    client = await world.raw()
    await client.say(frame(4, 0, 0, b"\0\x04\0\0\0\x64") + frame(4, 1, 0) + PING)

    assert [sorted(found.flags) for found in await client.answers() if isinstance(found, SettingsFrame)] == [[], ["ACK"], ["ACK"]]


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_comes_in_others_are_answered(world: World, seed: int) -> None:
    """Bytes of a good conversation, some of them others: the connection may end, and that is all."""
    errors: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, said: errors.append(said))
    draw = random.Random(seed)
    good = H2Connection(H2Configuration(header_encoding=None))
    good.initiate_connection()
    for _ in range(3):
        stream_id = good.get_next_available_stream_id()
        good.send_headers(stream_id, [(":path", "/test.Echo/Say"), *HEADERS, ("grpc-timeout", "80m")])
        good.send_data(stream_id, message(b"hello"), end_stream=True)
    conversation = good.data_to_send()
    for _ in range(60):
        said = bytearray(conversation)
        for _ in range(draw.randint(1, 6)):
            said[draw.randrange(24, len(said))] = draw.randrange(256)
        reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
        writer.write(said[: draw.randint(1, len(said))])
        writer.write_eof()
        await reader.read()
        writer.close()
    client = await world.bare()

    assert (await client.say("Say", message(b"x")), errors) == ((message(b"x"), OK), [])
