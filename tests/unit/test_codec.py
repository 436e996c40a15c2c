"""One record to bytes and back, and which bytes are refused for which reason."""

import io
import json
from typing import Any

import fastavro
import pytest

from schemas import avro, codec
from schemas.errors import DecodeError
from schemas.records import CLOCK_SKEW_MS_MAX, ID_BYTES_MAX, TS_MS_MAX, VALUE_BYTES_MAX, Click, DeadLetter, Reason
from schemas.topics import CLICKS, CONTENT, DEAD_LETTERS, IMPRESSIONS, USERS, BadRecord, Headers, Topic
from tests.worlds import NOW_MS, SCHEMA_GUIDS, SCHEMA_IDS, SCHEMA_NUMBERS, WIRES, click, content, dwell, encoded, impression, raw, user

HEADER = codec.SCHEMA_ID_HEADER


def refused(value: bytes | None, topic: Topic = CLICKS, headers: Headers = ()) -> DecodeError:
    """The error with which a value is refused."""
    with pytest.raises(DecodeError) as caught:
        codec.decode(topic, value, headers, SCHEMA_IDS)
    return caught.value


def as_json(**fields: Any) -> bytes:  # noqa: ANN401  # whatever a producer may send
    """A good click as JSON with some fields replaced; None takes a field away."""
    good = {"request_id": "r1", "user_id": "u1", "item_id": "i1", "ts_ms": NOW_MS}
    return json.dumps({name: value for name, value in {**good, **fields}.items() if value is not None}).encode()


@pytest.mark.parametrize("wire", WIRES)
def test_every_wire_form_says_the_same(wire: str) -> None:
    """Single object, JSON, Confluent by number, by header, by GUID."""
    record = click(dwell_ms=5, model_version="m", tenant="acme")

    assert codec.decode(CLICKS, *encoded(record, wire), SCHEMA_IDS) == record


def test_single_object_encoding_begins_with_the_writers_fingerprint() -> None:
    """C3 01, then the CRC-64-AVRO of the newest schema, as the specification says."""
    assert codec.encode(click())[:10] == b"\xc3\x01" + avro.NEWEST["Click"].fingerprint


def test_confluent_framing_begins_with_a_zero_and_a_big_endian_number() -> None:
    """As Confluent's own serializers write it."""
    assert codec.encode_confluent(click(), 258)[:5] == b"\x00\x00\x00\x01\x02"


def test_json_without_a_type_is_the_topics_first_record() -> None:
    """On clicks, a click."""
    assert codec.decode(CLICKS, as_json()) == click()


def test_the_type_names_the_record_where_a_topic_carries_two() -> None:
    """On clicks, a dwell says so."""
    assert codec.decode(CLICKS, as_json(type="Dwell", dwell_ms=7)) == dwell(dwell_ms=7)


def test_json_may_carry_fields_that_we_do_not_know() -> None:
    """A producer that is ahead of us is no bad producer."""
    assert codec.decode(CLICKS, as_json(colour="red")) == click()


