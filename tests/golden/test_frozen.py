"""Bytes that others hold: in their stores, in their topics, in their code. They change by a new version only, never under an old one."""

import numpy as np
import pytest

from online_store.reading import read
from online_store.record import layouts
from schemas import avro, codec
from schemas.features import REGISTRY
from schemas.records import Record
from tests.golden.frozen import FOLDER, RECORDS, SCHEMA_ID, TS_MS, files
from tests.worlds import topic_of

NEXT_STEP = "a golden file does not change: publish a new version; if it must, python -m tests.golden.regenerate and say why"


def golden(name: str) -> dict[str, str]:
    """A golden file's lines by their first word."""
    return dict(line.split(" ", 1) for line in (FOLDER / name).read_text().splitlines())


@pytest.mark.parametrize("name", files())
def test_what_we_write_now_is_what_was_always_written(name: str) -> None:
    """Byte for byte."""
    assert files()[name] == (FOLDER / name).read_text(), NEXT_STEP


def test_every_golden_file_is_still_looked_at() -> None:
    """One that no code computes any more would stand there for nothing."""
    assert {path.name for path in FOLDER.iterdir()} == set(files())


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
@pytest.mark.parametrize("wire", ["avro", "confluent", "json"])
def test_bytes_of_old_are_still_read(wire: str, record: Record) -> None:
    """What stands in a topic since the first version says what it said."""
    line = golden(f"{wire}.txt")[type(record).__name__]
    value = line.encode() if wire == "json" else bytes.fromhex(line)

    found = codec.decode(topic_of(record), value, (), {SCHEMA_ID: avro.NEWEST[type(record).__name__]})

    assert repr(found) == repr(record)


@pytest.mark.parametrize(
    ("kind", "impressions", "statics"),
    [
        ("user", [3, 190], {"created_at_ms": TS_MS - 9 * 86_400_000}),
        ("item", [0, 3, 190, 1_540], {"created_at_ms": TS_MS - 86_400_000, "quality_score": np.float32(0.625)}),
        ("model", [3], {}),
    ],
)
def test_a_stored_record_of_old_is_still_read(kind: str, impressions: list[int], statics: dict[str, float]) -> None:
    """Its counts by window, shortest first, and its fields."""
    found = read(layouts(REGISTRY)[kind], [bytes.fromhex(golden("records.txt")[kind])], TS_MS)

    assert found.counts[0, :, 0].tolist() == impressions
    assert {name: found.statics[name][0] for name in statics} == statics


def test_every_record_and_every_published_version_is_frozen() -> None:
    """A new one adds its line."""
    published = {f"{schema.name}.v{schema.version}" for schema in avro.published()}

    assert (set(golden("avro.txt")), published - set(golden("fingerprints.txt"))) == (set(avro.RECORDS), set())


def test_the_fingerprint_of_null_is_the_specifications() -> None:
    """CRC-64-AVRO of "null" is 0x63dd24e7cc258f8a, written little-endian."""
    assert bytes.fromhex(golden("fingerprints.txt")['"null"']) == (0x63DD24E7CC258F8A).to_bytes(8, "little")
