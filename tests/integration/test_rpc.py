"""ranker.fronts.rpc over real sockets: gRPC's own client, and one of bare HTTP/2. Frame by frame: test_rpc_frames.py."""

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator

import grpc
import pytest
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, DataReceived, RemoteSettingsChanged, StreamReset
from h2.settings import SettingCodes
from hpack import Decoder
from hyperframe.frame import HeadersFrame

from ranker.fronts.requests import BODY_BYTES_MAX
from ranker.fronts.rpc.call import DETAILS_COUNT_MAX, PREFIX, Call
from ranker.fronts.rpc.connection import CALLS_COUNT_MAX, Connection
from ranker.fronts.rpc.frames import LARGEST
from ranker.fronts.rpc.heads import HEADERS_BYTES_MAX
from ranker.fronts.rpc.served import MESSAGES_COUNT_MAX
from tests.rpc import BEGIN, DATA_OF_NO_STREAM, HEADERS, PING, World, frame, message, serving

OK, INVALID, UNIMPLEMENTED, TOO_LARGE, UNKNOWN = b"0", b"3", b"12", b"8", b"2"


@pytest.fixture
def grace_s() -> float:
    """What the server waits at its end, longer than anything here takes on a busy machine."""
    return 30.0


@pytest.fixture
async def world(grace_s: float) -> AsyncIterator[World]:
    """A server on a free port."""
    async with serving(grace_s) as found:
        yield found


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


async def test_a_long_sentence_is_told_in_part(world: World) -> None:
    """As much as gRPC's clients take, whatever its letters are."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{world.port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary("/test.Echo/Refuse")(("\N{OGHAM SPACE MARK}" * 20_000).encode())

    assert (refused.value.code(), refused.value.details()) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "\N{OGHAM SPACE MARK}" * DETAILS_COUNT_MAX,
    )
