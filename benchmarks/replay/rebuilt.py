"""Real `millstream replay rebuild` commands into an emptied store, from the first applied batch to the last.

Progress is what all guards of a source say: a call goes to the store in parts, and the furthest guard tells of the first one. Imports,
loading of compiled functions and joining the group are the warm-up, as in benchmarks/ingest.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import log, machine
from benchmarks.feed import Feed
from benchmarks.ingest.millstream import LOOK_S, RUN_S, Look, look, rates
from benchmarks.ingest.verify import wrong
from benchmarks.stack import Stack
from online_store.keys import Generation
from online_store.redis import RedisStore
from schemas.errors import MillstreamError
from schemas.features import REGISTRY

#: What a rebuild into a store that knows no generation makes.
TARGET = Generation(2, REGISTRY.fingerprint)


@dataclass(frozen=True, slots=True)
class Run:
    """What to measure. source: lake or kafka. prefix: of the topics in Kafka. cores: where the rebuild runs."""

    feed: Feed
    source: str
    prefix: str
    lake_uri: str
    cores: set[int]


def measure(stack: Stack, run: Run) -> dict[str, Any]:
    """One rebuild. Raises MillstreamError where the generation is not what the feed says."""
    stack.empty()
    with rebuild(stack, run) as process:
        begun_s = time.monotonic()
        first, last = asyncio.run(_followed(stack, run, process))
        code = process.wait(RUN_S)
        seconds = time.monotonic() - begun_s
    calls, said = stack.store_calls(), _log(stack, run).read_text(errors="replace").splitlines()
    if code:
        raise MillstreamError(f"the rebuild ended with {code}: {said[-20:]}")
    entities = asyncio.run(_checked(stack, run))
    return {
        **rates(first, last),
        "seconds": round(seconds, 2),
        "start_s": round(first.at_s - begun_s, 2),
        "touched_entities_per_event": round((calls.get("set", 0) + calls.get("setrange", 0)) / len(run.feed), 3),
        "told": json.loads(said[-1]),
        "checked": {"entities": entities, "wrong": 0},
    }


@contextmanager
def rebuild(stack: Stack, run: Run) -> Iterator[subprocess.Popen[bytes]]:
    """`millstream replay rebuild`, which ends once it has everything."""
    settings = {
        "kafka_bootstrap": stack.kafka_bootstrap,
        "store_url": stack.store_url,
        "topic_prefix": run.prefix,
        "group_id": run.prefix or "bench",
        "lake_uri": run.lake_uri,
    }
    environment = {**os.environ, **{f"MILLSTREAM_{name.upper()}": value for name, value in settings.items()}}
    command = [sys.executable, "-m", "compose.processes", "replay", "rebuild", "--json", "--source", run.source, "--until-caught-up"]
    with ExitStack() as closing:
        output = closing.enter_context(_log(stack, run).open("wb"))
        with machine.pinned(run.cores):
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)  # noqa: S603  # our own command
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def _log(stack: Stack, run: Run) -> Path:
    return stack.folder / f"rebuild-{run.source}.log"


async def _followed(stack: Stack, run: Run, process: subprocess.Popen[bytes]) -> tuple[Look, Look]:
    """The looks at the first applied batch and at the last."""
    return await _reached(stack, run, 1, process), await _reached(stack, run, len(run.feed), process)


async def _reached(stack: Stack, run: Run, wanted: int, process: subprocess.Popen[bytes]) -> Look:
    store, sources = RedisStore(stack.store_url, REGISTRY), list(log.ends(run.feed))
    deadline_s = time.monotonic() + RUN_S
    while (events := int((await store.guards(TARGET, sources)).min(axis=1).sum())) < wanted:
        if time.monotonic() > deadline_s or process.poll() is not None:
            raise MillstreamError(f"{events} of {wanted} events are applied:\n{_log(stack, run).read_text(errors='replace')[-4_000:]}")
        await asyncio.sleep(LOOK_S)
    seen = look(stack, events, [process.pid])
    await store.close()
    return seen


async def _checked(stack: Stack, run: Run) -> int:
    """How many entities the generation and the feed agree on. Raises MillstreamError where there is one on which they do not."""
    store = RedisStore(stack.store_url, REGISTRY, timeout_s=60)
    compared, faults = await wrong(store, REGISTRY, TARGET, run.feed)
    await store.close()
    if faults:
        raise MillstreamError(f"{faults} of {compared} entities are not what the feed says: a wrong rebuild has no speed.")
    return compared
