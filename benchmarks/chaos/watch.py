"""Looks at guards and log ends from outside: which partition stands still, which guard went back, when all have caught up."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import redis
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from numpy.typing import NDArray

from benchmarks.chaos.feed import PARTITIONS
from compose.topics import NEWEST
from online_store.keys import guard_key
from tests.workers import GENERATION, SOURCE_NAMES

#: How often guards are looked at (seconds).
LOOK_S = 0.25
SOURCES = [f"{name}/{partition}" for name in SOURCE_NAMES for partition in range(PARTITIONS)]


class Watch:
    """Samples until the block ends.

    stall_seconds_max: the longest that a partition with records to apply showed no progress, and which. backwards: guards that were
    seen behind where they stood, other than while `losing`.
    """

    def __init__(self, kafka_bootstrap: str, prefix: str, store: Callable[[], Any]) -> None:
        """store: a client of where the store is now."""
        self.stall_seconds_max, self.stalled, self.backwards = 0.0, "", 0
        self.applied = 0
        self._bootstrap = kafka_bootstrap
        self._places = {
            TopicPartition(prefix + name, partition): f"{name}/{partition}" for name in SOURCE_NAMES for partition in range(PARTITIONS)
        }
        self._store = store
        self._ends = np.zeros(len(SOURCES), dtype=np.int64)
        self._guards: NDArray[np.int64] | None = None
        self._progress_s = np.full(len(SOURCES), time.monotonic())
        self._losses = self._losses_before = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch")

    def __enter__(self) -> Self:
        """Begin to look."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop looking."""
        self._stop.set()
        self._thread.join()

    def begin(self) -> None:
        """Everything works: count stalls from here, not from when the workers were started."""
        self._progress_s[:] = time.monotonic()
        self.stall_seconds_max = 0.0

    @contextmanager
    def losing(self) -> Iterator[None]:
        """While the store loses writes, guards may go back."""
        self._losses += 1
        try:
            yield
        finally:
            self._losses += 1

    def ends(self) -> NDArray[np.int64]:
        """Where each source ends now. Raises KafkaException while the broker is away."""
        # A client of its own each time: one that outlives a broker asks the next with an old leader epoch, and is refused for ever.
        admin = AdminClient({"bootstrap.servers": self._bootstrap, "log_level": 0})
        found = admin.list_offsets(dict.fromkeys(self._places, NEWEST), request_timeout=2.0)
        by_name = {self._places[place]: answer.result(3.0).offset for place, answer in found.items()}
        return np.array([by_name[source] for source in SOURCES], dtype=np.int64)

    def guards(self) -> NDArray[np.int64]:
        """The guards, int64 [sources, shards]. Raises RedisError while the store is away."""
        with self._store().pipeline(transaction=False) as pipeline:
            for shard in range(GENERATION.shards):
                pipeline.hmget(guard_key(GENERATION, shard), SOURCES)
            return np.array([[int(guard or 0) for guard in answer] for answer in pipeline.execute()], dtype=np.int64).T

    def await_ends(self, timeout_s: float, tend: Callable[[], None]) -> float:
        """Return once every guard stands where the log ends now, with the seconds it took; infinity if it never did."""
        begun_s = time.monotonic()
        wanted: NDArray[np.int64] | None = None
        while time.monotonic() - begun_s < timeout_s:
            tend()
            try:
                wanted = self.ends() if wanted is None else wanted
                if (self.guards() >= wanted[:, None]).all():
                    return time.monotonic() - begun_s
            except (KafkaException, redis.RedisError):
                pass
            time.sleep(0.05)
        return float("inf")

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S):
            losses = self._losses
            try:
                self._ends = self.ends()
                found = self.guards()
            except (KafkaException, redis.RedisError):
                self._see_stalls()
                continue
            self._see(found, losses)
            self._see_stalls()

    def _see(self, found: NDArray[np.int64], losses: int) -> None:
        """Note progress. A sample that a loss overlaps says nothing of guards that went back."""
        now_s, before = time.monotonic(), self._guards
        moved = np.ones(len(SOURCES), dtype=bool) if before is None else found.sum(axis=1) > before.sum(axis=1)
        idle = (found >= self._ends[:, None]).all(axis=1)
        self._progress_s[moved | idle] = now_s
        if before is not None and losses == self._losses and losses % 2 == 0 and losses == self._losses_before:
            self.backwards += int((found < before).sum())
        self._guards, self._losses_before = found, losses
        self.applied = int(found.min(axis=1).sum())

    def _see_stalls(self) -> None:
        stalls_s = time.monotonic() - self._progress_s
        longest = int(stalls_s.argmax())
        if stalls_s[longest] > self.stall_seconds_max:
            self.stall_seconds_max, self.stalled = float(stalls_s[longest]), SOURCES[longest]
