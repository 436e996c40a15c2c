"""What every peer is told and must tell: whose features, which requests, and what they took.

One process on one core, one request after the other, at its own pace: each request's time is its latency with nobody waiting, and
requests a second are its saturation. Then an open loop at half of that, with Poisson arrivals, whose latency counts from when a
request was due.
"""

import gc
import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Floats = NDArray[np.float32]
#: A peer's whole work: the place of a request to the scores of its candidates, float32 [candidates].
Rank = Callable[[int], Floats]
#: Requests before the clock starts: connections, caches, the session's first runs.
WARM_UP_REQUESTS = 50
#: Scores of the first so many requests are handed back to be checked.
CHECKED_REQUESTS = 20


@dataclass(frozen=True, slots=True)
class Task:
    """action: "fill" or "measure". world: .npz of user_ids, user_values, item_ids, item_values, asked_users, asked_items (places).

    freeze: whether what is there after the warm-up is kept from the garbage collector. folder: for a peer's own files.
    """

    action: str
    variant: str
    world: str
    model: str
    host: str
    port: int
    folder: str
    seconds: float
    freeze: bool
    scores: str

    def data(self) -> "World":
        """Everybody's features, and the requests."""
        with np.load(self.world) as found:
            users, items = ([name.decode() for name in found[f"{kind}_ids"].tolist()] for kind in ("user", "item"))
            return World(users, found["user_values"], items, found["item_values"], found["asked_users"], found["asked_items"])

    def session(self) -> onnxruntime.InferenceSession:
        """One thread, as Millstream's own (ranker/score.py)."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        return onnxruntime.InferenceSession(self.model, options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True, slots=True)
class World:
    """user_values, item_values: float32 [n, features], a row an id. asked_users [n], asked_items [n, candidates]: places of ids."""

    user_ids: list[str]
    user_values: Floats
    item_ids: list[str]
    item_values: Floats
    asked_users: NDArray[np.int64]
    asked_items: NDArray[np.int32]

    def asked(self, request: int) -> tuple[str, list[str]]:
        """A request: its user and its candidates."""
        return self.user_ids[self.asked_users[request]], [self.item_ids[place] for place in self.asked_items[request].tolist()]


def told() -> Task:
    """The task on the command line."""
    return Task(**json.loads(sys.argv[1]))


def score(session: onnxruntime.InferenceSession, matrix: Floats) -> Floats:
    """Scores float32 [n] of a matrix float32 [n, features]."""
    found: Floats = session.run(["scores"], {"features": matrix})[0]
    return found


def measure(task: Task, rank: Rank, requests_count: int) -> None:
    """Both loops; prints the result."""
    checked = [rank(request) for request in range(CHECKED_REQUESTS)]
    np.save(task.scores, np.array(checked))
    for request in range(WARM_UP_REQUESTS):
        rank(request)
    if task.freeze:
        gc.collect()
        gc.freeze()
    latency_s, wall_s, cpu_s = _loop(rank, WARM_UP_REQUESTS, requests_count, np.zeros(requests_count), task.seconds)
    each_s, rate = cpu_s / len(latency_s), len(latency_s) / wall_s
    first = WARM_UP_REQUESTS + len(latency_s)
    due_s = np.cumsum(np.random.default_rng(1).exponential(2 / rate, requests_count))
    open_s, _, _ = _loop(rank, first, requests_count, due_s, task.seconds)
    result = {
        "requests": len(latency_s),
        "client_cpu_ms": round(each_s * 1000, 4),
        "saturation_rps": round(rate, 1),
        "requests_per_core_s": round(1 / each_s, 1),
        **_quantiles(latency_s, "alone"),
        "rate": round(rate / 2, 1),
        "requests_at_rate": len(open_s),
        **_quantiles(open_s, ""),
        "rss_mb_max": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }
    sys.stdout.write(json.dumps(result) + "\n")


def _loop(rank: Rank, first: int, stop: int, due_s: NDArray[np.float64], seconds: float) -> tuple[list[float], float, float]:
    """Latencies of requests from when they were due (or from their own beginning), wall and processor time, all in seconds."""
    latency_s: list[float] = []
    begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
    for request in range(first, stop):
        now_s = time.perf_counter() - begun_s
        due = due_s[request - first] or now_s
        if now_s > seconds:
            break
        time.sleep(max(due - now_s, 0))
        rank(request)
        latency_s.append(time.perf_counter() - begun_s - due)
    return latency_s, time.perf_counter() - begun_s, time.process_time() - begun_cpu_s


def _quantiles(latency_s: list[float], said: str) -> dict[str, Any]:
    """Exact ones: this environment has no histogram."""
    named = {"p50": 50, "p90": 90, "p99": 99, "p999": 99.9}
    prefix = f"latency_ms_{said}_" if said else "latency_ms_"
    return {prefix + name: round(float(np.percentile(latency_s, share)) * 1000, 3) for name, share in named.items()}
