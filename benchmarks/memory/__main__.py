"""`python -m benchmarks.memory`: bytes of the store for a million active users and 100,000 items, and of a key by kind."""

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import redis

from benchmarks import machine, results, wire
from benchmarks.feed import BEGIN_MS, ITEMS_COUNT, USERS_COUNT, Ints
from benchmarks.memory.fill import Log
from benchmarks.memory.history import DAYS, PAGE_ITEMS, History
from benchmarks.stack import Stack, running
from online_store.ingest import Ingest
from online_store.keys import Entity, Generation, record_key
from online_store.redis import RedisStore
from schemas.aggregates import ITEM, USER
from schemas.features import REGISTRY

#: Keys of each kind whose memory is asked for.
SAMPLE_COUNT = 2_000
GENERATION = Generation(1, REGISTRY.fingerprint)
NOTES = (
    f"{DAYS} days of visits at uniform moments, {PAGE_ITEMS} items each, the default registry, content of every item.",
    "No user profiles: a record has room for them either way.",
    "total_gib, dataset_gib and resident_gib are used_memory, used_memory_dataset and used_memory_rss less what the empty store had.",
    f"Bytes of a key are MEMORY USAGE of {SAMPLE_COUNT:,} keys of each kind: key, value, expiry and the store's own overhead.",
)
COLUMNS = ("events", "total_gib", "resident_gib", "user_bytes", "user_value_bytes", "item_bytes", "item_value_bytes")


def once(stack: Stack, history: History) -> results.Result:
    """Fill an empty store and look at it."""
    stack.empty()
    before = _memory(stack.store)
    events = asyncio.run(_fill(stack, history))
    after = _memory(stack.store)
    calls = stack.store_calls()
    return {
        "events": events,
        "users": history.users_count,
        "items": history.items_count,
        "keys": int(stack.store.dbsize()),
        **{f"{name}_gib": round((after[name] - before[name]) / 2**30, 4) for name in after},
        **_keys(stack.store, USER, history.users_count, wire.user_ids),
        **_keys(stack.store, ITEM, history.items_count, wire.item_ids),
        "store_calls": calls,
    }


async def _fill(stack: Stack, history: History) -> int:
    store = RedisStore(stack.store_url, REGISTRY, timeout_s=60)
    log, events = Log(Ingest(store, REGISTRY)), 0
    await log.begin()
    await log.take_content(history.items_count, BEGIN_MS)
    for number, feed in enumerate(history.days(), 1):
        await log.take_feed(feed)
        events += len(feed)
        results.console.print(f"day {number}/{DAYS}: {events:,} events", highlight=False)
    await store.close()
    return events


def _memory(store: redis.Redis) -> dict[str, int]:
    found: dict[str, Any] = store.info("memory")
    return {"total": found["used_memory"], "dataset": found["used_memory_dataset"], "resident": found["used_memory_rss"]}


def _keys(store: redis.Redis, kind: str, count: int, ids: Any) -> results.Result:  # noqa: ANN401  # wire.user_ids or wire.item_ids
    """Bytes of a kind's keys: the mean of all that a key takes, a quantile of it, and the value's own."""
    numbers: Ints = np.random.default_rng(1).choice(count, min(count, SAMPLE_COUNT), replace=False)
    keys = [record_key(GENERATION, Entity("", kind, name)) for name in wire.texts(ids(numbers))]
    with store.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.memory_usage(key, samples=0)
            pipeline.strlen(key)
        found = pipeline.execute()
    used = np.array([found[place] for place in range(0, len(found), 2) if found[place] is not None])
    values = np.array([found[place + 1] for place in range(0, len(found), 2) if found[place] is not None])
    return {
        f"{kind}_keys_found_share": round(len(used) / len(keys), 3),
        f"{kind}_bytes": round(float(used.mean())),
        f"{kind}_bytes_p99": round(float(np.percentile(used, 99))),
        f"{kind}_value_bytes": round(float(values.mean())),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure once or more."""
    flags = results.parser(__doc__)
    flags.set_defaults(runs=1)
    flags.add_argument("--users", type=int, default=USERS_COUNT, help="who were active in the two weeks (default: %(default)s)")
    flags.add_argument("--items", type=int, default=ITEMS_COUNT, help="that were shown (default: %(default)s)")
    arguments = flags.parse_args(argv)
    _, server_cores = machine.cores()
    with running(server_cores) as stack:
        history = History(arguments.users, arguments.items, arguments.seed)
        title = f"{arguments.users:,} users, {arguments.items:,} items"
        row = results.repeated(title, arguments.runs, lambda: once(stack, history), "total_gib")
    results.publish("memory", arguments, {title: row}, NOTES, COLUMNS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
