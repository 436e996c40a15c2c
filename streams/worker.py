"""What happens to a batch in a live worker, and when a worker must go back or give up.

A batch is taken only if it was fetched from where the last one ended. Faust restarts a crashed agent with the *next* message, a
rebalance leaves fetched batches behind, the store may come back without what it acknowledged: in each case the batch does not
fit, and the partition is read again from where the guards stand. When another generation becomes current, the worker goes over to it
between two batches. A worker that cannot go on stops, and its process exits non-zero.
"""

import asyncio
import functools
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

from online_store.ingest import Ingest
from online_store.sources.decoded import Decoded
from schemas.errors import LogError, StoreAwayError
from schemas.topics import Batch, Source
from streams import dead_letters, metrics
from streams.transport import App

#: How long a worker waits for a store that does not answer (seconds) before it exits and leaves the waiting to its supervisor.
#: It must end before Faust's broker_request_timeout (90 s): past that Faust gives up an assignment and stays alive, reading nothing.
STORE_PATIENCE_S = 60.0
#: Pauses between tries at the store (seconds); the last one repeats.
STORE_PAUSES_S = (0.05, 0.1, 0.2, 0.5, 1.0)
#: How long a new assignment waits for batches under way (seconds): longer than a batch takes, shorter than anybody minds.
FINISH_S = 1.0

T = TypeVar("T")

log = logging.getLogger("millstream.ingest")


