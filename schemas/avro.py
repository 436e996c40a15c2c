"""Our published Avro schemas, by record, by version and by fingerprint; whether versions can read one another; many bodies at once.

A file `avro/<record>.v<N>.avsc` is never edited once it is published: a change is a new file whose added fields have defaults,
so that replay (new code, old records) and rollback (old code, new records) both read.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any, cast

import fastavro
import numpy as np
import polars as pl
from fastavro.schema import fingerprint, to_parsing_canonical_form
from numpy.typing import NDArray

from schemas.errors import SchemaError
from schemas.records import Record
from schemas.topics import TOPICS

#: A schema in its JSON form: what fastavro takes.
AvroSchema = dict[str, Any]

FOLDER = Path(__file__).parent / "avro"
FILE_NAME = re.compile(r"(?P<record>[a-z_]+)\.v(?P<version>[1-9][0-9]*)\.avsc")
#: What a reader may promote to (Avro 1.12 specification, "Schema Resolution").
PROMOTIONS = {
    "int": {"long", "float", "double"},
    "long": {"float", "double"},
    "float": {"double"},
    "string": {"bytes"},
    "bytes": {"string"},
}


@dataclass(frozen=True, slots=True)
class Schema:
    """One version of one record. raw: as in the file; parsed: for fastavro; fingerprint: CRC-64-AVRO, little-endian, 8 bytes."""

    name: str
    version: int
    raw: AvroSchema
    parsed: AvroSchema
    fingerprint: bytes


def parse(raw: AvroSchema, version: int = 0) -> Schema:
    """A schema ready for use. Raises SchemaError where Avro does not accept it.

    Logical types are left out: our times are plain longs, and fastavro would turn a timestamp into a datetime.
    """
    raw = _without_logical_types(raw)
    if not isinstance(raw, dict) or "fields" not in raw:
        raise SchemaError(f"schema {raw!r} is no record with fields. Mend it where it was registered.")
    try:
        parsed = cast("AvroSchema", fastavro.parse_schema(raw, _force=True))
    except (fastavro.schema.SchemaParseException, ValueError, LookupError, TypeError) as error:
        message = f"schema {raw.get('name', raw)!r} is not Avro: {error}. Mend it where it was registered."
        raise SchemaError(message) from error
    print_ = bytes.fromhex(fingerprint(to_parsing_canonical_form(raw), "CRC-64-AVRO"))
    return Schema(raw["name"].rsplit(".")[-1], version, raw, parsed, print_)


def published(folder: Path = FOLDER) -> Iterator[Schema]:
    """Every version of every record in a folder, oldest first. Raises SchemaError for a file name that fits no record."""
    for path in sorted(folder.glob("*.avsc")):
        found = FILE_NAME.fullmatch(path.name)
        if not found:
            message = f"{path.name} names no version. Call it <record>.v<N>.avsc, for one click.v2.avsc."
            raise SchemaError(message)
        yield parse(json.loads(path.read_text()), int(found["version"]))


def newest(schemas: Mapping[bytes, Schema]) -> dict[str, Schema]:
    """The version that we write, by record name."""
    return {schema.name: schema for schema in sorted(schemas.values(), key=lambda schema: schema.version)}


def check_full_transitive(schemas: list[Schema]) -> None:
    """Every version must read every other of its record. Raises SchemaError listing each pair that does not."""
    faults = [
        f"{writer.name}: v{reader.version} cannot read v{writer.version}: {fault}"
        for writer, reader in permutations(schemas, 2)
        if writer.name == reader.name
        for fault in unreadable(writer.raw, reader.raw)
    ]
    if faults:
        message = "; ".join(faults) + ". Give added and removed fields a default and leave types as they are."
        raise SchemaError(message)


def unreadable(writer: Any, reader: Any, where: str = "") -> list[str]:  # noqa: ANN401  # Avro's own: str, list or dict
    """Why a reader's schema cannot read what a writer's wrote; empty where it can."""
    if isinstance(writer, list):
        return [fault for branch in writer for fault in unreadable(branch, reader, where)]
    if isinstance(reader, list):
        fits = any(not unreadable(writer, branch, where) for branch in reader)
        return [] if fits else [f"{where or 'the value'} may be {_type(writer)}, which {reader} does not hold"]
    wrote, reads = _type(writer), _type(reader)
    if wrote != reads:
        return [] if reads in PROMOTIONS.get(wrote, ()) else [f"{where or 'the value'} turns from {wrote} into {reads}"]
    return _unreadable_within(writer, reader, wrote, where)


def _unreadable_within(writer: Any, reader: Any, kind: str, where: str) -> list[str]:  # noqa: ANN401  # as above
    if kind == "record":
        return _unreadable_fields(writer, reader, where)
    if kind in ("array", "map"):
        inner = "items" if kind == "array" else "values"
        return unreadable(writer[inner], reader[inner], f"{where}[]")
    if kind == "fixed" and writer["size"] != reader["size"]:
        return [f"{where} turns from {writer['size']} bytes into {reader['size']}"]
    if kind == "enum" and "default" not in reader and set(writer["symbols"]) - set(reader["symbols"]):
        return [f"{where} lost the symbols {sorted(set(writer['symbols']) - set(reader['symbols']))}"]
    return []


def _unreadable_fields(writer: AvroSchema, reader: AvroSchema, where: str) -> list[str]:
    if writer["name"] != reader["name"]:
        return [f"{where or 'the record'} is called {writer['name']} there and {reader['name']} here"]
    written = {field["name"]: field for field in writer["fields"]}
    faults: list[str] = []
    for field in reader["fields"]:
        path = f"{where}.{field['name']}".lstrip(".")
        if field["name"] in written:
            faults += unreadable(written[field["name"]]["type"], field["type"], path)
        elif "default" not in field:
            faults.append(f"{path} has no default")
    return faults


def _without_logical_types(schema: Any) -> Any:  # noqa: ANN401  # as above
    if isinstance(schema, dict):
        return {key: _without_logical_types(value) for key, value in schema.items() if key != "logicalType"}
    return [_without_logical_types(branch) for branch in schema] if isinstance(schema, list) else schema


def _type(schema: Any) -> str:  # noqa: ANN401  # as above
    return str(schema["type"]) if isinstance(schema, dict) else str(schema)


#: A map of more entries than this is left to the codec: every entry costs a step of the whole batch.
MAP_ENTRIES_MAX = 32
#: Types that `read_columns` reads, and unions of one of them with null.
COLUMN_TYPES = ("int", "long", "string", "map")


def has_columns(schema: Schema) -> bool:
    """Whether `read_columns` reads bodies of this schema."""
    return all(_is_column(field["type"]) for field in schema.raw["fields"])


def read_columns(schema: Schema, bodies: Sequence[bytes], names: Sequence[str]) -> tuple[dict[str, pl.Series], NDArray[np.bool_]]:
    """The named fields of many bodies, one series each, and which bodies are odd: bool [n].

    An odd body is not plainly of this schema, or of a shape that is rare: its place in the columns means nothing, fastavro says what it is.
    """
    cursor = _Cursor(bodies)
    everywhere = np.arange(len(bodies))
    found = {field["name"]: cursor.values(field["type"], everywhere) for field in schema.raw["fields"]}
    cursor.odd |= cursor.at != cursor.end
    return {name: found[name] for name in names}, cursor.odd


class _Cursor:
    """Where each of many Avro bodies is being read: one step reads one value of all of them.

    rows: int64, the bodies that a step is about. odd: bool [n], only ever set; an odd body is read on, to no effect on the others.
    """

    def __init__(self, bodies: Sequence[bytes]) -> None:
        self.bodies = pl.Series(bodies, dtype=pl.Binary)
        self.raw = np.frombuffer(b"".join(bodies) + b"\0", np.uint8)
        self.end = np.cumsum(np.fromiter(map(len, bodies), np.int64, len(bodies)))
        self.start = np.concatenate(([0], self.end[:-1]))
        self.at = self.start.copy()
        self.odd = np.zeros(len(bodies), np.bool_)

    def values(self, kind: Any, rows: NDArray[np.int64]) -> pl.Series:  # noqa: ANN401  # Avro's own: str, list or dict
        """The next value of these bodies; of a map, whether it is there."""
        if isinstance(kind, list):
            return self._nullable(kind, rows)
        if _type(kind) == "string":
            return self._strings(rows)
        if _type(kind) == "map":
            return self._skip_map(rows)
        values = self._longs(rows)
        if _type(kind) == "int":
            self.odd[rows[values != values.astype(np.int32)]] = True
        return pl.Series(values)

    def _longs(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The next long, at most nine bytes: zig-zag, seven bits a byte, low ones first."""
        at, more = self.at[rows], np.arange(len(rows))
        value = np.zeros(len(rows), np.uint64)
        for shift in range(0, 63, 7):
            byte = self.raw.take(at[more], mode="clip")
            value[more] |= (byte & 0x7F).astype(np.uint64) << np.uint64(shift)
            at[more] += 1
            more = more[byte > 0x7F]
            if not len(more):
                break
        self.odd[rows[more]] = True
        self.odd[rows[at > self.end[rows]]] = True
        self.at[rows] = at
        return (value >> np.uint64(1)).astype(np.int64) ^ -(value & np.uint64(1)).astype(np.int64)

    def _strings(self, rows: NDArray[np.int64]) -> pl.Series:
        length = self._longs(rows)
        at = self.at[rows]
        length[(length < 0) | (length > self.end[rows] - at)] = -1
        self.odd[rows[length < 0]] = True
        length[length < 0] = 0
        self.at[rows] = at + length
        bodies = self.bodies if len(rows) == len(self.bodies) else self.bodies.gather(rows)
        spans = pl.DataFrame({"body": bodies, "at": at - self.start[rows], "length": length})
        words = _words(spans.select(pl.col("body").bin.slice(pl.col("at"), pl.col("length"))).to_series())
        self.odd[rows[words.is_null().to_numpy()]] = True
        return words

    def _nullable(self, kind: list[Any], rows: NDArray[np.int64]) -> pl.Series:
        branch, value_at = self._longs(rows), 1 - kind.index("null")
        self.odd[rows[(branch < 0) | (branch > 1)]] = True
        holds = branch == value_at
        values = self.values(kind[value_at], rows[holds])
        place = pl.Series(np.cumsum(holds) - 1).set(pl.Series(~holds), None)
        return values.extend_constant(None, 1).gather(place)

    def _skip_map(self, rows: NDArray[np.int64]) -> pl.Series:
        every = rows
        left = self._longs(rows)
        for _ in range(MAP_ENTRIES_MAX):
            self.odd[rows[left < 0]] = True
            inside = (left > 0) & ~self.odd[rows]
            rows, left = rows[inside], left[inside] - 1
            if not len(rows):
                break
            self._strings(rows)
            self._strings(rows)
            ended = left == 0
            left[ended] = self._longs(rows[ended])
        self.odd[rows[left != 0]] = True
        return pl.repeat(True, len(every), eager=True)


def _words(slices: pl.Series) -> pl.Series:
    """Bytes as strings, null where they are not UTF-8."""
    try:
        return slices.cast(pl.String)
    except pl.exceptions.ComputeError:
        return pl.Series([_word(part) for part in slices], dtype=pl.String)


def _word(part: bytes) -> str | None:
    try:
        return part.decode()
    except UnicodeDecodeError:
        return None


def _is_column(kind: Any) -> bool:  # noqa: ANN401  # as above
    if isinstance(kind, list):
        return len(kind) == 2 and "null" in kind and all(branch == "null" or _is_column(branch) for branch in kind)
    return _type(kind) in COLUMN_TYPES and (_type(kind) != "map" or _type(kind["values"]) == "string")


BY_FINGERPRINT = {schema.fingerprint: schema for schema in published()}
NEWEST = newest(BY_FINGERPRINT)
RECORDS: dict[str, type[Record]] = {record.__name__: record for topic in TOPICS.values() for record in topic.records}
