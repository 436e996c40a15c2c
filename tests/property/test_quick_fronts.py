"""The quick ways say what the general ones say: requests read field by field, answers told without decoding them."""

from contextlib import nullcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import convert, json
from msgspec.structs import replace

from ranker import encode
from ranker.encode import Facts
from ranker.fronts.grpc import as_message
from ranker.fronts.quick import avro as quick
from ranker.fronts.quick.answers import ranked
from ranker.fronts.requests import request_of
from ranker.fronts.shapes import Rank
from ranker.reads.answers import Answer, Said
from schemas import codec
from schemas.errors import DecodeError
from schemas.records import RankRequest
from schemas.topics import RANK_REQUESTS
from tests.places import Place, batches, encoded

WORDS = st.text(max_size=90)
IDS = st.text("abé0", min_size=1, max_size=40)
LONGS = st.integers(-(2**63), 2**63 - 1)
CANDIDATES = st.one_of(
    st.lists(st.one_of(IDS, WORDS), max_size=5), st.lists(st.just("i1"), min_size=60, max_size=250), st.lists(IDS, min_size=1, max_size=5)
)
REQUESTS = st.builds(
    RankRequest,
    request_id=IDS,
    user_id=IDS,
    candidate_item_ids=CANDIDATES,
    k=st.integers(-(2**31), 2**31 - 1) | st.integers(1, 9),
    ts_ms=LONGS,
    deadline_ms=st.none() | LONGS | st.integers(1, 9),
    context=st.dictionaries(WORDS, WORDS, max_size=3),
    tenant=WORDS,
)
DOUBLES = st.floats(allow_nan=False)
FACTS = st.builds(Facts, IDS, IDS, WORDS, WORDS, WORDS, WORDS, WORDS, LONGS, WORDS)
#: Where bytes are changed, and to what.
CHANGES = st.lists(st.tuples(st.integers(0, 10_000), st.sampled_from([0, 1, 2, 3, 0x7F, 0x80, 0xC3, 0xFF])), max_size=3)


def changed(raw: bytes, changes: list[tuple[int, int]], *, cut: int = 0) -> bytes:
    """With other bytes behind what names the schema, and some of the end gone."""
    found = bytearray(raw)
    for at, byte in changes:
        found[10 + at % (len(raw) - 10)] = byte
    return bytes(found[: max(len(found) - cut, 10)])


def by_codec(value: bytes) -> RankRequest | None:
    """What the definition reads, None where it refuses."""
    try:
        found = codec.decode(RANK_REQUESTS, value)
    except DecodeError:
        return None
    assert isinstance(found, RankRequest)
    return found


def is_refused(request: RankRequest) -> bool:
    """Whether it cannot be ranked."""
    try:
        codec.check_request(request)
    except DecodeError:
        return True
    return False


@given(REQUESTS)
def test_a_request_is_what_the_codec_reads(request: RankRequest) -> None:
    """Any fields; with plain ids it is read without the codec, which looks at whatever is refused."""
    found = quick.request(codec.encode(request), ())

    plain = all(len(item_id.encode()) < 64 and "\0" not in item_id for item_id in request.candidate_item_ids)
    moments = (request.ts_ms, request.deadline_ms or 0)
    if is_refused(request):
        assert found is None
    elif plain and all(abs(moment) < 2**61 for moment in moments):
        assert found == request
    assert found in (request, None)


@pytest.mark.parametrize("odd", [{"k": 0}, {"deadline_ms": 0}, {"candidate_item_ids": ["i"] * 201}, {"candidate_item_ids": ["i", ""]}])
def test_what_is_refused_is_the_codecs(odd: dict[str, object]) -> None:
    """It says why."""
    request = replace(RankRequest(request_id="r", user_id="u", candidate_item_ids=["i"], k=1, ts_ms=1), **odd)

    assert is_refused(request)
    assert quick.request(codec.encode(request), ()) is None


@pytest.mark.parametrize(("item_id", "is_long"), [("a" * 128, False), ("é" * 64, False), ("é" * 65, True)])
def test_an_id_of_too_many_bytes_is_refused(item_id: str, is_long: bool) -> None:  # noqa: FBT001 - named in the test's id
    """A body's schema counts letters."""
    said = convert({"user_id": "u", "candidate_item_ids": ["i", item_id]}, Rank)

    with pytest.raises(DecodeError, match="longer than 128 bytes") if is_long else nullcontext():
        request_of(said, "", 1_000)


@given(REQUESTS, CHANGES, st.integers(0, 3))
def test_a_broken_request_is_never_read_as_another(request: RankRequest, changes: list[tuple[int, int]], cut: int) -> None:
    """Whatever bytes it has become, it is what the codec makes of them, or left to it."""
    value = changed(codec.encode(request), changes, cut=cut)

    assert quick.request(value, ()) in (by_codec(value), None)


def test_a_request_that_a_header_names_the_schema_of_is_the_codecs() -> None:
    """Its first bytes say nothing then."""
    request = RankRequest(request_id="r", user_id="u", candidate_item_ids=["i"], k=1, ts_ms=1)

    assert quick.request(codec.encode(request), [(codec.SCHEMA_ID_HEADER, b"\0\0\0\0\1")]) is None


@given(batches(width_max=0), FACTS, DOUBLES)
def test_what_a_response_was_made_of_says_what_its_bytes_say(batch: list[list[Place]], facts: Facts, ms: float) -> None:
    """Over HTTP and over gRPC, to the byte: asked again, there are only the bytes."""
    for items in encoded(facts.tenant, *batch):
        said = Said(items, facts, ms)
        response = encode.response(*said)
        new, again = ranked(Answer(response, None, said)), ranked(Answer(response, None))

        assert (json.encode(new), as_message(new)) == (json.encode(again), as_message(again))
