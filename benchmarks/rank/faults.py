"""The store goes and comes back under load: what requests get meanwhile, and how soon afterwards it is as before."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import redis
from numpy.typing import NDArray

from benchmarks import machine
from benchmarks.rank.generator import Task, Verdict
from benchmarks.rank.serving import WARM_UP_S, Server, run
from benchmarks.stack import Stack
from compose.stack.local import LocalStack
from ranker.budgets import BUDGETS
from schemas.errors import MillstreamError

#: Load before the store goes, while it is away, and after it is back (seconds).
BEFORE_S, AWAY_S, AFTER_S = 5.0, 5.0, 8.0
SECONDS = BEFORE_S + AWAY_S + AFTER_S
#: How long the store may take to write its data down before it is stopped (seconds).
WRITTEN_S = 120.0
POLL_S = 0.1
#: Answers are compared with those before by stretches of this (seconds): beside a feed some always fall back.
STRETCH_S = 0.5

Floats = NDArray[np.float64]


class Outage:
    """One outage. gone_s, back_s: time.perf_counter() when the store was stopped, and when it answered again."""

    def __init__(self, stack: Stack, cores: set[int]) -> None:
        """Nothing is stopped yet. cores: the store's."""
        self._stack = stack
        self._cores = cores
        self.gone_s = self.back_s = 0.0

    def stopped(self) -> None:
        """The store's process ends as `millstream stack down` ends it, and a new one reads its file: connections are refused meanwhile."""
        time.sleep(BEFORE_S)
        local, pid = self._running()
        self.gone_s = time.perf_counter()
        os.kill(pid, signal.SIGTERM)
        time.sleep(AWAY_S)
        with machine.pinned(self._cores):
            local.up()
        self.back_s = time.perf_counter()

    def frozen(self) -> None:
        """The store's process stands still: connections stay, and nothing is answered."""
        time.sleep(BEFORE_S)
        _, pid = self._running()
        self.gone_s = time.perf_counter()
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(AWAY_S)
        finally:
            os.kill(pid, signal.SIGCONT)
        self.back_s = time.perf_counter()

    def _running(self) -> tuple[LocalStack, int]:
        """The stack on the ports it has, and its store's process."""
        kafka_port, store_port = (int(address.rpartition(":")[2]) for address in (self._stack.kafka_bootstrap, self._stack.store_url))
        local = LocalStack(self._stack.folder, kafka_port, store_port)
        pid = local.status().store.pid
        assert pid is not None, "the store ran a moment ago"
        return local, pid


def keep_on_disk(store: redis.Redis) -> None:
    """Let the store write down what it holds, so that it has it again after a stop. Raises MillstreamError where that takes too long."""
    store.config_set("appendonly", "yes")
    until_s = time.monotonic() + WRITTEN_S
    while _writes(store):
        if time.monotonic() > until_s:
            raise MillstreamError(f"the store has not written its data down after {WRITTEN_S} s. Has its disk room? Try a smaller --scale.")
        time.sleep(POLL_S)


def _writes(store: redis.Redis) -> bool:
    found: dict[str, Any] = store.info("persistence")
    return bool(found["aof_rewrite_in_progress"] or found["aof_rewrite_scheduled"])


def measure(server: Server, task: Task, outage: Outage, doing: Callable[[], None]) -> dict[str, Any]:
    """One run with an outage in it. doing: outage.stopped or outage.frozen."""
    found = run(server, task, doing)
    due_s = found.intended_s + found.begun_s
    answered_s = found.answered_s + found.begun_s
    latency_ms = (answered_s - due_s) * 1000
    fallen = found.verdict == Verdict.DEGRADED
    away = (due_s >= outage.gone_s) & (due_s < outage.back_s)
    after = due_s >= outage.back_s
    return {
        **found.summary(0.0),
        "first_degraded_ms": _first_ms(answered_s[fallen], outage.gone_s),
        "first_full_ms": _first_ms(answered_s[(found.verdict == Verdict.FULL) & after], outage.back_s),
        "as_before_ms": as_before_ms(due_s, fallen, outage.gone_s, outage.back_s),
        "full_again_ms": _last_ms(answered_s[fallen & after], outage.back_s),
        "away_s": round(outage.back_s - outage.gone_s, 2),
        "degraded_while_away": round(float(fallen[away].mean()), 4),
        "past_deadline": int((latency_ms > BUDGETS.total_ms).sum()),
        "latency_ms_while_away_max": round(float(np.nanmax(latency_ms[away])), 3),
    }


def as_before_ms(due_s: Floats, fallen: NDArray[np.bool_], gone_s: float, back_s: float) -> float:
    """From the store's return to the end of the last stretch of which a larger share fell back than of any before it went.

    due_s: float64 [n], ascending; fallen: bool [n]. 0 where no stretch was worse.
    """
    before = _shares(due_s, fallen, float(due_s[0]) + WARM_UP_S, gone_s)
    after = _shares(due_s, fallen, back_s, np.inf)
    return 1000 * STRETCH_S * max(np.flatnonzero(after > before.max(initial=0.0)) + 1, default=0)


def _shares(due_s: Floats, fallen: NDArray[np.bool_], begun_s: float, ended_s: float) -> Floats:
    """What share fell back of each stretch of a time, float64 [stretches]; 0 where nothing was due."""
    inside = (due_s >= begun_s) & (due_s < ended_s)
    stretches = ((due_s[inside] - begun_s) / STRETCH_S).astype(np.int64)
    return np.bincount(stretches, fallen[inside]) / np.maximum(np.bincount(stretches), 1)


def _first_ms(moments_s: Floats, since_s: float) -> float | None:
    """From a moment to the first of others after it; None where there is none."""
    later = moments_s[moments_s >= since_s]
    return round((float(later.min()) - since_s) * 1000, 1) if len(later) else None


def _last_ms(moments_s: Floats, since_s: float) -> float:
    """From a moment to the last of others; 0 where there is none."""
    return round(max(float(moments_s.max(initial=since_s)) - since_s, 0) * 1000, 1)
