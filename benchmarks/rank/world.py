"""What requests are ranked on: a store with two weeks behind it, models, and a feed that goes on beside."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import machine, wire
from benchmarks.feed import BEGIN_MS
from benchmarks.memory.fill import Log
from benchmarks.memory.history import DAYS, History
from benchmarks.rank.registries import ITEMS_COLUMNS, THIRTY_TWO
from benchmarks.rank.requests import draw
from benchmarks.results import console
from benchmarks.stack import Stack
from online_store.ingest import Ingest
from online_store.keys import Entity, Generation, guard_key, record_key
from online_store.reading import read
from online_store.record import layouts
from online_store.redis import RedisStore
from ranker import bundle as bundles
from ranker.training.fit import FitSettings, TrainingRows, fit
from schemas.aggregates import ITEM, USER
from schemas.windows import DAY_MS

#: Trees of the two bundles.
TREES, TREES_MANY = 100, 300
#: Requests and candidates of each whose vectors a model is trained on: 40,000 rows let trees of depth 6 fill their leaves.
TRAINING_REQUESTS, TRAINING_CANDIDATES = 400, 100
#: Events a second that ingest takes meanwhile.
FEED_EVENTS_PER_S = 20_000
#: Keys of one read: more would hold the store's one thread for long.
READ_KEYS = 2_000
#: How long one call to the store may take while it is filled (seconds).
STORE_S = 60.0
#: How long a process may take to end by itself (seconds).
STOP_S = 10.0
REGISTRY = "benchmarks.rank.registries:THIRTY_TWO"
GENERATION = Generation(1, THIRTY_TWO.fingerprint)
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class World:
    """users, items: how many there are. models: bundles by their number of trees. prefix: of all topics."""

    stack: Stack
    prefix: str
    users: int
    items: int
    models: dict[int, Path]

    def settings(self, trees: int = TREES, **more: str) -> dict[str, str]:
        """The environment of a `millstream` process of this world."""
        named = {
            "kafka_bootstrap": self.stack.kafka_bootstrap,
            "store_url": self.stack.store_url,
            "topic_prefix": self.prefix,
            "group_id": self.prefix,
            "features": REGISTRY,
            "models_uri": str(self.models[trees]),
            **more,
        }
        return {**os.environ, **{f"MILLSTREAM_{name.upper()}": value for name, value in named.items()}}

    def vectors(self, kind: str, numbers: NDArray[np.int64]) -> Floats:
        """The columns of users or items by their numbers, as of now, float32 [n, columns of that kind]."""
        return asyncio.run(_vectors(self.stack, kind, numbers))


async def fill(stack: Stack, users_count: int, items_count: int, seed: int) -> None:
    """Two weeks that end now, through the product's own ingest: every user comes at least once, every item has its content."""
    store = RedisStore(stack.store_url, THIRTY_TWO, timeout_s=STORE_S)
    log = Log(Ingest(store, THIRTY_TWO))
    shift_ms = time.time_ns() // 1_000_000 - DAYS * DAY_MS - BEGIN_MS
    await log.begin()
    await log.take_content(items_count, BEGIN_MS + shift_ms)
    for number, day in enumerate(History(users_count, items_count, seed).days(), 1):
        await log.take_feed(replace(day, ts_ms=day.ts_ms + shift_ms))
        console.print(f"day {number}/{DAYS} of {users_count:,} users is in the store", highlight=False)
    await store.close()
    # The live feed's log begins at its own offset 0: what was filled in came from none.
    stack.store.delete(*(guard_key(GENERATION, shard) for shard in range(GENERATION.shards)))


async def _vectors(stack: Stack, kind: str, numbers: NDArray[np.int64]) -> Floats:
    store = RedisStore(stack.store_url, THIRTY_TWO, timeout_s=STORE_S)
    names = wire.texts((wire.item_ids if kind == ITEM else wire.user_ids)(numbers))
    keys = [record_key(GENERATION, Entity("", kind, name)) for name in names]
    layout, as_of_ms = layouts(THIRTY_TWO)[kind], time.time_ns() // 1_000_000
    features = [feature for feature in THIRTY_TWO.ranking if feature.kind == kind]
    parts = []
    for start in range(0, len(keys), READ_KEYS):
        tiles = read(layout, await store.read(keys[start : start + READ_KEYS]), as_of_ms)
        parts.append(np.column_stack([THIRTY_TWO.column(feature, tiles, as_of_ms) for feature in features]))
    await store.close()
    return np.concatenate(parts)


