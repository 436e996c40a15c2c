"""`python -m benchmarks.rank`: what a rank request costs and how long it takes, by front end, beside peers, and while things fail."""

import argparse
import asyncio
import dataclasses
import functools
import itertools
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks import log, machine, results
from benchmarks.feed import ITEMS_COUNT, USERS_COUNT
from benchmarks.rank import compared, faults
from benchmarks.rank.clients import CLIENTS
from benchmarks.rank.generator import Task
from benchmarks.rank.requests import PAGE_ITEMS
from benchmarks.rank.serving import WARM_UP_S, Server, cpu_s, run, saturation, serving
from benchmarks.rank.world import FEED_EVENTS_PER_S, TREES, TREES_MANY, World, fed, fill, train
from benchmarks.stack import Stack, running
from compose.settings import Settings
from schemas.records import CANDIDATES_COUNT_MAX

#: Kafka, and those that `millstream serve` has a port for.
FRONT_ENDS = ("kafka", *(name for name in CLIENTS if f"{name}_port" in {setting.name for setting in dataclasses.fields(Settings)}))
#: Shares of its own saturation at which a front end is measured.
SHARES = (0.25, 0.5, 0.75)
#: Candidates of the grid; the product refuses more than CANDIDATES_COUNT_MAX, so 225 to 300 cannot be asked.
GRID = tuple(range(25, CANDIDATES_COUNT_MAX, 25))
CANDIDATES = CANDIDATES_COUNT_MAX
#: Seconds of each closed loop that looks for saturation, the warm-up included.
CLOSED_S = 4.0
SPIKE_S = 30.0
#: A smaller world than --scale leaves has no 200 candidates to draw.
ITEMS_COUNT_MIN = 2_000
#: Titles of rows without a feed beside end so.
NO_FEED = ", no feed"
#: Titles of the rows that are set beside peers end so: all candidates, half load.
OWN_ROWS = tuple(f", {CANDIDATES} candidates, 50%{end}" for end in ("", NO_FEED))
#: Seconds over which the store's use by ingest alone is measured.
IDLE_S = 5.0
#: How long ingest has to catch up with its feed before that (seconds).
SETTLE_S = 10.0

NOTES = (
    "One `millstream serve` process on one core. The store, Kafka, ingest, its feed and the generator share the other cores.",
    "On a machine of two cores they are on one: at high rates they, not the ranker, may be what saturates (generator_core_share).",
    f"Ingest takes {FEED_EVENTS_PER_S:,} events/s all the while; what the store uses for that alone is measured first and taken off.",
    "Rows that say `no feed` are without it: there the store, on a machine of two cores, need not wait for ingest, its feed and Kafka.",
    f"Each request has another user and other candidates (Zipf, as the feed's items) and asks for {PAGE_ITEMS} items.",
    "Rates are open loops with Poisson arrivals; latency counts from when a request was due. Every answer is looked into.",
    "saturation_rps: full answers a second in the best of closed loops (8 to 64 under way) with at most 1 % degraded.",
    "ranker_cpu_ms, store_cpu_ms: processor time of the process, all threads, by answer.",
    "Candidates over 200 are refused by the product, so the grid ends there.",
    "Peers are one process on the ranker's core, without any front end: they rank and throw the answer away. client_cpu_ms is all they do.",
)
COLUMNS = (
    "rate",
    "saturation_rps",
    "latency_ms_p50",
    "latency_ms_p90",
    "latency_ms_p99",
    "latency_ms_p999",
    "ranker_cpu_ms",
    "client_cpu_ms",
    "store_cpu_ms",
    "degraded",
    "errors",
)


