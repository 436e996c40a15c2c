"""Responses and telemetry written by hand are the bytes that the codec writes."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from ranker import encode
from ranker.encode import Facts, Items
from schemas import codec
from schemas.records import RankedItem, RankResponse, RankTelemetry, ServedItem

WORDS = st.text(max_size=90)
DOUBLES = st.floats(allow_nan=False)
PLACES = st.lists(st.tuples(WORDS, DOUBLES, st.lists(WORDS, max_size=3), st.binary(max_size=200), DOUBLES), max_size=5)
FACTS = st.builds(Facts, WORDS, WORDS, WORDS, WORDS, WORDS, WORDS, WORDS, st.integers(-(2**63), 2**63 - 1), WORDS)


def items(places: list[tuple[str, float, list[str], bytes, float]]) -> Items:
    """A slate's columns."""
    ids, scores, reasons, vectors, propensities = zip(*places, strict=True) if places else ([],) * 5
    return Items(ids, scores, reasons, vectors, propensities)


@given(PLACES, FACTS, DOUBLES)
def test_a_response_is_as_the_codec_writes_it(places: list[tuple[str, float, list[str], bytes, float]], facts: Facts, ms: float) -> None:
    """Any ids, reasons and numbers, and an empty slate."""
    ranked = [RankedItem(item_id=item_id, score=score, reasons=reasons) for item_id, score, reasons, _, _ in places]
    record = RankResponse(ranked_items=ranked, latency_ms=ms, **facts._asdict())

    assert encode.response(items(places), facts, ms) == codec.encode(record)


@given(PLACES, FACTS, st.integers(0, 10**12))
def test_telemetry_is_as_the_codec_writes_it(places: list[tuple[str, float, list[str], bytes, float]], facts: Facts, old_ms: int) -> None:
    """Any vectors, none at all, and more places than one byte counts."""
    served = [
        ServedItem(item_id=item_id, position=position, score=score, vector=vector, propensity=propensity)
        for position, (item_id, score, _, vector, propensity) in enumerate(places * 30)
    ]
    record = RankTelemetry(items=served, staleness_ms=old_ms, **facts._asdict())

    assert encode.telemetry(items(places * 30), facts, old_ms) == codec.encode(record)


@given(st.integers(-(2**63), 2**63 - 1))
def test_a_number_is_zig_zag(number: int) -> None:
    """Avro's example: 0, -1, 1, -2 are 0, 1, 2, 3."""
    found = encode.long(number)
    value = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(found))

    assert ((value >> 1) ^ -(value & 1), len(struct.pack("q", number)) * 2 > len(found)) == (number, True)
