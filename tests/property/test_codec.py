"""Laws of encoding: decode undoes encode, and many at once say what each says alone, whatever the bytes are."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas import avro, codec
from schemas.columnar import events as columnar
from schemas.columnar.table import event_table
from schemas.columns import decode_events
from schemas.errors import DecodeError
from schemas.records import (
    DWELL_MS_MAX,
    Click,
    Consent,
    Content,
    DeadLetter,
    Dwell,
    Impression,
    RankedItem,
    RankRequest,
    RankResponse,
    RankTelemetry,
    Reason,
    Record,
    ServedItem,
    User,
)
from schemas.topics import CLICKS, IMPRESSIONS, StoredRecord, Topic
from tests.worlds import NOW_MS, SCHEMA_IDS, WIRES, encoded, raw, topic_of

TEXT = st.text(max_size=8)
IDS = st.text(min_size=1, max_size=8)
INTS = st.integers(-(2**31), 2**31 - 1)
LONGS = st.integers(-(2**63), 2**63 - 1)
DOUBLES = st.floats(allow_nan=False, allow_infinity=False)
FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32)
WORDS = st.dictionaries(TEXT, TEXT, max_size=3)
NUMBERS = st.dictionaries(TEXT, DOUBLES, max_size=3)
EVENT = {"request_id": IDS, "user_id": IDS, "item_id": IDS, "ts_ms": LONGS, "model_version": st.none() | TEXT, "tenant": TEXT}
SERVED = {"request_id": IDS, "user_id": IDS, **dict.fromkeys(("model_version", "feature_version", "generation", "degraded", "arm"), TEXT)}

RECORDS: dict[type[Record], st.SearchStrategy[Record]] = {
    Impression: st.builds(Impression, **EVENT, position=INTS, context=WORDS),
    Click: st.builds(Click, **EVENT, dwell_ms=st.none() | LONGS),
    Dwell: st.builds(Dwell, **EVENT, dwell_ms=LONGS),
    Content: st.builds(
        Content,
        item_id=IDS,
        author_id=TEXT,
        created_at_ms=LONGS,
        ts_ms=LONGS,
        language=TEXT,
        topic_tags=st.lists(TEXT, max_size=3),
        quality_score=st.none() | DOUBLES,
        content_embedding=st.none() | st.lists(FLOATS, max_size=3),
        safety_labels=st.lists(TEXT, max_size=2),
        attributes=NUMBERS,
        tenant=TEXT,
    ),
    User: st.builds(
        User,
        user_id=IDS,
        created_at_ms=LONGS,
        ts_ms=LONGS,
        locale=TEXT,
        region=TEXT,
        consent=st.builds(Consent, personalization=st.booleans(), analytics=st.booleans()),
        attributes=NUMBERS,
        tenant=TEXT,
    ),
    RankRequest: st.builds(
        RankRequest,
        request_id=IDS,
        user_id=IDS,
        candidate_item_ids=st.lists(TEXT, max_size=3),
        k=INTS,
        ts_ms=LONGS,
        deadline_ms=st.none() | LONGS,
        context=WORDS,
        tenant=TEXT,
    ),
    RankResponse: st.builds(
        RankResponse,
        **SERVED,
        ranked_items=st.lists(st.builds(RankedItem, item_id=TEXT, score=DOUBLES, reasons=st.lists(TEXT, max_size=2)), max_size=2),
        latency_ms=DOUBLES,
        ts_ms=LONGS,
        tenant=TEXT,
    ),
    RankTelemetry: st.builds(
        RankTelemetry,
        **SERVED,
        items=st.lists(
            st.builds(
                ServedItem,
                item_id=TEXT,
                position=INTS,
                score=DOUBLES,
                vector=st.binary(max_size=16),
                propensity=DOUBLES,
                shadow_score=st.none() | DOUBLES,
            ),
            max_size=2,
        ),
        ts_ms=LONGS,
        store_offsets=st.dictionaries(TEXT, LONGS, max_size=2),
        tenant=TEXT,
    ),
    DeadLetter: st.builds(
        DeadLetter,
        topic=TEXT,
        partition=INTS,
        offset=LONGS,
        reason=TEXT,
        detail=TEXT,
        value=st.none() | st.binary(max_size=16),
        key=st.none() | st.binary(max_size=4),
    ),
}


@pytest.mark.parametrize("name", sorted(avro.RECORDS))
@given(data=st.data(), wire=st.sampled_from(WIRES))
def test_decode_undoes_encode(name: str, wire: str, data: st.DataObject) -> None:
    """Every record, every wire form, every value that its types allow."""
    record = data.draw(RECORDS[avro.RECORDS[name]])

    assert codec.decode(topic_of(record), *encoded(record, wire), SCHEMA_IDS) == record


def judged(topic: Topic, record: StoredRecord) -> dict[str, Any] | str:
    """What one event says, or why it is bad: by the codec, and by rules of its own for what no schema can say."""
    try:
        event: Any = codec.decode(topic, record.value, record.headers, SCHEMA_IDS)
        broken = getattr(event, "dwell_ms", None) is not None and not 0 <= event.dwell_ms <= DWELL_MS_MAX
        try:
            codec.check(event, record.timestamp)
        except DecodeError as error:
            return Reason.OUT_OF_RANGE if broken and error.reason == Reason.FUTURE_DATED else error.reason
    except DecodeError as error:
        return error.reason
    fields = {name: getattr(event, name, None) for name in (*columnar.NUMBERS, *columnar.WORDS)}
    return Reason.OUT_OF_RANGE if broken else {**fields, "record": type(event).__name__}


def found(topic: Topic, records: Sequence[StoredRecord]) -> list[dict[str, Any] | str]:
    """What each record of a batch says, or why it is bad."""
    events = decode_events(topic, records, SCHEMA_IDS)
    said: dict[int, dict[str, Any] | str] = {bad.record.offset: bad.reason for bad in events.bad}
    for row in event_table(events.events).iter_rows(named=True):
        said[row["offset"]] = {name: row[name] for name in (*(*columnar.NUMBERS, *columnar.WORDS), "record")}
    return [said[record.offset] for record in records]


#: An event as a feed sends it, so that most are good.
PLAIN = {
    "request_id": IDS,
    "user_id": IDS,
    "item_id": IDS,
    "ts_ms": st.integers(NOW_MS - 10**9, NOW_MS),
    "tenant": st.sampled_from(["", "t"]),
}
MODEL = st.none() | st.sampled_from(["", "m1"])
EVENTS: dict[Topic, st.SearchStrategy[Record]] = {
    IMPRESSIONS: st.builds(Impression, **PLAIN, model_version=MODEL, position=st.integers(0, 40), context=WORDS) | RECORDS[Impression],
    CLICKS: st.one_of(
        st.builds(Click, **PLAIN, model_version=MODEL, dwell_ms=st.none() | st.integers(0, 10**6)),
        st.builds(Dwell, **PLAIN, model_version=MODEL, dwell_ms=st.integers(-1, 10**6)),
        RECORDS[Click],
        RECORDS[Dwell],
    ),
}
#: Longs as Avro writes them: of a length past any body, below zero, longer than they need be, without an end.
VARINTS = (
    b"\x80\x80\x80\x80\x40",
    b"\x01",
    b"\x82\x00",
    b"\x80" * 9 + b"\x01",
    b"\xff" * 11,
    b"\x12",
    b"\x04",
    b"\x80\x80\x80\x80\x80\x01",
)


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[Topic, list[StoredRecord]]:
    """A batch of one topic: every wire form, good records and such as were cut, extended, overwritten, swapped, or are nothing at all."""
    topic = draw(st.sampled_from([IMPRESSIONS, CLICKS]))
    records: list[StoredRecord] = []
    for offset in range(draw(st.integers(1, 6))):
        value, headers = encoded(draw(EVENTS[topic]), draw(st.sampled_from(WIRES)))
        edit = draw(st.sampled_from(["keep", "keep", "cut", "insert", "overwrite", "stranger", "swap", "noise", "move"]))
        place = draw(st.integers(0, len(value)))
        if edit == "cut":
            value = value[:place]
        elif edit == "insert":
            value = value[:place] + draw(st.binary(max_size=3) | st.sampled_from(VARINTS)) + value[place:]
        elif edit == "overwrite":
            value = value[:place] + draw(st.binary(min_size=1, max_size=1) | st.sampled_from(VARINTS)) + value[place + 1 :]
        elif edit == "stranger":
            value, headers = encoded(draw(st.one_of(*RECORDS.values())), draw(st.sampled_from(WIRES)))
        elif edit == "swap":
            value = value[:10] + codec.encode(draw(st.one_of(*EVENTS.values())))[10:]
        elif edit == "noise":
            value = draw(st.binary(max_size=24))
        elif edit == "move" and records and records[-1].value:
            records[-1] = records[-1]._replace(value=records[-1].value + value[place:])
            value = value[:place]
        records.append(raw(value, topic.name, offset, headers=headers))
    return topic, records


@given(mixtures())
@example((CLICKS, [raw(codec.encode(Click(request_id="r", user_id="u", item_id="i", ts_ms=1)) + b"\0")]))
@example((CLICKS, [raw(codec.encode(Dwell(request_id="r", user_id="u", item_id="i", ts_ms=1, dwell_ms=9))[:-2] + b"\x12\0\0")]))
def test_many_at_once_say_what_each_says_alone(mixture: tuple[Topic, list[StoredRecord]]) -> None:
    """The same events, the same bad ones, for the same reasons."""
    topic, records = mixture

    assert found(topic, records) == [judged(topic, record) for record in records]


@given(mixtures(), st.randoms(use_true_random=False))
def test_the_company_of_a_record_does_not_matter(mixture: tuple[Topic, list[StoredRecord]], shuffle: random.Random) -> None:
    """Any part of a batch, in any order, says what it said in the whole one: replay fetches other batches than live ingest did."""
    topic, records = mixture
    whole = dict(zip([record.offset for record in records], found(topic, records), strict=True))
    part = shuffle.sample(records, shuffle.randint(1, len(records)))

    assert found(topic, part) == [whole[record.offset] for record in part]
