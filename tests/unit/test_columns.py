"""Many events at once: every bad record is set aside with its reason, and no neighbour pays for it."""

from collections.abc import Sequence

import pytest

from schemas import avro, codec
from schemas.columnar.repeats import Repeats
from schemas.columnar.table import EVENT_COLUMNS, event_table
from schemas.columns import decode_events, decode_profiles
from schemas.records import CLOCK_SKEW_MS_MAX, DWELL_MS_MAX, ID_BYTES_MAX, TS_MS_MAX, Click, Dwell, Event, Reason
from schemas.topics import CLICKS, CONTENT, IMPRESSIONS, USERS, StoredRecord
from tests.worlds import NOW_MS, SCHEMA_IDS, WIRES, click, content, dwell, impression, raw, stored, topic_of, user


def reasons(records: Sequence[StoredRecord]) -> dict[int, str]:
    """Offset of each bad record of the topic clicks, and why."""
    return {bad.record.offset: bad.reason for bad in decode_events(CLICKS, records, SCHEMA_IDS).bad}


def refusal(event: Event, timestamp: int = NOW_MS) -> str | None:
    """Why one event is set aside; None where it is good."""
    bad = decode_events(topic_of(event), [stored(event, timestamp=timestamp)]).bad
    return bad[0].reason if bad else None


def test_a_batch_of_every_wire_form_is_one_frame() -> None:
    """A topic may mix them."""
    records = [stored(click(user_id=f"u-{wire}"), offset, wire=wire) for offset, wire in enumerate(WIRES)]

    events = decode_events(CLICKS, records, SCHEMA_IDS)

    assert (sorted(event_table(events.events)["user_id"]), events.bad) == (sorted(f"u-{wire}" for wire in WIRES), [])


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("beside", [None, b"no event"])
def test_columns_of_all_batches_lie_alike(wire: str, beside: bytes | None) -> None:
    """Of one wire form or several, beside bad records, without repeats: a loop that met another layout would be compiled, for seconds."""
    records = [stored(click(request_id="r1")), stored(click(request_id="r2"), 1, wire=wire), stored(click(request_id="r1"), 2)]
    spoilt = [raw(beside, offset=3)] if beside else []
    found = decode_events(CLICKS, [*records, *spoilt], SCHEMA_IDS).events
    kept = Repeats().drop(found)
    columns = [column for events in (found, kept) for column in (events.numbers, events.words)]

    assert (len(kept), [column.flags.c_contiguous for column in columns]) == (2, [True] * 4)
    assert [events.text.flags.writeable for events in (found, kept)] == [False, False]


@pytest.mark.parametrize("wire", WIRES)
def test_every_column_says_what_the_record_said(wire: str) -> None:
    """And what the log said of it."""
    record = dwell(dwell_ms=9, model_version="m", tenant="acme")

    frame = event_table(decode_events(CLICKS, [stored(record, 41, timestamp=NOW_MS + 7, wire=wire)], SCHEMA_IDS).events)

    row = ("Dwell", 0, "r1", "u1", "i1", NOW_MS, 9, None, "m", "acme", 41, NOW_MS + 7)
    assert [dict(frame.schema), frame.row(0)] == [EVENT_COLUMNS, row]


@pytest.mark.parametrize("wire", WIRES)
def test_an_impression_says_where_it_was_shown(wire: str) -> None:
    """0 is the top, and no null."""
    records = [stored(impression(position=place), place, wire=wire) for place in (0, 7)]

    frame = event_table(decode_events(IMPRESSIONS, records, SCHEMA_IDS).events)

    assert frame.sort("offset")["position"].to_list() == [0, 7]


