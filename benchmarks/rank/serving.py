"""`millstream serve` under load: one process on one core, a generator in another, and what both, and the store, used meanwhile."""

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks import machine
from benchmarks.rank.generator import Task, Verdict, begun_file
from benchmarks.rank.latency import quantiles
from benchmarks.rank.world import TREES, World, process
from benchmarks.stack import Stack
from schemas.errors import MillstreamError

#: Requests of the first so many seconds are not counted: connections open and caches fill then.
WARM_UP_S = 1.0
#: How often processor times are read (seconds).
SAMPLE_S = 0.05
#: Under way at once in the closed loops that look for saturation: too few leave the ranker idle (by Kafka, whose way takes 40 ms and more,
#: 64 do), too many make requests late.
IN_FLIGHT = (8, 16, 32, 64, 128)
#: A front end is saturated where more than this share of its answers fell back.
DEGRADED_SHARE_MAX = 0.01
#: Requests that are made ready for each second of a closed loop: more than any front end answers.
CLOSED_PER_S = 5_000
HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Server:
    """A `millstream serve` process. addresses: by front end."""

    world: World
    pid: int
    addresses: dict[str, str]
    generator_cores: set[int]


def cpu_s(pid: int, gone_s: float = 0.0) -> float:
    """Processor time (seconds) that a process has used, ended ones that nobody waited for included; gone_s where there is none."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return gone_s
    return (int(words[11]) + int(words[12])) / machine.TICKS_PER_S


@dataclass(slots=True)
class Samples:
    """Processor time (seconds) of ranker, store and generator at moments of time.perf_counter()."""

    at_s: list[float] = field(default_factory=list)
    cpu_s: list[tuple[float, float, float]] = field(default_factory=list)

    def take(self, ranker_pid: int, store_pid: int, generator_pid: int) -> None:
        """One more; a process that is gone stays where it was."""
        last = self.cpu_s[-1] if self.cpu_s else (0.0, 0.0, 0.0)
        self.at_s.append(time.perf_counter())
        ranker_s, store_s, generator_s = map(cpu_s, (ranker_pid, store_pid, generator_pid), last)
        self.cpu_s.append((ranker_s, store_s, generator_s))

    def between(self, start_s: float, stop_s: float) -> list[float]:
        """What each used from one moment to another, by interpolation."""
        return [float(np.diff(np.interp([start_s, stop_s], self.at_s, used))[0]) for used in zip(*self.cpu_s, strict=True)]


@dataclass(frozen=True, slots=True)
class Run:
    """One generator's run. begun_s: time.perf_counter(); intended_s and answered_s from there, float64 [n]; verdict: int8 [n]."""

    task: Task
    begun_s: float
    intended_s: NDArray[np.float64]
    answered_s: NDArray[np.float64]
    verdict: NDArray[np.int8]
    samples: Samples

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Requests after the warm-up."""
        return np.asarray(self.intended_s >= WARM_UP_S)

    def summary(self, store_idle_share: float) -> dict[str, Any]:
        """The figures of a row. store_idle_share: of a core, what the store uses for ingest alone."""
        counted, seconds = self.counted, self.task.seconds - WARM_UP_S
        verdict, latency_s = self.verdict[counted], (self.answered_s - self.intended_s)[counted]
        answered = int((verdict != Verdict.ERROR).sum())
        window = (self.begun_s + WARM_UP_S, self.begun_s + self.task.seconds)
        ranker_s, store_s, generator_s = self.samples.between(*window)
        each_ms = 1000 / max(answered, 1)
        return {
            "front_end": self.task.front_end,
            "candidates": self.task.candidates,
            "rate": round(self.task.rate or answered / seconds, 1),
            "requests": len(verdict),
            **quantiles(latency_s[~np.isnan(latency_s)]),
            "ranker_cpu_ms": round(ranker_s * each_ms, 4),
            "store_cpu_ms": round(max(store_s - store_idle_share * seconds, 0) * each_ms, 4),
            "degraded": round(float((verdict == Verdict.DEGRADED).sum()) / max(len(verdict), 1), 5),
            "errors": int((verdict == Verdict.ERROR).sum()),
            "full_per_s": round(float((verdict == Verdict.FULL).sum()) / seconds, 1),
            "ranker_core_share": round(ranker_s / seconds, 3),
            "generator_core_share": round(generator_s / seconds, 3),
        }


@contextmanager
def serving(world: World, cores: tuple[set[int], set[int]], trees: int = TREES) -> Iterator[Server]:
    """A ranker on the first of the cores; generators go to the others."""
    ports = {"http": _free_port(), "grpc": _free_port()}
    environment = world.settings(trees, http_port=str(ports["http"]), grpc_port=str(ports["grpc"]))
    addresses = {"kafka": world.stack.kafka_bootstrap, **{name: f"{HOST}:{port}" for name, port in ports.items()}}
    command = [sys.executable, "-m", "compose.processes", "serve"]
    with process(world.stack, "serve", command, environment, cores[0]) as ranker:
        yield Server(world, ranker.pid, addresses, cores[1])


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])


def run(server: Server, task: Task, during: Callable[[], None] | None = None) -> Run:
    """One run of a generator, to its end. during: done beside it in a thread, from when it begins to send.

    Raises MillstreamError where it fails, with what it and the ranker said.
    """
    command = [sys.executable, "-m", "benchmarks.rank.generator", msgspec.json.encode(task).decode()]
    samples = Samples()
    own = process(server.world.stack, "generator", command, dict(os.environ), server.generator_cores)
    with own as generator, ThreadPoolExecutor(1) as beside:
        while not begun_file(task).exists() and generator.poll() is None:
            time.sleep(SAMPLE_S)
        doing = beside.submit(during or _nothing)
        while generator.poll() is None:
            samples.take(server.pid, server.world.stack.store_pid, generator.pid)
            time.sleep(SAMPLE_S)
        doing.result()
    if generator.returncode:
        raise MillstreamError(f"a generator for {task.front_end} ended with {generator.returncode}:\n{said(server.world.stack)}")
    with np.load(task.out) as found:
        return Run(task, float(found["begun_s"]), found["intended_s"], found["answered_s"], found["verdict"], samples)


def _nothing() -> None:
    """What is done beside most runs."""


def said(stack: Stack) -> str:
    """The last words of generator and ranker."""
    logs = (stack.folder / "generator.log", stack.folder / "serve.log")
    return "\n".join(path.read_text(errors="replace")[-2_000:] for path in logs if path.exists())


def saturation(server: Server, tasks: Iterator[Task], store_idle_share: float) -> dict[str, Any]:
    """The best of closed loops with ever more under way: the summary of that which had most full answers a second, and few others.

    tasks: a new one each time, of which in_flight is set here.
    """
    found = []
    for in_flight, task in zip(IN_FLIGHT, tasks, strict=False):
        count = int(task.seconds * CLOSED_PER_S)
        closed = msgspec.structs.replace(task, rate=0, in_flight=in_flight, requests_count_max=count)
        found.append({**run(server, closed).summary(store_idle_share), "in_flight": in_flight})
    return max(found, key=lambda one: (one["degraded"] <= DEGRADED_SHARE_MAX, one["full_per_s"]))
