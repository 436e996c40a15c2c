"""The chaos harness itself, in small: workers that die at their steps, a store that loses everything, and a verdict that can be no."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.chaos.faults import Plan, World, emptied, kills
from benchmarks.chaos.launcher import STEPS
from benchmarks.chaos.runs import Report, Scale, play

#: Little enough for every test run.
SCALE = Scale(faults=2, events_per_s=400, speed=300)


def kills_and_losses(world: World, count: int) -> None:
    kills(world, count)
    emptied(world, count)


def a_record_lost(world: World, _: int) -> None:
    """As no fault may lose one: alone, without its guard."""
    world.watch.await_ends(30.0, world.fleet.tend)
    key = next(world.stores.primary.client.scan_iter("item:features:*"))
    world.stores.primary.client.delete(key)


def played(inject: Callable[[World, int], None], folder: Path) -> Report:
    return play("smoke", Plan(inject, 2, 2), 7, SCALE, folder)


@pytest.mark.timeout(120)
def test_killed_workers_and_an_emptied_store_leave_what_the_oracle_says(tmp_path: Path) -> None:
    """After kill -9 at random and at a step, FLUSHALL and an empty restart, every entity and every dead letter is right."""
    report = played(kills_and_losses, tmp_path)

    assert (report.verdict.wrong, report.verdict.letters_wrong, report.guards_gone_back, report.exits) == ([], 0, 0, [])
    assert (report.faults["kill -9"], any(step in STEPS for step in report.kills)) == (2, True)


@pytest.mark.timeout(120)
def test_a_lost_record_is_found(tmp_path: Path) -> None:
    """One record gone behind the workers' back, and the run is wrong."""
    report = played(a_record_lost, tmp_path)

    assert (len(report.verdict.wrong), report.is_wrong()) == (1, True)
