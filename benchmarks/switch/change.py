"""One change of the registry, from the first event to the drop of the generation that was rebuilt for it, under traffic throughout."""

import asyncio
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.results import Result, console
from benchmarks.switch import traffic
from benchmarks.switch.traffic import Phases
from benchmarks.switch.verdict import Verdict, judge
from benchmarks.switch.world import World
from compose.replay.cutover import LAG_COUNT_MAX
from online_store.keys import CURRENT, Generation, guard_key
from schemas.errors import MillstreamError

#: How often it is looked whether the current generation goes on (seconds).
WATCH_S = 0.25
#: Who follows the pointer, by the verb that it is, and what the result calls it.
FOLLOWERS = {"ingest": "ingest", "serve": "rankers"}
#: How often a verb is asked that does not do what it should.
TRIES_COUNT_MAX = 10
#: How long a process may take to end by itself (seconds).
END_S = 60.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How much traffic there is (a second), and how long it goes on between two steps (seconds). history: events before the first one."""

    events_per_s: int
    requests_per_s: int
    calm_s: float
    history: int


@dataclass(slots=True)
class Run:
    """One change under way. ingest, keeper: the live worker, and the rebuild that keeps the other generation up to date."""

    world: World
    pace: Pace
    ingest: subprocess.Popen[bytes]
    serve: subprocess.Popen[bytes]
    phases: Phases = field(default_factory=Phases)
    found: Result = field(default_factory=dict)

    def switched(self, phase: str, to: Generation, *words: str) -> None:
        """Move the pointer by a verb, asked again while it refuses, and wait until everybody has followed. Raises MillstreamError."""
        world, before = self.world, self.world.stack.store.get(CURRENT)
        followed = {name: self._follows(name, to) for name in FOLLOWERS}
        self.phases.begin(phase)
        refused: list[str] = []
        with ThreadPoolExecutor(1) as beside:
            while len(refused) < TRIES_COUNT_MAX:
                verb = beside.submit(world.verb, "replay", phase, *words)
                moved_s = world.wait(lambda verb=verb: verb.done() or world.stack.store.get(CURRENT) != before, phase)  # type: ignore[misc]  # a default binds it now
                if world.stack.store.get(CURRENT) != before:
                    break
                refused += verb.result()["faults"]
                console.print(refused[-1], highlight=False)
            else:
                raise MillstreamError(f"{phase} was refused {TRIES_COUNT_MAX} times, in the end for: {refused[-1]}")
        seen_s: dict[str, float] = {}

        def followed_by_all() -> bool:
            new = [name for name in followed if name not in seen_s and self._follows(name, to) > followed[name]]
            seen_s.update(dict.fromkeys(new, time.perf_counter()))
            return len(seen_s) == len(followed)

        world.wait(followed_by_all, f"ingest and serve follow to {to.name}", self.ingest, self.serve)
        self.found[phase] = {
            "refused": refused,
            **{f"follow_seconds_{FOLLOWERS[name]}": round(seen_s[name] - moved_s, 2) for name in seen_s},
        }

    def _follows(self, name: str, to: Generation) -> int:
        """How often a process has said that it went over to a generation."""
        return self.world.said(name).count(f"generation {to.name} is current")


def once(world: World, pace: Pace) -> tuple[Result, Verdict]:
    """Everything that is said of one change, and the oracle's verdict."""
    console.print(f"{world.change}: {pace.history:,} events of the past, and models", highlight=False)
    world.fill(pace.history)
    with ExitStack() as parts:
        ingest = parts.enter_context(world.running("ingest", "ingest"))
        world.wait(lambda: _applied(world, world.first) > 0 and world.lag(world.first) == 0, "ingest has the past", ingest)
        serve = parts.enter_context(world.running("serve", "serve", http_port=str(world.http_port)))
        world.wait(lambda: "serve is up" in world.said("serve"), "serve is up", serve)
        run = Run(world, pace, ingest, serve)
        with watched(run):
            with world.fed(pace.events_per_s) as feed, world.asked(pace.requests_per_s) as asking:
                world.wait(world.is_asked, "both front ends answer", serve, feed, asking)
                keeper = _switched_and_back(run, parts)
                run.phases.begin("drain")
            world.wait(lambda: world.lag(world.first) == world.lag(world.second) == 0, "both generations are at the end", ingest, keeper)
        verdict = asyncio.run(judge(world))
        _drop(run, keeper)
    return run.found | traffic.summary(world, run.phases) | _of(verdict), verdict


