"""`python -m benchmarks.ingest`: how many events a second one core carries, in Millstream and in others, on one feed in one run."""

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import feed as feeds
from benchmarks import log, machine, results, wire
from benchmarks.ingest import growth, millstream, peers
from benchmarks.stack import Stack, running
from schemas.errors import MillstreamError

NOTES = (
    "Under test is one process on one core; Kafka, the store and the benchmark itself share the other cores.",
    "On a machine of two cores the broker therefore takes its part of the store's core.",
    "Warm-up (imports, loading of compiled code, joining the group) ends with the first applied batch and is not counted.",
    "Every run reads the feed once, from its beginning, into an empty store: no row comes twice.",
    "Every Millstream run is checked: all windows of all entities equal a count of the feed by numpy, or the run fails.",
)

COLUMNS = ("events_per_s", "events_per_cpu_s", "worker_us_per_event", "store_us_per_event", "touched_entities_per_event", "rss_mb_max")

#: Title, module in benchmarks/peers, variant, events of its feed.
PEERS = (
    ("Quix Streams, hopping 1 h / 10 s", "quix_streams", "hopping", 2_000),
    ("Quix Streams, tumbling 10 s", "quix_streams", "tumbling", 100_000),
    ("Bytewax, sliding 1 h / 10 s", "bytewax_flow", "sliding", 2_000),
    ("Bytewax, tumbling 10 s", "bytewax_flow", "tumbling", 100_000),
    ("Faust, hopping table 1 h / 10 s", "stock_faust", "table", 400),
    ("Faust, a dict", "stock_faust", "dict", 100_000),
)
#: Peers that count by a message's key get a topic that is keyed so.
BY_ITEM = ("quix_streams", "bytewax_flow")
OWN, HOT = "millstream", "millstream, hot item"
#: A feed, and the prefix of the topics that hold it.
Sent = tuple[feeds.Feed, str]


class Bench:
    """One stack, one feed, rows of repeated runs."""

    def __init__(self, stack: Stack, worker_cores: set[int], arguments: argparse.Namespace) -> None:
        """Nothing is sent yet."""
        self.stack = stack
        self.worker_cores = worker_cores
        self.arguments = arguments
        self.rows: dict[str, results.Result] = {}
        self._sent: dict[tuple[str, int, bool, bool], Sent] = {}

    def sent(self, form: str = wire.AVRO, events_max: int = sys.maxsize, *, hot: bool = False, by_item: bool = False) -> Sent:
        """The feed and the prefix of the topics that hold it; sent when first asked for. events_max: a shorter feed, for slow peers."""
        what = (form, events_max, hot, by_item)
        if what not in self._sent:
            feed = feeds.make(min(self.arguments.events, events_max), self.arguments.seed, hot=hot)
            prefix = log.create(self.stack.kafka_bootstrap, f"bench-{form}")
            log.produce(self.stack.kafka_bootstrap, prefix, feed, wire.values(feed, form), by_item=by_item)
            self._sent[what] = (feed, prefix)
        return self._sent[what]

    def repeat(self, title: str, once: Callable[[], results.Result]) -> None:
        """A row: --runs runs of it."""
        self.rows[title] = results.repeated(title, self.arguments.runs, once, "events_per_s")

    def run(self, form: str = wire.AVRO, *, hot: bool = False, append_only: bool = False, **settings: str) -> results.Result:
        """One run of one Millstream worker."""
        feed, prefix = self.sent(form, hot=hot)
        return millstream.measure(self.stack, millstream.Run(feed, prefix, self.worker_cores, settings, append_only))


def raw(bench: Bench) -> None:
    """What Kafka's client and fastavro take, doing nothing with it."""
    bench.repeat("raw consume + fastavro", lambda: peers.run(bench.stack, bench.sent(), "raw", bench.worker_cores))


def others(bench: Bench) -> None:
    """Python stream engines in their own idiom; each variant on as long a feed as it takes some seconds for."""
    for title, module, variant, events_max in PEERS:
        feed = bench.sent(events_max=events_max, by_item=module in BY_ITEM)
        try:
            bench.repeat(title, functools.partial(peers.run, bench.stack, feed, module, bench.worker_cores, variant))
        except MillstreamError as error:
            # What was measured before it is worth as much without it.
            results.console.print(f"{title} is left out: {error}")


