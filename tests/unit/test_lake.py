"""The lake's tables hold every offset once, in an order that can be read again, whoever wrote, crashed or put them in order in between."""

import hashlib
import os
import random
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable

import replay.lake
from replay.lake import Lake
from schemas.columnar.table import event_table
from schemas.columns import decode_events
from schemas.errors import LogError
from schemas.records import DeadLetter, RankedItem, RankRequest, RankResponse, RankTelemetry, Record, ServedItem
from schemas.topics import CLICKS, CONTENT, IMPRESSIONS, TOPICS, USERS, Batch, StoredRecord, Topic
from streams.lake.table import LakePlace, Table
from streams.lake.upkeep import FILES_MAX, keep
from tests.lakes import TODAY, day_of, sink
from tests.worlds import NOW_MS, SCHEMA_IDS, WIRES, click, content, dwell, impression, stored, topic_of, user

DAY_MS = 86_400_000
MIDNIGHT_MS = NOW_MS // DAY_MS * DAY_MS
WHO: dict[str, Any] = {"request_id": "r1", "user_id": "u1", "ts_ms": NOW_MS}
VERSIONS: dict[str, Any] = {"model_version": "m1", "feature_version": "f1", "generation": "g1", "degraded": "NONE", "arm": "a"}
#: A record of every topic, and some of what its row says.
SAID: Sequence[tuple[Record, dict[str, Any]]] = (
    (impression(position=3, model_version="m1"), {"user_id": "u1", "item_id": "i1", "position": 3, "model_version": "m1"}),
    (click(dwell_ms=9), {"record": "Click", "request_id": "r1", "dwell_ms": 9, "model_version": None, "position": None}),
    (dwell(dwell_ms=7), {"record": "Dwell", "ts_ms": NOW_MS, "dwell_ms": 7, "tenant": ""}),
    (content(topic_tags=["a", "b"], quality_score=0.5), {"item_id": "i1", "topic_tags": ["a", "b"], "quality_score": 0.5}),
    (user(region="EU"), {"user_id": "u1", "region": "EU", "personalization": True, "analytics": True}),
    (RankRequest(candidate_item_ids=["i1", "i2"], k=1, **WHO), {"candidate_item_ids": ["i1", "i2"], "k": 1, "deadline_ms": None}),
    (
        RankResponse(ranked_items=[RankedItem(item_id="i2", score=0.25)], latency_ms=1.5, **WHO, **VERSIONS),
        {"item_ids": ["i2"], "scores": [0.25], "latency_ms": 1.5, "degraded": "NONE", "arm": "a"},
    ),
    (
        RankTelemetry(items=[ServedItem(item_id="i2", position=0, score=0.25, vector=b"")], staleness_ms=4, **WHO, **VERSIONS),
        {"item_ids": ["i2"], "scores": [0.25], "staleness_ms": 4, "generation": "g1"},
    ),
    (
        DeadLetter(topic="clicks", partition=2, offset=5, reason="MALFORMED", detail="why", value=b"x", key=b"u1"),
        {"source_topic": "clicks", "source_partition": 2, "source_offset": 5, "reason": "MALFORMED", "detail": "why"},
    ),
)


def rows(folder: Path, topic: Topic) -> pl.DataFrame:
    """A table's rows, in the order of the log."""
    return pl.scan_delta(str(folder / topic.name)).sort("partition", "offset").collect()


def shown(count: int, first: int = 0, partition: int = 0, timestamp: int = NOW_MS) -> list[StoredRecord]:
    """Impressions of many users, offsets from `first` on."""
    return [
        stored(impression(f"u{offset * 7 % 100:03}", ts_ms=NOW_MS), offset, partition, timestamp) for offset in range(first, first + count)
    ]


def opened(folder: Path, *partitions: int) -> Table:
    """A writer of impressions that took over some partitions."""
    table = Table(LakePlace(str(folder)), IMPRESSIONS, 2)
    table.begin(partitions)
    return table


def offsets(batches: Iterable[Batch]) -> list[tuple[int, int]]:
    return [(record.partition, record.offset) for batch in batches for record in batch.records]


