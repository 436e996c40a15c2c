"""`python -m benchmarks.backpressure`: a worker's memory while the store all but stands still for minutes and producers do not.

The store's process is frozen (SIGSTOP) for FROZEN_S and let go (SIGCONT) for OPEN_S, over and over: it answers, but hundreds of times more
slowly than events arrive. Then it is left alone, and everything that was sent must be in it. Exits 1 where the worker's memory grew with
the backlog, where its lag did not rise and fall, or where an event is missing.
"""

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks import feed as feeds
from benchmarks import log, machine, results, wire
from benchmarks.ingest import millstream
from benchmarks.stack import Stack, running
from tests.services import free_port

#: Less than the store client's patience with one answer (5 s), so that the store is slow and not away.
FROZEN_S, OPEN_S = 4.0, 0.02
EVENTS_PER_S = 5_000
#: Before the stall: what the worker's memory and lag are when all is well (seconds).
CALM_S = 30.0
#: Memory may be larger in the last quarter of the stall than in the second by this share, and is called flat.
FLAT_SHARE = 0.1
TICK_S = 0.005
SAMPLE_S = 1.0
LAG = re.compile(r"^millstream_lag_records\{.*\} (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Sample:
    """What the worker shows at a moment (seconds since the start). lag: records, by its own metric."""

    at_s: float
    rss_mb: float
    lag: float


class Soak:
    """One run: a sender on schedule, a store that is frozen and let go, a worker that is watched."""

    def __init__(self, stack: Stack, sender: log.Sender, worker_pid: int, metrics_port: int) -> None:
        """Time begins now."""
        self.metrics_port = metrics_port
        self.stack = stack
        self.sender = sender
        self.worker_pid = worker_pid
        self.samples: list[Sample] = []
        self.begun_s = time.monotonic()

    @property
    def at_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.begun_s

    def go_on(self, seconds: float, *, slow: bool) -> None:
        """Send on schedule for so long. slow: with a store that mostly stands still."""
        until_s = self.at_s + seconds
        with self._store_let_go():
            while self.at_s < until_s:
                if slow:
                    frozen = self.at_s % (FROZEN_S + OPEN_S) < FROZEN_S
                    os.kill(self.stack.store_pid, signal.SIGSTOP if frozen else signal.SIGCONT)
                self.sender.send(max(int(self.at_s * EVENTS_PER_S) - self.sender.sent, 0))
                if not self.samples or self.at_s > self.samples[-1].at_s + SAMPLE_S:
                    self.sample()
                time.sleep(TICK_S)

    @contextlib.contextmanager
    def _store_let_go(self) -> Iterator[None]:
        """However the block ends."""
        try:
            yield
        finally:
            os.kill(self.stack.store_pid, signal.SIGCONT)

    def sample(self) -> Sample:
        """Note what the worker shows now."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=machine.ANSWER_S) as answer:
            lag = sum(map(float, LAG.findall(answer.read().decode())))
        self.samples.append(Sample(round(self.at_s, 1), round(machine.use(self.worker_pid).rss_mb, 1), lag))
        return self.samples[-1]


def once(stack: Stack, cores: set[int], minutes: float, seed: int) -> results.Result:
    """Calm, stall, recovery, and a count of everything."""
    stack.empty()
    feed = feeds.make(int((CALM_S + minutes * 60) * EVENTS_PER_S), seed)
    prefix = log.create(stack.kafka_bootstrap, "soak")
    sender = log.Sender(stack.kafka_bootstrap, prefix, feed, wire.values(feed))
    port = free_port()
    run = millstream.Run(feed, prefix, cores, {"metrics_port": str(port)})
    with millstream.worker(stack, run) as process:
        sender.send(1)
        asyncio.run(millstream.reached(stack, run, 1, [process.pid]))
        soak = Soak(stack, sender, process.pid, port)
        soak.go_on(CALM_S, slow=False)
        calm = len(soak.samples)
        soak.go_on(minutes * 60, slow=True)
        stalled = soak.samples[calm:]
        sender.send(len(feed) - sender.sent)
        sender.finish()
        begun_s = time.monotonic()
        asyncio.run(millstream.reached(stack, run, len(feed), [process.pid]))
        healed_s = time.monotonic() - begun_s
        entities = asyncio.run(millstream.check(stack, run))
        after = soak.sample()
    return {
        **_said(soak.samples[:calm], stalled, after),
        "catch_up_s": round(healed_s, 1),
        "events": len(feed),
        "entities_checked": entities,
    }


def _said(calm: list[Sample], stalled: list[Sample], after: Sample) -> results.Result:
    quarter = max(len(stalled) // 4, 1)
    second, last = (max(sample.rss_mb for sample in part) for part in (stalled[quarter : 2 * quarter], stalled[-quarter:]))
    peak = max(sample.lag for sample in stalled)
    return {
        "rss_mb_calm": calm[-1].rss_mb,
        "rss_mb_second_quarter": second,
        "rss_mb_last_quarter": last,
        "rss_mb_after": after.rss_mb,
        "lag_calm": calm[-1].lag,
        "lag_peak": peak,
        "lag_after": after.lag,
        "is_flat": int(last <= second * (1 + FLAT_SHARE)),
        "lag_rose_and_fell": int(peak > max(calm[-1].lag, after.lag) + EVENTS_PER_S),
        "samples": [[sample.at_s, sample.rss_mb, sample.lag] for sample in stalled[:: max(len(stalled) // 60, 1)]],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and say whether memory stayed flat and nothing was lost."""
    flags = results.parser(__doc__)
    flags.set_defaults(runs=1)
    flags.add_argument("--minutes", type=float, default=10.0, help="of the stall (default: %(default)s)")
    arguments = flags.parse_args(argv)
    worker_cores, server_cores = machine.cores()
    notes = (
        f"The store is frozen for {FROZEN_S:g} s and let go for {OPEN_S * 1000:g} ms, over and over; {EVENTS_PER_S:,} events/s go on.",
        "rss_mb_*: the largest resident memory of the worker in that quarter of the stall; in the first, batches grow to their bound.",
        "Lag is the worker's own metric.",
        "Afterwards all windows of all entities equal a count of everything that was sent.",
    )
    columns = ("rss_mb_calm", "rss_mb_second_quarter", "rss_mb_last_quarter", "lag_calm", "lag_peak", "lag_after", "catch_up_s")
    with running(server_cores) as stack, machine.pinned(server_cores):
        title = f"{arguments.minutes:g} min"
        row = results.repeated(title, arguments.runs, lambda: once(stack, worker_cores, arguments.minutes, arguments.seed), "lag_peak")
    results.publish("backpressure", arguments, {title: row}, notes, columns)
    return int(not (row["is_flat"]["min"] and row["lag_rose_and_fell"]["min"]))


if __name__ == "__main__":
    sys.exit(main())
