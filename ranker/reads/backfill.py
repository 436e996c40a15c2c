"""Items that the store lacks, looked up in a snapshot: what is not there, or not in time, is unknown.

A look-up is a fraction of a millisecond while the file's pages are in memory. Where they are not it waits for the disk, so it has a thread
of its own, and goes on past its time: what it brought into memory is there for the next.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from online_store.keys import Entity
from online_store.snapshot.file import Snapshot, newest
from ranker import metrics
from schemas.errors import SettingsError
from schemas.features import Registry

#: Items that are looked up at once: those of a batch that were found in time count, though others were not. Fewer cost more calls.
LOOK_UP_COUNT = 500


class Backfill:
    """Looks into the newest snapshot."""

    def __init__(self, snapshot: Snapshot, registry: Registry, budget_ms: float) -> None:
        """Knows this one until `refresh`."""
        self._snapshot = snapshot
        self._registry = registry
        self._budget_ms = budget_ms
        # One: look-ups that wait for a slow disk must not hold up each other's callers, nor what else the loop hands to threads.
        self._thread = ThreadPoolExecutor(1, "backfill")

    async def refresh(self) -> None:
        """Go over to the file that took the snapshot's place, if one did; one that does not fit changes nothing.

        It is read and checked in another thread, while look-ups go on in the one before.
        """
        try:
            self._snapshot = await asyncio.to_thread(newest, self._snapshot, self._registry)
        except SettingsError:
            metrics.FALLBACKS.labels("snapshot").inc()

    async def fill(self, entities: Sequence[Entity], raws: list[bytes | None], as_of_ms: NDArray[np.int64]) -> None:
        """Put what the snapshot has into the places of raws where nothing is. as_of_ms: int64 [n], for which moment each is wanted."""
        places = [place for place, raw in enumerate(raws) if raw is None and as_of_ms[place] <= self._snapshot.until_ms]
        if not places:
            return
        with metrics.BACKFILL.time():
            found = await self._look_up([entities[place] for place in places])
        for place, raw in zip(places, found, strict=False):
            raws[place] = raw

    async def _look_up(self, entities: Sequence[Entity]) -> list[bytes | None]:
        """What was found in time: of all entities, or of the first."""
        found: list[bytes | None] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._budget_ms / 1000):
                await asyncio.get_running_loop().run_in_executor(self._thread, self._look_up_all, entities, found)
        in_time = found.copy()
        unknown = in_time.count(None)
        metrics.BACKFILLED.labels("found").inc(len(in_time) - unknown)
        metrics.BACKFILLED.labels("unknown").inc(unknown)
        metrics.BACKFILLED.labels("late").inc(len(entities) - len(in_time))
        return in_time

    def _look_up_all(self, entities: Sequence[Entity], found: list[bytes | None]) -> None:
        for at in range(0, len(entities), LOOK_UP_COUNT):
            found += self._snapshot.look_up(entities[at : at + LOOK_UP_COUNT])