def own(bench: Bench) -> None:
    """Millstream as it is."""
    bench.repeat(OWN, bench.run)


def as_json(bench: Bench) -> None:
    """The same events in JSON."""
    bench.repeat("millstream, JSON", lambda: bench.run(wire.JSON))


def hot(bench: Bench) -> None:
    """One item draws 30 % of all."""
    bench.repeat(HOT, lambda: bench.run(hot=True))


def append_only(bench: Bench) -> None:
    """With the store's log on disk, as the local stack has it."""
    bench.repeat("millstream, store with append-only file", lambda: bench.run(append_only=True))


def wide(bench: Bench) -> None:
    """64 windows instead of 7."""
    bench.repeat("millstream, 64 windows", lambda: bench.run(features="benchmarks.ingest.registries:WIDE"))


def repeats(bench: Bench) -> None:
    """What it costs to know a producer's repeats: pairs of runs, with and without, one after the other."""

    def pair() -> results.Result:
        off, on = bench.run(repeat_offsets="0"), bench.run()
        return {
            **{name: on[name] for name in COLUMNS},
            "events_per_s_without": off["events_per_s"],
            "cost_percent_wall": round(100 * (1 - on["events_per_s"] / off["events_per_s"]), 1),
            "cost_percent_cpu": round(100 * (1 - on["events_per_cpu_s"] / off["events_per_cpu_s"]), 1),
        }

    bench.repeat("millstream, with repeats known, in pairs with without", pair)


def grown(bench: Bench) -> None:
    """One, two and four workers."""
    feed = feeds.make(bench.arguments.events + 2 * growth.WARM_UP_EVENTS, bench.arguments.seed)
    for count in (1, 2, 4):
        bench.repeat(f"millstream, {count} workers on all cores", functools.partial(growth.measure, bench.stack, feed, count))


PARTS: dict[str, Callable[[Bench], None]] = {
    "raw": raw,
    "millstream": own,
    "json": as_json,
    "hot": hot,
    "append-only": append_only,
    "wide": wide,
    "repeats": repeats,
    "growth": grown,
    "peers": others,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the chosen parts."""
    flags = results.parser(__doc__)
    flags.add_argument("--events", type=int, default=1_000_000, help="of the feed (default: %(default)s)")
    flags.add_argument("--only", choices=PARTS, action="append", help="a part; may be given more than once (default: all)")
    arguments = flags.parse_args(argv)
    worker_cores, server_cores = machine.cores()
    with running(server_cores) as stack, machine.pinned(server_cores):
        bench = Bench(stack, worker_cores, arguments)
        bench.sent()
        for part in arguments.only or PARTS:
            PARTS[part](bench)
    results.publish("ingest", arguments, bench.rows, NOTES, COLUMNS, feed=_described(bench), compared=compared(bench.rows))
    return 0


def compared(rows: dict[str, results.Result]) -> dict[str, Any]:
    """What the rows of one run say of one another, by medians; a comparison whose rows were not measured is left out."""
    speed = {title: row["events_per_s"]["median"] for title, row in rows.items()}
    found: dict[str, Any] = {}
    engines = {title: speed[title] for title, *_ in PEERS if title in speed}
    if OWN in speed and engines:
        best = max(engines, key=engines.__getitem__)
        found |= {"best_peer": best, "times_best_peer": round(speed[OWN] / engines[best], 1)}
    if OWN in speed and HOT in speed:
        found["hot_item_drop_percent"] = round(100 * (1 - speed[HOT] / speed[OWN]), 1)
    return found


def _described(bench: Bench) -> dict[str, Any]:
    """The feed in numbers."""
    feed, _ = bench.sent()
    return {
        "events": len(feed),
        "users": len(set(feed.user.tolist())),
        "items": len(set(feed.item.tolist())),
        "partitions_per_topic": feeds.PARTITIONS_COUNT,
        "events_per_s_of_event_time": feeds.EVENTS_PER_S,
    }


if __name__ == "__main__":
    sys.exit(main())