class Worker:
    """Takes batches to the store."""

    def __init__(self, app: App, ingest: Ingest) -> None:
        """For one app and one store. events_count, repeats_count, bad_count: what was new of what was taken."""
        self.app = app
        self.ingest = ingest
        self._positions: dict[Source, int] = {}
        self._rewinding: dict[Source, int] = {}
        self._overdue: dict[Source, int] = {}
        self._locks: dict[Source, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._placing = asyncio.Lock()
        self.events_count = self.repeats_count = self.bad_count = 0

    async def assign(self, sources: Sequence[Source]) -> Mapping[Source, int]:
        """Where to read newly assigned sources from, as their guards say.

        Raises LogError where a guard stands past the end of its source.
        """
        async with self._placing:
            await self._finish(sources)
            self._positions = await self._place(sources)
            self._rewinding.clear()
            metrics.LAG.clear()
            return dict(self._positions)

    async def _place(self, sources: Sequence[Source]) -> dict[Source, int]:
        positions = await _patiently(lambda: self.ingest.positions(sources))
        # Guards first, then the ends, which only grow: other workers go on meanwhile.
        guards = {source: self.ingest.lowest_guard(source) for source in sources}
        ends = await self.app.ends(sources)
        _check_ends(guards, ends)
        for source, end in ends.items():
            await _patiently(functools.partial(self.ingest.send_again, source, end))
        return positions

    async def follow(self) -> None:
        """Go over to the generation that is current, if that is another one than it was: no batch is under way meanwhile.

        Of a source whose guards there are past us nothing is read again.
        """
        if not await _patiently(self.ingest.is_left):
            return
        async with self._placing, self._held(list(self._locks)):
            generation = await _patiently(self.ingest.switch)
            for source, offset in (await self._place(list(self._positions))).items():
                if offset != self._positions[source]:
                    self._positions[source] = offset
                    self._rewind(source, offset, "generation")
        log.info("generation %s is current: ingest has gone over to it", generation.name)

    async def _finish(self, sources: Sequence[Source]) -> None:
        """Let batches under way end: of a source that stays here nothing has to be read again then."""
        try:
            async with asyncio.timeout(FINISH_S):
                for source in sources:
                    async with self._locks[source]:
                        pass
        except TimeoutError:
            log.info("batches were under way for longer than %s s at a new assignment: their sources are read again", FINISH_S)

    async def take(self, batch: Batch) -> None:
        """Apply a batch that follows the last one; drop any other and read its source again from where it should have begun."""
        async with self._locks[batch.source]:
            position = self._positions.get(batch.source)
            if position == batch.start:
                await self._take(batch)
            elif position is not None:
                self._rewind(batch.source, position, "gap")
        self.app.done(batch.source)

    async def check_guards(self) -> None:
        """Go back on every source whose guards stand behind us: a store that lost writes is healed though nothing new arrives.

        What was asked for and did not come since the last look is asked for again: it may have been lost on the way as well.
        """
        await self._look_after(self.ingest.check)
        for source, offset in self._rewinding.items():
            if self._overdue.get(source) == offset:
                self.app.rewind(source, offset)
        self._overdue = dict(self._rewinding)

    async def settle(self) -> None:
        """Let the guards of shards without rows catch up, so that a restart does not read far back."""
        await self._look_after(self._settle)

    async def _settle(self, sources: Sequence[Source]) -> dict[Source, int]:
        await self.ingest.keep_sent(sources)
        return await self.ingest.settle(sources)

    async def lag(self) -> int | None:
        """How many records of our sources are not applied yet; None while that is not known. Raises LogError."""
        positions = dict(self._positions)
        if not positions:
            return None
        ends = await self.app.ends(list(positions))
        return sum(max(end - positions[source], 0) for source, end in ends.items())

    async def observe_lag(self) -> None:
        """Tell how far each source is behind, though nothing is fetched: a store that stands still holds up everything else."""
        try:
            ends = await self.app.ends(list(self._positions))
        except LogError as error:
            log.info("the lag is not known now: %s", error)
            return
        for source, end in ends.items():
            if source in self._positions:
                metrics.observe_lag(end, source, max(self._positions[source], self.ingest.lowest_guard(source)))

    async def _look_after(self, ask: Callable[[Sequence[Source]], Awaitable[Mapping[Source, int]]]) -> None:
        """Ask where sources are to be read on from, and go back if that is behind us: idle ones in one call, each busy one in its turn."""
        busy = [source for source in self._positions if self._locks[source].locked()]
        idle = [source for source in self._positions if source not in busy]
        for sources in filter(None, [idle, *([source] for source in busy)]):
            async with self._held(sources):
                before = {source: self._positions[source] for source in sources if source in self._positions}
                for source, found in (await _patiently(functools.partial(ask, list(before)))).items():
                    if found < before[source]:
                        self._positions[source] = found
                        self._rewind(source, found, "guard")

    @asynccontextmanager
    async def _held(self, sources: Sequence[Source]) -> AsyncIterator[None]:
        """No batch of these sources is under way meanwhile. All who want several take them in one order, or they could wait in a ring."""
        async with AsyncExitStack() as held:
            for source in sorted(sources):
                await held.enter_async_context(self._locks[source])
            yield

    async def _take(self, batch: Batch) -> None:
        source = batch.source
        self._rewinding.pop(source, None)
        following = await self._apply(batch)
        self._positions[source] = following
        if following < batch.following:
            self._rewind(source, following, "guard")
        metrics.observe_lag(self.app.end_offset(source), source, max(following, self.ingest.lowest_guard(source)))

    async def _apply(self, batch: Batch) -> int:
        with metrics.stage("decode"):
            decoded = self.ingest.decode(batch)
        with metrics.stage("dead_letters"):
            await dead_letters.send(self.app, decoded.bad)
            self.ingest.sent(decoded)
        with metrics.stage("apply"):
            source = batch.source
            following = (await _patiently(lambda: self.ingest.apply([decoded]), lambda: self.ingest.progress(source)))[source]
        self._observe(decoded)
        return following

    def _observe(self, decoded: Decoded) -> None:
        """Count what was new: a stretch that is read to know repeats again was counted before."""
        batch = decoded.batch
        self.events_count += decoded.good_count
        self.repeats_count += decoded.repeats_count
        self.bad_count += decoded.bad_count
        metrics.EVENTS.labels(batch.source.topic).inc(decoded.good_count)
        metrics.REPEATS.labels(batch.source.topic).inc(decoded.repeats_count)
        if decoded.good_count:
            metrics.FRESHNESS.observe(max(time.time() - batch.records[-1].timestamp / 1000, 0))

    def _rewind(self, source: Source, offset: int, reason: str) -> None:
        """Ask for a source from an offset, once: batches already under way will not fit either."""
        if self._rewinding.get(source) != offset:
            self._rewinding[source] = offset
            metrics.REWINDS.labels(source.topic, reason).inc()
            self.app.rewind(source, offset)


def _check_ends(guards: Mapping[Source, int], ends: Mapping[Source, int]) -> None:
    """Raise LogError where a log ends before its guard: what is new in it would be taken for what was applied."""
    for source, end in ends.items():
        if end < guards[source]:
            raise LogError(
                f"{source} ends at offset {end}, and the store has applied it up to {guards[source]}: the topic was made anew, or lost its "
                "end, while the store still counts the old one. Rebuild into a new generation from the log that is there."
            )


async def _patiently(call: Callable[[], Awaitable[T]], progress: Callable[[], int] = lambda: 0) -> T:
    """Call the store again while it does not answer. Raises StoreAwayError when patience ends; patience begins anew with all progress."""
    loop = asyncio.get_running_loop()
    deadline, done = loop.time() + STORE_PATIENCE_S, progress()
    pauses = iter(STORE_PAUSES_S)
    while True:
        try:
            return await call()
        except StoreAwayError:
            if progress() != done:
                deadline, done = loop.time() + STORE_PATIENCE_S, progress()
            if loop.time() > deadline:
                raise
        await asyncio.sleep(next(pauses, STORE_PAUSES_S[-1]))
