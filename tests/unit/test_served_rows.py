"""Training rows of what was served: the vector as of the request, and what came of each item inside the attribution window."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from replay.files import FileLog
from replay.history import events_of, read_history
from replay.log import Message
from replay.served import training
from replay.served.labels import LONG_VIEW_MS, Labels
from replay.served.training import Made, groups, write
from replay.served.vectors import Recomputed
from schemas import codec
from schemas.errors import SettingsError
from schemas.features import REGISTRY, Registry, context_number
from schemas.records import RankTelemetry, Record, ServedItem
from schemas.topics import RANK_TELEMETRY
from schemas.windows import ATTRIBUTION_MS
from tests.worlds import NOW_MS, click, content, dwell, impression, topic_of

MADE = Made(REGISTRY.fingerprint, "telemetry", "a folder", ATTRIBUTION_MS, LONG_VIEW_MS, NOW_MS)


def vector(value: float) -> bytes:
    """A scored vector, the same number everywhere."""
    return np.full(len(REGISTRY.feature_names), value, "<f4").tobytes()


def served(*item_ids: str, **rest: Any) -> RankTelemetry:  # noqa: ANN401  # any other field
    items = [
        ServedItem(item_id=item_id, position=place, score=1.0 / (place + 1), vector=vector(place), propensity=0.5)
        for place, item_id in enumerate(item_ids)
    ]
    said = {"request_id": "r1", "user_id": "u1", "model_version": "m1", "feature_version": REGISTRY.fingerprint, "generation": "g1"}
    return RankTelemetry(**{**said, "items": items, "degraded": "NONE", "arm": "default", "ts_ms": NOW_MS, **rest})


def log_of(folder: Path, records: Sequence[Record]) -> FileLog:
    log = FileLog(folder / "log", 2)
    for record in records:
        topic = topic_of(record)
        log.append(topic, [Message(topic.key_of(record), codec.encode(record), record.ts_ms)])  # type: ignore[union-attr]  # all have one
    return log


def rows_of(folder: Path, *records: Record, recompute: bool = False, registry: Registry = REGISTRY) -> pl.DataFrame:
    """The rows of a log of these records, as the file has them."""
    log, labels = log_of(folder, records), Labels()
    for _, events in events_of(log):
        labels.add(events)
    labels.sort()
    recomputed = Recomputed(registry, read_history(log, registry)) if recompute else None
    write(folder / "rows.parquet", registry, MADE, groups(log, registry, labels, recomputed, lambda _: None))
    return pl.read_parquet(folder / "rows.parquet").sort("request_id", "position")


def test_a_row_is_what_was_served_and_what_came_of_it(tmp_path: Path) -> None:
    """Clicked or only seen; its place, propensity and vector as the telemetry has them."""
    seen = [impression(item_id=item_id, ts_ms=NOW_MS + 1) for item_id in ("a", "b")]
    found = rows_of(tmp_path, served("a", "b"), *seen, click(item_id="b", ts_ms=NOW_MS + 9, dwell_ms=LONG_VIEW_MS))

    wanted = ["item_id", "position", "propensity", "clicked", "dwell_ms", "long_view", "feature_quality"]
    assert found.select(wanted).rows() == [("a", 0, 0.5, False, 0, False, 0.0), ("b", 1, 0.5, True, LONG_VIEW_MS, True, 1.0)]


def test_what_nobody_saw_is_no_row(tmp_path: Path) -> None:
    """It was not refused: it was not there."""
    found = rows_of(tmp_path, served("a", "b", "c"), impression(item_id="b"), click(item_id="c", ts_ms=NOW_MS + 1))

    assert found["item_id"].to_list() == ["b", "c"]


@pytest.mark.parametrize(("after_ms", "clicked"), [(-1, False), (0, True), (ATTRIBUTION_MS - 1, True), (ATTRIBUTION_MS, False)])
def test_an_act_counts_inside_the_window(tmp_path: Path, after_ms: int, clicked: bool) -> None:  # noqa: FBT001  # the case
    """From the request on, its end excluded."""
    found = rows_of(tmp_path, served("a"), impression(item_id="a"), click(item_id="a", ts_ms=NOW_MS + after_ms))

    assert found["clicked"].to_list() == [clicked]


@pytest.mark.parametrize("whose", [{"request_id": "r2"}, {"item_id": "b"}, {"tenant": "t"}])
def test_an_act_counts_for_its_request_item_and_tenant_alone(tmp_path: Path, whose: dict[str, str]) -> None:
    """Not for another one's."""
    act = msgspec.structs.replace(click(item_id="a", ts_ms=NOW_MS + 1), **whose)
    found = rows_of(tmp_path, served("a"), impression(item_id="a"), act)

    assert found["clicked"].to_list() == [False]