def test_a_writer_that_does_not_know_a_field_leaves_its_default() -> None:
    """A registered schema of our record with fewer fields is read through ours."""
    fields = [field for field in avro.NEWEST["Click"].raw["fields"] if field["name"] not in ("tenant", "dwell_ms")]
    older = avro.parse({**avro.NEWEST["Click"].raw, "fields": fields})
    body = b"\x04r1\x04u1\x04i1" + codec.encode(click())[10 + 9 : 10 + 15] + b"\x00"

    assert codec.decode(CLICKS, b"\0" + (7).to_bytes(4, "big") + body, (), {7: older}) == click()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, Reason.MALFORMED),
        (b"", Reason.MALFORMED),
        (b"hello", Reason.MALFORMED),
        (b"\x00", Reason.MALFORMED),
        (b"\x00\x00\x00\x00\x01", Reason.MALFORMED),
        (b"{", Reason.MALFORMED),
        (b'{"a":' + b"[" * 200_000, Reason.MALFORMED),
        (as_json()[:-1] + b',"x":NaN}', Reason.MALFORMED),
        (as_json().replace(b"u1", b"\xff\xff"), Reason.MALFORMED),
        (as_json().replace(b"u1", b"\\ud800"), Reason.MALFORMED),
        (as_json(colour="x" * VALUE_BYTES_MAX), Reason.OVERSIZE),
        (codec.encode(click())[:-1], Reason.MALFORMED),
        (codec.encode(click()) + b"\0", Reason.MALFORMED),
        (codec.encode(click())[:10], Reason.MALFORMED),
        (b"\xc3\x01" + bytes(8) + codec.encode(click())[10:], Reason.UNKNOWN_SCHEMA),
        (b"\xc3\x01", Reason.UNKNOWN_SCHEMA),
        (codec.encode(impression()), Reason.UNKNOWN_SCHEMA),
        (codec.encode_confluent(click(), 99_999), Reason.UNKNOWN_SCHEMA),
        (codec.encode_confluent(user(), SCHEMA_NUMBERS["User"]), Reason.UNKNOWN_SCHEMA),
        (as_json(type="Impression"), Reason.UNKNOWN_SCHEMA),
        (as_json(type=["Click"]), Reason.UNKNOWN_SCHEMA),
        (as_json(user_id=None), Reason.MISSING_ID),
        (as_json(user_id=""), Reason.MISSING_ID),
        (codec.encode(click(item_id="")), Reason.MISSING_ID),
        (as_json(user_id=7), Reason.WRONG_TYPE),
        (as_json(ts_ms=None), Reason.WRONG_TYPE),
        (as_json(ts_ms="yesterday"), Reason.WRONG_TYPE),
        (as_json(ts_ms=2**63), Reason.WRONG_TYPE),
        (as_json(ts_ms=True), Reason.WRONG_TYPE),
        (as_json(ts_ms=1.5), Reason.WRONG_TYPE),
        (as_json(type="Dwell"), Reason.WRONG_TYPE),
    ],
    ids=lambda case: repr(case)[:40],
)
def test_what_is_no_record_of_the_topic_is_refused_with_its_reason(value: bytes | None, reason: Reason) -> None:
    """The reason code is what stands in the dead letter."""
    assert refused(value).reason == reason


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (None, Reason.MALFORMED),
        (b"", Reason.MALFORMED),
        (b"\0\0\0\0", Reason.MALFORMED),
        (b"\2" + bytes(4), Reason.MALFORMED),
        (b"\0" + bytes(4), Reason.UNKNOWN_SCHEMA),
        (b"\1" + bytes(16), Reason.UNKNOWN_SCHEMA),
    ],
    ids=repr,
)
def test_a_schema_header_that_names_nothing_is_refused(header: Any, reason: Reason) -> None:  # noqa: ANN401  # Kafka's may be null
    """Kafka's headers may be null, too short, or name what no registry knows."""
    value, _ = encoded(click(), "header")

    assert refused(value, CLICKS, ((HEADER, header),)).reason == reason


def test_a_header_decides_before_the_first_byte() -> None:
    """A body that begins like another framing is still a body, where a header names its schema."""
    record = click(request_id="x" * 0x61)
    value, headers = encoded(record, "guid")

    assert (headers[0][1][1:], codec.decode(CLICKS, value, headers, SCHEMA_IDS)) == (SCHEMA_GUIDS["Click"].bytes, record)


