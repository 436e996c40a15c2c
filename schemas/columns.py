"""A batch of the log to columns at once, and out of the way the records that are no events.

Avro bodies of one schema are read in one compiled loop (schemas/columnar/bodies.py). A body that is not plainly of its schema
is decoded one by one instead, whatever stands beside it in the batch, and set aside if it is bad. What a good record says is the same
on both ways (tests/property holds them together).
"""

from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas import avro, codec
from schemas.columnar import bodies
from schemas.columnar.bodies import NONE
from schemas.columnar.events import NUMBERS, RECORDS, WORDS, Events, Ints, concat, pack
from schemas.columnar.log import VALUE, LogColumns
from schemas.columnar.words import Buffer, has_byte
from schemas.errors import DecodeError
from schemas.records import (
    CLOCK_SKEW_MS_MAX,
    DWELL_MS_MAX,
    ID_BYTES_MAX,
    TS_MS_MAX,
    VALUE_BYTES_MAX,
    Content,
    Reason,
    Record,
    User,
)
from schemas.topics import BadRecord, LogRecord, Topic

#: What no schema can say of an event, in the order in which faults are named; `codec.check` says the same of other records.
FAULTS = (
    (Reason.MISSING_ID, "an id is empty"),
    (Reason.OVERSIZE, f"an id is longer than {ID_BYTES_MAX} bytes"),
    (Reason.MALFORMED, "the tenant has a colon, which parts keys"),
    (Reason.OUT_OF_RANGE, "ts_ms is not a time since 1970 in milliseconds"),
    (Reason.OUT_OF_RANGE, f"dwell_ms is not in 0 to {DWELL_MS_MAX}"),
    (Reason.FUTURE_DATED, f"ts_ms is more than {CLOCK_SKEW_MS_MAX} ms ahead of the record's timestamp"),
)


class DecodedEvents(NamedTuple):
    """A decoded batch. events: the good ones; bad: the other records."""

    events: Events
    bad: list[BadRecord]


class Profile(NamedTuple):
    """A decoded content or user record. value: None is a tombstone."""

    record: LogRecord
    value: Content | User | None


def decode_events(
    topic: Topic, records: Sequence[LogRecord], schema_ids: codec.SchemaIds | None = None, told_before: int = 0
) -> DecodedEvents:
    """Decode and check a batch of impressions or of clicks; never raises for what a record holds.

    told_before: bad records before this offset are left out; making them again would take as long as all else that is done with them.
    """
    ids = {} if schema_ids is None else schema_ids
    log = Values.of(records)
    parts: list[Events] = []
    single = np.ones(len(records), np.bool_)
    for schema, plan, rows, skip in _blocks(topic, log, ids):
        found, odd = _read_block(schema, plan, log, rows, skip)
        parts.append(found)
        single[rows] = odd
    good, bad = _decode_each(topic, records, log, np.flatnonzero(single), ids, told_before)
    if good or not parts:
        parts.append(_events_of(good, log))
    events = concat(parts)
    return _checked(events, records, bad, told_before)


def decode_profiles(
    topic: Topic, records: Sequence[LogRecord], schema_ids: codec.SchemaIds | None = None
) -> tuple[list[Profile], list[BadRecord]]:
    """Decode and check a batch of content or of users, one by one: there are few of them."""
    profiles: list[Profile] = []
    bad: list[BadRecord] = []
    for record in records:
        try:
            profiles.append(Profile(record, _profile(topic, record, schema_ids)))
        except DecodeError as error:
            bad.append(BadRecord(record, error.reason, error.detail))
    return profiles, bad


def _profile(topic: Topic, record: LogRecord, schema_ids: codec.SchemaIds | None) -> Content | User | None:
    if record.value is None:
        if not record.key:
            raise DecodeError(Reason.MISSING_ID, "a tombstone without a key")
        if len(record.key) > ID_BYTES_MAX:
            raise DecodeError(Reason.OVERSIZE, f"the key is longer than {ID_BYTES_MAX} bytes")
        if not 0 < record.timestamp <= TS_MS_MAX:
            raise DecodeError(Reason.OUT_OF_RANGE, f"a tombstone's timestamp {record.timestamp} is not a time since 1970 in milliseconds")
        try:
            record.key.decode()
        except UnicodeDecodeError as error:
            raise DecodeError(Reason.MALFORMED, f"the key of a tombstone is not UTF-8: {error}") from error
        return None
    value = codec.decode(topic, record.value, record.headers, schema_ids)
    assert isinstance(value, (Content, User)), value
    codec.check(value, record.timestamp)
    return value


