"""A small model, a store with a past, and requests: for tests of ranking, with and without Kafka."""

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from online_store.keys import Entity, Generation, Pointer, record_key
from online_store.memory import MemoryStore
from online_store.reading import read
from online_store.record import layouts
from online_store.snapshot.file import Snapshot, load
from online_store.snapshot.take import take
from online_store.store import OnlineStore
from ranker import bundle as bundles
from ranker.budgets import BUDGETS
from ranker.bundle import Bundle
from ranker.rank import Answer, Ranker
from ranker.slate.rules import NO_RULES, Rules
from ranker.training.fit import FitSettings, Fitted, TrainingRows, fit
from schemas import codec
from schemas.errors import StoreAwayError, StoreError
from schemas.features import REGISTRY, Registry
from schemas.records import RankRequest, RankResponse, RankTelemetry
from schemas.topics import CONTENT, RANK_RESPONSES, RANK_TELEMETRY
from tests.worlds import NOW_MS, Log, click, content, impression, replay, user

GENERATION = Generation(1, REGISTRY.fingerprint)
ITEMS = tuple(f"i{number}" for number in range(8))
#: Known to the model's trainer, in an order that no score of ours gives.
POPULAR = {"i3": 0.9, "i1": 0.5}


class Model(NamedTuple):
    """A bundle, and the trainer's own view of it."""

    bundle: Bundle
    fitted: Fitted


class Failing(MemoryStore):
    """A store whose reads, or whose keeping of answers, fail as told: `hang` and `slow` take time, `stand_still` ours, others raise."""

    def __init__(self) -> None:
        super().__init__(REGISTRY)
        self.read_fault: Callable[[], object] | None = None
        self.keep_fault: Callable[[], object] | None = None

    async def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """As MemoryStore.read."""
        await suffer(self.read_fault)
        return await super().read(keys)

    async def pointer(self) -> Pointer | None:
        """As MemoryStore.pointer."""
        await suffer(self.read_fault)
        return await super().pointer()

    async def keep_answers(self, answers: Sequence[tuple[bytes, bytes]], ttl_ms: int) -> list[bytes]:
        """As MemoryStore.keep_answers."""
        await suffer(self.keep_fault)
        return await super().keep_answers(answers, ttl_ms)


async def suffer(fault: Callable[[], object] | None) -> None:
    await asyncio.sleep(0)
    if fault is hang:
        await asyncio.sleep(3_600)
    elif fault is slow:
        await asyncio.sleep(2 * BUDGETS.store_ms / 1000)
    elif fault is stand_still:
        asyncio.get_running_loop().call_soon(time.sleep, 2 * BUDGETS.store_ms / 1000)
        await asyncio.sleep(BUDGETS.store_ms / 10_000)
        for _ in range(5):  # as many rounds of the loop as it takes from a socket to whoever asked
            await asyncio.sleep(0)
    elif fault:
        fault()


def hang() -> None:
    """The server is there and says nothing."""


def slow() -> None:
    """The server answers, but past the budget."""


def stand_still() -> None:
    """The server answers while we do something else until past the budget."""


def away() -> None:
    """The connection is lost."""
    raise StoreAwayError("away")


def spoilt() -> None:
    """A record is none of ours."""
    raise StoreError("not a record")


def trained(folder: Path, registry: Registry = REGISTRY, model_version: str = "m1") -> Model:
    """A small model over a registry's features, saved in a folder of bundles."""
    draw = np.random.default_rng(3)
    features = draw.uniform(0, 20, (400, len(registry.feature_names))).astype(np.float32)
    features[draw.random(features.shape) < 0.2] = np.nan
    labels = np.nan_to_num(features[:, 10]) + np.nan_to_num(features[:, 4]) > 15
    rows = TrainingRows(features, labels, np.repeat(np.arange(40), 10))
    fitted = fit(rows, validation=rows, settings=FitSettings(trees_count_max=30, threads_count=1))
    bundle = bundles.save(
        folder / model_version,
        fitted=fitted,
        rows_sample=features,
        model_version=model_version,
        feature_version=registry.fingerprint,
        feature_names=registry.feature_names,
        popularity=POPULAR,
        created_at_ms=NOW_MS,
        metrics=fitted.metrics,
    )
    return Model(bundle, fitted)


async def fill(store: OnlineStore, now_ms: int = NOW_MS) -> None:
    """Items with different pasts, a user, and i7, which was removed."""
    log = Log()
    for number, item in enumerate(ITEMS):
        log.add(content(item, now_ms, quality_score=number * 2.5, created_at_ms=now_ms - number * 80_000_000))
        for shown in range(number * 2):
            log.add(impression("u1", item, now_ms - shown * 1_000, request_id=f"{item}-{shown}"))
    log.add(click("u1", "i2", now_ms))
    log.add(user("u1", now_ms))
    log.forget(CONTENT.name, b"i7", now_ms + 1)
    log.add(click("u1", "i7", now_ms + 60_000))
    await replay(log, store)


async def snapshot_of(store: OnlineStore, folder: Path, made_at_ms: int = NOW_MS) -> Snapshot:
    """A snapshot of a store as it is now."""
    await take(store, REGISTRY, folder / "items.arrow", made_at_ms, lambda _, __: None)
    return load(folder / "items.arrow", REGISTRY)


async def on(store: OnlineStore, model: Model, rules: Rules = NO_RULES, snapshot: Snapshot | None = None) -> Ranker:
    """A ranker that knows its store's generation."""
    found = Ranker(store, REGISTRY, model.bundle, BUDGETS, rules, snapshot)
    await found.refresh()
    return found


def request(*candidates: str, **rest: object) -> RankRequest:
    fields = {"request_id": "r1", "user_id": "u1", "k": 200, "ts_ms": NOW_MS + 60_000, "deadline_ms": 5_000, **rest}
    return msgspec.convert({"candidate_item_ids": list(candidates or ITEMS), **fields}, RankRequest)


async def ask(ranker: Ranker, *candidates: str, **rest: object) -> RankResponse:
    return response((await answer(ranker, *candidates, **rest)).response)


async def answer(ranker: Ranker, *candidates: str, **rest: object) -> Answer:
    return await ranker.answer(request(*candidates, **rest), time.perf_counter())


def response(encoded: bytes) -> RankResponse:
    found = codec.decode(RANK_RESPONSES, encoded)
    assert isinstance(found, RankResponse)
    return found


def telemetry(given: Answer) -> RankTelemetry:
    found = codec.decode(RANK_TELEMETRY, given.telemetry)
    assert isinstance(found, RankTelemetry)
    return found


def ids(given: RankResponse) -> list[str]:
    return [item.item_id for item in given.ranked_items]


async def matrix(store: OnlineStore, items: Sequence[str], as_of_ms: int, user_id: str = "u1") -> NDArray[np.float32]:
    """What the model should see, from the store's bytes."""
    kinds = layouts(REGISTRY)
    users = await store.read([record_key(GENERATION, Entity("", "user", user_id))])
    raws = await store.read([record_key(GENERATION, Entity("", "item", item)) for item in items])
    return REGISTRY.vector(read(kinds["item"], raws, as_of_ms), read(kinds["user"], users, as_of_ms), {}, as_of_ms)
