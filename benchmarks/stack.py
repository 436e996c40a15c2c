"""Kafka and the store for a benchmark: the local stack's own servers, on cores that the worker under test does not have."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from benchmarks.machine import pinned
from compose.stack.local import LocalStack


@dataclass(frozen=True, slots=True)
class Stack:
    """kafka_bootstrap, store_url: where they answer. folder: logs of what runs. kafka_pid, store_pid: their processes."""

    kafka_bootstrap: str
    store_url: str
    folder: Path
    kafka_pid: int
    store_pid: int
    store: redis.Redis

    def empty(self, *, append_only: bool = False) -> None:
        """Forget everything in the store. append_only: log every write to disk as the local stack does by itself."""
        self.store.config_set("appendonly", "no")
        self.store.flushall()
        self.store.config_resetstat()
        self.store.config_set("appendonly", "yes" if append_only else "no")

    def store_cpu_s(self) -> float:
        """Processor time that the store's process has used so far."""
        found: dict[str, Any] = self.store.info("cpu")
        return float(found["used_cpu_user"] + found["used_cpu_sys"])

    def store_calls(self) -> dict[str, int]:
        """Calls of each command since the store was emptied, those that scripts made among them."""
        found: dict[str, Any] = self.store.info("commandstats")
        return {name.removeprefix("cmdstat_"): int(said["calls"]) for name, said in found.items()}


@contextmanager
def running(to: set[int]) -> Iterator[Stack]:
    """Servers on free ports of these cores, stopped again whatever happens."""
    with tempfile.TemporaryDirectory(prefix="millstream-bench-") as folder:
        local = LocalStack(Path(folder), kafka_port=0, store_port=0)
        try:
            with pinned(to):
                addresses = local.up()
            status = local.status()
            assert status.kafka.pid is not None, "Kafka answered a moment ago"
            assert status.store.pid is not None, "the store answered a moment ago"
            with redis.Redis.from_url(addresses.store_url) as store:
                yield Stack(addresses.kafka_bootstrap, addresses.store_url, Path(folder), status.kafka.pid, status.store.pid, store)
        finally:
            local.down()
