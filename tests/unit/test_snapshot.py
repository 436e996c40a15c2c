"""The snapshot file: written whole or not at all, and refused where it is not what it should be."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from online_store.keys import Entity
from online_store.record import RECORD_VERSION
from online_store.snapshot.file import Made, load, newest, writing
from schemas.errors import SettingsError
from schemas.features import REGISTRY
from tests.worlds import NOW_MS

ENTITY = Entity("", "item", "i1")
MADE = Made("g1", REGISTRY.fingerprint, NOW_MS)


def write(file: Path, made: Made = MADE, record: bytes = b"record") -> Path:
    """A snapshot of one record."""
    with writing(file, made) as rows:
        rows([b"item::i1"], [record])
    return file


def refusal(file: Path) -> str:
    """What is said of a file."""
    with pytest.raises(SettingsError) as caught:
        load(file, REGISTRY)
    return str(caught.value)


def test_it_says_what_it_was_made_of(tmp_path: Path) -> None:
    """Generation, registry, time."""
    found = load(write(tmp_path / "items.arrow"), REGISTRY)

    assert (found.made, found.look_up([ENTITY])) == (MADE, [b"record"])


def test_it_may_be_asked_as_long_as_a_removal_is_remembered(tmp_path: Path) -> None:
    """An item's tombstone lives for its longest window and a little more, at the least."""
    found = load(write(tmp_path / "items.arrow"), REGISTRY)

    assert found.until_ms - NOW_MS == (30 * 24 * 60 + 5 + 10) * 60_000


def test_a_new_one_takes_the_place_of_the_old(tmp_path: Path) -> None:
    """Who has the old one open goes on reading it."""
    old = load(write(tmp_path / "items.arrow", record=b"old"), REGISTRY)
    new = load(write(tmp_path / "items.arrow", record=b"new"), REGISTRY)

    assert (old.look_up([ENTITY]), new.look_up([ENTITY])) == ([b"old"], [b"new"])


def test_the_newest_is_what_took_its_place(tmp_path: Path) -> None:
    """Itself, as long as nothing did."""
    old = load(write(tmp_path / "items.arrow", record=b"old"), REGISTRY)
    same = newest(old, REGISTRY)
    write(tmp_path / "items.arrow", record=b"new")

    assert (same is old, newest(old, REGISTRY).look_up([ENTITY])) == (True, [b"new"])


def test_the_newest_of_another_registry_is_refused(tmp_path: Path) -> None:
    """As it is at a start."""
    old = load(write(tmp_path / "items.arrow"), REGISTRY)
    write(tmp_path / "items.arrow", Made("g2", "another", NOW_MS))

    with pytest.raises(SettingsError, match="feature_version another"):
        newest(old, REGISTRY)


def test_one_that_is_gone_has_no_newest(tmp_path: Path) -> None:
    """Who has it open goes on with it."""
    old = load(write(tmp_path / "items.arrow"), REGISTRY)
    (tmp_path / "items.arrow").unlink()

    with pytest.raises(SettingsError, match="The one that was loaded is kept"):
        newest(old, REGISTRY)


def test_one_that_is_not_finished_changes_nothing(tmp_path: Path) -> None:
    """The old file stands, and nothing lies beside it."""
    before = write(tmp_path / "items.arrow").read_bytes()

    def stopped() -> None:
        with writing(tmp_path / "items.arrow", MADE) as rows:
            rows([b"item::i2"], [b"record"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()

    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


def test_one_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """With the next step."""
    (tmp_path / "file").touch()

    with pytest.raises(SettingsError, match=r"cannot be written: .* Name a file in a folder that we may write to"):
        write(tmp_path / "file" / "items.arrow")


@pytest.mark.parametrize("part", [0, 0.1, 0.5, 0.99])
def test_a_cut_file_is_refused(tmp_path: Path, part: float) -> None:
    """Wherever its copying stopped."""
    whole = write(tmp_path / "items.arrow").read_bytes()
    (tmp_path / "cut").write_bytes(whole[: int(part * len(whole))])

    assert "is no snapshot: " in refusal(tmp_path / "cut")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """With the next step."""
    assert "Make it with `millstream replay backfill-snapshot`, or set none." in refusal(tmp_path / "items.arrow")


def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """An Arrow file is no snapshot by itself."""
    rows = pa.table({"hash": [1], "key": [b"k"], "record": [b"r"]})
    with pa.ipc.new_file(str(tmp_path / "other.arrow"), rows.schema) as writer:
        writer.write_table(rows)

    assert "is no snapshot: " in refusal(tmp_path / "other.arrow")


@pytest.mark.parametrize("offset", [2**40, -1])
def test_a_damaged_file_is_refused(tmp_path: Path, offset: int) -> None:
    """Where a record would begin outside of the file, reading it would end the process."""
    before, _, behind = write(tmp_path / "items.arrow", record=b"r" * 77).read_bytes().rpartition((77).to_bytes(8, "little"))
    (tmp_path / "damaged").write_bytes(before + offset.to_bytes(8, "little", signed=True) + behind)

    assert "is no snapshot: " in refusal(tmp_path / "damaged")


@pytest.mark.parametrize("made", [Made("g1", "another", NOW_MS), Made("g1", REGISTRY.fingerprint, NOW_MS, RECORD_VERSION - 1)])
def test_one_of_another_registry_or_layout_is_refused(tmp_path: Path, made: Made) -> None:
    """Its records would be read wrongly, or not at all."""
    said = refusal(write(tmp_path / "items.arrow", made))

    assert f"feature_version {made.feature_version} and record version {made.record_version}, ours are {REGISTRY.fingerprint}" in said


def test_who_has_none_pays_nothing() -> None:
    """Neither the command nor the ranker imports pyarrow before there is a file to open."""
    code = "import sys, compose.cli, compose.serve; print('pyarrow' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)  # noqa: S603  # a fixed command

    assert found.stdout == "False\n"
