"""`python -m benchmarks.replay`: how fast two weeks of history become a new generation, are compared with one, and become rows."""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks import log, machine, results
from benchmarks.replay import compared, history, rebuilt, slates
from benchmarks.replay.rebuilt import Run
from benchmarks.stack import Stack, running

NOTES = (
    "Under test is one `millstream replay rebuild` on one core; Kafka, the store and the benchmark itself share the other cores.",
    "Warm-up (imports, loading of compiled code, joining the group) ends with the first applied batch; `seconds` has it, events/s not.",
    "per_s: entities that parity compares, rows that are written; their `seconds` are the verb's own, without imports.",
    "Every rebuild begins with an emptied store and is checked: all windows of all entities equal a count of the feed by numpy.",
)
COLUMNS = (
    "events_per_s",
    "worker_us_per_event",
    "store_us_per_event",
    "touched_entities_per_event",
    "per_s",
    "cpu_s",
    "rss_mb_max",
    "seconds",
)


class Bench:
    """One stack, rows of repeated rebuilds."""

    def __init__(self, stack: Stack, worker_cores: set[int], arguments: argparse.Namespace, folder: Path) -> None:
        """folder: where lakes are written."""
        self.stack = stack
        self.worker_cores = worker_cores
        self.arguments = arguments
        self.folder = folder
        self.rows: dict[str, results.Result] = {}

    def add(self, title: str, run: Run) -> None:
        """Measure a row."""
        self.rows[title] = results.repeated(title, self.arguments.runs, lambda: rebuilt.measure(self.stack, run), "events_per_s")


def lake(bench: Bench) -> None:
    """The whole history, a half and a quarter of it, each a lake of its own that spans two weeks: whether time grows with the events."""
    for share in (4, 2, 1):
        feed = history.make(bench.arguments.events // share, bench.arguments.seed)
        with tempfile.TemporaryDirectory(dir=bench.folder) as uri:
            history.write_lake(feed, uri)
            bench.add(f"lake, {len(feed):,} events", Run(feed, "lake", "", uri, bench.worker_cores))


def kafka(bench: Bench) -> None:
    """As much of a history as is sent in a minute."""
    feed = history.make(min(bench.arguments.kafka_events, bench.arguments.events), bench.arguments.seed)
    prefix = log.create(bench.stack.kafka_bootstrap, "replay")
    history.send(feed, bench.stack.kafka_bootstrap, prefix)
    bench.add(f"Kafka, {len(feed):,} events", Run(feed, "kafka", prefix, "", bench.worker_cores))


def parity(bench: Bench) -> None:
    """Two generations of a million users and their items."""
    prefix, users = log.create(bench.stack.kafka_bootstrap, "parity"), bench.arguments.users
    asyncio.run(compared.fill(bench.stack, users, bench.arguments.seed))
    title = f"parity, {users + users // 10:,} entities"
    once = partial(compared.measure, bench.stack, prefix, bench.worker_cores, users)
    bench.rows[title] = results.repeated(title, bench.arguments.runs, once, "per_s")


def rows(bench: Bench) -> None:
    """Training rows of what was served, and recomputed ones."""
    prefix, requests = log.create(bench.stack.kafka_bootstrap, "rows"), bench.arguments.requests
    slates.send(bench.stack, prefix, requests, bench.arguments.seed)
    for vectors in ("telemetry", "recomputed"):
        title = f"rows, {vectors}, {requests:,} requests"
        once = partial(slates.measure, bench.stack, prefix, bench.worker_cores, vectors)
        bench.rows[title] = results.repeated(title, bench.arguments.runs, once, "per_s")


PARTS: dict[str, Callable[[Bench], None]] = {"lake": lake, "kafka": kafka, "parity": parity, "rows": rows}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the chosen parts."""
    flags = results.parser(__doc__ or "")
    flags.add_argument("--events", type=int, default=20_000_000, help="of the history in the lake (default: %(default)s)")
    flags.add_argument("--kafka-events", type=int, default=4_000_000, help="of the one in Kafka (default: %(default)s)")
    flags.add_argument("--users", type=int, default=1_000_000, help="of each generation that parity compares (default: %(default)s)")
    flags.add_argument("--requests", type=int, default=50_000, help="whose slates become rows (default: %(default)s)")
    flags.add_argument("--only", choices=PARTS, action="append", help="a part; may be given more than once (default: all)")
    arguments = flags.parse_args(argv)
    worker_cores, server_cores = machine.cores()
    with tempfile.TemporaryDirectory(prefix="millstream-lake-") as folder, running(server_cores) as stack, machine.pinned(server_cores):
        bench = Bench(stack, worker_cores, arguments, Path(folder))
        for part in arguments.only or PARTS:
            PARTS[part](bench)
    results.publish("replay", arguments, bench.rows, NOTES, COLUMNS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
