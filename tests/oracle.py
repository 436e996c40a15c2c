"""What the counts must be: nested loops over the whole log, in plain Python.

This shares no code with the product and must not begin to: it reads the Avro files and the bytes by itself and says the rules in its own
words, so that an error would have to be made twice, differently, to go unseen.
"""

import io
import json
import struct
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import fastavro
from fastavro.schema import fingerprint, to_parsing_canonical_form

#: (tenant, kind, id)
Entity = tuple[str, str, str]
#: kind -> window's name -> (span, hop), milliseconds
Windows = Mapping[str, Mapping[str, tuple[int, int]]]

SCHEMAS = {}
for _path in (Path(__file__).parent.parent / "schemas" / "avro").glob("*.avsc"):
    _raw = json.loads(_path.read_text())
    _print = bytes.fromhex(fingerprint(to_parsing_canonical_form(_raw), "CRC-64-AVRO"))
    SCHEMAS[_print] = (_raw["name"], fastavro.parse_schema(_raw, _force=True))

ALLOWED = {"impressions": ("Impression",), "clicks": ("Click", "Dwell"), "content": ("Content",), "users": ("User",)}
IDS = {
    "Impression": ("request_id", "user_id", "item_id"),
    "Click": ("request_id", "user_id", "item_id"),
    "Dwell": ("request_id", "user_id", "item_id"),
    "Content": ("item_id",),
    "User": ("user_id",),
}
#: Fields that a JSON object must have besides its ids, and their Python type.
REQUIRED: dict[str, dict[str, type]] = {
    "Impression": {"ts_ms": int, "position": int},
    "Click": {"ts_ms": int},
    "Dwell": {"ts_ms": int, "dwell_ms": int},
    "Content": {"ts_ms": int, "author_id": str, "created_at_ms": int},
    "User": {"ts_ms": int, "created_at_ms": int},
}
OPTIONAL: dict[str, type] = {"tenant": str, "model_version": str, "dwell_ms": int, "language": str, "locale": str, "region": str}


class Bad(Exception):  # noqa: N818  # a verdict, not an error
    """The verdict on a record that is no event."""


