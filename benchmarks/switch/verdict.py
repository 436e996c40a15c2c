"""After the log has drained: each entity of both generations against the oracle, and each bad record against its dead letter."""

import time
from dataclasses import dataclass

from benchmarks.chaos.verdict import logged, windows_of
from benchmarks.switch.world import World
from online_store.redis import RedisStore
from schemas import codec
from schemas.features import REGISTRY
from schemas.records import DeadLetter
from schemas.topics import DEAD_LETTERS
from schemas.windows import HOUR_MS
from tests.oracle import Oracle
from tests.verify import compare
from tests.workers import SOURCE_NAMES


@dataclass(frozen=True, slots=True)
class Verdict:
    """wrong: a sentence an entity. letters_missing: bad records without a letter, and letters of records that are good."""

    events: int
    repeats: int
    bad: int
    entities_compared: int
    wrong: list[str]
    letters_wrong: int
    letters_repeated: int


async def judge(world: World) -> Verdict:
    """Compare every entity of both generations as of now and as of two hours later, when tiles have left the windows."""
    records = logged(world.stack.kafka_bootstrap, world.prefix, SOURCE_NAMES)
    oracle = Oracle(records, windows_of(REGISTRY), world.prefix)
    now_ms = time.time_ns() // 1_000_000
    wrong: list[str] = []
    for generation, registry in world.registries.items():
        # Kinds are the same in both; which windows are summed, it is asked at the sum.
        oracle.windows = windows_of(registry)
        store = RedisStore(world.stack.store_url, registry, timeout_s=60)
        found = await compare(store, registry, generation, oracle, [now_ms, now_ms + 2 * HOUR_MS])
        wrong += [f"{generation.name}: {fault}" for fault in found]
        await store.close()
    letters = _letters(world)
    return Verdict(
        events=len(records),
        repeats=len(oracle.repeats),
        bad=len(oracle.bad),
        entities_compared=len(oracle.entities) * len(world.registries),
        wrong=wrong,
        letters_wrong=len(set(letters) ^ oracle.bad),
        letters_repeated=len(letters) - len(set(letters)),
    )


def _letters(world: World) -> list[tuple[str, int, int]]:
    """The places of the records that are in dead-letters, each as often as it is."""
    found = []
    for record in logged(world.stack.kafka_bootstrap, world.prefix, [DEAD_LETTERS.name]):
        letter = codec.decode(DEAD_LETTERS, record.value, record.headers)
        assert isinstance(letter, DeadLetter), letter
        found.append((letter.topic.removeprefix(world.prefix), letter.partition, letter.offset))
    return found