def _switched_and_back(run: Run, parts: ExitStack) -> subprocess.Popen[bytes]:
    """Calm, rebuild, parity, cutover, calm, rollback, calm. Returns the rebuild's process, which still runs."""
    world, calm_s = run.world, run.pace.calm_s
    run.phases.begin("before")
    time.sleep(calm_s)
    run.phases.begin("rebuild")
    begun_s = time.perf_counter()
    keeper = parts.enter_context(world.running("rebuild", "replay", "rebuild", "--features", world.changed))
    caught_up_s = world.wait(lambda: _is_near(run, world.first, world.second), "the rebuild is at the live tail", keeper)
    run.found |= {"rebuild_seconds": round(caught_up_s - begun_s, 1), "events_rebuilt": _applied(world, world.second)}
    run.phases.begin("parity")
    run.found["parity"] = _compared(world)
    run.switched("cutover", world.second, world.second.name)
    time.sleep(calm_s)
    run.phases.begin("handover")
    world.wait(lambda: world.said("rebuild").count("ingest is up") > 1, "the rebuild keeps the generation before", keeper)
    world.wait(lambda: _is_near(run, world.second, world.first), "the generation before is at the live tail", keeper)
    run.switched("rollback", world.first)
    time.sleep(calm_s)
    return keeper


def _compared(world: World) -> Result:
    """What parity says in the end, asked again while it does not pass. tries: how often it was asked."""
    tries = 0
    said: Result = {"passed": False}
    while not said["passed"] and tries < TRIES_COUNT_MAX:
        tries += 1
        said = world.verb("replay", "parity", world.first.name, world.second.name)
    named = ("first", "missing", "extra", "looked_again", "unsettled")
    kinds = {kind["kind"]: {name: kind[name] for name in named} for kind in said["entities"]}
    return {"tries": tries, "passed": said["passed"], "seconds": said["seconds"], "features_off": said["features_off"], "entities": kinds}


def _is_near(run: Run, current: Generation, generation: Generation) -> bool:
    """Whether a cutover would not be refused for its lag."""
    return _applied(run.world, generation) > 0 and run.world.lag_behind(current, generation) <= LAG_COUNT_MAX


def _applied(world: World, generation: Generation) -> int:
    """Offsets that every shard has passed."""
    with world.stack.store.pipeline(transaction=False) as pipeline:
        for shard in range(generation.shards):
            pipeline.hgetall(guard_key(generation, shard))
        shards: list[dict[bytes, bytes]] = pipeline.execute()
    return sum(min(int(shard.get(source, 0)) for shard in shards) for source in set().union(*shards))


def _drop(run: Run, keeper: subprocess.Popen[bytes]) -> None:
    """What was rolled back from is dropped, and nothing is left to do for who kept it."""
    run.found["dropped"] = run.world.verb("replay", "drop", run.world.second.name)["records"]
    run.found["keeper_exit_code"] = keeper.wait(END_S)


@contextmanager
def watched(run: Run) -> Iterator[None]:
    """Notes the longest time (seconds) for which nothing was applied to the generation that was current, while events were sent."""
    ended, longest_s = threading.Event(), 0.0

    def watch() -> None:
        nonlocal longest_s
        seen, changed_s = (b"", 0), time.perf_counter()
        while not ended.wait(WATCH_S):
            pointer = json.loads(run.world.stack.store.get(CURRENT) or b"{}")
            generation = run.world.first if pointer.get("number") == 1 else run.world.second
            now = (generation.name.encode(), _applied(run.world, generation))
            if now != seen:
                longest_s = max(longest_s, time.perf_counter() - changed_s) if seen[1] else 0.0
                seen, changed_s = now, time.perf_counter()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        run.found["stall_seconds_max"] = round(longest_s, 2)


def _of(verdict: Verdict) -> dict[str, Any]:
    return {**{name: value for name, value in asdict(verdict).items() if name != "wrong"}, "entities_wrong": len(verdict.wrong)}