@pytest.mark.parametrize(("record", "said"), SAID, ids=lambda part: type(part).__name__)
def test_a_row_says_what_its_record_says(tmp_path: Path, record: Record, said: dict[str, object]) -> None:
    """Beside what Kafka had: place, time, key, bytes and their hash."""
    kept = stored(record, 5, 1, NOW_MS)
    sink(tmp_path, topic_of(record), [kept])

    (row,) = rows(tmp_path, topic_of(record)).to_dicts()
    had = (row["topic"], row["partition"], row["offset"], row["timestamp_ms"], row["key"], row["value"])
    assert had == tuple(kept)[:6]
    assert (row["day"], row["value_sha256"]) == (day_of(NOW_MS), hashlib.sha256(kept.value or b"").digest())
    assert {"record": type(record).__name__} | said == {name: row[name] for name in {"record": "", **said}}


@pytest.mark.parametrize("topic", TOPICS.values(), ids=lambda topic: topic.name)
def test_a_bad_record_is_in_the_lake(tmp_path: Path, topic: Topic) -> None:
    """With its bytes, and nothing of what it might say; the good one beside it is as it is alone."""
    record: Record = next(record for record, _ in SAID if topic_of(record) is topic)
    good = stored(record, 1, timestamp=NOW_MS)
    sink(tmp_path, topic, [StoredRecord(topic.name, 0, 0, NOW_MS, b"u1", b"\xff", (("name", b"header"),)), good])

    bad, other = rows(tmp_path, topic).to_dicts()
    assert (bad["value"], bad["headers"], bad["record"]) == (b"\xff", [{"name": "name", "value": b"header"}], None)
    assert other["record"] is not None


def test_what_ingest_would_refuse_says_nothing(tmp_path: Path) -> None:
    """An event ahead of its Kafka timestamp is a dead letter there, so it counts for no query here."""
    sink(tmp_path, IMPRESSIONS, [stored(impression(ts_ms=NOW_MS + DAY_MS), 0, timestamp=NOW_MS)])

    assert rows(tmp_path, IMPRESSIONS)["user_id"].to_list() == [None]


@pytest.mark.parametrize(("topic", "column"), [(CONTENT, "item_id"), (USERS, "user_id")])
def test_a_tombstone_names_whom_it_removes(tmp_path: Path, topic: Topic, column: str) -> None:
    """Its key is the id; it has no value and no hash."""
    sink(tmp_path, topic, [StoredRecord(topic.name, 0, 0, NOW_MS, b"x1", None)])

    (row,) = rows(tmp_path, topic).to_dicts()
    assert (row["record"], row[column], row["value"], row["value_sha256"]) == ("Tombstone", "x1", None, None)


@pytest.mark.parametrize("wire", WIRES)
def test_events_decode_from_the_lake_as_from_the_log(tmp_path: Path, wire: str) -> None:
    """Whatever their wire form: headers that name a schema come back, too."""
    said: list[Record] = [click("u1"), dwell("u2"), click("u3", model_version="m")]
    records = [stored(record, offset, wire=wire) for offset, record in enumerate(said)]
    sink(tmp_path, CLICKS, records)

    (batch,) = Lake(str(tmp_path)).read(CLICKS)
    found, log = (decode_events(CLICKS, part, SCHEMA_IDS) for part in (batch.records, records))
    assert event_table(found.events).sort("offset").equals(event_table(log.events).sort("offset"))
    assert list(batch.records) == records


def test_of_two_writers_of_the_same_rows_one_is_refused(tmp_path: Path) -> None:
    """It changes nothing, and begins again where the other one ended."""
    first, second = opened(tmp_path, 0), opened(tmp_path, 0)
    for table in (first, second):
        table.take(shown(10))
    first.commit(TODAY)

    with pytest.raises(LogError, match="another writer"):
        second.commit(TODAY)
    assert second.begin([0]) == {0: 10}
    assert rows(tmp_path, IMPRESSIONS)["offset"].to_list() == [*range(10)]


def test_a_writer_whose_snapshot_knows_the_other_is_refused_too(tmp_path: Path) -> None:
    """Delta sees no conflict with what a snapshot has: the writer itself must look."""
    first, second = opened(tmp_path, 0), opened(tmp_path, 0, 1)
    first.take(shown(10))
    first.commit(TODAY)
    second.take(shown(5, partition=1))
    second.commit(TODAY)
    second.take(shown(10))

    with pytest.raises(LogError, match="reaches offset 10, not 0"):
        second.commit(TODAY)