def test_dwell_of_all_visits_is_added(tmp_path: Path) -> None:
    """What the click said, and each return to the item; a repeat of its producer adds nothing."""
    acts: list[Record] = [click(item_id="a", ts_ms=NOW_MS + 1, dwell_ms=100), dwell(item_id="a", ts_ms=NOW_MS + 2, dwell_ms=20)]
    found = rows_of(tmp_path, served("a"), *acts, *acts)

    assert found["dwell_ms"].to_list() == [120]


def test_what_was_not_scored_is_no_row_of_what_was_served(tmp_path: Path) -> None:
    """A fallback has no vector, and another registry's means something else."""
    nothing = [ServedItem(item_id="a", position=0, score=0.0, vector=b"")]
    told = [served("a", request_id="r2", items=nothing), served("a", request_id="r3", feature_version="another"), served("a")]
    found = rows_of(tmp_path, *told, *(impression(item_id="a", request_id=f"r{number}") for number in (1, 2, 3)))

    assert found["request_id"].to_list() == ["r1"]


def test_a_request_that_stands_there_twice_is_one(tmp_path: Path) -> None:
    """Its producer sent it again."""
    found = rows_of(tmp_path, served("a"), served("a"), impression(item_id="a"))

    assert len(found) == 1


def test_what_is_no_telemetry_is_passed_over(tmp_path: Path) -> None:
    """Nobody promised that a topic holds nothing else."""
    log_of(tmp_path, []).append(RANK_TELEMETRY, [Message(b"r1", b"\0what", NOW_MS), Message(b"r1", None, NOW_MS)])
    found = rows_of(tmp_path, served("a"), impression(item_id="a"))

    assert len(found) == 1


def test_recomputed_is_what_the_log_said_before_the_request(tmp_path: Path) -> None:
    """Of its item and its user: not what came at that moment or later, its own impression neither."""
    past: list[Record] = [content("a", NOW_MS - 9, quality_score=0.5), impression("u1", "a", NOW_MS - 8, request_id="r0")]
    now: list[Record] = [impression("u1", "a", NOW_MS), content("a", NOW_MS, quality_score=0.9), click("u1", "a", NOW_MS + 1)]
    found = rows_of(tmp_path, *past, served("a"), *now, recompute=True)

    assert found.select("feature_quality", "feature_impressions_7d", "feature_user_impressions_7d", "clicked").rows() == [(0.5, 1, 1, True)]


def test_recomputed_takes_what_a_request_carried(tmp_path: Path) -> None:
    """From its impressions."""
    registry = Registry((*REGISTRY.features, context_number("hour", "hour")), REGISTRY.statics)
    found = rows_of(tmp_path, served("a"), impression(item_id="a", context={"hour": "7"}), recompute=True, registry=registry)

    assert found["feature_hour"].to_list() == [7.0]


def test_recomputed_has_rows_of_what_another_registry_served(tmp_path: Path) -> None:
    """And of what fell back: what this registry would have served is known of each."""
    found = rows_of(tmp_path, served("a", feature_version="another"), impression(item_id="a"), recompute=True)

    assert found["feature_impressions_7d"].to_list() == [0.0]


def test_a_file_says_what_it_was_made_of(tmp_path: Path) -> None:
    """In its metadata."""
    rows_of(tmp_path, served("a"))

    assert msgspec.json.decode(pq.read_schema(tmp_path / "rows.parquet").metadata[training.MADE], type=Made) == MADE


def test_rows_are_written_group_by_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no more than one has to be held."""
    monkeypatch.setattr(training, "GROUP_ROWS", 1)
    monkeypatch.setattr("replay.files.BATCH_ROWS_MAX", 1)
    events = [
        record for number in range(3) for record in (served("a", request_id=f"r{number}"), impression(item_id="a", request_id=f"r{number}"))
    ]
    rows_of(tmp_path, *events)

    assert pq.ParquetFile(tmp_path / "rows.parquet").metadata.num_row_groups >= 3


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """With the next step, and nothing is left beside it."""
    (tmp_path / "file").touch()

    with pytest.raises(SettingsError, match=r"cannot be written: .* Name a file in a folder that we may write to"):
        write(tmp_path / "file" / "rows.parquet", REGISTRY, MADE, iter(()))
