"""ranker.fronts.rpc.frames and heads: bytes as they come, and what is looked at twice."""

import pytest
from hpack import Encoder
from hypothesis import given
from hypothesis import strategies as st

from ranker.fronts.rpc.call import Asked
from ranker.fronts.rpc.frames import DATA, HEADERS, PREFACE, Frame, Frames, Headers, content
from ranker.fronts.rpc.heads import KNOWN_COUNT_MAX, Heads
from ranker.reads.answers import nothing
from tests.rpc import frame, message

#: Of no kind that has a size of its own.
SAID = st.builds(Frame, st.sampled_from([0, 1, 4, 5, 7, 9, 77]), st.integers(0, 255), st.integers(0, 2**31 - 1), st.binary(max_size=40))


@given(said=st.lists(SAID, max_size=5), sizes=st.lists(st.integers(1, 30), min_size=1), is_reserved=st.booleans())
def test_frames_are_the_same_however_they_come(said: list[Frame], sizes: list[int], *, is_reserved: bool) -> None:
    """In pieces of any size; the bit before a stream's number says nothing."""
    left = PREFACE + b"".join(frame(kind, flags, of | is_reserved << 31, payload) for kind, flags, of, payload in said)
    frames = Frames()
    found: list[Frame] = []
    while left:
        for size in sizes:
            found += frames.of(left[:size])
            left = left[size:]

    assert found == said


@pytest.mark.parametrize(
    ("kind", "flags", "payload", "expected"),
    [
        (DATA, 0x00, b"\2abc", b"\2abc"),
        (DATA, 0x08, b"\2abc", b"a"),
        (DATA, 0x08, b"\3abc", b""),
        (DATA, 0x28, b"\1abc", b"ab"),
        (HEADERS, 0x20, b"12345abc", b"abc"),
        (HEADERS, 0x28, b"\00112345abc", b"ab"),
    ],
)
def test_padding_and_priority_are_not_content(kind: int, flags: int, payload: bytes, expected: bytes) -> None:
    """Data have no priority, whatever that bit says."""
    assert content(Frame(kind, flags, 1, payload)) == expected


def test_headers_that_are_known_are_few() -> None:
    """A client that says what it likes does not fill our memory."""
    heads, encoder = Heads(), Encoder()
    heads.take(Frame(HEADERS, 4, 1, encoder.encode([("a", "b")])))
    for count in range(1, 3 * KNOWN_COUNT_MAX):
        assert heads.take(Frame(HEADERS, 4, 1, encoder.encode([("a", "b")] * count))) == (
            Frame(HEADERS, 4, 1, b"\xbe" * count),
            {b"a": b"b"},
        )

    assert len(heads._known) <= KNOWN_COUNT_MAX  # noqa: SLF001  # nothing else says so


def test_what_comes_for_a_call_that_was_refused_is_not_kept() -> None:
    """It may go on for as long as its end waits for room."""

    class Nowhere:
        def send(self, stream_id: int, data: bytes) -> None: ...
        def end(self, stream_id: int, headers: Headers) -> None: ...

    call = Asked(lambda *_: nothing, Nowhere(), 1, {})
    for _ in range(3):
        call.received(message(b"x", is_compressed=True) * 10)

    assert call._unread == b""  # noqa: SLF001  # as above