def test_writers_of_different_partitions_do_not_meet(tmp_path: Path) -> None:
    """Each commits beside the other."""
    first, second = opened(tmp_path, 0), opened(tmp_path, 1)
    for start in (0, 5):
        for partition, table in enumerate((first, second)):
            table.take(shown(5, start, partition))
        assert (first.commit(TODAY), second.commit(TODAY)) == ({0: start + 5}, {1: start + 5})


def test_rows_that_a_table_has_are_left_out(tmp_path: Path) -> None:
    """Kafka may send again what was committed."""
    sink(tmp_path, IMPRESSIONS, shown(10))
    table = opened(tmp_path, 0)
    table.take(shown(15))
    table.commit(TODAY)

    assert rows(tmp_path, IMPRESSIONS)["offset"].to_list() == [*range(15)]


def test_a_table_of_before_gets_new_columns(tmp_path: Path) -> None:
    """What a record says grows by time; older rows have nulls there."""
    sink(tmp_path, IMPRESSIONS, shown(5))
    older = pl.read_delta(str(tmp_path / IMPRESSIONS.name)).drop("position")
    older.write_delta(str(tmp_path / IMPRESSIONS.name), mode="overwrite", delta_write_options={"schema_mode": "overwrite"})

    sink(tmp_path, IMPRESSIONS, shown(10))

    assert rows(tmp_path, IMPRESSIONS)["position"].to_list() == [None] * 5 + [0] * 5
    assert len(offsets(Lake(str(tmp_path)).read(IMPRESSIONS))) == 10


def test_days_follow_in_the_order_of_offsets(tmp_path: Path) -> None:
    """A record that comes late stands in the day of the one before it, in a later commit as well; its own time stays."""
    times = [MIDNIGHT_MS - 1, MIDNIGHT_MS + 1, MIDNIGHT_MS - 2, MIDNIGHT_MS - 3]
    records = [stored(impression(ts_ms=1), offset, timestamp=timestamp) for offset, timestamp in enumerate(times)]
    sink(tmp_path, IMPRESSIONS, records[:3])
    sink(tmp_path, IMPRESSIONS, records[3:])

    found, new = rows(tmp_path, IMPRESSIONS), day_of(MIDNIGHT_MS)
    assert found["day"].to_list() == [new - timedelta(days=1), new, new, new]
    assert found["timestamp_ms"].to_list() == times
    assert offsets(Lake(str(tmp_path)).read(IMPRESSIONS)) == [(0, offset) for offset in range(4)]


def test_no_day_is_later_than_today(tmp_path: Path) -> None:
    """One clock that runs ahead must not put all that follows into a day that retention never reaches."""
    sink(tmp_path, IMPRESSIONS, shown(1, timestamp=NOW_MS + 900 * DAY_MS), today=day_of(NOW_MS))

    assert rows(tmp_path, IMPRESSIONS)["day"].to_list() == [day_of(NOW_MS)]


def test_offsets_that_never_were_are_no_gap(tmp_path: Path) -> None:
    """Transaction marks and compaction leave holes: a batch begins where the one before it ended."""
    sink(tmp_path, IMPRESSIONS, [record._replace(offset=3 + 2 * record.offset) for record in shown(20)])

    batches = list(Lake(str(tmp_path)).read(IMPRESSIONS, batch_rows_max=6))
    assert batches[0].start == 0
    assert all(before.following == after.start for before, after in pairwise(batches))
    assert Lake(str(tmp_path)).end_offsets(IMPRESSIONS) == {0: batches[-1].following} == {0: 42}


