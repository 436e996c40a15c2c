"""Responses and telemetry written by hand are the bytes that the codec writes."""

import struct

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ranker import encode
from ranker.encode import Facts
from ranker.slate.rules import Touch, reasons
from schemas import codec
from schemas.records import RankedItem, RankResponse, RankTelemetry, ServedItem
from tests.places import Place, batches, encoded

WORDS = st.text(max_size=90)
DOUBLES = st.floats(allow_nan=False)
FACTS = st.builds(Facts, WORDS, WORDS, WORDS, WORDS, WORDS, WORDS, WORDS, st.integers(-(2**63), 2**63 - 1), WORDS)


@given(batches(), FACTS, DOUBLES)
def test_a_response_is_as_the_codec_writes_it(batch: list[list[Place]], facts: Facts, ms: float) -> None:
    """Any ids, reasons and numbers, and an empty slate; each of its own request."""
    for slate, items in zip(batch, encoded(facts.tenant, *batch), strict=True):
        ranked = [RankedItem(item_id=place.item_id, score=place.score, reasons=list(reasons(place.touched))) for place in slate]

        assert encode.response(items, facts, ms) == codec.encode(RankResponse(ranked_items=ranked, latency_ms=ms, **facts._asdict()))


def test_there_is_room_for_every_reason() -> None:
    """At once, on each of many short ids."""
    slate = [Place("i", 0.5, 2 ** len(Touch) - 1, (), 1.0)] * 200
    [items] = encoded("", slate)

    assert items.ranked.count(Touch.COLD_START.name.encode()) == 200
    assert items.columns() == (["i"] * 200, [0.5] * 200, [tuple(touch.name for touch in Touch)] * 200)


@given(batches(), FACTS, st.integers(0, 10**12))
def test_telemetry_is_as_the_codec_writes_it(batch: list[list[Place]], facts: Facts, old_ms: int) -> None:
    """Any vectors, none at all, and more places than one byte counts."""
    many = [slate * 30 for slate in batch]
    for slate, items in zip(many, encoded(facts.tenant, *many), strict=True):
        served = [
            ServedItem(
                item_id=place.item_id,
                position=position,
                score=place.score,
                vector=np.array(place.vector, "<f4").tobytes(),
                propensity=place.propensity,
            )
            for position, place in enumerate(slate)
        ]

        assert encode.telemetry(items, facts, old_ms) == codec.encode(RankTelemetry(items=served, staleness_ms=old_ms, **facts._asdict()))


@given(st.integers(-(2**63), 2**63 - 1))
def test_a_number_is_zig_zag(number: int) -> None:
    """Avro's example: 0, -1, 1, -2 are 0, 1, 2, 3."""
    found = encode.long(number)
    value = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(found))

    assert ((value >> 1) ^ -(value & 1), len(struct.pack("q", number)) * 2 > len(found)) == (number, True)
