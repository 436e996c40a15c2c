"""A snapshot holds what its store held, whichever store that is."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from online_store.keys import Entity, Generation, entity_key, entity_of
from online_store.memory import MemoryStore
from online_store.redis import RedisStore
from online_store.snapshot import take as taking
from online_store.snapshot.take import take
from online_store.store import OnlineStore
from schemas.errors import GenerationError
from schemas.features import REGISTRY
from tests.rankers import ITEMS, fill, snapshot_of
from tests.worlds import NOW_MS, dump

STORES = pytest.mark.parametrize("empty_url", ["memory", "valkey", "cluster"], indirect=True)


@pytest.fixture
async def store(empty_url: str) -> AsyncIterator[OnlineStore]:
    """An empty store of each sort."""
    made: OnlineStore = RedisStore(empty_url, REGISTRY) if empty_url else MemoryStore(REGISTRY)
    yield made
    await made.close()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few records make several reads and batches."""
    monkeypatch.setattr(taking, "READ_COUNT", 2)
    monkeypatch.setattr(taking, "BATCH_COUNT", 3)


@STORES
@pytest.mark.usefixtures("small")
async def test_every_item_is_there_as_the_store_has_it(store: OnlineStore, tmp_path: Path) -> None:
    """Removed ones too: they say so."""
    await fill(store)
    items = {entity_of(key): record for key, record in (await dump(store)).items() if entity_of(key).kind == "item"}

    snapshot = await snapshot_of(store, tmp_path)

    assert (dict(zip(items, snapshot.look_up(list(items)), strict=True)), len(snapshot)) == (items, len(ITEMS))


@STORES
async def test_nobody_is_in_it(store: OnlineStore, tmp_path: Path) -> None:
    """A file does not hear that somebody wants to be forgotten."""
    await fill(store)
    await snapshot_of(store, tmp_path)

    assert entity_key(Entity("", "user", "u1")) not in (tmp_path / "items.arrow").read_bytes()


@STORES
@pytest.mark.usefixtures("small")
async def test_who_takes_it_sees_how_far_it_is(store: OnlineStore, tmp_path: Path) -> None:
    """Keys read so far, of how many."""
    await fill(store)
    shown: list[tuple[int, int]] = []

    count = await take(store, REGISTRY, tmp_path / "items.arrow", NOW_MS, lambda read, of: shown.append((read, of)))

    assert (shown, count) == ([(3, 8), (6, 8), (8, 8)], 8)


@STORES
async def test_an_empty_generation_makes_an_empty_snapshot(store: OnlineStore, tmp_path: Path) -> None:
    """Which knows nothing, and says what it is of."""
    await store.begin(Generation(4, REGISTRY.fingerprint))

    snapshot = await snapshot_of(store, tmp_path)

    assert (len(snapshot), snapshot.look_up([Entity("", "item", "i1")]), snapshot.made.generation) == (0, [None], "g4")


@STORES
@pytest.mark.parametrize("feature_version", [None, "another"])
async def test_a_store_of_no_or_another_registry_makes_none(store: OnlineStore, tmp_path: Path, feature_version: str | None) -> None:
    """And leaves nothing behind."""
    if feature_version:
        await store.begin(Generation(1, feature_version))

    with pytest.raises(GenerationError, match="Fill the store first"):
        await snapshot_of(store, tmp_path)

    assert not (tmp_path / "items.arrow").exists()
