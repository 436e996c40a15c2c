"""Published schemas: their names, their fingerprints, and which changes a reader survives."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastavro
import pytest

from schemas import avro
from schemas.errors import SchemaError

WRITER: avro.AvroSchema = {
    "type": "record",
    "name": "Click",
    "fields": [
        {"name": "user_id", "type": "string"},
        {"name": "ts_ms", "type": "long"},
        {"name": "dwell_ms", "type": ["null", "long"], "default": None},
        {"name": "tags", "type": {"type": "array", "items": "string"}, "default": []},
        {"name": "attributes", "type": {"type": "map", "values": "double"}, "default": {}},
        {"name": "surface", "type": {"type": "enum", "name": "Surface", "symbols": ["FEED", "SEARCH"]}, "default": "FEED"},
        {"name": "digest", "type": {"type": "fixed", "name": "Digest", "size": 8}, "default": "\0" * 8},
        {"name": "tenant", "type": "string", "default": ""},
    ],
}


def edited(edit: Callable[[dict[str, Any]], object]) -> avro.AvroSchema:
    """WRITER after an edit of its fields, which are given by name; a field set to None is taken away."""
    schema = copy.deepcopy(WRITER)
    named = {field["name"]: field for field in schema["fields"]}
    edit(named)
    schema["fields"] = [field for field in named.values() if field is not None]
    return schema


REFUSED: dict[str, Callable[[dict[str, Any]], object]] = {
    "a field without a default is taken away": lambda named: named.update(user_id=None),
    "a field without a default is added": lambda named: named.update(position={"name": "position", "type": "int"}),
    "a field is renamed": lambda named: named["user_id"].update(name="reader_id"),
    "a string turns into a number": lambda named: named["tenant"].update(type="long", default=0),
    "a long turns into an int": lambda named: named["ts_ms"].update(type="int"),
    "a long turns into a double": lambda named: named["ts_ms"].update(type="double"),
    "a plain value may be null": lambda named: named["ts_ms"].update(type=["null", "long"]),
    "a nullable value may not be null": lambda named: named["dwell_ms"].update(type="long", default=0),
    "a nullable value gets another type": lambda named: named["dwell_ms"].update(type=["null", "string"]),
    "the items of an array change": lambda named: named["tags"].update(type={"type": "array", "items": "long"}),
    "the values of a map change": lambda named: named["attributes"].update(type={"type": "map", "values": "string"}),
    "an enum gains a symbol": lambda named: named["surface"]["type"].update(symbols=["FEED", "SEARCH", "MAIL"]),
    "an enum loses a symbol": lambda named: named["surface"]["type"].update(symbols=["FEED"]),
    "a fixed grows": lambda named: named["digest"]["type"].update(size=9),
}
ALLOWED: dict[str, Callable[[dict[str, Any]], object]] = {
    "a field with a default is added": lambda named: named.update(locale={"name": "locale", "type": "string", "default": ""}),
    "a field with a default is taken away": lambda named: named.update(tenant=None),
    "a doc is rewritten": lambda named: named["tenant"].update(doc="whose feed"),
    "a default changes": lambda named: named["tenant"].update(default="main"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_edit_that_breaks_a_reader_is_refused(name: str) -> None:
    """Old code must read new records and new code old ones, so it breaks one way or the other."""
    versions = [avro.parse(copy.deepcopy(WRITER), 1), avro.parse(edited(REFUSED[name]), 2)]

    with pytest.raises(SchemaError, match=r"Click: v\d cannot read v\d"):
        avro.check_full_transitive(versions)


@pytest.mark.parametrize("name", ALLOWED)
def test_an_additive_edit_passes(name: str) -> None:
    """Both versions read one another."""
    avro.check_full_transitive([avro.parse(copy.deepcopy(WRITER), 1), avro.parse(edited(ALLOWED[name]), 2)])


def test_versions_that_are_not_neighbours_must_read_one_another_too() -> None:
    """v2 fits v1 and v3 fits v2, but v3 does not fit v1: replay reads all of them."""
    first = edited(lambda named: named.update(tenant=None))
    second = edited(lambda named: named.update(tenant={"name": "tenant", "type": "string", "default": ""}))
    third = edited(lambda named: named.update(tenant={"name": "tenant", "type": "string"}))

    with pytest.raises(SchemaError, match="v3 cannot read v1: tenant has no default"):
        avro.check_full_transitive([avro.parse(raw, number) for number, raw in enumerate((first, second, third), 1)])


def test_a_record_of_another_name_is_not_compared() -> None:
    """Compatibility is between versions of one record."""
    other = {"type": "record", "name": "Dwell", "fields": [{"name": "else", "type": "string"}]}

    avro.check_full_transitive([avro.parse(copy.deepcopy(WRITER), 1), avro.parse(other, 2)])


def test_every_pair_of_published_versions_reads_one_another() -> None:
    """What CI checks before a new version is published."""
    avro.check_full_transitive(list(avro.published()))


def test_every_record_has_a_published_schema_with_its_fields() -> None:
    """The newest version of a record names its fields in the order of the Python class."""
    fields = {name: [field["name"] for field in avro.NEWEST[name].raw["fields"]] for name in avro.RECORDS}

    assert {name: sorted(names) for name, names in fields.items()} == {
        name: sorted(record.__struct_fields__) for name, record in avro.RECORDS.items()
    }


def test_the_fingerprint_is_the_little_endian_crc_64_of_the_specification() -> None:
    """The Avro specification's own vector: CRC-64-AVRO of "null" is 7195948357588979594."""
    bytes_ = bytes.fromhex(fastavro.schema.fingerprint('"null"', "CRC-64-AVRO"))

    assert int.from_bytes(bytes_, "little") == 7_195_948_357_588_979_594


def test_a_logical_type_is_left_out_and_changes_no_fingerprint() -> None:
    """A registry's timestamp-millis is our plain long; the canonical form has no logical types."""
    typed = edited(lambda named: named["ts_ms"].update(type={"type": "long", "logicalType": "timestamp-millis"}))

    assert avro.parse(typed).fingerprint == avro.parse(copy.deepcopy(WRITER)).fingerprint


def test_a_file_without_a_version_is_refused(tmp_path: Path) -> None:
    """The message says how to call it."""
    (tmp_path / "click.avsc").write_text(json.dumps(WRITER))

    with pytest.raises(SchemaError, match=r"click.avsc names no version. Call it <record>.v<N>.avsc"):
        list(avro.published(tmp_path))


@pytest.mark.parametrize(
    "raw",
    [
        {"type": "record", "name": "Click", "fields": [{"name": "a", "type": "no such type"}]},
        {"type": "record", "name": "Click", "fields": ["a"]},
        {"type": "record", "name": "Click"},
        {"type": "enum", "name": "Click", "symbols": ["A"]},
        ["null", "string"],
        "string",
        None,
    ],
    ids=str,
)
def test_what_is_no_avro_record_is_a_schema_error(raw: Any) -> None:  # noqa: ANN401  # whatever a registry holds
    """Not fastavro's own error, and not one that comes when the first record names it."""
    with pytest.raises(SchemaError, match="Mend it where it was registered"):
        avro.parse(raw)