def test_a_registered_schema_that_ours_cannot_read_is_unknown() -> None:
    """A Click whose time is text is not our Click."""
    foreign = avro.parse({"type": "record", "name": "Click", "fields": [{"name": "ts_ms", "type": "string"}]})

    with pytest.raises(DecodeError) as caught:
        codec.decode(CLICKS, b"\0\0\0\0\7\2a", (), {7: foreign})

    assert caught.value.reason == Reason.UNKNOWN_SCHEMA


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (content(tenant="a:b"), Reason.MALFORMED),
        (content(item_id="i" * (ID_BYTES_MAX + 1)), Reason.OVERSIZE),
        (content(item_id="é" * (ID_BYTES_MAX // 2 + 1)), Reason.OVERSIZE),
        (user(tenant="t" * (ID_BYTES_MAX + 1)), Reason.OVERSIZE),
        (content(ts_ms=0), Reason.OUT_OF_RANGE),
        (content(ts_ms=-1), Reason.OUT_OF_RANGE),
        (user(ts_ms=TS_MS_MAX + 1), Reason.OUT_OF_RANGE),
        (content(ts_ms=NOW_MS + CLOCK_SKEW_MS_MAX + 1), Reason.FUTURE_DATED),
    ],
    ids=lambda case: repr(case)[:60],
)
def test_what_no_schema_can_say_is_checked(record: Any, reason: Reason) -> None:  # noqa: ANN401  # Content or User
    """Lengths in bytes, a tenant that would part a key, times that cannot be."""
    with pytest.raises(DecodeError) as caught:
        codec.check(record, NOW_MS)

    assert caught.value.reason == reason


@pytest.mark.parametrize("ts_ms", [1, NOW_MS + CLOCK_SKEW_MS_MAX])
def test_the_bounds_of_an_event_time_are_good_times(ts_ms: int) -> None:
    """The first millisecond of 1970 and five minutes ahead of the Kafka timestamp."""
    codec.check(content(item_id="i" * ID_BYTES_MAX, ts_ms=ts_ms), NOW_MS)


def test_a_dead_letter_says_where_the_record_stood_and_holds_its_bytes() -> None:
    """And reads back as a record of its topic."""
    value, _ = codec.dead_letter(BadRecord(raw(b"\xff\0", "clicks", 17, key=None), Reason.MALFORMED, "why"))

    letter = codec.decode(DEAD_LETTERS, value)

    assert letter == DeadLetter(topic="clicks", partition=0, offset=17, reason="MALFORMED", detail="why", value=b"\xff\0", key=None)


def test_the_headers_of_a_dead_letter_are_named_as_in_kafka_connect() -> None:
    """So that its tools show them."""
    _, headers = codec.dead_letter(BadRecord(raw(b"x", "users", 3), Reason.OVERSIZE, "why"))

    assert dict(headers) == {
        "__connect.errors.topic": b"users",
        "__connect.errors.partition": b"0",
        "__connect.errors.offset": b"3",
        "__connect.errors.exception.class.name": b"OVERSIZE",
        "__connect.errors.exception.message": b"why",
        "__connect.errors.timestamp": b"%d" % NOW_MS,
    }


def test_a_dead_letter_does_not_quote_its_record_at_length() -> None:
    """A detail may hold all of a long word, at four characters a byte: the record stands beside it."""
    found = refused(codec.encode(click(user_id="u" * 9_000)).replace(b"uu", b"\xff\xff"), CLICKS)
    value, headers = codec.dead_letter(BadRecord(raw(b"x"), found.reason, found.detail))
    letter = codec.decode(DEAD_LETTERS, value)
    assert isinstance(letter, DeadLetter)

    assert (len(found.detail) > 9_000, len(letter.detail), len(dict(headers)["__connect.errors.exception.message"])) == (True, 1_000, 1_000)


def test_a_dead_letter_of_null_bytes_stays_null() -> None:
    """A null value and an empty one are told apart."""
    letters = [codec.decode(DEAD_LETTERS, codec.dead_letter(BadRecord(raw(value), "MALFORMED", ""))[0]) for value in (None, b"")]

    assert [getattr(letter, "value", 0) for letter in letters] == [None, b""]


@pytest.mark.parametrize("topic", [IMPRESSIONS, CLICKS, CONTENT, USERS])
def test_every_source_topic_refuses_another_topics_record(topic: Topic) -> None:
    """Published to the wrong topic, a record is a dead letter, not a crash."""
    strangers = [record for record in (impression(), click(), content(), user()) if type(record) not in topic.records]

    reasons = {refused(codec.encode(record), topic).reason for record in strangers}

    assert reasons == {Reason.UNKNOWN_SCHEMA}


def test_our_bytes_are_read_by_plain_fastavro() -> None:
    """The body behind the ten bytes of framing is the Avro encoding of the fields, no more."""
    stream = io.BytesIO(codec.encode(click())[10:])

    fields = fastavro.schemaless_reader(stream, avro.NEWEST["Click"].parsed, None)

    assert Click(**fields) == click()  # type: ignore[arg-type]  # fastavro does not say that a record is a dict
