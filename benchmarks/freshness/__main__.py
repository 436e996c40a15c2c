"""`python -m benchmarks.freshness`: how long after it was due an event's count can be read from the store."""

import asyncio
import functools
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import feed as feeds
from benchmarks import log, machine, results
from benchmarks.freshness.probes import PROBES_PER_S, ROUND_S, Message, drive, messages, quantiles
from benchmarks.ingest import millstream
from benchmarks.stack import Stack, running
from online_store.keys import Generation
from online_store.redis import RedisStore
from schemas.features import REGISTRY

RATES = (1_000, 10_000, 50_000)
#: Probes that are due in the first seconds are not counted: the worker loads its compiled code then.
WARM_UP_S = 3.0
GENERATION = Generation(1, REGISTRY.fingerprint)
NOTES = (
    "Latency is from the moment an event was due (open loop), not from when it was sent, to when a read of the store shows it.",
    "logged_ms is from the same moment to when the sender saw Kafka's acknowledgement; it looks once a round, so a worker may be earlier.",
    f"{PROBES_PER_S} probes a second among the feed's events, looked for every {ROUND_S * 1000:g} ms and a round's own time.",
    f"The first {WARM_UP_S:g} s of each run are warm-up. Producers have librdkafka's defaults, so 5 ms of linger are in each latency.",
    "One worker on one core; Kafka, the store and the sender share the others.",
)
COLUMNS = (
    "latency_ms_p50",
    "latency_ms_p90",
    "latency_ms_p99",
    "latency_ms_max",
    "logged_ms_p50",
    "logged_ms_p99",
    "worker_core_share",
    "kafka_core_share",
    "store_core_share",
    "sender_core_share",
)


def once(stack: Stack, cores: set[int], rate: int, seconds: int, seed: int) -> results.Result:
    """One run at one rate into an empty store."""
    stack.empty()
    prefix = log.create(stack.kafka_bootstrap, f"fresh-{rate}")
    feed = feeds.make(rate * seconds, seed, begin_ms=time.time_ns() // 1_000_000, events_per_s=rate)
    sent = messages(feed, prefix, GENERATION, rate)
    with millstream.worker(stack, millstream.Run(feed, prefix, cores, {})) as process:
        return asyncio.run(_drive(stack, sent, rate, process.pid))


async def _drive(stack: Stack, sent: list[Message], rate: int, pid: int) -> results.Result:
    """The first probe alone, until the worker is there; then everything else."""
    store = RedisStore(stack.store_url, REGISTRY)
    begin = rate // PROBES_PER_S
    await drive(stack.kafka_bootstrap, store, sent[:1], rate)
    before, kafka = machine.use(pid), machine.use(stack.kafka_pid)
    sender_s, store_s, begun_s = time.process_time(), stack.store_cpu_s(), time.monotonic()
    seen = await drive(stack.kafka_bootstrap, store, sent[begin:], rate)
    wall_s = time.monotonic() - begun_s
    await store.close()
    return {
        **quantiles(seen, WARM_UP_S),
        "worker_core_share": round((machine.use(pid).cpu_s - before.cpu_s) / wall_s, 2),
        "kafka_core_share": round((machine.use(stack.kafka_pid).cpu_s - kafka.cpu_s) / wall_s, 2),
        "store_core_share": round((stack.store_cpu_s() - store_s) / wall_s, 2),
        "sender_core_share": round((time.process_time() - sender_s) / wall_s, 2),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every rate."""
    flags = results.parser(__doc__)
    flags.add_argument("--seconds", type=int, default=20, help="of each run (default: %(default)s)")
    arguments = flags.parse_args(argv)
    worker_cores, server_cores = machine.cores()
    rows: dict[str, Any] = {}
    with running(server_cores) as stack, machine.pinned(server_cores):
        for rate in RATES:
            run = functools.partial(once, stack, worker_cores, rate, arguments.seconds, arguments.seed)
            rows[f"{rate:,} events/s"] = results.repeated(f"{rate:,} events/s", arguments.runs, run, "latency_ms_p99")
    results.publish("freshness", arguments, rows, NOTES, COLUMNS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
