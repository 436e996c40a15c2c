"""What a batch of requests must know, in one read of the store: its users, and those items that were not read just now.

Requests that arrive together share a read, and an item that several want is read once. Reads follow one another: what one brought is near
when the next begins, so that nothing is being read twice.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from online_store.keys import Entity, Generation, record_key
from online_store.reading import read
from online_store.record import layouts
from online_store.snapshot.file import Snapshot
from online_store.store import OnlineStore
from ranker import encode, metrics
from ranker.budgets import Budgets
from ranker.reads.backfill import Backfill
from ranker.reads.breaker import Breaker
from ranker.reads.near import NEAR_MS, NOWHERE, STALE_MS_MAX, Columns, Near
from ranker.slate.slate import Viewer
from schemas.aggregates import IMPRESSIONS, ITEM, USER, Tiles
from schemas.errors import StoreAwayError
from schemas.features import Registry
from schemas.records import RankRequest

#: A read that lost its connection is tried once more, after up to this (milliseconds): a restart closed it, and the next may hold.
RETRY_MS_MAX = 3
#: A read that is given up this many times later than it should be says that this process stood still, not the store.
LATE = 2

#: Encoded offsets of a store of which nothing is known.
NOTHING_APPLIED = encode.offsets({})

Ints = NDArray[np.int64]
#: The fact that is what the model made of an item's features.
FOLDED = "folded"
#: (tenant, item_id, which stretch of NEAR_MS its moment lies in).
Wanted = tuple[str, str, int]


class Asked(NamedTuple):
    """Who a request ranks. item_ids: the candidates, each once."""

    request: RankRequest
    item_ids: list[str]


class Read(NamedTuple):
    """What n candidates of r requests say, request by request.

    items: of the candidates; starts: int64 [r + 1], where each request's begin. users: float32 [r, user features]; viewers: who they are.
    stale_ms: float64 [r], how old the oldest of a request's entries was that came from the near cache. new_ids: items that were read for
    this; new: what they say. applied: encoded offsets, what stands before them is in all of this.
    """

    items: Columns
    starts: Ints
    users: NDArray[np.float32]
    viewers: list[Viewer]
    stale_ms: NDArray[np.float64]
    new_ids: list[str]
    new: Columns
    applied: bytes = NOTHING_APPLIED


class Reader:
    """Reads for rankers of one store and one registry."""

    def __init__(
        self,
        store: OnlineStore,
        registry: Registry,
        budgets: Budgets,
        fold: Callable[[NDArray[np.float32]], NDArray[np.uint64] | None],
        facts: Iterable[str],
        snapshot: Snapshot | None,
    ) -> None:
        """Nothing is read before the first call. fold: what a model makes of items' features beforehand, None where it makes nothing.

        facts: what a slate looks at of an item. snapshot: of items that the store may have lost.
        """
        self._fold = fold
        self._facts = tuple(facts)
        self._store = store
        self._budgets = budgets
        self._registry = registry
        self._layouts = layouts(registry)
        self._near = Near()
        self._applied = self._applied_before = NOTHING_APPLIED
        self._breaker = Breaker()
        self._backfill = None if snapshot is None else Backfill(snapshot, registry, budgets.backfill_ms)
        self._unknown = self.columns(read(self._layouts[ITEM], [None], 0), np.zeros(1, np.int64))
        self._nobody = registry.columns(USER, read(self._layouts[USER], [None], 0), 0)[0]

    def columns(self, tiles: Tiles, as_of_ms: Ints) -> Columns:
        """Items as they are scored and ordered."""
        said = {**tiles.statics, "removed": tiles.removed}
        if tiles.counts.shape[1]:
            said["impressions"] = tiles.counts[:, -1, IMPRESSIONS]
        facts = {name: said[name] for name in self._facts if name in said}
        vectors = self._registry.columns(ITEM, tiles, as_of_ms)
        folded = self._fold(vectors)
        return Columns(vectors, facts if folded is None else facts | {FOLDED: folded})

    def forget(self) -> None:
        """Another generation is current. What is being read of the one before is not kept either."""
        self._near = Near()
        self._applied = self._applied_before = NOTHING_APPLIED

    async def look(self, generation: Generation) -> None:
        """See once a second what the store has applied, and whether there is a newer snapshot. Raises StoreError.

        What is near was read up to NEAR_MS ago, so only what was applied at the look before this one is in all that is read from now on.
        """
        if self._backfill:
            await self._backfill.refresh()
        found = encode.offsets(await self._store.applied(generation))
        self._applied_before, self._applied = self._applied, found

    @property
    def is_store_away(self) -> bool:
        """Whether the store is left alone."""
        return self._breaker.is_open

    async def read(self, generation: Generation, batch: Sequence[Asked]) -> Read:
        """Read for a batch. Raises TimeoutError past the store's budget, StoreError where it does not answer or is left alone."""
        now_s, budget_s = time.monotonic(), self._budgets.store_ms / 1000
        if not self._breaker.allows(now_s):
            raise StoreAwayError(f"the store failed {self._breaker.failures} times in a row and is left alone for a while")
        try:
            found = await self._read(generation, batch, now_s * 1000)
        except TimeoutError:
            metrics.OVER_BUDGET.labels("store").inc()
            if time.monotonic() - now_s < LATE * budget_s:
                self._breaker.failed(time.monotonic())
            self._breaker.probing = False
            raise
        except StoreAwayError:
            self._breaker.failed(time.monotonic())
            raise
        except BaseException:
            self._breaker.probing = False
            raise
        self._breaker.succeeded()
        return found

    def stale(self, asked: Asked) -> Read | None:
        """What is known of a request's candidates without the store; None where it is of less than half of them."""
        places, ages = self._standing([asked], time.monotonic() * 1000)
        known = ages <= STALE_MS_MAX
        if 2 * known.sum() < len(places):
            return None
        return self._alone(self._known(places, known), ages[known].max(keepdims=True))

    def unknown(self, count: int) -> Read:
        """What is known of nobody's request for so many items that nobody saw."""
        return self._alone(self._unknown.take(np.zeros(count, np.int64)), np.zeros(1))

    def _alone(self, items: Columns, stale_ms: NDArray[np.float64]) -> Read:
        """One request, of nobody, for which nothing was read."""
        starts = np.array([0, len(items)], np.int64)
        return Read(items, starts, self._nobody[None, :], [Viewer()], stale_ms, [], self._unknown.take(starts[:0]))

    def remembered(self, asked: Asked) -> Columns:
        """What the near cache says of a request's candidates, however old; of others what is said of an unknown item."""
        places = self._near.find(asked.request.tenant, asked.item_ids)
        return self._known(places, places != NOWHERE)

    def _known(self, places: Ints, known: NDArray[np.bool_]) -> Columns:
        """Items from the near cache, where they are known there."""
        items = self._unknown.take(np.zeros(len(places), np.int64))
        if known.any():
            _put(items, known, self._near.take(places[known]))
        return items

    async def _read(self, generation: Generation, batch: Sequence[Asked], now_ms: float) -> Read:
        places, ages = self._standing(batch, now_ms)
        applied = self._applied_before
        starts = np.cumsum([0, *(len(asked.item_ids) for asked in batch)])
        near = ages <= NEAR_MS
        items = self._known(places, near)
        missing = np.flatnonzero(~near)
        wanted = _wanted(batch, starts, missing)
        firsts: dict[Wanted, int] = {}
        for want, ts_ms in wanted:
            firsts.setdefault(want, ts_ms)
        users, viewers, found = await self._fetch(generation, batch, firsts, now_ms)
        if wanted:
            place_of = {want: place for place, want in enumerate(firsts)}
            _put(items, missing, found.take(np.array([place_of[want] for want, _ in wanted], np.int64)))
        stale_ms = np.maximum.reduceat(np.where(near, ages, 0.0), starts[:-1])
        return Read(items, starts, users, viewers, stale_ms, [item_id for _, item_id, _ in firsts], found, applied)

    def _standing(self, batch: Sequence[Asked], now_ms: float) -> tuple[Ints, NDArray[np.float64]]:
        """Where all candidates stand in the near cache, and how old they are there."""
        places = np.concatenate([self._near.find(asked.request.tenant, asked.item_ids) for asked in batch])
        moments = np.repeat([asked.request.ts_ms for asked in batch], [len(asked.item_ids) for asked in batch])
        return places, self._near.ages(places, now_ms, moments)

    async def _fetch(
        self, generation: Generation, batch: Sequence[Asked], wanted: Mapping[Wanted, int], now_ms: float
    ) -> tuple[NDArray[np.float32], list[Viewer], Columns]:
        """The users' features, who they are, and what is wanted as of the first moment that it is wanted for, which is near from now on."""
        users = [Entity(asked.request.tenant, USER, asked.request.user_id) for asked in batch]
        items = [Entity(tenant, ITEM, item_id) for tenant, item_id, _ in wanted]
        near = self._near
        raws = await self._values([record_key(generation, entity) for entity in (*users, *items)])
        of_users, of_items = raws[: len(users)], raws[len(users) :]
        moments = np.array([asked.request.ts_ms for asked in batch], np.int64)
        said = read(self._layouts[USER], of_users, moments)
        known = self._registry.columns(USER, said, moments)
        moments = np.array(list(wanted.values()), np.int64)
        if self._backfill:
            await self._backfill.fill(items, of_items, moments)
        found = self.columns(read(self._layouts[ITEM], of_items, moments), moments)
        near.put([(tenant, item_id) for tenant, item_id, _ in wanted], found, now_ms, moments)
        return known, _viewers(said), found

    async def _values(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """What stands under keys; asked once more where the connection was lost at once. Raises TimeoutError past the budget."""
        async with asyncio.timeout(self._budgets.store_ms / 1000):
            try:
                return await self._store.read(keys)
            except StoreAwayError:
                await asyncio.sleep(random.uniform(0, RETRY_MS_MAX) / 1000)  # noqa: S311  # spreads load, keeps no secret
                return await self._store.read(keys)


def _viewers(users: Tiles) -> list[Viewer]:
    markets = users.statics.get("market")
    known = [0] * len(users.known) if markets is None else markets.tolist()
    return list(map(Viewer, known, users.is_personalized.tolist()))


def _wanted(batch: Sequence[Asked], starts: Ints, missing: Ints) -> list[tuple[Wanted, int]]:
    """What to read for each candidate that is not near, and as of when. missing: int64 [m], ascending."""
    found: list[tuple[Wanted, int]] = []
    ends = np.searchsorted(missing, starts).tolist()
    for number, asked in enumerate(batch):
        tenant, ts_ms, first = asked.request.tenant, asked.request.ts_ms, int(starts[number])
        places = missing[ends[number] : ends[number + 1]].tolist()
        found += [((tenant, asked.item_ids[place - first], ts_ms // NEAR_MS), ts_ms) for place in places]
    return found


def _put(items: Columns, where: NDArray[np.bool_] | Ints, found: Columns) -> None:
    """Write what was found over some items."""
    items.vectors[where] = found.vectors
    for name, column in found.facts.items():
        items.facts[name][where] = column
