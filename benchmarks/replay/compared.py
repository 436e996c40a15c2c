"""`millstream replay parity` of two generations of a million users and a tenth as many items, which are the same."""

from benchmarks import feed as feeds
from benchmarks.memory.fill import Log
from benchmarks.replay.verbs import run
from benchmarks.results import Result
from benchmarks.stack import Stack
from online_store.ingest import Ingest
from online_store.keys import Entity, Generation, entity_of, record_key
from online_store.memory import MemoryStore
from online_store.redis import RedisStore
from schemas.aggregates import ITEM, USER
from schemas.features import REGISTRY
from schemas.windows import DAY_MS

FIRST, SECOND = Generation(3, REGISTRY.fingerprint), Generation(4, REGISTRY.fingerprint)
#: Events of two weeks whose records everybody gets, dealt round: made by ingest, so of every length that records have.
POOL_EVENTS_COUNT = 5_000
#: Records of one round trip while the store is filled.
FILL_COUNT = 5_000


def measure(stack: Stack, prefix: str, cores: set[int], users_count: int) -> Result:
    """One comparison of generations that `fill` made."""
    told = run(stack, prefix, cores, "parity", FIRST.name, SECOND.name, "--as-of-ms", str(feeds.BEGIN_MS + 14 * DAY_MS))
    assert told["passed"], told
    entities = users_count + users_count // 10
    return {
        "entities": entities,
        "per_s": round(entities / told["seconds"]),
        **{name: told[name] for name in ("seconds", "cpu_s", "rss_mb_max")},
    }


async def fill(stack: Stack, users_count: int, seed: int) -> None:
    """Both generations, registered, of the same records."""
    stack.empty()
    pool = await _pool(seed)
    store = RedisStore(stack.store_url, REGISTRY)
    for generation in (FIRST, SECOND):
        await store.register(generation, REGISTRY)
        for kind, count in ((USER, users_count), (ITEM, users_count // 10)):
            _write(stack, generation, kind, count, pool[kind])
    await store.close()


async def _pool(seed: int) -> dict[str, list[bytes]]:
    """Records by kind."""
    store = MemoryStore(REGISTRY)
    log = Log(Ingest(store, REGISTRY))
    await log.begin()
    await log.take_content(1_000, feeds.BEGIN_MS)
    await log.take_feed(feeds.make(POOL_EVENTS_COUNT, seed, events_per_s=POOL_EVENTS_COUNT / (14 * DAY_MS / 1000)))
    generation = await store.current()
    assert generation is not None, "the log has begun one"
    keys = [key async for key in store.records(generation)]
    values = await store.read(keys)
    found: dict[str, list[bytes]] = {}
    for key, value in zip(keys, values, strict=True):
        found.setdefault(entity_of(key).kind, []).append(value or b"")
    return found


def _write(stack: Stack, generation: Generation, kind: str, count: int, pool: list[bytes]) -> None:
    for at in range(0, count, FILL_COUNT):
        with stack.store.pipeline(transaction=False) as pipeline:
            for number in range(at, min(at + FILL_COUNT, count)):
                pipeline.set(record_key(generation, Entity("", kind, f"{kind}-{number:09d}")), pool[number % len(pool)])
            pipeline.execute()
