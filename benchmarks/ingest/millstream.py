"""Millstream under test: real `millstream ingest` processes on a log that is already there, from the first applied batch to the last.

Progress is what the store's guards say. What happens before the first batch is applied (imports, compiled functions' loading, joining
the group) is the warm-up: it is reported, not counted.
"""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks import log, machine
from benchmarks.feed import Feed
from benchmarks.ingest.verify import wrong
from benchmarks.stack import Stack
from compose.settings import load
from online_store.keys import Generation
from online_store.redis import RedisStore
from online_store.store import OnlineStore
from schemas.errors import MillstreamError
from schemas.features import Registry
from schemas.topics import Source

#: How often the guards are looked at (seconds): what an end may be late by, while each look costs the store's core a millisecond.
LOOK_S = 0.05
#: How long a run may take (seconds) before it is given up.
RUN_S = 300.0
#: How long the last parts of the last batches, and guards of shards without rows, may take to follow (seconds).
SETTLED_S = 30.0


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a run: when (seconds), how many events are applied, what the store and all workers have used (of peaks the largest)."""

    at_s: float
    events: int
    worker: machine.Use
    store_cpu_s: float


@dataclass(frozen=True, slots=True)
class Run:
    """What to measure: a feed under a topic prefix.

    settings: MILLSTREAM_* variables by their names in lower case. cores: where the workers run. append_only: the store logs to disk.
    """

    feed: Feed
    prefix: str
    cores: set[int]
    settings: Mapping[str, str]
    append_only: bool = False

    @property
    def registry(self) -> Registry:
        """The registry that the workers are told."""
        return load(dict(self.settings)).features


def measure(stack: Stack, run: Run) -> dict[str, Any]:
    """One worker through the whole feed into an empty store. Raises MillstreamError where the store's counts are not the feed's."""
    stack.empty(append_only=run.append_only)
    with worker(stack, run) as process:
        begun_s = time.monotonic()
        first, last = asyncio.run(_follow(stack, run, [process.pid]))
        calls = stack.store_calls()
        entities = asyncio.run(check(stack, run))
    events = len(run.feed)
    return {
        **rates(first, last),
        "start_s": round(first.at_s - begun_s, 2),
        # A record that is touched is written once a batch: made, or its changed part overwritten.
        "touched_entities_per_event": round((calls.get("set", 0) + calls.get("setrange", 0)) / events, 3),
        "store_calls_per_event": {name: round(count / events, 3) for name, count in sorted(calls.items()) if count > events / 1_000},
        "checked": {"entities": entities, "wrong": 0},
    }


def rates(first: Look, last: Look) -> dict[str, Any]:
    """What happened between two looks, by the second and by the event."""
    events, wall_s = last.events - first.events, last.at_s - first.at_s
    cpu_s = last.worker.cpu_s - first.worker.cpu_s
    return {
        "events": events,
        "wall_s": round(wall_s, 3),
        "events_per_s": round(events / wall_s),
        "events_per_cpu_s": round(events / cpu_s),
        "worker_us_per_event": round(cpu_s / events * 1e6, 3),
        "store_us_per_event": round((last.store_cpu_s - first.store_cpu_s) / events * 1e6, 3),
        "rss_mb_max": round(last.worker.rss_mb_max, 1),
    }


@contextmanager
def worker(stack: Stack, run: Run, number: int = 0) -> Iterator[subprocess.Popen[bytes]]:
    """A `millstream ingest` process; its log is a file in the stack's folder."""
    settings = {
        "kafka_bootstrap": stack.kafka_bootstrap,
        "store_url": stack.store_url,
        "topic_prefix": run.prefix,
        "group_id": run.prefix,
        **run.settings,
    }
    environment = {**os.environ, **{f"MILLSTREAM_{name.upper()}": value for name, value in settings.items()}}
    command = [sys.executable, "-m", "compose.processes", "ingest"]
    with ExitStack() as closing:
        output = closing.enter_context((stack.folder / f"{run.prefix}{number}.log").open("wb"))
        with machine.pinned(run.cores):
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)  # noqa: S603  # our own command
        try:
            yield process
        finally:
            process.kill()
            process.wait()


async def _follow(stack: Stack, run: Run, pids: list[int]) -> tuple[Look, Look]:
    """The looks at the first applied batch and at the last."""
    return await reached(stack, run, 1, pids), await reached(stack, run, len(run.feed), pids)


async def reached(stack: Stack, run: Run, wanted: int, pids: list[int]) -> Look:
    """The look once so many events are applied. Raises MillstreamError when that takes too long, with what the workers said."""
    store = RedisStore(stack.store_url, run.registry)
    generation, sources = Generation(1, run.registry.fingerprint), list(log.ends(run.feed))
    deadline_s = time.monotonic() + RUN_S
    while (events := await applied(store, generation, sources)) < wanted:
        if time.monotonic() > deadline_s:
            raise MillstreamError(f"{events} of {wanted} events are applied after {RUN_S} s:\n{_said(stack, run)}")
        await asyncio.sleep(LOOK_S)
    seen = look(stack, events, pids)
    await store.close()
    return seen


def _said(stack: Stack, run: Run) -> str:
    return "\n".join(path.read_text(errors="replace")[-2_000:] for path in sorted(stack.folder.glob(f"{run.prefix}*.log")))


async def applied(store: OnlineStore, generation: Generation, sources: list[Source]) -> int:
    """Events that stand in the store: of each source, up to its furthest guard. Guards of shards without rows follow behind it."""
    guards = await store.guards(generation, sources)
    return int(guards.max(axis=1).sum())


def look(stack: Stack, events: int, pids: list[int]) -> Look:
    """What stands and what was used, now."""
    uses = [machine.use(pid) for pid in pids]
    total = machine.Use(sum(use.cpu_s for use in uses), sum(use.rss_mb for use in uses), max(use.rss_mb_max for use in uses))
    return Look(time.monotonic(), events, total, stack.store_cpu_s())


async def _settled(store: OnlineStore, run: Run) -> None:
    """Return once every shard has everything: a batch goes to the store in parts, and the furthest guard tells of the first one."""
    generation, ends = Generation(1, run.registry.fingerprint), log.ends(run.feed)
    deadline_s = time.monotonic() + SETTLED_S
    while (await store.guards(generation, list(ends))).min(axis=1).tolist() != list(ends.values()):
        if time.monotonic() > deadline_s:
            raise MillstreamError(f"some shards lack something {SETTLED_S} s after the last event was applied to another.")
        await asyncio.sleep(LOOK_S)


async def check(stack: Stack, run: Run) -> int:
    """How many entities the store and the feed agree on. Raises MillstreamError where there is one on which they do not."""
    store = RedisStore(stack.store_url, run.registry, timeout_s=60)
    await _settled(store, run)
    compared, faults = await wrong(store, run.registry, Generation(1, run.registry.fingerprint), run.feed)
    await store.close()
    if faults:
        raise MillstreamError(
            f"{faults} of {compared} entities are not what the feed says: a wrong run has no speed. Its log:\n{_said(stack, run)}"
        )
    return compared