class Bench:
    """One world, rows of runs."""

    def __init__(
        self, world: World, cores: tuple[set[int], set[int]], arguments: argparse.Namespace, feed_pid: int, seeds: Iterator[int]
    ) -> None:
        """Nothing is measured yet but what the store uses without requests.

        cores: the ranker's, everything else's. feed_pid: the process that feeds ingest. seeds: of runs, each another.
        """
        self.world = world
        self.cores = cores
        self.arguments = arguments
        self.feed_pid = feed_pid
        self.store_idle_share = _store_idle_share(world.stack)
        self.rows: dict[str, results.Result] = {}
        self.seeds = seeds
        self._saturations: dict[tuple[str, int, int], float] = {}

    def task(self, server: Server, front_end: str, seconds: float, candidates: int = CANDIDATES, rate: float = 0) -> Task:
        """A run that no other is like: its requests are drawn anew."""
        seed = next(self.seeds)
        return Task(
            front_end=front_end,
            address=server.addresses[front_end],
            prefix=self.world.prefix,
            seed=seed,
            candidates=candidates,
            k=PAGE_ITEMS,
            users=self.world.users,
            items=self.world.items,
            seconds=seconds,
            out=str(self.world.stack.folder / f"run{seed}.npz"),
            rate=rate,
        )

    def saturation(self, server: Server, front_end: str, candidates: int = CANDIDATES, trees: int = TREES) -> float:
        """Full answers a second at most; measured when first asked for."""
        key = (front_end, candidates, trees)
        if key not in self._saturations:
            tasks: Iterator[Task] = iter(lambda: self.task(server, front_end, CLOSED_S, candidates), None)
            found = saturation(server, tasks, self.store_idle_share)
            self._saturations[key] = found["full_per_s"]
            self.add(f"{_title(front_end, candidates, trees)}, closed loop", lambda: {**found, "saturation_rps": found["full_per_s"]}, 1)
        return self._saturations[key]

    def at(self, server: Server, front_end: str, share: float, candidates: int = CANDIDATES, trees: int = TREES) -> None:
        """A row at a share of saturation."""
        saturation_rps = self.saturation(server, front_end, candidates, trees)

        def once() -> results.Result:
            task = self.task(server, front_end, self.arguments.seconds + WARM_UP_S, candidates, share * saturation_rps)
            return {**run(server, task).summary(self.store_idle_share), "saturation_rps": saturation_rps, "trees": trees}

        self.add(f"{_title(front_end, candidates, trees)}, {share:.0%}", once)

    def add(self, title: str, once: Callable[[], results.Result], runs: int | None = None) -> None:
        """A row of so many runs, --runs unless told otherwise."""
        self.rows[title] = results.repeated(title, runs or self.arguments.runs, once, "ranker_cpu_ms")


def _title(front_end: str, candidates: int, trees: int) -> str:
    return f"{front_end}, {candidates} candidates" + (f", {trees} trees" if trees != TREES else "")


def front_end(name: str, bench: Bench) -> None:
    """Its rates with all candidates, the grid of fewer at half load, and the larger model."""
    with serving(bench.world, bench.cores) as server:
        for share in SHARES:
            bench.at(server, name, share)
        for candidates in () if bench.arguments.brief else GRID:
            bench.at(server, name, 0.5, candidates)
    if not bench.arguments.brief:
        with serving(bench.world, bench.cores, TREES_MANY) as server:
            bench.at(server, name, 0.5, trees=TREES_MANY)


def peers(bench: Bench) -> None:
    """Others, on the same features, by the same model."""
    with tempfile.TemporaryDirectory(dir=bench.world.stack.folder) as folder:
        seconds, share = bench.arguments.seconds, bench.store_idle_share
        ranked = compared.Bench(bench.world, bench.cores[0], Path(folder), CANDIDATES, seconds, share)
        ranked.ask(bench.arguments.seed)
        for module, rows in itertools.groupby(compared.PEERS, key=lambda peer: (peer.module, peer.variant)):
            chosen = list(rows)
            results.console.print(f"filling the store for {' '.join(module)}", highlight=False)
            ranked.fill(chosen[0])
            for peer in chosen:
                bench.rows[peer.title] = results.repeated(
                    peer.title, bench.arguments.runs, functools.partial(ranked.measure, peer), "client_cpu_ms"
                )


def spike(bench: Bench) -> None:
    """Twice what each front end can answer."""
    with serving(bench.world, bench.cores) as server:
        for name in FRONT_ENDS:
            rate = 2 * bench.saturation(server, name)
            once = functools.partial(_once, bench, server, name, rate)
            bench.add(f"{name}, spike to twice saturation", once, 1)


def _once(bench: Bench, server: Server, name: str, rate: float) -> results.Result:
    return run(server, bench.task(server, name, SPIKE_S + WARM_UP_S, rate=rate)).summary(bench.store_idle_share)


