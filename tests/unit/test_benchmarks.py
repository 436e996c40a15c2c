"""The benchmarks' own arithmetic: summaries, what was there to count, and that a wrong store is found out."""

import argparse
import json

import numpy as np
import pytest

from benchmarks import feed as feeds
from benchmarks import results, wire
from benchmarks.ingest.registries import WIDE
from benchmarks.ingest.verify import wrong
from benchmarks.memory.fill import Log
from benchmarks.memory.history import DAYS, History
from online_store.ingest import Ingest
from online_store.keys import Generation
from online_store.memory import MemoryStore
from schemas.features import REGISTRY, Registry

FEED = feeds.make(2_160, seed=5)


async def filled(registry: Registry, feed: feeds.Feed) -> tuple[MemoryStore, Generation]:
    """A store that ingest brought a feed to."""
    store = MemoryStore(registry)
    log = Log(Ingest(store, registry))
    await log.begin()
    await log.take_feed(feed)
    return store, Generation(1, registry.fingerprint)


@pytest.mark.parametrize("registry", [REGISTRY, WIDE], ids=["default", "wide"])
async def test_a_right_store_is_found_right(registry: Registry) -> None:
    """Every user, item and model of the feed is compared, and none is wrong."""
    store, generation = await filled(registry, FEED)
    entities = sum(len(np.unique(numbers)) for numbers in (FEED.user, FEED.item, FEED.model))

    assert await wrong(store, registry, generation, FEED) == (entities, 0)


async def test_a_missing_event_is_found() -> None:
    """It makes its user, its item and its model wrong, and nothing else."""
    store, generation = await filled(REGISTRY, FEED.rows(0, len(FEED) - 1))

    assert (await wrong(store, REGISTRY, generation, FEED))[1] == 3


def test_a_summary_is_median_least_and_most() -> None:
    """Of numbers; words are those of the last run."""
    runs = [{"speed": speed, "of": {"word": speed}} for speed in (3, 1, 2)]

    assert results.summary(runs) == {"runs": 3, "speed": {"median": 2, "min": 1, "max": 3}, "of": {"word": 2}}


def test_the_last_line_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    """It names the machine, the arguments and the rows."""
    rows = {"row": results.summary([{"speed": 1}])}
    results.publish("name", argparse.Namespace(json=True, save=False, runs=1), rows, ["a note"], ["speed"])
    said = json.loads(capsys.readouterr().out.splitlines()[-1])

    assert (said["rows"], said["notes"], said["arguments"], said["machine"]["cores"] > 0) == (rows, ["a note"], {"runs": 1}, True)


def test_the_wide_registry_has_64_windows() -> None:
    """Each of its kind with a span of its own or a hop of its own."""
    windows = {(kind, window.span_ms, window.hop_ms) for kind in WIDE.kinds for window in WIDE.windows(kind)}

    assert len(windows) == 64


def test_in_two_weeks_everybody_comes() -> None:
    """Each day holds its own events alone, and each user has at least one."""
    days = list(History(500, 100, seed=1).days())
    spans = [(int(day.ts_ms.min()) - feeds.BEGIN_MS) // 86_400_000 for day in days]

    assert (spans, len(np.unique(np.concatenate([day.user for day in days])))) == (list(range(DAYS)), 500)


def test_a_part_of_a_feed_is_a_feed() -> None:
    """Its bytes are those of the whole."""
    assert wire.values(FEED.rows(100, 200)) == wire.values(FEED)[100:200]
