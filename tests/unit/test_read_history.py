"""What training reads of a log: the events that ingest counts, and no others."""

from pathlib import Path

import pytest

from replay.files import FileLog
from replay.history import read_history
from replay.log import Message
from schemas import codec
from schemas.features import REGISTRY, Registry, context_number
from schemas.topics import CLICKS, IMPRESSIONS
from tests.worlds import NOW_MS, click, impression


def log_of_repeats(folder: Path) -> FileLog:
    """One partition a topic: an impression and a click, each sent three times, the last time two offsets after the one before."""
    log = FileLog(folder, partitions=1)
    for topic, event, other in (
        (IMPRESSIONS, impression(context={"hour": "7"}), impression(request_id="r2")),
        (CLICKS, click(), click(request_id="r2")),
    ):
        for record in (event, event, other, event):
            log.append(topic, [Message(b"u1", codec.encode(record), NOW_MS)])
    return log


@pytest.mark.parametrize(("repeat_offsets", "kept"), [(0, [0, 1, 2, 3]), (1, [0, 2, 3]), (2, [0, 2])])
def test_repeats_are_not_trained_on(tmp_path: Path, repeat_offsets: int, kept: list[int]) -> None:
    """Of both topics, whatever files or batches they come in."""
    events = read_history(log_of_repeats(tmp_path), REGISTRY, repeat_offsets).events

    assert sorted(events["offset"].to_list()) == sorted(kept * 2)


def test_a_context_is_of_an_impression_that_counts(tmp_path: Path) -> None:
    """Each request has the context of its own record."""
    registry = Registry((*REGISTRY.features, context_number("hour", "hour")), REGISTRY.statics)

    assert read_history(log_of_repeats(tmp_path), registry).contexts == {("", "r1"): {"hour": "7"}, ("", "r2"): {}}
