"""One run: topics, store, workers and feed of its own, a plan of faults, the log drained, the verdict."""

import asyncio
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.chaos.faults import PLANS, Plan, World
from benchmarks.chaos.feed import PARTITIONS, Feed
from benchmarks.chaos.fleet import Fleet
from benchmarks.chaos.verdict import Verdict, judge
from benchmarks.chaos.watch import Watch
from compose import topics
from streams.app import IngestSettings
from tests.workers import SHORT_SESSION_S, own_broker

#: No partition may stand still for longer (seconds).
STALL_S_MAX = 30.0
#: How long the workers may take to apply what is left once the faults are over (seconds).
DRAIN_S = 180.0
#: Where in a run's folder the workers write.
WORKERS = "workers"
#: What the feed does before the first fault (seconds).
WARM_UP_S = 3.0


@dataclass(frozen=True, slots=True)
class Scale:
    """How much. faults: of the plan's kind; speed: of the feed's clock."""

    faults: int
    events_per_s: int
    speed: int


@dataclass(frozen=True, slots=True)
class Report:
    """What one run found."""

    name: str
    seed: int
    seconds: float
    drain_s: float
    faults: dict[str, int]
    kills: dict[str, int]
    verdict: Verdict
    delivered: int
    refused: int
    stale_offered: int
    stale_accepted: int
    guards_gone_back: int
    writes_lost: int
    heals_s: list[float]
    stall_s_max: float
    stalled: str
    exits: list[int]
    logs: str = ""

    def is_wrong(self) -> bool:
        """Whether a claim does not hold."""
        late = self.stall_s_max > STALL_S_MAX or max([self.drain_s, *self.heals_s]) == float("inf")
        return late or bool(self.verdict.wrong or self.verdict.letters_wrong or self.stale_accepted or self.guards_gone_back)

    def as_json(self) -> dict[str, Any]:
        """The few figures that a reader wants of each run."""
        return {
            "run": self.name,
            "faults": self.faults,
            "kills": self.kills,
            "events": self.verdict.events,
            "entities_wrong": len(self.verdict.wrong),
            "dead_letters_wrong": self.verdict.letters_wrong,
            "stale_writes_offered": self.stale_offered,
            "guards_gone_back": self.guards_gone_back,
            "writes_lost": self.writes_lost,
            "heal_seconds": [round(heal, 2) for heal in self.heals_s],
            "drain_seconds": round(self.drain_s, 2),
            "stall_seconds_max": round(self.stall_s_max, 2),
            "stalled": self.stalled,
            "exits": self.exits,
            "seconds": round(self.seconds, 1),
        }


def play_plan(name: str, seed: int, scale: Scale) -> Report:
    """Play one of PLANS in a folder that is removed afterwards; SIGTERM ends it as Ctrl-C does, and leaves nothing running.

    Where a claim did not hold, or a worker ended unasked, what the workers wrote is kept: report.logs says where.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
        report = play(name, PLANS[name], seed, scale, Path(folder))
        if not (report.exits or report.is_wrong()):
            return report
        return replace(report, logs=shutil.copytree(Path(folder) / WORKERS, tempfile.mkdtemp(prefix=f"chaos-{name}-"), dirs_exist_ok=True))


def play(name: str, plan: Plan, seed: int, scale: Scale, folder: Path) -> Report:
    """Start everything, inject, drain, compare; everything that was started is stopped."""
    begun_s = time.monotonic()
    prefix = f"chaos-{name}-"
    with ExitStack() as parts:
        broker, start_broker, bootstrap = parts.enter_context(own_broker(folder))
        topics.create(bootstrap, prefix, PARTITIONS, retention_ms=-1)
        stores = plan.stores(folder)
        parts.enter_context(stores)
        settings = IngestSettings(bootstrap, f"{prefix}ingest", prefix, session_timeout_s=SHORT_SESSION_S)
        fleet = parts.enter_context(Fleet(folder / WORKERS, settings, stores.url))
        feed = Feed(bootstrap, prefix, seed, scale.events_per_s, scale.speed)
        with feed, Watch(bootstrap, prefix, lambda: stores.client) as watch:
            world = World(fleet, stores, feed, watch, broker, start_broker, random.Random(seed), settings)  # noqa: S311  # data by a seed, no secret
            fleet.rest(WARM_UP_S)
            watch.await_ends(DRAIN_S, fleet.tend)
            watch.begin()
            plan.inject(world, scale.faults)
            feed.stop()
            drain_s = watch.await_ends(DRAIN_S, fleet.tend)
        fleet.stop()
        verdict = asyncio.run(judge(bootstrap, prefix, stores.primary_url))
        return _report(name, seed, time.monotonic() - begun_s, drain_s, world, verdict)


def _report(name: str, seed: int, seconds: float, drain_s: float, world: World, verdict: Verdict) -> Report:
    fleet, watch = world.fleet, world.watch
    return Report(
        name=name,
        seed=seed,
        seconds=seconds,
        drain_s=drain_s,
        faults=dict(world.done),
        kills=dict(Counter(fleet.kills)),
        verdict=verdict,
        delivered=sum(fleet.noted("delivered")),
        refused=world.feed.refused,
        stale_offered=sum(fleet.noted("stale")),
        stale_accepted=sum(fleet.noted("accepted")),
        guards_gone_back=watch.backwards,
        writes_lost=world.writes_lost,
        heals_s=world.heals_s,
        stall_s_max=watch.stall_seconds_max,
        stalled=watch.stalled,
        exits=fleet.unasked(),
    )
