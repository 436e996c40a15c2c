"""Parity on a real store while two workers write to both generations: lag is no difference, and a fault is."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import pytest

from online_store.ingest import Ingest
from online_store.keys import Generation
from online_store.redis import RedisStore
from online_store.store import OnlineStore
from replay.parity.compare import Question, compare
from replay.parity.report import report
from replay.parity.side import Side
from schemas.features import REGISTRY
from tests.worlds import NOW_MS, Log, click, content, impression, take

FIRST, SECOND = Generation(1, REGISTRY.fingerprint), Generation(2, REGISTRY.fingerprint)
#: Who is in every batch, so that they always change.
HOT = "u0"


@pytest.fixture
async def store(store_db: str) -> AsyncIterator[RedisStore]:
    """An empty store with two generations registered."""
    found = RedisStore(store_db, REGISTRY)
    for generation in (FIRST, SECOND):
        await found.register(generation, REGISTRY)
    yield found
    await found.close()


def grow(log: Log, random: random.Random, count: int) -> None:
    """A page of impressions, some clicked, and sometimes content anew."""
    for _ in range(count):
        user_id = random.choice([HOT, f"u{random.randrange(300)}"])
        item_id, request_id = f"i{random.randrange(60)}", f"r{random.random()}"
        log.add(impression(user_id, item_id, NOW_MS, request_id=request_id, model_version="m1"), partition=random.randrange(2))
        if random.random() < 0.2:
            log.add(click(user_id, item_id, NOW_MS, request_id=request_id, dwell_ms=random.randrange(9_000)), partition=random.randrange(2))
        if random.random() < 0.05:
            log.add(content(item_id, NOW_MS + random.randrange(99), quality_score=random.random()))


async def catch_up(log: Log, ingest: Ingest, rows_max: int) -> None:
    """Apply what there is."""
    places = await ingest.positions(log.sources)
    for source in log.sources:
        while found := log.fetch(source, places[source], rows_max):
            places[source] = await take(ingest, found)
        await ingest.settle([source])


async def live(log: Log, store: OnlineStore, random: random.Random) -> None:
    """Traffic without end: the second generation follows the first in batches of its own."""
    first, second = Ingest(store, REGISTRY, target=FIRST), Ingest(store, REGISTRY, target=SECOND)
    while True:
        grow(log, random, 30)
        await catch_up(log, first, 50)
        await asyncio.sleep(0.02)
        await catch_up(log, second, 7)


async def compared(log: Log, store: OnlineStore, draw: random.Random) -> dict[str, object]:
    """The report, made while traffic goes on."""
    traffic = asyncio.create_task(live(log, store, draw))
    await asyncio.sleep(0.5)
    sides, question = [Side(FIRST, REGISTRY), Side(SECOND, REGISTRY)], Question(NOW_MS, sources=log.sources)
    found = await compare(store, sides[0], sides[1], question, lambda _: None)
    traffic.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await traffic
    return report(sides[0], sides[1], question, NOW_MS, found)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_generations_that_follow_one_log_are_the_same_under_traffic(store: RedisStore, seed: int) -> None:
    """Though one is behind the other at every moment, and somebody changes with every batch."""
    log, draw = Log(), random.Random(seed)
    grow(log, draw, 500)
    for generation in (FIRST, SECOND):
        await catch_up(log, Ingest(store, REGISTRY, target=generation), 1_000)
    said = await compared(log, store, draw)

    off = [line for line in said["features"] if line["mismatch"] + line["missing"] + line["extra"]]  # type: ignore[attr-defined]  # as JSON
    assert (said["passed"], off) == (True, [])


async def test_a_record_that_is_wrong_is_found_under_traffic(store: RedisStore) -> None:
    """Of somebody who changes all the time: the second has what the first had at no moment."""
    log, draw = Log(), random.Random(4)
    grow(log, draw, 500)
    for generation in (FIRST, SECOND):
        await catch_up(log, Ingest(store, REGISTRY, target=generation), 1_000)
    wrong = Log()
    for number in range(400):
        wrong.add(impression(HOT, "i1", NOW_MS, request_id=f"wrong{number}"), partition=7)
    await catch_up(wrong, Ingest(store, REGISTRY, target=SECOND), 1_000)
    said = await compared(log, store, draw)

    off = {(line["name"], worst["id"]) for line in said["features"] for worst in line["worst"]}  # type: ignore[attr-defined]  # as JSON
    assert (said["passed"], ("user_impressions_7d", HOT) in off) == (False, True)
