"""A batch goes to the store part by part: what the store took before it went away is taken. Small calls take turns."""

import asyncio
from collections.abc import Sequence

import pytest

from online_store.ingest import Ingest
from online_store.keys import Generation
from online_store.memory import MemoryStore
from online_store.reading import read
from online_store.record import layouts
from online_store.store import Step
from schemas.aggregates import USER
from schemas.errors import StoreAwayError
from schemas.features import REGISTRY, Registry, idle_hours
from schemas.topics import Source
from tests.worlds import NOW_MS, batch, dump, impression, replay, replayed, stored, take
from tests.worlds import Log as Logs


class Tiring(MemoryStore):
    """A store that notes the shards of each call, and goes away after some calls."""

    def __init__(self, calls_count: int) -> None:
        super().__init__(REGISTRY)
        self.calls: list[list[int]] = []
        self.left = calls_count

    async def apply(self, generation: Generation, steps: Sequence[Step]) -> list[list[int]]:
        """As MemoryStore.apply."""
        if not self.left:
            raise StoreAwayError("away")
        self.left -= 1
        self.calls.append([step.shard for step in steps])
        return await super().apply(generation, steps)


class Slow(MemoryStore):
    """A store that takes a moment for each call, and notes how many it had at once at most, and how many shards in each."""

    def __init__(self) -> None:
        super().__init__(REGISTRY)
        self.at_once = self.at_once_max = 0
        self.shards_counts: list[int] = []

    async def apply(self, generation: Generation, steps: Sequence[Step]) -> list[list[int]]:
        """As MemoryStore.apply."""
        self.at_once += 1
        self.shards_counts.append(len(steps))
        self.at_once_max = max(self.at_once_max, self.at_once)
        await asyncio.sleep(0.02)
        self.at_once -= 1
        return await super().apply(generation, steps)


@pytest.fixture
def log() -> Logs:
    """A batch that touches many shards."""
    found = Logs()
    for number in range(50):
        found.add(impression(f"u{number}", f"i{number}"))
    return found


async def test_what_the_store_took_is_not_sent_again(log: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked again, only the rest is sent; together they are the batch, and every part before shows as progress."""
    monkeypatch.setattr("online_store.ingest.KEYS_MAX", 10)
    store = Tiring(3)
    ingest = Ingest(store, REGISTRY)
    source = Source("impressions", 0)
    await ingest.positions([source])
    decoded = ingest.decode(batch([stored(impression(f"u{number}", f"i{number}"), number) for number in range(50)]))
    before = ingest.progress(source)
    with pytest.raises(StoreAwayError):
        await ingest.apply([decoded])
    took, store.left = ingest.progress(source), 100
    position = (await ingest.apply([decoded]))[decoded.batch.source]
    shards = [shard for call in store.calls for shard in call]

    assert (position, took - before, len(shards)) == (50, 50 * len([*store.calls[0], *store.calls[1], *store.calls[2]]), len(set(shards)))
    assert await dump(store) == await replayed(log)


@pytest.mark.parametrize(("keys_max", "slow_s", "at_once"), [(4_000, 60.0, 1), (1, 60.0, 2), (1, 0.01, 1)])
async def test_small_calls_take_turns(keys_max: int, slow_s: float, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reads meanwhile has one of them before it. Large ones take none, unless the last call was slow."""
    monkeypatch.setattr("online_store.ingest.KEYS_MAX", keys_max)
    monkeypatch.setattr("online_store.ingest.SLOW_S", slow_s)
    store = Slow()
    ingest = Ingest(store, REGISTRY)
    sources = [Source("impressions", partition) for partition in range(3)]
    await ingest.positions(sources)
    batches = [batch([stored(impression("u", "i"), 0, source.partition)]) for source in sources]
    await take(ingest, batches[0])
    await asyncio.gather(*(take(ingest, one) for one in batches[1:]))

    assert store.at_once_max == at_once


@pytest.mark.parametrize(("keys_max", "shards_max"), [(4_000, 3), (20, 64)])
async def test_few_records_go_a_few_shards_at_a_time(keys_max: int, shards_max: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reads meanwhile has those before it, not all; where there are many records, calls are as large as records allow."""
    monkeypatch.setattr("online_store.ingest.KEYS_MAX", keys_max)
    monkeypatch.setattr("online_store.ingest.SHARDS_MAX", 3)
    store = Slow()
    ingest = Ingest(store, REGISTRY)
    await ingest.positions([Source("impressions", 0)])
    await take(ingest, batch([stored(impression(f"u{number}", f"i{number}"), number) for number in range(50)]))

    assert 3 <= max(store.shards_counts) <= shards_max
    assert (max(store.shards_counts) == 3) == (shards_max == 3)


@pytest.mark.parametrize(("slow_s", "shards_max"), [(0.01, 5), (60.0, 64)])
async def test_a_slow_store_is_asked_for_less_at_once(slow_s: float, shards_max: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it cannot do in a call's time it would never do: it would be sent again for ever."""
    monkeypatch.setattr("online_store.ingest.SLOW_S", slow_s)
    monkeypatch.setattr("online_store.ingest.KEYS_SLOW_MAX", 5)
    monkeypatch.setattr("online_store.ingest.SHARDS_MAX", 64)
    store = Slow()
    ingest = Ingest(store, REGISTRY)
    await ingest.positions([Source("impressions", 0)])
    await take(ingest, batch([stored(impression("u", "i"), 0)]))
    store.shards_counts = []
    await take(ingest, batch([stored(impression(f"u{number}", f"i{number}"), number) for number in range(1, 50)]))

    assert (max(store.shards_counts) <= shards_max, len(store.shards_counts) == 1) == (True, shards_max == 64)


async def test_who_has_no_window_was_active_all_the_same() -> None:
    """A kind of which only static fields and the last activity are kept has no tiles to add to."""
    registry = Registry((idle_hours("last_active_hours", USER),))
    log = Logs()
    log.add(impression("u", "i"))
    store = MemoryStore(registry)
    await replay(log, store, registry)
    (key,) = [record async for record in store.records(Generation(1, registry.fingerprint))]
    tiles = read(layouts(registry)[USER], await store.read([key]), NOW_MS)

    assert tiles.last_active_ms.tolist() == [NOW_MS]
