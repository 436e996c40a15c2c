"""The chaos harness itself, in small: workers that die at their steps, a store that loses everything, and a verdict that can be no."""

from pathlib import Path

import pytest

from benchmarks.chaos.faults import Plan, World, emptied, kills
from benchmarks.chaos.launcher import STEPS
from benchmarks.chaos.runs import Scale, play
from benchmarks.chaos.verdict import judge
from compose import topics
from tests.workers import events, produce


def kills_and_a_loss(world: World, count: int) -> None:
    kills(world, count)
    emptied(world, 1)


@pytest.mark.timeout(180)
def test_killed_workers_and_a_flushed_store_leave_what_the_oracle_says(tmp_path: Path) -> None:
    """After kill -9 at random and at a step, and FLUSHALL, every entity and every dead letter is right."""
    report = play("smoke", Plan(kills_and_a_loss, 2, 2), 7, Scale(faults=2, events_per_s=400, speed=300), tmp_path)

    assert (report.verdict.wrong, report.verdict.letters_wrong, report.guards_gone_back, report.exits) == ([], 0, 0, [])
    assert (report.faults["kill -9"] >= 2, any(step in STEPS for step in report.kills)) == (True, True)


async def test_what_nobody_applied_is_found(kafka_bootstrap: str, store_db: str, topic_prefix: str) -> None:
    """The verdict names every entity of a log that no worker has read."""
    topics.create(kafka_bootstrap, topic_prefix, partitions=2)
    sent = events(20)
    produce(kafka_bootstrap, topic_prefix, sent)
    verdict = await judge(kafka_bootstrap, topic_prefix, store_db)

    assert (len(verdict.wrong), verdict.entities_compared > 20) == (verdict.entities_compared, True)
