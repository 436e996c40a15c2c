"""Several workers of one group on one log: how throughput grows with them.

All of them must be there, with their partitions and their compiled code, before the clock starts; but whoever is there reads. So the
group is warmed with a first part of the feed, then stopped (SIGSTOP) while the rest is sent, and measured from SIGCONT on. Workers have
all cores, as Kafka and the store have: how far it grows is up to the machine.
"""

import asyncio
import os
import signal
import time
from contextlib import ExitStack

from confluent_kafka.admin import AdminClient

from benchmarks import log, machine, results, wire
from benchmarks.feed import Feed
from benchmarks.ingest import millstream
from benchmarks.ingest.millstream import Run
from benchmarks.stack import Stack
from schemas.errors import MillstreamError

#: Events that a group is warmed with once all have joined, and before that once the first has.
WARM_UP_EVENTS = 20_000
#: How long a group may take to be complete (seconds).
JOIN_S = 60.0


def measure(stack: Stack, feed: Feed, workers_count: int) -> results.Result:
    """So many workers through a feed whose first 2 x WARM_UP_EVENTS are warm-up."""
    stack.empty()
    prefix = log.create(stack.kafka_bootstrap, f"grow-{workers_count}")
    values = wire.values(feed)
    run = Run(feed, prefix, set(range(os.cpu_count() or 1)), {})

    def send(start: int, stop: int) -> None:
        log.produce(stack.kafka_bootstrap, prefix, feed.rows(start, stop), values[start:stop])

    with ExitStack() as closing:
        pids = [closing.enter_context(millstream.worker(stack, run, number)).pid for number in range(workers_count)]
        send(0, WARM_UP_EVENTS)
        asyncio.run(millstream.reached(stack, run, WARM_UP_EVENTS, pids))
        _await_members(stack, f"{prefix}-ingest", workers_count)
        send(WARM_UP_EVENTS, 2 * WARM_UP_EVENTS)
        first = asyncio.run(millstream.reached(stack, run, 2 * WARM_UP_EVENTS, pids))
        _signal(pids, signal.SIGSTOP)
        send(2 * WARM_UP_EVENTS, len(feed))
        before = millstream.look(stack, first.events, pids)
        _signal(pids, signal.SIGCONT)
        after = asyncio.run(millstream.reached(stack, run, len(feed), pids))
        entities = asyncio.run(millstream.check(stack, run))
    return {**millstream.rates(before, after), "workers": workers_count, "checked": {"entities": entities, "wrong": 0}}


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, number)


def _await_members(stack: Stack, group_id: str, count: int) -> None:
    """Return once a group is stable with so many members. Raises MillstreamError when it is not in time."""
    admin = AdminClient({"bootstrap.servers": stack.kafka_bootstrap, "log_level": 0})
    deadline_s = time.monotonic() + JOIN_S
    while True:
        said = admin.describe_consumer_groups([group_id])[group_id].result(machine.ANSWER_S)
        if said.state.name == "STABLE" and len(said.members) == count:
            return
        if time.monotonic() > deadline_s:
            raise MillstreamError(f"group {group_id} has {len(said.members)} of {count} members and is {said.state.name} after {JOIN_S} s.")
        time.sleep(0.2)
