"""How a ranker goes over to another registry and model: nobody waits for it, and each answer names what it was made with."""

import asyncio
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from online_store.keys import Entity, Generation, Pointer
from online_store.memory import MemoryStore
from online_store.snapshot.file import Snapshot
from online_store.view import describe
from ranker import metrics
from ranker.budgets import Budgets
from ranker.bundle import Bundle
from ranker.rank import Ranker
from schemas.errors import BundleError
from schemas.features import FEATURES, REGISTRY, STATICS, Registry, ctr
from schemas.records import Degraded, RankResponse
from schemas.windows import HOUR_MS, MINUTE_MS, Window
from tests.rankers import Failing, answer, ask, away, fill, response, telemetry, trained
from tests.worlds import NOW_MS

GROWN = Registry((*FEATURES, ctr("ctr_3h", "item", Window("3h", 3 * HOUR_MS, 15 * MINUTE_MS))), STATICS)
FIRST, SECOND = Generation(1, REGISTRY.fingerprint), Generation(2, GROWN.fingerprint)
BY_FIRST, BY_SECOND = ("g1", REGISTRY.fingerprint, "m1"), ("g2", GROWN.fingerprint, "m2")


class Models(NamedTuple):
    """Bundles by version, and whether they may be loaded now."""

    bundles: dict[str, Bundle]
    may_load: threading.Event

    def find(self, registry: Registry, model_version: str) -> tuple[Bundle, Snapshot | None]:
        """As ranker.served.current.Find."""
        self.may_load.wait()
        for version, bundle in self.bundles.items():
            if model_version in ("", version) and bundle.manifest.feature_version == registry.fingerprint:
                return bundle, None
        raise BundleError("none")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """One of each registry, and another one of the first."""
    folder: Path = tmp_path_factory.mktemp("models")
    made = [trained(folder), trained(folder, GROWN, "m2"), trained(folder, REGISTRY, "m3")]
    return {model.bundle.manifest.model_version: model.bundle for model in made}


@pytest.fixture
def models(bundles: dict[str, Bundle]) -> Models:
    """All of them, to be had at once."""
    found = Models(dict(bundles), threading.Event())
    found.may_load.set()
    return found


@pytest.fixture
async def store() -> Failing:
    """Two generations with the same past, the first one current."""
    found = Failing()
    await fill(found)
    await found.register(SECOND, GROWN)
    await point(found, SECOND)
    await fill(found)
    await point(found, FIRST)
    return found


@pytest.fixture
async def ranker(store: Failing, models: Models) -> Ranker:
    """A ranker of the first generation."""
    found = Ranker(store, REGISTRY, models.bundles["m1"], Budgets(store_ms=4_000, total_ms=8_000), find=models.find)
    await found.refresh()
    return found


async def point(store: MemoryStore, generation: Generation, model_version: str = "") -> None:
    seen = await store.pointer()
    assert await store.point(seen, Pointer(generation.number, generation.feature_version, generation.shards, model_version))


def made_by(given: RankResponse) -> tuple[str, str, str]:
    return given.generation, given.feature_version, given.model_version


async def test_another_registry_is_served_by_its_own_model(ranker: Ranker, store: Failing) -> None:
    """With vectors of its own features, from its own records, and nothing falls back."""
    await point(store, SECOND)
    await ranker.refresh()
    told = await answer(ranker)
    given = response(told.response)
    vectors = {len(np.frombuffer(item.vector, "<f4")) for item in telemetry(told).items}

    assert (made_by(given), given.degraded, vectors) == (BY_SECOND, Degraded.NONE, {len(GROWN.feature_names)})


async def test_the_way_back_is_the_same(ranker: Ranker, store: Failing) -> None:
    """To the first generation and its newest model, with the answers of before."""
    before = await ask(ranker, request_id="before")
    for generation in (SECOND, FIRST):
        await point(store, generation)
        await ranker.refresh()
    after = await ask(ranker, request_id="after")

    assert (after.model_version, after.feature_version, after.generation, after.degraded) == (
        "m1",
        REGISTRY.fingerprint,
        "g1",
        Degraded.NONE,
    )
    assert after.ranked_items == before.ranked_items