@pytest.mark.parametrize(
    "edit",
    [
        lambda value: value[:-1],
        lambda value: value[:12],
        lambda value: value[:10],
        lambda value: value + b"\0",
        lambda value: value + b"A",
        lambda value: value + value[10:],
        lambda value: value[:10] + b"\x7f" + value[11:],
        lambda value: value[:10] + b"\x03" + value[11:],
        lambda value: value[:11] + b"\xff" + value[12:],
        lambda value: value[:10] + b"\xff" * 9 + b"\x01" + value[11:],
        lambda value: value[:-2] + b"\x12\0",
        lambda value: value[:-2] + b"\x05\0",
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_broken_body_costs_only_itself(edit: object, place: int) -> None:
    """Cut, extended, doubled, a length past its end or below zero, no UTF-8, a branch that no union has: wherever it stands."""
    records = [stored(click(user_id=f"u{offset}"), offset) for offset in range(3)]
    assert callable(edit)
    records[place] = records[place]._replace(value=edit(records[place].value))

    events = decode_events(CLICKS, records)

    kept = {f"u{offset}" for offset in range(3) if offset != place}
    assert (set(event_table(events.events)["user_id"]), [bad.record.offset for bad in events.bad]) == (kept, [place])


def test_bytes_that_moved_from_one_record_to_the_next_make_both_bad() -> None:
    """Joined they would be two good bodies."""
    first, second = codec.encode(click()), codec.encode(click())
    values = (first[:-3], second[:10] + first[-3:] + second[10:])

    found = reasons([raw(value, offset=offset) for offset, value in enumerate(values)])

    assert found == {0: Reason.MALFORMED, 1: Reason.MALFORMED}


def test_a_bad_body_is_bad_in_any_company() -> None:
    """What a record says does not hang on what was fetched with it."""
    odd = raw(codec.encode(dwell())[:-2] + b"\x12\0\0", offset=1)

    alone, among = reasons([odd]), reasons([stored(dwell(), 0), odd, raw(b"nonsense", offset=2)])

    assert (alone[1], among[1]) == (Reason.MALFORMED, Reason.MALFORMED)


def test_a_body_of_another_record_under_a_fingerprint_is_bad() -> None:
    """A dwell's body does not pass for a click's."""
    swapped = codec.encode(click())[:10] + codec.encode(dwell())[10:]

    assert reasons([raw(swapped), stored(click(), 1)]) == {0: Reason.MALFORMED}


def test_a_number_that_avro_calls_int_must_be_one() -> None:
    """A position past 2**31 is no position."""
    value = codec.encode(impression(position=0)).replace(codec.encode(impression())[10 + 15 :], b"", 1)
    value += b"\x80\x80\x80\x80\x80\x01" + codec.encode(impression())[10 + 16 :]

    bad = decode_events(IMPRESSIONS, [raw(value, "impressions"), stored(impression(), 1)]).bad

    assert [(found.record.offset, found.reason) for found in bad] == [(0, Reason.WRONG_TYPE)]


def test_a_context_must_be_text_though_no_column_keeps_it() -> None:
    """A record is good or bad as a whole."""
    value = codec.encode(impression(context={"tab": "home"})).replace(b"home", b"ho\xffe")

    bad = decode_events(IMPRESSIONS, [raw(value, "impressions")]).bad

    assert [found.reason for found in bad] == [Reason.MALFORMED]


def test_a_long_context_is_read_like_a_short_one() -> None:
    """However many entries a feed sends."""
    record = stored(impression(context={f"key-{number}": "value" for number in range(200)}, tenant="acme"))

    events = decode_events(IMPRESSIONS, [record, stored(impression(), 1)])

    assert (sorted(event_table(events.events)["tenant"]), events.bad) == (["", "acme"], [])


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (click(user_id=""), Reason.MISSING_ID),
        (click(request_id=""), Reason.MISSING_ID),
        (click(user_id="é" * (ID_BYTES_MAX // 2 + 1)), Reason.OVERSIZE),
        (click(model_version="m" * (ID_BYTES_MAX + 1)), Reason.OVERSIZE),
        (click(tenant="a:b"), Reason.MALFORMED),
        (click(ts_ms=0), Reason.OUT_OF_RANGE),
        (click(ts_ms=-(2**62)), Reason.OUT_OF_RANGE),
        (click(ts_ms=TS_MS_MAX + 1), Reason.OUT_OF_RANGE),
        (click(dwell_ms=-1), Reason.OUT_OF_RANGE),
        (dwell(dwell_ms=DWELL_MS_MAX + 1), Reason.OUT_OF_RANGE),
        (click(ts_ms=NOW_MS + CLOCK_SKEW_MS_MAX + 1), Reason.FUTURE_DATED),
        (click(user_id="", tenant="a:b", ts_ms=0), Reason.MISSING_ID),
    ],
    ids=lambda case: repr(case)[:60],
)
def test_what_no_schema_can_say_is_checked(event: Event, reason: Reason) -> None:
    """With the first fault as the reason."""
    assert refusal(event) == reason


@pytest.mark.parametrize(
    "event",
    [
        click(user_id="é" * (ID_BYTES_MAX // 2), dwell_ms=0),
        click(ts_ms=1, dwell_ms=DWELL_MS_MAX),
        click(ts_ms=NOW_MS + CLOCK_SKEW_MS_MAX),
        click(user_id="a:b\0{}", model_version=""),
    ],
    ids=lambda case: repr(case)[:60],
)
def test_the_bounds_are_good(event: Event) -> None:
    """The longest id, the longest dwell, the first and the last time; an id may hold anything."""
    assert refusal(event) is None


def test_the_fast_way_and_the_codec_name_the_same_records() -> None:
    """A click and a dwell in one batch keep their names and their places."""
    frame = event_table(decode_events(CLICKS, [stored(dwell(), 5), stored(click(), 6), stored(dwell(), 9)]).events).sort("offset")

    assert frame.select("record", "row", "offset").rows() == [("Dwell", 0, 5), ("Click", 1, 6), ("Dwell", 2, 9)]


def test_a_writer_that_does_not_know_a_field_leaves_its_default() -> None:
    """A registered schema with fewer fields is read in columns too."""
    raw_click = avro.NEWEST["Click"].raw
    older = avro.parse({**raw_click, "fields": [field for field in raw_click["fields"] if field["name"] not in ("tenant", "dwell_ms")]})
    body = b"\x04r1\x04u1\x04i1" + codec.encode(click())[10 + 9 : 10 + 15] + b"\0"

    frame = event_table(decode_events(CLICKS, [raw(b"\0\0\0\0\7" + body)], {7: older}).events)

    assert frame.select("user_id", "ts_ms", "dwell_ms", "model_version", "tenant").row(0) == ("u1", NOW_MS, None, None, "")


def test_a_null_schema_header_is_one_bad_record() -> None:
    """Kafka's headers may be null."""
    headers = ((codec.SCHEMA_ID_HEADER, None),)

    assert reasons([stored(click())._replace(headers=headers), stored(click(), 1)]) == {0: Reason.MALFORMED}  # type: ignore[arg-type]  # as said


def test_profiles_keep_the_records_around_a_bad_one() -> None:
    """Content is decoded one by one, with the same care."""
    records = [stored(content("i1"), 0), raw(b"nonsense", "content", 1), stored(content("i2"), 2)]

    profiles, bad = decode_profiles(CONTENT, records)

    assert ([profile.record.offset for profile in profiles], [found.record.offset for found in bad]) == ([0, 2], [1])


def test_a_null_value_is_a_tombstone() -> None:
    """For users and content; its key says whose."""
    profiles, bad = decode_profiles(USERS, [raw(None, "users", key=b"u1")])

    assert ([(profile.record.key, profile.value) for profile in profiles], bad) == ([(b"u1", None)], [])


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (raw(None, "users", key=None), Reason.MISSING_ID),
        (raw(None, "users", key=b""), Reason.MISSING_ID),
        (raw(None, "users", key=b"k" * (ID_BYTES_MAX + 1)), Reason.OVERSIZE),
        (raw(None, "users", key=b"\xff"), Reason.MALFORMED),
        (raw(None, "users")._replace(timestamp=-1), Reason.OUT_OF_RANGE),
        (raw(None, "users")._replace(timestamp=2**62), Reason.OUT_OF_RANGE),
        (raw(b"", "users"), Reason.MALFORMED),
        (stored(user(ts_ms=NOW_MS), timestamp=NOW_MS - CLOCK_SKEW_MS_MAX - 1), Reason.FUTURE_DATED),
    ],
    ids=lambda case: repr(case)[:60],
)
def test_a_profile_that_names_nobody_or_no_time_is_bad(record: StoredRecord, reason: Reason) -> None:
    """A tombstone that could not take effect must not vanish: it is a dead letter."""
    _, bad = decode_profiles(USERS, [record])

    assert [found.reason for found in bad] == [reason]


def test_nothing_of_an_event_is_null_but_what_may_be() -> None:
    """Only dwell_ms, the place of what is no impression, and model_version."""
    frame = event_table(decode_events(CLICKS, [stored(Click(request_id="r", user_id="u", item_id="i", ts_ms=1))]).events)

    assert [name for name in frame.columns if frame[name].has_nulls()] == ["dwell_ms", "position", "model_version"]


def test_a_dwell_always_has_its_length() -> None:
    """The record says so, and so does the column."""
    frame = event_table(decode_events(CLICKS, [stored(Dwell(request_id="r", user_id="u", item_id="i", ts_ms=1, dwell_ms=0))]).events)

    assert frame["dwell_ms"].to_list() == [0]


def test_what_was_told_of_before_is_not_made_again() -> None:
    """Bad records before an offset are left out, whatever is wrong with them; good ones are not."""
    records = [raw(b"noise", "impressions", 0), stored(impression(request_id=""), 1), stored(impression(), 2)]
    records += [raw(b"noise", "impressions", 3), stored(impression(request_id=""), 4)]
    found = decode_events(IMPRESSIONS, records, told_before=3)

    assert (found.events.offset.tolist(), [bad.record.offset for bad in found.bad]) == ([2], [3, 4])