def outage(bench: Bench) -> None:
    """The store stands still, then is stopped and started again, under half load over each front end."""
    faults.keep_on_disk(bench.world.stack.store)
    with serving(bench.world, bench.cores) as server:
        for name in FRONT_ENDS:
            rate = bench.saturation(server, name) / 2
            gone = faults.Outage(bench.world.stack, bench.cores[1])
            for kind, doing in (("frozen", gone.frozen), ("stopped", gone.stopped)):
                task = bench.task(server, name, faults.SECONDS, rate=rate)
                bench.add(f"{name}, store {kind}", functools.partial(faults.measure, server, task, gone, doing), 1)


def no_feed(bench: Bench) -> None:
    """Each front end at the same shares of what it can do with nothing for ingest to do."""
    os.kill(bench.feed_pid, signal.SIGSTOP)
    try:
        quiet = Bench(bench.world, bench.cores, bench.arguments, bench.feed_pid, bench.seeds)
        for name in FRONT_ENDS:
            with serving(bench.world, bench.cores) as server:
                for share in SHARES:
                    quiet.at(server, name, share)
    finally:
        os.kill(bench.feed_pid, signal.SIGCONT)
    bench.rows |= {title + NO_FEED: row for title, row in quiet.rows.items()}


PARTS: dict[str, Callable[[Bench], None]] = {
    "peers": peers,
    **{name: functools.partial(front_end, name) for name in FRONT_ENDS},
    "spike": spike,
    "outage": outage,
    "no-feed": no_feed,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the chosen parts."""
    arguments = _arguments(argv)
    cores = machine.cores()
    with running(cores[1]) as stack, machine.pinned(cores[1]):
        world = _world(stack, arguments)
        with fed(world, cores[1]) as feed:
            bench = Bench(world, cores, arguments, feed.pid, itertools.count(arguments.seed * 1_000))
            for part in arguments.only or PARTS:
                PARTS[part](bench)
    found = compared_with_peers(bench.rows)
    for title, peer in found.items():
        bench.rows[title]["peer"] = peer
    results.publish("rank", arguments, bench.rows, NOTES, COLUMNS, store_idle_share=round(bench.store_idle_share, 3), compared=found)
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    flags = results.parser(__doc__)
    flags.set_defaults(runs=1)
    flags.add_argument("--scale", type=float, default=1.0, help="of a million users and 100,000 items (default: %(default)s)")
    flags.add_argument("--seconds", type=float, default=10.0, help="of each rate (default: %(default)s)")
    flags.add_argument("--brief", action="store_true", help="200 candidates and 100 trees only")
    flags.add_argument("--only", choices=PARTS, action="append", help="a part; may be given more than once (default: all)")
    return flags.parse_args(argv)


def _world(stack: Stack, arguments: argparse.Namespace) -> World:
    """A store that is full, topics, and both bundles."""
    users, items = int(USERS_COUNT * arguments.scale), max(int(ITEMS_COUNT * arguments.scale), ITEMS_COUNT_MIN)
    stack.empty()
    asyncio.run(fill(stack, users, items, arguments.seed))
    models = {trees: stack.folder / f"models{trees}" for trees in (TREES, TREES_MANY)}
    world = World(stack, log.create(stack.kafka_bootstrap, "rank"), users, items, models)
    for trees in models:
        train(world, trees, arguments.seed)
    return world


def _store_idle_share(stack: Stack) -> float:
    """Of a core, what the store uses without requests."""
    time.sleep(SETTLE_S)
    begun_s, used_s = time.monotonic(), cpu_s(stack.store_pid)
    time.sleep(IDLE_S)
    return (cpu_s(stack.store_pid) - used_s) / (time.monotonic() - begun_s)


def compared_with_peers(rows: dict[str, results.Result]) -> dict[str, dict[str, float]]:
    """By row of ours with all candidates: how many times a peer's requests a core-second it carries, by medians."""
    peers_ms = {title: row["client_cpu_ms"]["median"] for title, row in rows.items() if "client_cpu_ms" in row}
    ours_ms = {title: row["ranker_cpu_ms"]["median"] for title, row in rows.items() if title.endswith(OWN_ROWS)}
    return {title: {peer: round(ms / own_ms, 2) for peer, ms in peers_ms.items()} for title, own_ms in ours_ms.items() if own_ms}


if __name__ == "__main__":
    sys.exit(main())
