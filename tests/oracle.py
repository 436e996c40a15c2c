"""What every record must say, found the slow way: loops over the whole raw log.

This shares no code with the product: it reads the published .avsc files and the bytes of the log, and states every rule again in its
own words. Where it and the product differ, one of them is wrong.

    a record is good if its bytes are one whole record of its topic, its ids are there and short, and its times can be
    an event counts once: not if the same record, tenant, request and item stands in the 65,536 offsets before it in its partition
    a tile counts if newest - n < tile <= newest, with newest = as_of // hop, n = span // hop, tile = ts // hop
    a tombstone sets a floor: tiles that start before it never count, events before it are not activity
    a field says what the content or user record with the highest (ts_ms, offset, partition) said
"""

import io
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import fastavro
from fastavro.schema import fingerprint, to_parsing_canonical_form

#: kind -> window's name -> (span_ms, hop_ms)
Windows = Mapping[str, Mapping[str, tuple[int, int]]]
#: tenant, kind, id
Entity = tuple[str, str, str]
#: topic without prefix, partition, offset
Place = tuple[str, int, int]

AVSC_FOLDER = Path(__file__).parents[1] / "schemas" / "avro"
#: Which records a topic may carry; the first is what JSON without a "type" is.
TOPIC_RECORDS = {"impressions": ("Impression",), "clicks": ("Click", "Dwell"), "content": ("Content",), "users": ("User",)}
#: What a profile topic's records are about: kind, and the field with the id.
PROFILES = {"content": ("item", "item_id"), "users": ("user", "user_id")}
EVENT_IDS = {"user": "user_id", "item": "item_id", "model": "model_version"}

VALUE_BYTES_MAX = 262_144
ID_BYTES_MAX = 128
TS_MS_MAX = 9_223_372_036_854
DWELL_MS_MAX = 86_400_000
REPEAT_OFFSETS = 65_536
AHEAD_MS_MAX = 300_000
#: What fastavro and json raise for bytes that are not what they should be.
NOT_A_RECORD = (
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    OverflowError,
    MemoryError,
    RecursionError,
    fastavro.read.SchemaResolutionError,
)


#: Anything with topic, partition, offset, timestamp (ms), key, value and headers, as aiokafka names them.
RawRecord = Any


class BadRecordError(Exception):
    """The verdict on a record that is none of its topic's: a dead letter."""


class Event(NamedTuple):
    """What one event adds to one entity."""

    ts_ms: int
    impressions: int
    clicks: int
    dwell_count: int
    dwell_sum_ms: int


class Sent(NamedTuple):
    """A good event where it stands in its partition: what is the same when it is sent again, what it adds, and to whom."""

    offset: int
    identity: tuple[str, str, str, str]
    added: Event
    entities: tuple[Entity, ...]


class Profile(NamedTuple):
    """What one content or user record said; fields are None for a tombstone. The highest of an entity's stands."""

    ts_ms: int
    offset: int
    partition: int
    fields: dict[str, Any] | None


