"""Nobody's request pays for a start, an outage or another generation: what it needs is compiled and near before it asks."""

import asyncio
import dataclasses
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest

from online_store.keys import Entity, Generation, Pointer, record_key
from ranker.rank import Ranker
from ranker.reads.breaker import FAILURES_MAX
from schemas.features import REGISTRY
from schemas.records import Degraded
from tests.rankers import GENERATION, POPULAR, Failing, Model, ask, away, fill, hang, on, trained

#: What a process has compiled of the loops that a request runs through, when its ranker stands and after the first request.
COMPILED = """
import asyncio, pathlib, sys
from online_store import keys, reading
from online_store.redis import RedisStore
from online_store.servers import node
from ranker import encode
from ranker.reads import lacking, near, popularity
from ranker.slate import arrange
from ranker.trees import kernel
from tests import rankers

LOOPS = (
    *(near._split, near._take, lacking._lacking, keys._spell, reading._read, near._put),
    *(kernel._fold_all, kernel._score, arrange.by_score, encode._write, popularity._seen, node._frame),
)

def compiled():
    return [len(loop.signatures) for loop in LOOPS]

async def main():
    model = rankers.trained(pathlib.Path(sys.argv[1]))
    store = rankers.Failing()
    await rankers.fill(store)
    RedisStore("redis://127.0.0.1:1", rankers.REGISTRY)
    ranker = rankers.Ranker(store, rankers.REGISTRY, model.bundle)
    before = compiled()
    await ranker.refresh()
    given = await rankers.ask(ranker)
    print(given.degraded, min(before) > 0, before == compiled())

asyncio.run(main())
"""


class Noting(Failing):
    """A store that notes which keys are read, hangs from one read on, and may be switched to another generation.

    asked: set by the first read of a request, after what is popular was read.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now: Pointer | None = None
        self.keys: list[bytes] = []
        self.reads = 0
        self.asked = asyncio.Event()
        self.hangs_from = sys.maxsize

    async def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """As MemoryStore.read."""
        self.reads += 1
        if self.reads > 1:
            self.asked.set()
        if self.reads >= self.hangs_from:
            self.read_fault = hang
        found = await super().read(keys)
        self.keys += keys
        return found

    async def pointer(self) -> Pointer | None:
        """As MemoryStore.pointer."""
        return self.now or await super().pointer()

    def popular(self, generation: Generation = GENERATION) -> int:
        """How many of the popular items were read."""
        return len({record_key(generation, Entity("", "item", item_id)) for item_id in POPULAR} & set(self.keys))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A small model over the default registry's features."""
    return trained(tmp_path_factory.mktemp("models"))


@pytest.fixture
async def store() -> Noting:
    """A store with a past."""
    found = Noting()
    await fill(found, time.time_ns() // 1_000_000)
    return found


async def lately(ranker: Ranker) -> str:
    """How far an answer about popular items falls back, as of now."""
    return (await ask(ranker, *POPULAR, ts_ms=time.time_ns() // 1_000_000)).degraded


async def outage(ranker: Ranker, store: Noting) -> None:
    """The store goes until it is left alone."""
    store.read_fault = away
    for number in range(FAILURES_MAX):
        await ask(ranker, "x", request_id=f"gone-{number}")
    store.read_fault = None
    store.keys.clear()


async def test_what_is_popular_is_near_after_a_start(store: Noting, model: Model) -> None:
    """Before anybody asked: with the store gone at the first request, the model still has something to score."""
    ranker = await on(store, model)
    store.read_fault = away

    assert await lately(ranker) == Degraded.STALE


async def test_what_is_popular_is_read_again_after_an_outage(store: Noting, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the store answers somebody, beside the requests."""
    monkeypatch.setattr("ranker.reads.reader.NEAR_MS", 1)
    ranker = await on(store, model)
    await outage(ranker, store)
    number = 0
    while not store.popular():
        number += 1
        await ask(ranker, "x", request_id=f"back-{number}")
        await asyncio.sleep(0.01)

    assert store.popular() == len(POPULAR)


async def test_what_is_popular_is_read_of_another_generation(store: Noting, model: Model) -> None:
    """As soon as it is found to be the current one."""
    ranker = await on(store, model)
    store.now = Pointer(2, REGISTRY.fingerprint)
    await ranker.refresh()

    assert store.popular(store.now) == len(POPULAR)


async def test_what_is_read_beforehand_is_bounded(store: Noting, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The most popular ones, in reads as large as a request's."""
    monkeypatch.setattr("ranker.batch.POPULAR_COUNT_MAX", 450)
    bundle = dataclasses.replace(model.bundle, popularity={f"p{number}": 1 / (number + 1) for number in range(1_000)})
    await on(store, model._replace(bundle=bundle))
    items = [key for key in store.keys if key.startswith(b"item:")]

    assert (store.reads, len(items), items[0]) == (3, 450, record_key(GENERATION, Entity("", "item", "p0")))


async def test_reading_ahead_teaches_popularity_nothing(model: Model) -> None:
    """A store that is being filled knows nothing of what is popular yet: the bundle's snapshot stands."""
    store = Noting()
    await store.begin(GENERATION)
    ranker = await on(store, model)
    store.read_fault = away
    given = await ask(ranker, "i1", "i3", "x", "y", "z")

    assert [item.score for item in given.ranked_items][:2] == pytest.approx([0.9, 0.5])


async def test_a_store_that_hangs_beforehand_holds_up_nothing(store: Noting, model: Model) -> None:
    """Reading ahead ends with the first read that takes too long, and requests are answered."""
    store.hangs_from = 1
    ranker = await on(store, model)

    assert (store.reads, await lately(ranker)) == (1, Degraded.POPULARITY)


async def test_a_request_under_way_belongs_to_the_generation_it_was_read_from(store: Noting, model: Model) -> None:
    """And leaves nothing of it near for requests to the next one."""
    ranker = await on(store, model)
    asked_ms = time.time_ns() // 1_000_000
    asking = asyncio.create_task(ask(ranker, "i2", "i4", ts_ms=asked_ms))
    await store.asked.wait()
    store.now = Pointer(2, REGISTRY.fingerprint)
    await ranker.refresh()
    given = await asking
    store.read_fault = away
    after = await ask(ranker, "i2", "i4", ts_ms=asked_ms, request_id="after")

    assert (given.degraded, given.generation, after.degraded) == (Degraded.NONE, "g1", Degraded.INPUT_ORDER)


def test_the_first_request_compiles_nothing(tmp_path: str) -> None:
    """A process that never ranked has every loop ready, for the shapes and layouts that requests bring, once its ranker stands."""
    told = subprocess.run([sys.executable, "-c", COMPILED, str(tmp_path)], check=True, capture_output=True, text=True).stdout  # noqa: S603  # ours

    assert told.split() == ["NONE", "True", "True"]
