"""The arithmetic of the soak of switches: what its feed holds, and what it says of requests."""

import itertools
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from benchmarks.chaos.verdict import windows_of
from benchmarks.rank.generator import Verdict
from benchmarks.switch import feed, traffic
from benchmarks.switch.traffic import Phases
from schemas.features import REGISTRY
from schemas.topics import StoredRecord
from tests.oracle import Oracle

TASK = feed.Task("nowhere", "", rate=1_080, users=50, items=100, seed=3)


def test_the_feed_holds_what_producers_do_wrong() -> None:
    """Events that are good, some again and some that are none, and profiles: in the shares that it promises."""
    found = list(itertools.islice(feed.messages(TASK), 3_060))
    now_ms = time.time_ns() // 1_000_000
    records = [
        StoredRecord(topic, partition, offset, now_ms, key, value) for offset, (topic, partition, key, value) in enumerate(found, start=1)
    ]
    oracle = Oracle(records, windows_of(REGISTRY))
    profiles = sum(topic in {"content", "users"} for topic, *_ in found)

    assert len(oracle.bad) == 3_060 // feed.POISON_EVERY
    assert (len(oracle.repeats) > 15, profiles > 25) == (True, True)


def test_a_request_counts_where_it_was_due(tmp_path: Path) -> None:
    """In the phase that had begun by then; late is past its deadline, and no answer is a failure."""
    file = tmp_path / "requests.npz"
    verdict = np.array([Verdict.FULL, Verdict.DEGRADED, Verdict.FULL, Verdict.ERROR], np.int8)
    answered_s = np.array([1.01, 2.01, 4.0, np.nan])
    np.savez(file, due_s=np.array([1.0, 2.0, 3.0, 3.5]), answered_s=answered_s, verdict=verdict, maker=np.array(["a", "b", "b", ""]))
    world = cast("Any", SimpleNamespace(outcome_file=file))
    found = traffic.summary(world, Phases([("before", 0.5), ("rebuild", 2.5)]))
    counts = {
        name: [phase[what] for what in ("requests", "failed", "degraded", "late")] for name, phase in found["requests_by_phase"].items()
    }

    assert (counts, found["requests"], found["answers_made_by"]) == ({"before": [2, 0, 1, 0], "rebuild": [2, 1, 0, 1]}, 4, ["a", "b"])