class Oracle:
    """A log, counted.

    records: in any order; each offset of a partition counts once, however often it is given. windows: which to sum; kinds that are not
    named have no records. prefix: before every topic's name in the log. schemas: of a registry, by number or GUID, as .avsc files say them.
    repeat_offsets: how far back in its partition an event may stand already, so that it does not count again; 0 counts all.
    """

    def __init__(
        self,
        records: Iterable[RawRecord],
        windows: Windows,
        prefix: str = "",
        schemas: Mapping[int | UUID, Any] | None = None,
        repeat_offsets: int = REPEAT_OFFSETS,
    ) -> None:
        """Look at every record once."""
        self.windows = windows
        self.entities: set[Entity] = set()
        #: Records that belong into dead-letters: topic, partition, offset.
        self.bad: set[Place] = set()
        #: Events that do not count because they stand in the log already.
        self.repeats: set[Place] = set()
        self.events: dict[Entity, list[Event]] = defaultdict(list)
        self.profiles: dict[Entity, list[Profile]] = defaultdict(list)
        self._reader = Reader(schemas or {})
        self._sent: dict[tuple[str, int], list[Sent]] = defaultdict(list)
        seen = set()
        for record in records:
            topic = record.topic.removeprefix(prefix)
            place = (topic, record.partition, record.offset)
            if place in seen:
                continue
            seen.add(place)
            try:
                self._take(topic, record)
            except BadRecordError:
                self.bad.add(place)
        for (topic, partition), sent in self._sent.items():
            self._count(topic, partition, sent, repeat_offsets)
        self.entities.update(self.events, self.profiles)

    def counts(self, entity: Entity, as_of_ms: int) -> dict[str, tuple[int, int, int, int]]:
        """Each window of an entity as of a moment: impressions, clicks, dwell_count, dwell_sum_ms."""
        floor_ms = self.floor_ms(entity)
        found = {}
        for name, (span_ms, hop_ms) in self.windows[entity[1]].items():
            newest, tiles_count = as_of_ms // hop_ms, span_ms // hop_ms
            impressions = clicks = dwell_count = dwell_sum_ms = 0
            for ts_ms, impression, click, dwell, dwell_ms in self.events.get(entity, ()):
                tile = ts_ms // hop_ms
                if newest - tiles_count < tile <= newest and tile * hop_ms >= floor_ms:
                    impressions += impression
                    clicks += click
                    dwell_count += dwell
                    dwell_sum_ms += dwell_ms
            found[name] = (impressions, clicks, dwell_count, dwell_sum_ms)
        return found

    def floor_ms(self, entity: Entity) -> int:
        """The newest tombstone of an entity, 0 if there is none: tiles that start before it never count."""
        return max((profile.ts_ms for profile in self.profiles.get(entity, ()) if profile.fields is None), default=0)

    def last_active_ms(self, entity: Entity) -> int:
        """The newest event that was not forgotten, 0 if there is none."""
        floor_ms = self.floor_ms(entity)
        return max((event.ts_ms for event in self.events.get(entity, ()) if event.ts_ms >= floor_ms), default=0)

    def profile(self, entity: Entity) -> Profile | None:
        """The profile that stands: the newest by its own time, then by its place in the log; None where none was ever sent."""
        return max(self.profiles.get(entity, ()), key=lambda profile: profile[:3], default=None)

    def newest_ms(self) -> int:
        """The latest event of the log, 0 if there is none."""
        return max((event.ts_ms for events in self.events.values() for event in events), default=0)

    def _take(self, topic: str, record: RawRecord) -> None:
        if topic in PROFILES:
            self._take_profile(topic, record)
            return
        event = self._reader.decode(topic, record)
        dwell_ms = event.get("dwell_ms")
        added = Event(
            event["ts_ms"],
            1 if event["record"] == "Impression" else 0,
            1 if event["record"] == "Click" else 0,
            0 if dwell_ms is None else 1,
            0 if dwell_ms is None else dwell_ms,
        )
        identity = (event["record"], event["tenant"], event["request_id"], event["item_id"])
        named = [(event["tenant"], kind, event[EVENT_IDS[kind]]) for kind in self.windows]
        entities = tuple(entity for entity in named if entity[2] is not None)
        self._sent[topic, record.partition].append(Sent(record.offset, identity, added, entities))

    def _count(self, topic: str, partition: int, sent: list[Sent], repeat_offsets: int) -> None:
        """Walk one partition in order, and count what did not stand a little before."""
        stood: dict[tuple[str, str, str, str], int] = {}
        for offset, identity, added, entities in sorted(sent, key=lambda event: event.offset):
            before = stood.get(identity)
            stood[identity] = offset
            if before is not None and before >= offset - repeat_offsets:
                self.repeats.add((topic, partition, offset))
                continue
            for entity in entities:
                self.events[entity].append(added)

    def _take_profile(self, topic: str, record: RawRecord) -> None:
        kind, id_field = PROFILES[topic]
        if record.value is None:
            entity, profile = ("", kind, _tombstone_id(record)), Profile(record.timestamp, record.offset, record.partition, None)
        else:
            fields = self._reader.decode(topic, record)
            entity = (fields["tenant"], kind, fields[id_field])
            profile = Profile(fields["ts_ms"], record.offset, record.partition, fields)
        if kind in self.windows:
            self.profiles[entity].append(profile)


def _tombstone_id(record: RawRecord) -> str:
    if not record.key or len(record.key) > ID_BYTES_MAX or not 0 < record.timestamp <= TS_MS_MAX:
        raise BadRecordError
    try:
        return str(record.key, "utf-8")
    except UnicodeDecodeError as error:
        raise BadRecordError from error


class Reader:
    """Turns bytes into fields, or refuses them. schemas: of a registry, by number or GUID."""

    def __init__(self, schemas: Mapping[int | UUID, Any]) -> None:
        """Know every published version."""
        oldest_first = sorted(AVSC_FOLDER.glob("*.avsc"), key=lambda path: int(path.name.split(".")[1].removeprefix("v")))
        versions = [_parsed(json.loads(path.read_text())) for path in oldest_first]
        self._by_fingerprint = {_fingerprint(schema): schema for schema in versions}
        self._newest = {_record_name(schema): schema for schema in versions}
        self._registered = {number: _parsed(schema) for number, schema in schemas.items()}

    def decode(self, topic: str, record: RawRecord) -> dict[str, Any]:
        """The fields of a good record, every default filled in, and its name under "record". Raises BadRecordError."""
        value = record.value
        if not value or len(value) > VALUE_BYTES_MAX:
            raise BadRecordError
        writer, body = self._framing(value, record.headers)
        try:
            fields = _from_json(topic, body) if writer is None else self._from_avro(topic, writer, body)
        except NOT_A_RECORD as error:
            raise BadRecordError from error
        name = fields.pop("record")
        whole = _checked_record(self._newest[name], fields)
        _check_values(whole, record.timestamp)
        return {**whole, "record": name}

    def _framing(self, value: bytes, headers: Sequence[tuple[str, bytes]]) -> tuple[Any, bytes]:
        """The writer's schema, None for JSON, and the bytes behind the framing."""
        named = next((header for name, header in headers if name == "__value_schema_id"), b"none")
        if named != b"none":
            return self._schema(_header_id(named)), value
        if value[:2] == b"\xc3\x01":
            if value[2:10] not in self._by_fingerprint:
                raise BadRecordError
            return self._by_fingerprint[value[2:10]], value[10:]
        if value[0] == 0 and len(value) > 5:
            return self._schema(int.from_bytes(value[1:5], "big")), value[5:]
        if value[:1] == b"{":
            return None, value
        raise BadRecordError

    def _schema(self, number: int | UUID) -> Any:  # noqa: ANN401  # fastavro's own
        if number not in self._registered:
            raise BadRecordError
        return self._registered[number]

    def _from_avro(self, topic: str, writer: Any, body: bytes) -> dict[str, Any]:  # noqa: ANN401  # fastavro's own
        name = _record_name(writer)
        if name not in TOPIC_RECORDS[topic]:
            raise BadRecordError
        reader = None if writer is self._newest[name] else self._newest[name]
        stream = io.BytesIO(body)
        fields = fastavro.schemaless_reader(stream, writer, reader)
        if stream.tell() != len(body):
            raise BadRecordError
        assert isinstance(fields, dict)
        return {**fields, "record": name}


