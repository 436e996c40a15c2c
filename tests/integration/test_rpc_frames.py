"""ranker.fronts.rpc over real sockets, told bytes that no library of HTTP/2 lets a client say."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from hpack import Decoder, Encoder
from hyperframe.frame import DataFrame, GoAwayFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame, WindowUpdateFrame

from ranker.fronts.rpc.connection import CALLS_COUNT_MAX, ROOM_BYTES
from ranker.fronts.rpc.heads import HEADERS_BYTES_MAX, PARTS_COUNT_MAX
from tests.rpc import DATA_OF_NO_STREAM, HEADERS, PING, Raw, World, frame, message, serving

OK, INVALID, UNIMPLEMENTED = b"0", b"3", b"12"
#: What the server waits at its end, longer than anything here takes on a busy machine (seconds).
GRACE_S = 30.0
#: A call's headers as any connection's first ones may be: `:method: POST`, `:scheme: http`, a path, a content-type.
HEAD = b"\x83\x86\x04\x0e/test.Echo/Say\x0f\x10\x10application/grpc"
SLOW = HEAD.replace(b"\x0e/test.Echo/Say", b"\x0f/test.Echo/Slow")
PROTOCOL, FLOW_CONTROL, CLOSED, SIZE, COMPRESSION, CALM = 0x1, 0x3, 0x5, 0x6, 0x9, 0xB


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A server on a free port."""
    async with serving(GRACE_S) as found:
        yield found


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