class Oracle:
    """A log, counted.

    records: anything with topic, partition, offset, timestamp, key, value, headers; each offset of a partition counts once, however often
    it is given. windows: which to sum. schemas: of a registry, id -> (record's name, parsed schema).
    """

    def __init__(
        self, records: Iterable[Any], windows: Windows, prefix: str = "", schemas: Mapping[Any, tuple[str, Any]] | None = None
    ) -> None:
        """Look at every record once."""
        self.windows = windows
        self.schemas = schemas or {}
        self.entities: set[Entity] = set()
        self.bad: set[tuple[str, int, int]] = set()
        #: entity -> its events: time, what they add to impressions, clicks, dwell_count, dwell_sum_ms
        self.events: dict[Entity, list[tuple[int, int, int, int, int]]] = defaultdict(list)
        #: entity -> its profiles: (time, offset, partition, fields or None for a tombstone)
        self.profiles: dict[Entity, list[tuple[int, int, int, dict[str, Any] | None]]] = defaultdict(list)
        seen = set()
        for record in records:
            topic = record.topic.removeprefix(prefix)
            where = (topic, record.partition, record.offset)
            if where in seen:
                continue
            seen.add(where)
            try:
                self._take(topic, record)
            except Bad:
                self.bad.add(where)
        self.entities.update(self.events, self.profiles)

    def _take(self, topic: str, record: Any) -> None:  # noqa: ANN401  # whatever a log holds
        if record.value is None and topic in ("content", "users"):
            self._tombstone("item" if topic == "content" else "user", record)
            return
        name, fields = self._decode(topic, record)
        self._check(name, fields, record.timestamp)
        tenant = fields.get("tenant", "")
        if name in ("Content", "User"):
            kind, entity_id = ("item", fields["item_id"]) if name == "Content" else ("user", fields["user_id"])
            self.profiles[tenant, kind, entity_id].append((fields["ts_ms"], record.offset, record.partition, fields))
            return
        dwell = fields.get("dwell_ms")
        added = (
            fields["ts_ms"],
            1 if name == "Impression" else 0,
            1 if name == "Click" else 0,
            1 if dwell is not None else 0,
            dwell if dwell is not None else 0,
        )
        for kind, entity_id in (("user", fields["user_id"]), ("item", fields["item_id"]), ("model", fields.get("model_version"))):
            if entity_id is not None:
                self.events[tenant, kind, entity_id].append(added)

    def _tombstone(self, kind: str, record: Any) -> None:  # noqa: ANN401  # whatever a log holds
        if not record.key or len(record.key) > 128:
            raise Bad
        try:
            entity_id = record.key.decode()
        except UnicodeDecodeError:
            raise Bad from None
        self.profiles["", kind, entity_id].append((record.timestamp, record.offset, record.partition, None))

    def _decode(self, topic: str, record: Any) -> tuple[str, dict[str, Any]]:  # noqa: ANN401  # whatever a log holds
        value = record.value
        if not value or len(value) > 262_144:
            raise Bad
        for name, header in record.headers:
            if name == "__value_schema_id":
                return self._avro(topic, self.schemas.get(bytes(header)), value)
        if value[:2] == b"\xc3\x01":
            return self._avro(topic, SCHEMAS.get(value[2:10]), value[10:])
        if value[:1] == b"\x00" and len(value) > 5:
            return self._avro(topic, self.schemas.get(struct.unpack(">I", value[1:5])[0]), value[5:])
        if value[:1] == b"{":
            return self._json(topic, value)
        raise Bad

    @staticmethod
    def _avro(topic: str, schema: tuple[str, Any] | None, body: bytes) -> tuple[str, dict[str, Any]]:
        if schema is None or schema[0] not in ALLOWED[topic]:
            raise Bad
        stream = io.BytesIO(body)
        try:
            fields: Any = fastavro.schemaless_reader(stream, schema[1], None)
        except (EOFError, ValueError, LookupError, TypeError, OverflowError, MemoryError, struct.error):
            raise Bad from None
        if stream.read(1):
            raise Bad
        return schema[0], fields

    @staticmethod
    def _json(topic: str, value: bytes) -> tuple[str, dict[str, Any]]:
        try:
            fields = json.loads(value.decode())
        except ValueError:
            raise Bad from None
        name = fields.get("type", ALLOWED[topic][0])
        if name not in ALLOWED[topic]:
            raise Bad
        for field in IDS[name]:
            if type(fields.get(field)) is not str:
                raise Bad
        for field, kind in REQUIRED[name].items():
            if type(fields.get(field)) is not kind:
                raise Bad
        for field, kind in OPTIONAL.items():
            if fields.get(field) is not None and type(fields[field]) is not kind:
                raise Bad
        return name, fields

    @staticmethod
    def _check(name: str, fields: dict[str, Any], timestamp: int) -> None:
        for field in IDS[name]:
            if not fields[field]:
                raise Bad
        for field in (*IDS[name], "model_version", "tenant"):
            if len((fields.get(field) or "").encode()) > 128:
                raise Bad
        if ":" in fields.get("tenant", ""):
            raise Bad
        if fields["ts_ms"] < 1 or fields["ts_ms"] > 9_223_372_036_854 or fields["ts_ms"] > timestamp + 300_000:
            raise Bad
        dwell = fields.get("dwell_ms")
        if dwell is not None and (dwell < 0 or dwell > 86_400_000):
            raise Bad

    def floor_ms(self, entity: Entity) -> int:
        """The newest tombstone of an entity, 0 if there is none: tiles that start before it never count."""
        floor = 0
        for ts_ms, _, _, fields in self.profiles.get(entity, ()):
            if fields is None and ts_ms > floor:
                floor = ts_ms
        return floor

    def counts(self, entity: Entity, as_of_ms: int) -> dict[str, tuple[int, int, int, int]]:
        """Each window of an entity as of a moment: impressions, clicks, dwell_count, dwell_sum_ms.

        An event counts if its tile is one of the last span / hop, the one that holds as_of included.
        """
        floor = self.floor_ms(entity)
        found = {}
        for name, (span, hop) in self.windows[entity[1]].items():
            sums = [0, 0, 0, 0]
            newest = as_of_ms // hop
            for ts_ms, *added in self.events.get(entity, ()):
                tile = ts_ms // hop
                if newest - span // hop < tile <= newest and tile * hop >= floor:
                    for place in range(4):
                        sums[place] += added[place]
            found[name] = (sums[0], sums[1], sums[2], sums[3])
        return found

    def last_active_ms(self, entity: Entity) -> int:
        """The newest event that was not forgotten, 0 if there is none."""
        floor, newest = self.floor_ms(entity), 0
        for ts_ms, *_ in self.events.get(entity, ()):
            if ts_ms >= floor and ts_ms > newest:
                newest = ts_ms
        return newest

    def profile(self, entity: Entity) -> tuple[int, int, int, dict[str, Any] | None] | None:
        """The profile that stands: the newest by its own time, then by its place in the log; None where none was ever sent."""
        standing = None
        for found in self.profiles.get(entity, ()):
            if standing is None or found[:3] > standing[:3]:
                standing = found
        return standing