def train(world: World, trees_count: int, seed: int) -> None:
    """A bundle of so many trees of depth 6, of rows as requests draw them; what is clicked follows no feed, only all the features."""
    drawn = draw(seed, TRAINING_REQUESTS, TRAINING_CANDIDATES, world.users, world.items)
    items, places = np.unique(drawn.items, return_inverse=True)
    of_items = world.vectors(ITEM, items.astype(np.int64))[places.reshape(-1)]
    of_users = np.repeat(world.vectors(USER, drawn.user), TRAINING_CANDIDATES, axis=0)
    features = np.concatenate([of_items, of_users], axis=1)
    assert of_items.shape[1] == ITEMS_COLUMNS, of_items.shape
    rows = TrainingRows(features, labels(features, seed), np.repeat(np.arange(TRAINING_REQUESTS), TRAINING_CANDIDATES))
    # Measured on the rows it learns from, it never stops early: the bundle has exactly as many trees as it should.
    fitted = fit(rows, validation=rows, settings=FitSettings(trees_count_max=trees_count, patience_rounds=trees_count))
    version = f"trees{trees_count}"
    bundles.save(
        world.models[trees_count] / version,
        fitted=fitted,
        rows_sample=features,
        model_version=version,
        feature_version=THIRTY_TWO.fingerprint,
        feature_names=THIRTY_TWO.feature_names,
        popularity={name: 1 / (place + 1) for place, name in enumerate(wire.texts(wire.item_ids(np.arange(min(world.items, 10_000)))))},
        created_at_ms=time.time_ns() // 1_000_000,
        metrics=fitted.metrics,
    )


def labels(features: Floats, seed: int) -> NDArray[np.bool_]:
    """The upper fifth of a sum of products of columns, each with the next: trees must split on all that vary. bool [n]."""
    random = np.random.default_rng(seed)
    filled = np.nan_to_num(features)
    scaled = (filled - filled.mean(axis=0)) / np.maximum(filled.std(axis=0), 1e-6)
    score = (scaled * np.roll(scaled, 1, axis=1)).clip(-3, 3) @ random.normal(size=features.shape[1])
    score = score + random.normal(scale=score.std(), size=len(score))
    return np.asarray(score > np.quantile(score, 0.8))


@contextmanager
def fed(world: World, cores: set[int]) -> Iterator[subprocess.Popen[bytes]]:
    """Ingest runs at FEED_EVENTS_PER_S, on these cores; the process that feeds it."""
    ingest = [sys.executable, "-m", "compose.processes", "ingest"]
    feed = [sys.executable, "-m", "benchmarks.rank.feed", world.stack.kafka_bootstrap, world.prefix, str(FEED_EVENTS_PER_S)]
    with ExitStack() as closing:
        closing.enter_context(process(world.stack, "ingest", ingest, world.settings(), cores))
        yield closing.enter_context(process(world.stack, "feed", feed, dict(os.environ), cores))


@contextmanager
def process(stack: Stack, name: str, command: list[str], environment: dict[str, str], cores: set[int]) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose log is a file in the stack's folder; ended with the block."""
    with ExitStack() as closing:
        output = closing.enter_context((stack.folder / f"{name}.log").open("ab"))
        with machine.pinned(cores):
            found = subprocess.Popen(command, stdout=output, stderr=output, env=environment)  # noqa: S603  # our own command
        try:
            yield found
        finally:
            _end(found)


def _end(ended: subprocess.Popen[bytes]) -> None:
    """At its own pace first: a ranker that is killed keeps its partitions from the next one for some seconds."""
    ended.terminate()
    try:
        ended.wait(STOP_S)
    except subprocess.TimeoutExpired:
        ended.kill()
        ended.wait()
