"""One feed with its past in Kafka, an empty store, models of both registries, and the `millstream` processes that work on them."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from confluent_kafka import Producer

from benchmarks import log, wire
from benchmarks.rank.world import process
from benchmarks.stack import Stack
from benchmarks.switch import asking, feed
from benchmarks.switch.registries import CHANGES
from compose.replay.cutover import lag_behind, lags
from compose.settings import Settings, load
from online_store.keys import Generation
from online_store.redis import RedisStore
from online_store.store import OnlineStore
from schemas import codec
from schemas.errors import MillstreamError
from schemas.features import REGISTRY, Registry
from schemas.topics import CONTENT
from schemas.windows import DAY_MS
from tests.services import free_port

#: How far back the past goes.
DAYS = 14
#: Items that the past describes; live profiles are of any.
CONTENT_COUNT = 5_000
#: Longer than anything that is waited for takes (seconds).
PATIENCE_S = 600.0
LOOK_S = 0.05

T = TypeVar("T")


class World:
    """Topics of their own, an emptied store. first, second: the generations before and after the change."""

    def __init__(self, stack: Stack, change: str, *, users: int, items: int, seed: int) -> None:
        """Nothing runs yet."""
        stack.empty()
        self.stack, self.change, self.users, self.items, self.seed = stack, change, users, items, seed
        self.prefix = log.create(stack.kafka_bootstrap, "switch")
        self.registries: dict[Generation, Registry] = {
            Generation(1, REGISTRY.fingerprint): REGISTRY,
            Generation(2, CHANGES[change].fingerprint): CHANGES[change],
        }
        self.first, self.second = self.registries
        self.http_port = free_port()
        self.settings = {
            "kafka_bootstrap": stack.kafka_bootstrap,
            "store_url": stack.store_url,
            "topic_prefix": self.prefix,
            "group_id": self.prefix,
            "state_dir": str(stack.folder / self.prefix),
            "models_uri": str(stack.folder / self.prefix / "models"),
        }

    def fill(self, events_count: int) -> None:
        """Two weeks that end now, and a model of each registry trained on them."""
        now_ms = time.time_ns() // 1_000_000
        past = feed.events(events_count, self.users, self.seed, now_ms - DAYS * DAY_MS, now_ms)
        log.produce(self.stack.kafka_bootstrap, self.prefix, past, wire.values(past))
        producer = Producer({"bootstrap.servers": self.stack.kafka_bootstrap, "log_level": 0})
        for number in range(min(CONTENT_COUNT, self.items)):
            record = feed.content(number, now_ms - DAYS * DAY_MS + number)
            producer.produce(self.prefix + CONTENT.name, codec.encode(record), record.item_id, timestamp=record.ts_ms)
        producer.flush(log.FLUSH_S)
        for features in ("schemas.features:REGISTRY", self.changed):
            self.verb("train", "--features", features)

    @property
    def changed(self) -> str:
        """The name of the registry after the change."""
        return f"benchmarks.switch.registries:{self.change}"

    @property
    def environment(self) -> dict[str, str]:
        """What every process of this world is told."""
        return {**os.environ, **{f"MILLSTREAM_{name.upper()}": value for name, value in self.settings.items()}}

    def verb(self, *words: str) -> dict[str, Any]:
        """What a verb says in the end, and its exit code, 1 where it finds a fault. Raises MillstreamError where it is another one."""
        done = subprocess.run(self._command(*words), env=self.environment, capture_output=True, text=True, check=False)  # noqa: S603  # our own command
        if done.returncode not in {0, 1} or not done.stdout:
            raise MillstreamError(f"millstream {' '.join(words)} ended with {done.returncode}: {done.stdout} {done.stderr[-2_000:]}")
        return {**json.loads(done.stdout.splitlines()[-1]), "exit_code": done.returncode}

    def _command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "compose.processes", *words, "--json"]

    def running(self, name: str, *words: str, **settings: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """`millstream WORDS` until the block ends; its log is the one of this name."""
        more = {f"MILLSTREAM_{setting.upper()}": value for setting, value in settings.items()}
        return process(self.stack, self.log_name(name), self._command(*words), self.environment | more, os.sched_getaffinity(0))

    def fed(self, rate: int) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """The live feed until the block ends."""
        task = feed.Task(self.stack.kafka_bootstrap, self.prefix, rate, self.users, self.items, self.seed)
        return self._module("feed", "benchmarks.switch.feed", task)

    def asked(self, rate: int) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """Rank requests until the block ends; what became of them is in `outcome_file` then."""
        address, out = f"127.0.0.1:{self.http_port}", str(self.outcome_file)
        task = asking.Task(self.stack.kafka_bootstrap, address, self.prefix, rate, self.users, self.items, self.seed, out)
        return self._module("asking", "benchmarks.switch.asking", task)

    def is_asked(self) -> bool:
        """Whether requests go out: both front ends have answered."""
        return Path(f"{self.outcome_file}.begun").exists()

    def _module(self, name: str, module: str, task: msgspec.Struct) -> AbstractContextManager[subprocess.Popen[bytes]]:
        command = [sys.executable, "-m", module, msgspec.json.encode(task).decode()]
        return process(self.stack, self.log_name(name), command, dict(os.environ), os.sched_getaffinity(0))

    @property
    def outcome_file(self) -> Path:
        """Of the requests."""
        return self.stack.folder / f"{self.prefix}requests.npz"

    def log_name(self, name: str) -> str:
        """Of a process of this world."""
        return f"{self.prefix}{name}"

    def said(self, name: str) -> str:
        """What the process of this name has said."""
        return (self.stack.folder / f"{self.log_name(name)}.log").read_text(errors="replace")

    def wait(self, true: Callable[[], bool], what: str, *of: subprocess.Popen[bytes], look_s: float = LOOK_S) -> float:
        """Return time.perf_counter() once something is true. Raises MillstreamError where a process ends before, or patience does."""
        until_s = time.perf_counter() + PATIENCE_S
        while not true():
            if time.perf_counter() > until_s or any(one.poll() is not None for one in of):
                logs = sorted(self.stack.folder.glob(f"{self.prefix}*.log"))
                said = "\n".join(f"{path.name}: {path.read_text(errors='replace')[-2_000:]}" for path in logs)
                raise MillstreamError(f"{what}: not after {PATIENCE_S} s, or a process ended before.\n{said}")
            time.sleep(look_s)
        return time.perf_counter()

    def lag(self, generation: Generation) -> int:
        """How many records a generation lacks of those that were in Kafka a moment ago."""
        return asyncio.run(self._looked(lambda settings, store: lags(settings, store, [generation])))[generation]

    def lag_behind(self, current: Generation, generation: Generation) -> int:
        """How many records a generation lacks of those that the current one had a moment ago."""
        return asyncio.run(self._looked(lambda settings, store: lag_behind(settings, store, current, generation)))

    async def _looked(self, look: Callable[[Settings, OnlineStore], Awaitable[T]]) -> T:
        store = RedisStore(self.stack.store_url, REGISTRY)
        found = await look(load(self.settings), store)
        await store.close()
        return found