async def test_a_model_may_be_switched_alone(ranker: Ranker, store: Failing) -> None:
    """By the pointer: the records stay as they are."""
    await point(store, FIRST, "m3")
    await ranker.refresh()

    assert made_by(await ask(ranker)) == ("g1", REGISTRY.fingerprint, "m3")


async def test_a_request_under_way_is_ended_by_what_it_was_begun_with(ranker: Ranker, store: Failing) -> None:
    """It was read from the first generation before the switch, and is scored by that model behind it."""
    held = asyncio.Event()
    read = store.read

    async def slowly(keys: list[bytes]) -> list[bytes | None]:
        found = await read(keys)
        await held.wait()
        return found

    store.read = slowly  # type: ignore[assignment,method-assign]  # a store that takes its time
    asking = asyncio.create_task(answer(ranker))
    await asyncio.sleep(0.01)
    store.read = read  # type: ignore[method-assign]  # as it was
    await point(store, SECOND)
    await ranker.refresh()
    held.set()
    told, after = await asking, made_by(await ask(ranker, request_id="after"))
    vectors = {len(np.frombuffer(item.vector, "<f4")) for item in telemetry(told).items}

    given = response(told.response)
    assert (made_by(given), given.degraded, vectors, after) == (BY_FIRST, Degraded.NONE, {len(REGISTRY.feature_names)}, BY_SECOND)


async def test_nobody_waits_for_a_model_that_is_being_loaded(ranker: Ranker, store: Failing, models: Models) -> None:
    """Until it is ready, requests are answered in full from the generation before."""
    models.may_load.clear()
    await point(store, SECOND)
    going = asyncio.create_task(ranker.refresh())
    await asyncio.sleep(0.05)
    meanwhile = await ask(ranker, request_id="meanwhile")
    models.may_load.set()
    await going

    assert (made_by(meanwhile), meanwhile.degraded, made_by(await ask(ranker))) == (BY_FIRST, Degraded.NONE, BY_SECOND)


async def test_what_is_popular_is_near_when_it_begins_to_serve(ranker: Ranker, store: Failing) -> None:
    """The first requests by another model find it read of the other generation, as after a start."""
    await point(store, SECOND)
    await ranker.refresh()
    store.read_fault = away
    now_ms = time.time_ns() // 1_000_000

    assert (await ask(ranker, "i1", "i3", ts_ms=now_ms)).degraded == Degraded.STALE


async def test_without_a_model_for_it_the_generation_before_is_served(ranker: Ranker, store: Failing, models: Models) -> None:
    """It is counted, and once there is one it is found."""
    held = models.bundles.pop("m2")
    await point(store, SECOND)
    counted = metrics.FALLBACKS.labels("switch")._value.get()  # noqa: SLF001  # no other way to read one
    await ranker.refresh()
    counted = metrics.FALLBACKS.labels("switch")._value.get() - counted  # noqa: SLF001  # as above
    before = await ask(ranker, request_id="before")
    models.bundles["m2"] = held
    await ranker.refresh()

    assert (counted, made_by(before), before.degraded, made_by(await ask(ranker))) == (1, BY_FIRST, Degraded.NONE, BY_SECOND)


async def test_a_generation_that_is_not_registered_is_not_served(ranker: Ranker, store: Failing) -> None:
    """Nobody knows how its records are laid out."""
    await point(store, Generation(3, "another"))
    await ranker.refresh()
    given = await ask(ranker)

    assert (made_by(given), given.degraded) == (BY_FIRST, Degraded.NONE)


async def test_what_is_known_of_an_entity_is_told_by_the_current_registry(store: Failing) -> None:
    """Whatever registry the one who asks was started with."""
    before = await describe(store, REGISTRY, Entity("", "item", "i3"), NOW_MS)
    await point(store, SECOND)
    after = await describe(store, REGISTRY, Entity("", "item", "i3"), NOW_MS)

    assert ("3h" in before["windows"], after["windows"]["3h"]["impressions"], after["feature_version"]) == (False, 6, GROWN.fingerprint)