def _from_json(topic: str, body: bytes) -> dict[str, Any]:
    fields = json.loads(body.decode(), parse_constant=_refuse, parse_float=_finite)
    name = fields.get("type", TOPIC_RECORDS[topic][0])
    if name not in TOPIC_RECORDS[topic]:
        raise BadRecordError
    return {**fields, "record": name}


def _refuse(word: str) -> float:
    raise BadRecordError(word)


def _finite(word: str) -> float:
    if math.isinf(float(word)):
        raise BadRecordError(word)
    return float(word)


def _checked(kind: Any, value: Any) -> Any:  # noqa: ANN401  # an Avro type, and what may be a value of it
    """The value with every default filled in, if it is one of this Avro type. Raises BadRecordError."""
    if isinstance(kind, list):
        return None if value is None else _checked(next(branch for branch in kind if branch != "null"), value)
    name = kind["type"] if isinstance(kind, dict) else kind
    if name == "record" and isinstance(value, dict):
        return _checked_record(kind, value)
    if name == "array" and isinstance(value, list):
        return [_checked(kind["items"], one) for one in value]
    if name == "map" and isinstance(value, dict):
        return {key: _checked(kind["values"], one) for key, one in value.items()}
    if name in SCALARS and SCALARS[name](value):
        return value
    raise BadRecordError


def _checked_record(kind: Any, value: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401  # as above
    found = {}
    for one in kind["fields"]:
        if one["name"] not in value and "default" not in one:
            raise BadRecordError
        found[one["name"]] = _checked(one["type"], value.get(one["name"], one.get("default")))
    return found


def _is_integer(value: object, bits: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2 ** (bits - 1)) <= value < 2 ** (bits - 1)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


#: What a value of a plain Avro type is.
SCALARS: dict[str, Callable[[object], bool]] = {
    "string": lambda value: isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value),
    "boolean": lambda value: isinstance(value, bool),
    "int": lambda value: _is_integer(value, 32),
    "long": lambda value: _is_integer(value, 64),
    "float": _is_number,
    "double": _is_number,
}


def _check_values(fields: dict[str, Any], timestamp_ms: int) -> None:
    """What no type can say. Raises BadRecordError."""
    ids = [fields[name] for name in ("request_id", "user_id", "item_id") if name in fields]
    in_keys = [*ids, fields.get("model_version") or "", fields["tenant"]]
    dwell_ms = fields.get("dwell_ms")
    good = (
        all(ids)
        and all(len(part.encode()) <= ID_BYTES_MAX for part in in_keys)
        and ":" not in fields["tenant"]
        and 0 < fields["ts_ms"] <= TS_MS_MAX
        and fields["ts_ms"] <= timestamp_ms + AHEAD_MS_MAX
        and (dwell_ms is None or 0 <= dwell_ms <= DWELL_MS_MAX)
    )
    if not good:
        raise BadRecordError


def _header_id(header: bytes | None) -> int | UUID:
    if header and header[0] == 1 and len(header) == 17:
        return UUID(bytes=header[1:])
    if header and header[0] == 0 and len(header) == 5:
        return int.from_bytes(header[1:], "big")
    raise BadRecordError


def _parsed(schema: Any) -> Any:  # noqa: ANN401  # fastavro's own
    return fastavro.parse_schema(_plain(schema), _force=True)


def _fingerprint(schema: Any) -> bytes:  # noqa: ANN401  # fastavro's own
    return bytes.fromhex(fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO"))


def _plain(schema: Any) -> Any:  # noqa: ANN401  # fastavro's own
    """A schema without logical types: a time is a long."""
    if isinstance(schema, dict):
        return {key: _plain(value) for key, value in schema.items() if key != "logicalType"}
    return [_plain(part) for part in schema] if isinstance(schema, list) else schema


def _record_name(schema: Any) -> str:  # noqa: ANN401  # fastavro's own
    return str(schema["name"]).rsplit(".", 1)[-1]
