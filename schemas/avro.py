"""Our published Avro schemas, by record, by version and by fingerprint; whether versions can read one another.

A file `avro/<record>.v<N>.avsc` is never edited once it is published: a change is a new file whose added fields have defaults,
so that replay (new code, old records) and rollback (old code, new records) both read.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any, cast

import fastavro
from fastavro.schema import fingerprint, to_parsing_canonical_form

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


BY_FINGERPRINT = {schema.fingerprint: schema for schema in published()}
NEWEST = newest(BY_FINGERPRINT)
RECORDS: dict[str, type[Record]] = {record.__name__: record for topic in TOPICS.values() for record in topic.records}
