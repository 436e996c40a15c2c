"""The processes of the demo: the local stack, an ingest worker, a ranking worker; and how they are watched and stopped."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from prometheus_client.parser import text_string_to_metric_families

from compose import topics
from compose.stack.local import LocalStack, StackAddresses
from schemas.errors import StackError

#: How long a worker may take to answer on /metrics, or to stop (seconds).
WORKER_S = 30.0
PARTITIONS = 4


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker process and the port of its /metrics."""

    name: str
    process: subprocess.Popen[bytes]
    metrics_port: int
    log: Path

    def metrics(self) -> dict[str, list[tuple[dict[str, str], float]]]:
        """What it tells Prometheus now: sample name -> labels and values; nothing while it starts."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as answer:
                text = answer.read().decode()
        except (urllib.error.URLError, OSError):
            return {}
        found: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
        return found

    def check(self) -> None:
        """Raises StackError if the worker has ended."""
        code = self.process.poll()
        if code is not None:
            lines = self.log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            told = [line for line in lines if line.startswith("millstream:") or "cannot go on" in line] or lines
            message = f"{self.name} ended with exit code {code}: {told[-1]} All of it is in {self.log}."
            raise StackError(message)


def total(samples: list[tuple[dict[str, str], float]] | None) -> float:
    """The sum of a metric over its labels."""
    return sum(value for _, value in samples or ())


def quantile_ms(buckets: list[tuple[dict[str, str], float]] | None, share: float) -> float | None:
    """A quantile of a histogram in seconds, as milliseconds: the upper edge of the bucket that holds it; None without observations."""
    edges = sorted((float(labels["le"]), count) for labels, count in buckets or ())
    if not edges or not edges[-1][1]:
        return None
    return next(edge for edge, count in edges if count >= share * edges[-1][1]) * 1000


class Parts:
    """Everything that the demo starts; leaving the context stops all of it, Ctrl-C included."""

    def __init__(self, folder: Path, features: str) -> None:
        """folder: of the demo's data and logs, emptied. features: the registry, module:NAME."""
        self.folder = folder
        self.features = features
        self.models = folder / "models"
        self._stack = LocalStack(folder / "stack", 0, 0)
        self._exit = ExitStack()
        self.addresses: StackAddresses

    def __enter__(self) -> Self:
        """Start the stack and create the topics."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._stack.down(remove_data=True)
        self._exit.callback(self._stack.down, remove_data=True)
        try:
            self.addresses = self._stack.up()
            topics.create(self.addresses.kafka_bootstrap, partitions=PARTITIONS, retention_ms=-1)
        except BaseException:
            self._exit.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop workers first, then the stack; a second Ctrl-C must not cut this short."""
        with _uninterrupted():
            self._exit.close()

    def start(self, verb: str) -> Worker:
        """Start a worker with `millstream <verb>`; returns once its /metrics answers."""
        port, log = free_port(), self.folder / f"{verb}.log"
        out: IO[bytes] = self._exit.enter_context(log.open("wb"))
        process = subprocess.Popen(  # noqa: S603  # our own command
            [sys.executable, "-m", "compose.processes", verb],
            env=os.environ | self._environment(port),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._exit.callback(stop, process)
        worker = Worker(verb, process, port, log)
        deadline = time.monotonic() + WORKER_S
        while not worker.metrics():
            worker.check()
            if time.monotonic() > deadline:
                raise StackError(f"{verb} does not answer on port {port} after {WORKER_S} s. Its log is {log}.")
            time.sleep(0.05)
        return worker

    def _environment(self, metrics_port: int) -> dict[str, str]:
        return {
            "MILLSTREAM_KAFKA_BOOTSTRAP": self.addresses.kafka_bootstrap,
            "MILLSTREAM_KAFKA_SECURITY_PROTOCOL": "PLAINTEXT",
            "MILLSTREAM_STORE_URL": self.addresses.store_url,
            "MILLSTREAM_FEATURES": self.features,
            "MILLSTREAM_MODELS_URI": str(self.models),
            "MILLSTREAM_METRICS_PORT": str(metrics_port),
            "MILLSTREAM_TOPIC_PREFIX": "",
            "MILLSTREAM_GROUP_ID": "demo",
            "OMP_NUM_THREADS": "1",
        }


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a worker to stop, and make it."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(WORKER_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _uninterrupted() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
