"""Slates read as columns say what schemas.codec says of the same bytes, whatever stands there."""

import io
import struct
from typing import Any

import msgspec
from fastavro import schemaless_writer
from hypothesis import given
from hypothesis import strategies as st

from replay.served.slates import IDS, ITEM_WORDS, NUMBERS, WORDS, Slates, decoded, read
from schemas import avro, codec
from schemas.records import RankTelemetry, ServedItem
from tests.worlds import raw

#: Few letters: of words the lengths matter, and that not all of them are ASCII.
words = st.text("aé€𝄞:", max_size=5)
reals = st.floats(allow_nan=False)
items = st.builds(
    ServedItem,
    item_id=words,
    position=st.integers(-(2**31), 2**31 - 1),
    score=reals,
    vector=st.binary(max_size=9),
    propensity=reals,
    shadow_score=st.none() | reals,
)


def telemetry_of(names: st.SearchStrategy[str], longs: st.SearchStrategy[int]) -> st.SearchStrategy[RankTelemetry]:
    """names: what names a request."""
    named = {name: names if name in IDS else words for name in WORDS}
    offsets = st.dictionaries(words, longs, max_size=3)
    return st.builds(RankTelemetry, items=st.lists(items, max_size=4), ts_ms=longs, store_offsets=offsets, staleness_ms=longs, **named)


telemetry = telemetry_of(words, st.integers(-(2**63), 2**63 - 1))
#: Longs of nine bytes at most, and no name that is missing.
plain = telemetry_of(st.text("aé", min_size=1, max_size=5), st.integers(-(2**62), 2**62 - 1))


def encoded(one: RankTelemetry, version: int) -> bytes:
    """Under one of the published schemas."""
    schema = next(schema for schema in avro.BY_FINGERPRINT.values() if (schema.name, schema.version) == ("RankTelemetry", version))
    out = io.BytesIO()
    schemaless_writer(out, schema.parsed, msgspec.to_builtins(one, builtin_types=(bytes,)))
    return codec.SINGLE_OBJECT + schema.fingerprint + out.getvalue()


values = st.builds(encoded, telemetry, st.sampled_from([1, 2]))


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """Some bytes of a value are others, are gone, or are too many."""
    value = draw(values)
    start, length = draw(st.integers(0, len(value))), draw(st.integers(0, 3))
    return value[:start] + draw(st.binary(max_size=3)) + value[start + length :]


def said(found: Slates) -> list[dict[str, Any]]:
    """What columns say, a row a request."""
    text = found.text.tobytes()

    def word(span: Any) -> bytes:  # noqa: ANN401  # two numbers
        return text[span[0] : span[0] + span[1]]

    rows = []
    for row in range(found.requests_count):
        here = [place for place, request in enumerate(found.request) if request == row]
        of_items = [
            (*(word(found.item_words[column, place]) for column in range(len(ITEM_WORDS))), *found.item_numbers[:, place].tolist())
            for place in here
        ]
        named = {name: word(found.words[column, row]).decode() for column, name in enumerate(WORDS)}
        rows.append({**named, **{name: int(found.numbers[column, row]) for column, name in enumerate(NUMBERS)}, "items": of_items})
    return rows


def wanted(one: RankTelemetry) -> dict[str, Any]:
    """The same of a record."""

    def bits(value: float) -> int:
        return int(struct.unpack("<q", struct.pack("<d", value))[0])

    of_items = [(item.item_id.encode(), item.vector, item.position, bits(item.score), bits(item.propensity)) for item in one.items]
    return {name: getattr(one, name) for name in (*WORDS, *NUMBERS)} | {"items": of_items}


@given(st.lists(values | spoilt() | st.none() | st.builds(codec.encode_json, telemetry), max_size=6))
def test_columns_say_what_records_say(several: list[bytes | None]) -> None:
    """Each request that can be decoded is there once, whatever stands beside it, and nothing else is."""
    found = read([raw(value, "rank-telemetry", offset) for offset, value in enumerate(several)])
    records = [one for one in map(decoded, several) if one is not None]

    assert sorted(said(found), key=repr) == sorted(map(wanted, records), key=repr)


@given(st.lists(plain, min_size=1, max_size=4), st.sampled_from([1, 2]))
def test_what_we_write_is_read_in_the_loop(several: list[RankTelemetry], version: int) -> None:
    """In order; a version that lacks a field has its default."""
    records = [raw(encoded(one, version), "rank-telemetry", offset) for offset, one in enumerate(several)]
    without = [one if version > 1 else msgspec.structs.replace(one, staleness_ms=0) for one in several]

    assert said(read(records)) == [wanted(one) for one in without]
