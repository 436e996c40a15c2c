"""What was deleted from a real store is ranked from the file that `millstream replay backfill-snapshot` made."""

import asyncio
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import redis

from compose import cli
from online_store.keys import Entity, record_key
from online_store.redis import RedisStore
from online_store.snapshot.file import load
from ranker.budgets import Budgets
from schemas.features import REGISTRY
from schemas.records import RankedItem
from tests.rankers import GENERATION, ITEMS, Model, answer, fill, on, response, telemetry, trained

EVICTED = ("i2", "i5")
#: Of requests: the answer to one is kept in the store.
NUMBERS = itertools.count()


class Served(NamedTuple):
    """How a request was ranked, and the vectors that the model was shown."""

    slate: list[RankedItem]
    vectors: dict[str, bytes]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A small model over the default registry's features."""
    return trained(tmp_path_factory.mktemp("models"))


@pytest.fixture
def store_url(store_db: str) -> str:
    """A store with a past."""
    asyncio.run(_fill(store_db))
    return store_db


async def _fill(url: str) -> None:
    store = RedisStore(url, REGISTRY)
    await fill(store)
    await store.close()


def snapshot(url: str, file: Path) -> int:
    """The verb's exit code."""
    return cli.main(["replay", "backfill-snapshot", "--json", "--store-url", url, "--snapshot-file", str(file)])


def evict(url: str) -> None:
    """Delete some items' records."""
    with redis.Redis.from_url(url) as client:
        assert client.delete(*(record_key(GENERATION, Entity("", "item", item)) for item in EVICTED)) == len(EVICTED)


def served(url: str, model: Model, file: Path | None = None, *candidates: str) -> Served:
    """A request answered by a new ranker."""
    return asyncio.run(_served(url, model, file, *candidates))


async def _served(url: str, model: Model, file: Path | None, *candidates: str) -> Served:
    store = RedisStore(url, REGISTRY)
    ranker = await on(store, model, snapshot=load(file, REGISTRY) if file else None)
    given = await answer(ranker, *candidates, request_id=f"r{next(NUMBERS)}")
    await store.close()
    return Served(response(given.response).ranked_items, {item.item_id: item.vector for item in telemetry(given).items})


def test_an_evicted_item_is_ranked_as_before(store_url: str, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same slate with the same scores, of vectors that are the same bytes."""
    monkeypatch.setattr("tests.rankers.BUDGETS", Budgets(backfill_ms=3_000, total_ms=5_000))
    before = served(store_url, model)
    assert snapshot(store_url, tmp_path / "items.arrow") == 0
    evict(store_url)

    assert served(store_url, model, tmp_path / "items.arrow") == before


def test_without_a_snapshot_an_evicted_item_is_unknown(store_url: str, model: Model) -> None:
    """It is scored as an item that never was."""
    evict(store_url)
    found = served(store_url, model, None, *EVICTED, "x").vectors

    assert {found[item] for item in EVICTED} == {found["x"]}


def test_the_verb_tells_what_it_wrote(store_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As one line of JSON."""
    file = tmp_path / "snapshots" / "items.arrow"
    code = snapshot(store_url, file)
    told = json.loads(capsys.readouterr().out)

    assert (code, told.pop("seconds") >= 0, told) == (0, True, {"records": len(ITEMS), "bytes": file.stat().st_size, "file": str(file)})


def test_the_verb_wants_a_file(store_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody guesses where it should go."""
    code = cli.main(["replay", "backfill-snapshot", "--store-url", store_url])

    assert (code, "snapshot_file is not set" in capsys.readouterr().err) == (2, True)


def test_a_snapshot_is_taken_anew_until_the_verb_is_told_to_stop(store_url: str, tmp_path: Path) -> None:
    """Each takes the place of the one before as a whole; SIGTERM is no fault."""
    file = tmp_path / "items.arrow"
    verb = [sys.executable, "-m", "compose.processes", "replay", "backfill-snapshot", "--every", "0.1", "--json"]
    process = subprocess.Popen([*verb, "--store-url", store_url, "--snapshot-file", str(file)], stdout=subprocess.PIPE, text=True)  # noqa: S603  # ours
    made: set[int] = set()
    until_s = time.monotonic() + 60
    while len(made) < 3 and time.monotonic() < until_s:
        if file.exists():
            made.add(load(file, REGISTRY).made.made_at_ms)
        time.sleep(0.02)
    process.terminate()
    told = json.loads(process.communicate(timeout=60)[0])

    assert (len(made), process.returncode, told["records"], [path.name for path in tmp_path.iterdir()]) == (3, 0, len(ITEMS), [file.name])
