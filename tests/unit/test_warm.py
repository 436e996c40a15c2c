"""A worker that joins its group has its loops compiled: no partition waits for that, and no heartbeat is late."""

import subprocess
import sys

from tests.workers import REPOSITORY

#: What a process has compiled after `warm`, and after a feed that it has not seen: all sorts of events, wires, late ones, repeats.
COMPILED = """
import asyncio, random, sys
from numba.core.dispatcher import Dispatcher
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.structs import TopicPartition
from online_store.ingest import Ingest
from online_store.memory import MemoryStore
from schemas.codec import encode, encode_json
from schemas.features import REGISTRY
from schemas.topics import Batch, Source
from streams import fetch
from streams.warm import warm
from tests.worlds import NOW_MS, click, dwell, impression

def compiled():
    ours = [module for name, module in list(sys.modules.items()) if name.split(".")[0] in ("schemas", "online_store", "streams")]
    loops = {id(loop): loop for module in ours for loop in vars(module).values() if isinstance(loop, Dispatcher)}
    return sum(len(loop.signatures) for loop in loops.values())

def batch(topic, draw):
    builder = DefaultRecordBatchBuilder(2, 0, False, -1, -1, -1, 1 << 20)
    for offset in range(300):
        made = impression if topic == "impressions" else draw.choice([click, dwell])
        event = made(f"u{draw.randrange(40)}", request_id=f"r{draw.randrange(50)}", item_id=f"i{draw.randrange(5)}",
                     ts_ms=NOW_MS - draw.choice([0, 10**6, 10**8, 10**9]))
        value = draw.choice([encode(event), encode(event), encode_json(event), b"", None])
        builder.append(offset, NOW_MS, draw.choice([b"k", None]), value, draw.choice([[], [("traceparent", b"00")]]))
    return Batch(Source(topic, 0), fetch.read(TopicPartition(topic, 0), bytes(builder.build()), 0).records, 0)

async def main():
    if sys.argv[1] == "warm":
        await warm(REGISTRY)
    before = compiled()
    ingest = Ingest(MemoryStore(REGISTRY), REGISTRY)
    for topic in ("impressions", "clicks"):
        taken = batch(topic, random.Random(topic))
        await ingest.positions([taken.source])
        decoded = ingest.decode(taken)
        assert decoded.good_count > 50 and decoded.repeats_count > 10 and decoded.bad_count > 10
        await ingest.apply([decoded])
    print(compiled() - before)

asyncio.run(main())
"""


def after(start: str) -> int:
    """How many forms of loops a process compiles for its first batches."""
    command = [sys.executable, "-c", COMPILED, start]
    return int(subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout)  # noqa: S603  # ours


def test_a_warm_worker_compiles_nothing_for_its_first_batches() -> None:
    """Whatever they hold; one that is cold does."""
    assert (after("warm"), after("cold") > 0) == (0, True)