def several_days(folder: Path) -> list[tuple[int, int]]:
    """Three days in many small files, of two partitions; returns what is in them."""
    table = opened(folder, 0, 1)
    for start in range(0, 3 * (FILES_MAX + 5) * 10, 10):
        for partition in (0, 1):
            table.take(shown(10, start, partition, NOW_MS + start // ((FILES_MAX + 5) * 10) * DAY_MS))
        table.commit(TODAY)
    return [(partition, offset) for partition in (0, 1) for offset in range(3 * (FILES_MAX + 5) * 10)]


def files(folder: Path) -> list[int]:
    """How many files each day has."""
    found = pl.DataFrame(DeltaTable(str(folder / IMPRESSIONS.name)).get_add_actions(flatten=True))
    return found.group_by("partition.day").len().sort("partition.day")["len"].to_list()


def test_upkeep_puts_files_together_and_changes_no_row(tmp_path: Path) -> None:
    """Days that are over are in order of their users, the last one is not yet."""
    expected = several_days(tmp_path)
    before = rows(tmp_path, IMPRESSIONS)

    keep(LakePlace(str(tmp_path)), IMPRESSIONS, TODAY)

    assert (files(tmp_path), rows(tmp_path, IMPRESSIONS).equals(before)) == ([1, 1, 1], True)
    days = [day_of(NOW_MS) + timedelta(days=days) for days in range(3)]
    users = [pl.scan_delta(str(tmp_path / IMPRESSIONS.name)).filter(pl.col("day") == day).collect()["user_id"] for day in days]
    assert [names.is_sorted() for names in users] == [True, True, False]
    assert sorted(offsets(Lake(str(tmp_path)).read(IMPRESSIONS))) == expected


def test_a_day_is_put_in_order_once(tmp_path: Path) -> None:
    """Another look at the same table finds nothing to do."""
    several_days(tmp_path)
    keep(LakePlace(str(tmp_path)), IMPRESSIONS, TODAY)
    version = DeltaTable(str(tmp_path / IMPRESSIONS.name)).version()

    keep(LakePlace(str(tmp_path)), IMPRESSIONS, TODAY)

    assert DeltaTable(str(tmp_path / IMPRESSIONS.name)).version() == version


def test_upkeep_deletes_what_a_crash_left(tmp_path: Path) -> None:
    """A file of no commit goes after a week, not before: its writer may be about to commit it."""
    several_days(tmp_path)
    left = [tmp_path / "impressions" / f"day={day_of(NOW_MS)}" / f"part-{name}.parquet" for name in ("old", "new")]
    for path, age_s in zip(left, (8 * 86_400, 60), strict=True):
        path.write_bytes(b"half a file")
        os.utime(path, (time.time() - age_s,) * 2)

    keep(LakePlace(str(tmp_path)), IMPRESSIONS, TODAY)

    assert [path.exists() for path in left] == [False, True]


def test_a_writer_goes_on_beside_upkeep(tmp_path: Path) -> None:
    """What it opened before is put in order meanwhile; it appends as if nothing had been."""
    several_days(tmp_path)
    table = opened(tmp_path, 0, 1)
    keep(LakePlace(str(tmp_path)), IMPRESSIONS, TODAY)
    first = 3 * (FILES_MAX + 5) * 10
    table.take(shown(10, first))

    assert table.commit(TODAY) == {0: first + 10}


@pytest.mark.parametrize("bytes_max", [1, 20_000, 1 << 30])
def test_a_day_of_any_size_reads_in_order(tmp_path: Path, bytes_max: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory, or through files of so many bytes; in order of users or not."""
    monkeypatch.setattr(replay.lake, "DAY_BYTES_MAX", bytes_max)
    expected = several_days(tmp_path)
    keep(LakePlace(str(tmp_path)), IMPRESSIONS, TODAY)
    found = offsets(Lake(str(tmp_path)).read(IMPRESSIONS))

    assert [[place for place in found if place[0] == partition] for partition in (0, 1)] == [
        expected[: len(expected) // 2],
        expected[len(expected) // 2 :],
    ]


def test_retention_removes_whole_days(tmp_path: Path) -> None:
    """Reading begins with what is left, and its first batch says from where it was asked."""
    several_days(tmp_path)

    keep(LakePlace(str(tmp_path)), IMPRESSIONS, day_of(NOW_MS) + timedelta(days=3), days_kept=1)

    batches = list(Lake(str(tmp_path)).read(IMPRESSIONS))
    assert rows(tmp_path, IMPRESSIONS)["day"].unique().to_list() == [day_of(NOW_MS) + timedelta(days=2)]
    assert {batch.start for batch in batches[:1]} == {0}
    assert batches[0].records[0].offset == 2 * (FILES_MAX + 5) * 10


def test_a_lake_that_is_not_there_is_empty(tmp_path: Path) -> None:
    """As a topic that has no record."""
    assert (Lake(str(tmp_path)).end_offsets(IMPRESSIONS), list(Lake(str(tmp_path)).read(IMPRESSIONS))) == ({}, [])


def test_a_table_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """With its place, and what to mend."""
    (tmp_path / "impressions" / "_delta_log").mkdir(parents=True)
    (tmp_path / "impressions" / "_delta_log" / f"{0:020}.json").write_text("no commit")

    with pytest.raises(LogError, match="impressions cannot be read"):
        Lake(str(tmp_path)).end_offsets(IMPRESSIONS)


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    """Reading ends with an error instead of going past it."""
    sink(tmp_path, IMPRESSIONS, shown(10))
    next((tmp_path / "impressions").glob("day=*/*.parquet")).unlink()

    with pytest.raises(LogError, match="impressions cannot be read"):
        list(Lake(str(tmp_path)).read(IMPRESSIONS))


def test_rows_of_somebody_else_are_not_read_past(tmp_path: Path) -> None:
    """A later offset in an earlier day was not written by the sink: reading on would leave out what is between."""
    sink(tmp_path, IMPRESSIONS, shown(10, timestamp=NOW_MS + DAY_MS))
    row = rows(tmp_path, IMPRESSIONS).head(1).with_columns(pl.lit(day_of(NOW_MS)).alias("day"), offset=pl.lit(20, pl.Int64))
    row.write_delta(str(tmp_path / "impressions"), mode="append")

    with pytest.raises(LogError, match="offset 0 of partition 0 stands behind offset 20"):
        list(Lake(str(tmp_path)).read(IMPRESSIONS))


@pytest.mark.parametrize("seed", range(20))
def test_every_offset_once_whatever_writers_do(tmp_path: Path, seed: int) -> None:
    """Two writers that believe they own everything, of which any may die with rows taken, and upkeep in between."""
    chance = random.Random(seed)
    log = [shown(60, partition=partition) for partition in (0, 1)]
    writers = [opened(tmp_path, 0, 1) for _ in range(2)]
    read = [{0: 0, 1: 0} for _ in writers]
    for _ in range(60):
        one = chance.randrange(2)
        partition, step = chance.randrange(2), chance.random()
        if step < 0.5:
            start = read[one][partition]
            part = log[partition][start : start + chance.randrange(1, 9)]
            writers[one].take(part)
            read[one][partition] += len(part)
        elif step < 0.8:
            try:
                writers[one].commit(TODAY)
            except LogError:
                read[one] = {at: start or 0 for at, start in writers[one].begin([0, 1]).items()}
        elif step < 0.95:
            writers[one] = Table(LakePlace(str(tmp_path)), IMPRESSIONS, 2)
            read[one] = {at: start or 0 for at, start in writers[one].begin([0, 1]).items()}
        else:
            keep(LakePlace(str(tmp_path)), IMPRESSIONS, TODAY)
    last = opened(tmp_path, 0, 1)
    for part in log:
        last.take(part)
    last.commit(TODAY)

    assert sorted(offsets(Lake(str(tmp_path)).read(IMPRESSIONS))) == [(record.partition, record.offset) for part in log for record in part]


def test_a_person_can_be_forgotten(tmp_path: Path) -> None:
    """As docs/lake.md says: no file has their rows any more, and the log is read over the holes."""
    bad = StoredRecord(IMPRESSIONS.name, 0, 20, NOW_MS, b"u1", b"\xff of u1")
    records = [stored(impression(f"u{offset % 2}", request_id=f"of-u{offset % 2}"), offset) for offset in range(20)]
    sink(tmp_path, IMPRESSIONS, [*records, bad])
    table = DeltaTable(str(tmp_path / IMPRESSIONS.name))

    table.delete("user_id = 'u1'")
    table.delete("key = X'7531'")
    table.vacuum(0, dry_run=False, enforce_retention_duration=False)

    held = pl.read_parquet(tmp_path / "impressions" / "**" / "*.parquet")
    assert held["key"].unique().to_list() == [b"u0"]
    assert [record.offset for batch in Lake(str(tmp_path)).read(IMPRESSIONS) for record in batch.records] == [*range(0, 20, 2)]