class Values(NamedTuple):
    """A batch's records taken apart. raw: all values' bytes; spans: int64 [n, 2], where each begins and ends.

    named: bool [n], whether a header names its schema. skip: uint8 [n], bytes before an Avro body, 0 where a record must be looked at on
    its own; schema: uint64 [n], its writer's name there.
    """

    raw: bytes
    spans: Ints
    named: NDArray[np.bool_]
    skip: NDArray[np.uint8]
    schema: NDArray[np.uint64]
    offset: Ints
    timestamp: Ints

    @classmethod
    def of(cls, records: Sequence[LogRecord]) -> "Values":
        """Take records apart."""
        if isinstance(records, LogColumns):
            values = records.spans.words[VALUE]
            spans = np.stack([values[:, 0], values[:, 0] + np.maximum(values[:, 1], 0)], axis=1)
            return cls._framed(records.text, spans, records.spans.named, records.spans.offset, records.spans.timestamp)
        raws = [record.value or b"" for record in records]
        ends = np.cumsum(np.fromiter(map(len, raws), np.int64, len(raws)))
        spans = np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1) if raws else np.zeros((0, 2), np.int64)
        named = np.array([bool(record.headers) and _is_named(record) for record in records], np.bool_)
        offset, timestamp = (np.fromiter(map(attrgetter(name), records), np.int64, len(raws)) for name in ("offset", "timestamp"))
        return cls._framed(b"".join(raws), spans, named, offset, timestamp)

    @classmethod
    def _framed(cls, raw: bytes, spans: Ints, named: NDArray[np.bool_], offset: Ints, timestamp: Ints) -> "Values":
        skip, schema = bodies.framings(np.frombuffer(raw, np.uint8), spans, VALUE_BYTES_MAX)
        skip[named] = 0
        return cls(raw, spans, named, skip, schema, offset, timestamp)

    @property
    def text(self) -> Buffer:
        """The values' bytes, uint8."""
        return np.frombuffer(self.raw, np.uint8)

    def schemas(self, framed: NDArray[np.bool_]) -> NDArray[np.uint64]:
        """The names of schemas that stand in some rows, each once. framed: bool [n]."""
        names = self.schema[framed]
        # Nearly always there is one, which is seen ten times as fast as several are told apart.
        return names[:1] if (names == names[:1]).all() else np.unique(names)


def _is_named(record: LogRecord) -> bool:
    return any(name == codec.SCHEMA_ID_HEADER for name, _ in record.headers)


class _Block(NamedTuple):
    """Rows of one batch that share a writer's schema and framing."""

    schema: avro.Schema
    plan: Ints
    rows: Ints
    skip: int


def _blocks(topic: Topic, log: Values, schema_ids: codec.SchemaIds) -> Iterator[_Block]:
    """The parts of a batch that can be read as columns."""
    for skip in (bodies.SINGLE_OBJECT_BYTES, bodies.CONFLUENT_BYTES):
        framed = log.skip == skip
        for name in log.schemas(framed):
            known = skip == bodies.SINGLE_OBJECT_BYTES
            schema = avro.BY_FINGERPRINT.get(name.tobytes()) if known else schema_ids.get(int(name))
            plan = _plan(schema) if schema is not None and avro.RECORDS.get(schema.name) in topic.records else None
            if schema is not None and plan is not None:
                yield _Block(schema, plan, np.flatnonzero(framed & (log.schema == name)), skip)


#: How to read bodies of each schema met so far, by fingerprint; None where it has to be done one by one.
_PLANS: dict[bytes, Ints | None] = {}


def _plan(schema: avro.Schema) -> Ints | None:
    if schema.fingerprint not in _PLANS:
        readable = schema.name in RECORDS and not avro.unreadable(schema.raw, avro.NEWEST[schema.name].raw)
        steps = bodies.steps(schema.raw["fields"], NUMBERS, WORDS) if readable else None
        _PLANS[schema.fingerprint] = None if steps is None else np.array(steps, np.int64)
    return _PLANS[schema.fingerprint]


