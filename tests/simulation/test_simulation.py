"""Counts are exact under faults: the real worker, ingest and memory store, in virtual time, by seeds."""

import asyncio
import random

import pytest

from online_store.memory import MemoryStore
from schemas.features import REGISTRY
from tests.simulation.__main__ import failure, main
from tests.simulation.clock import StalledError, run_virtual
from tests.simulation.faults import FAULTS, script
from tests.simulation.run import run
from tests.simulation.store import mixed, restored, state
from tests.worlds import Log, dump, impression, replay

#: Seeds of every test run; 10,000 are played by `make simulate-nightly`. Parts of a test each, so that a failure names few seeds.
SEEDS_COUNT, PARTS_COUNT = 200, 10


@pytest.mark.parametrize("part", range(PARTS_COUNT))
def test_every_count_is_the_oracles_after_any_faults(part: int) -> None:
    """Entities, windows, dwell sums, statics, dead letters and their bytes; no write with an old guard is accepted."""
    found = [run(seed) for seed in range(part, SEEDS_COUNT, PARTS_COUNT)]

    assert [failure(outcome) for outcome in found if outcome.wrong] == []


def test_one_seed_is_one_run() -> None:
    """Played again it tells the same, down to what was delivered twice and how long a loss took to heal."""
    assert run(2) == run(2)


def test_two_seeds_are_two_runs() -> None:
    """Or 10,000 of them would prove no more than one."""
    assert run(2).story != run(5).story


def test_a_run_of_each_fault_is_among_a_few_seeds() -> None:
    """None of them is only a name."""
    found = {name for seed in range(200) for name in run_script(seed)}

    assert found == set(FAULTS)


def run_script(seed: int) -> set[str]:
    """The faults that a seed draws."""
    return {name for _, name in script(random.Random(seed), 1.0)}


def test_the_command_tells_which_seeds_it_played(capsys: pytest.CaptureFixture[str]) -> None:
    """As one line of JSON, the last."""
    code = main(["--seeds", "3:5", "--json"])

    assert (code, '"seeds": "3:5"' in capsys.readouterr().out.splitlines()[-1]) == (0, True)


async def filled() -> MemoryStore:
    """A store with records on several shards."""
    log, store = Log(), MemoryStore(REGISTRY)
    for number in range(20):
        log.add(impression(f"u{number}", request_id=f"r{number}"))
    await replay(log, store)
    return store


async def test_a_store_is_restored_as_it_was() -> None:
    """Its records and its guards, whatever was written after it was looked at."""
    store = await filled()
    then, before = state(store), await dump(store)
    await store.clear()

    assert await dump(restored(then)) == before


async def test_shards_that_lost_nothing_keep_their_records() -> None:
    """A node that fails takes its own shards back, not those of others."""
    store = await filled()
    generation = await store.current()
    assert generation is not None
    half = set(range(32))

    left = await dump(restored(mixed(state(store), {}, half)))

    assert left == {key: value for key, value in (await dump(store)).items() if int(key.split(b"{g1.")[1].split(b"}")[0]) not in half}


def test_time_passes_without_waiting() -> None:
    """A day is over at once."""

    async def sleep() -> float:
        await asyncio.sleep(86_400)
        return asyncio.get_running_loop().time()

    assert run_virtual(sleep()) == pytest.approx(86_400)


def test_a_wait_without_end_is_an_error() -> None:
    """Not a test that hangs."""

    async def wait() -> None:
        await asyncio.Event().wait()

    with pytest.raises(StalledError):
        run_virtual(wait())