def _read_block(schema: avro.Schema, plan: Ints, log: Values, rows: Ints, skip: int) -> tuple[Events, NDArray[np.bool_]]:
    """The events of a block, and which of its rows must be decoded one by one: bool [rows]."""
    numbers = np.full((len(NUMBERS), len(rows)), NONE, np.int64)
    words = np.zeros((len(WORDS), len(rows), 2), np.int64)
    words[WORDS.index("model_version"), :, 1] = -1
    odd = bodies.read(log.text, log.spans[rows] + np.array([skip, 0]), plan, numbers, words)
    record = np.full(len(rows), RECORDS.index(schema.name), np.uint8)
    return Events(record, rows, numbers, log.text, words, log.offset[rows], log.timestamp[rows]).where(~odd), odd


def _decode_each(
    topic: Topic, records: Sequence[LogRecord], log: Values, rows: Ints, schema_ids: codec.SchemaIds, told_before: int
) -> tuple[list[tuple[int, Record]], list[BadRecord]]:
    """The records of some rows, each with its row, and the bad ones that are new."""
    bad: list[BadRecord] = []
    good: list[tuple[int, Record]] = []
    for row, (start, end), named in zip(rows.tolist(), log.spans[rows].tolist(), log.named[rows].tolist(), strict=True):
        try:
            good.append((row, codec.decode(topic, log.raw[start:end], records[row].headers if named else (), schema_ids)))
        except DecodeError as error:
            if log.offset[row] >= told_before:
                bad.append(BadRecord(records[row], error.reason, error.detail))
    return good, bad


def _events_of(found: Sequence[tuple[int, Record]], log: Values) -> Events:
    """Decoded records as columns."""
    values = [value for _, value in found]
    rows = np.array([row for row, _ in found], np.int64)
    packed = [pack([getattr(value, name, None) for value in values]) for name in WORDS]
    starts = np.cumsum([0, *(len(text) for text, _ in packed)])
    return Events(
        np.array([RECORDS.index(type(value).__name__) for value in values], np.uint8),
        rows,
        np.array([[_number(getattr(value, name, None)) for value in values] for name in NUMBERS], np.int64),
        np.frombuffer(b"".join(text for text, _ in packed), np.uint8),
        np.stack([spans + np.array([start, 0]) for (_, spans), start in zip(packed, starts, strict=False)]),
        log.offset[rows],
        log.timestamp[rows],
    )


def _number(value: int | None) -> int:
    """A number as columns hold it; the one that means none is as far out of range as its neighbour."""
    return NONE if value is None else max(value, NONE + 1)


def _checked(events: Events, records: Sequence[LogRecord], bad: list[BadRecord], told_before: int) -> DecodedEvents:
    faults = _faults(events)
    broken = faults < len(FAULTS)
    if broken.any():
        new = broken & (events.offset >= told_before)
        bad += [BadRecord(records[row], *FAULTS[fault]) for row, fault in zip(events.row[new], faults[new], strict=True)]
    return DecodedEvents(events.where(~broken), bad)


def _faults(events: Events) -> NDArray[np.int64]:
    """The first of FAULTS that each event has, len(FAULTS) where it has none: int64 [n]."""
    ts_ms, dwell_ms = events.number("ts_ms"), events.number("dwell_ms")
    ids = [events.word(name)[:, 1] for name in codec.ID_FIELDS]
    keys = [events.word(name)[:, 1] for name in codec.KEY_FIELDS]
    broken = (
        np.minimum.reduce(ids) == 0,
        np.maximum.reduce(keys) > ID_BYTES_MAX,
        has_byte(events.text, events.word("tenant"), ord(":")),
        (ts_ms < 1) | (ts_ms > TS_MS_MAX),
        (dwell_ms != NONE) & ((dwell_ms < 0) | (dwell_ms > DWELL_MS_MAX)),
        ts_ms - events.timestamp > CLOCK_SKEW_MS_MAX,
    )
    return np.select(broken, range(len(FAULTS)), len(FAULTS))
