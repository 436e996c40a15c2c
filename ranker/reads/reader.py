"""What a batch of requests must know, in one read of the store: its users, and those items that were not read just now.

Requests that arrive together share a read, and an item that several want is read once. Reads follow one another: what one brought is near
when the next begins, so that nothing is being read twice. A read that is late is not waited for, but what it brings is near, too.
"""

import contextlib
import functools
import time
from collections.abc import Iterable, Sequence
from itertools import accumulate, compress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from online_store.keys import Generation, Names, entity_named, keys_of
from online_store.reading import read
from online_store.record import layouts
from online_store.snapshot.file import Snapshot
from online_store.store import OnlineStore
from ranker import encode, metrics
from ranker.budgets import Budgets
from ranker.reads.asking import ask
from ranker.reads.backfill import Backfill
from ranker.reads.breaker import Breaker
from ranker.reads.lacking import lacking
from ranker.reads.near import NEAR_MS, STALE_MS_MAX, Ints, Near, Rows, names_of, whole
from ranker.slate.slate import Viewer
from schemas.aggregates import IMPRESSIONS, ITEM, USER, Tiles
from schemas.errors import StoreAwayError, StoreError
from schemas.features import Registry
from schemas.records import RankRequest

#: A read that is given up this many times later than it should be says that this process stood still, not the store.
STOOD_STILL = 2

#: Encoded offsets of a store of which nothing is known.
NOTHING_APPLIED = encode.offsets({})

#: What stands in an item's row besides facts: its features.
VECTOR = "vector"


class Asked(NamedTuple):
    """Who a request ranks. item_ids: the candidates, each once."""

    request: RankRequest
    item_ids: list[str]


def asked_of(request: RankRequest) -> Asked:
    """What a checked request asks for. Nearly none names a candidate twice, and a set says so in half the time that a dict takes."""
    item_ids = request.candidate_item_ids
    return Asked(request, item_ids if len(set(item_ids)) == len(item_ids) else list(dict.fromkeys(item_ids)))


class Read(NamedTuple):
    """What n candidates of r requests say, request by request.

    names: of the candidates. items: of them, VECTOR and the facts that a slate wants. places: int64 [n], where each one's is near. starts:
    int64 [r + 1], where each request's begin. users: float32 [r, user features]; viewers: who they are. stale_ms: int64 [r], how old the
    oldest of a request's entries was that came from the near cache. applied: encoded offsets, what stands before them is in all of this.
    """

    names: Names
    items: Rows
    places: Ints
    starts: Ints
    users: NDArray[np.float32]
    viewers: list[Viewer]
    stale_ms: Ints
    applied: bytes = NOTHING_APPLIED


class Lack(NamedTuple):
    """Items to be read, for `near`. wanted, as_of_ms: int64 [w], which of the names, and as of when. read_ms: by the clock."""

    near: Near
    names: Names
    wanted: Ints
    as_of_ms: Ints
    read_ms: int


class Reader:
    """Reads for rankers of one store and one registry."""

    def __init__(
        self,
        store: OnlineStore,
        registry: Registry,
        budgets: Budgets,
        facts: Iterable[str],
        snapshot: Snapshot | None,
    ) -> None:
        """Nothing is read before the first call.

        facts: what a slate looks at of an item. snapshot: of items that the store may have lost.
        """
        self._facts = tuple(facts)
        self._store = store
        self._budgets = budgets
        self._registry = registry
        self._layouts = layouts(registry)
        self._applied = self._applied_before = NOTHING_APPLIED
        self._breaker = Breaker()
        self._backfill = None if snapshot is None else Backfill(snapshot, registry, budgets.backfill_ms)
        nothing, now_ms = read(self._layouts[ITEM], [None], 0), np.zeros(1, np.int64)
        said = self._said(nothing, now_ms).items()
        self._dtype = np.dtype([(name, column.dtype, column.shape[1:]) for name, column in said], align=True)
        self._unknown = self.rows(nothing, now_ms)
        self._near = Near(self._unknown)
        self._nobody = registry.columns(USER, read(self._layouts[USER], [None], 0), 0)[0]
        self._compile()

    def _compile(self) -> None:
        """Run once what a read runs through beside the store: compiling takes a process seconds, and a request has none of them."""
        names, starts, moments = names_of([("", ["nothing"])]), np.array([0, 1], np.int64), np.zeros(1, np.int64)
        near = Near(self._unknown)
        ages, _ = near.take(names, 0, moments, NEAR_MS, np.empty(1, self._dtype))
        near.places(names)
        _, wanted, _, _ = lacking(names, starts, moments, ages, NEAR_MS)
        keys_of(Generation(1, self._registry.fingerprint), [(USER, names, wanted), (ITEM, names, wanted)])
        near.put(names, wanted, self.rows(read(self._layouts[ITEM], [None], moments), moments), 0, moments)

    def rows(self, tiles: Tiles, as_of_ms: Ints) -> Rows:
        """Items as they are scored and ordered."""
        found = np.empty(len(tiles.known), self._dtype)
        for name, column in self._said(tiles, as_of_ms).items():
            found[name] = column
        return found

    def _said(self, tiles: Tiles, as_of_ms: Ints) -> dict[str, NDArray[Any]]:
        """What stands in rows, by name, one array [n, ...] each."""
        vectors = self._registry.columns(ITEM, tiles, as_of_ms)
        facts: dict[str, NDArray[Any]] = {**tiles.statics, "removed": tiles.removed}
        if tiles.counts.shape[1]:
            facts["impressions"] = tiles.counts[:, -1, IMPRESSIONS]
        return {VECTOR: vectors} | {name: facts[name] for name in self._facts if name in facts}

    def forget(self) -> None:
        """Another generation is current. What is being read of the one before is not kept either."""
        self._near = Near(self._unknown)
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
            found = await self._read(generation, batch, int(now_s * 1000))
        except TimeoutError:
            metrics.OVER_BUDGET.labels("store").inc()
            if time.monotonic() - now_s < STOOD_STILL * budget_s:
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

    def stale(self, batch: Sequence[Asked]) -> tuple[list[bool], Read]:
        """Of which requests half of the candidates or more are known without the store, and what is known of those requests."""
        names, items, ages, places, counts = self._known(batch)
        known, firsts = ages <= STALE_MS_MAX, np.cumsum(counts) - counts
        is_known = 2 * np.add.reduceat(known, firsts, dtype=np.int64) >= counts
        stale_ms = np.maximum.reduceat(np.where(known, ages, 0), firsts)
        wanted = is_known.repeat(counts)
        if not all(is_known):
            names = _names(list(compress(batch, is_known)))
        return is_known.tolist(), self._nobodys(names, items[wanted], places[wanted], counts[is_known], stale_ms[is_known])

    def unknown(self, asked: Asked) -> Read:
        """What is known of nobody's request for items that nobody saw."""
        count = len(asked.item_ids)
        return self._nobodys(
            _names([asked]), self._unknown.repeat(count), np.zeros(count, np.int64), np.array([count]), np.zeros(1, np.int64)
        )

    def _nobodys(self, names: Names, items: Rows, places: Ints, counts: Ints, stale_ms: Ints) -> Read:
        """Requests of nobody, of so many items each, for which nothing was read."""
        starts = np.concatenate(([0], np.cumsum(counts)))
        users, viewers = np.repeat(self._nobody[None, :], len(counts), axis=0), [Viewer()] * len(counts)
        return Read(names, items, places, starts, users, viewers, stale_ms)

    def remembered(self, batch: Sequence[Asked]) -> tuple[Names, Rows, Ints]:
        """The candidates' names, all that is near, however old, and which row of it each one's is: where nothing is, an unknown item's."""
        names = _names(batch)
        return names, self._near.rows, self._near.places(names)

    def _known(self, batch: Sequence[Asked]) -> tuple[Names, Rows, Ints, Ints, Ints]:
        """Candidates: names; rows from the near cache, what is too old or not there as unknown; ages; places; of each request how many."""
        counts = np.array([len(asked.item_ids) for asked in batch], np.int64)
        moments = np.array([asked.request.ts_ms for asked in batch], np.int64).repeat(counts)
        items, names = np.empty(len(moments), self._dtype), _names(batch)
        return names, items, *self._near.take(names, int(time.monotonic() * 1000), moments, STALE_MS_MAX, items), counts

    async def _read(self, generation: Generation, batch: Sequence[Asked], now_ms: int) -> Read:
        counts = [len(asked.item_ids) for asked in batch]
        starts = np.array([0, *accumulate(counts)], np.int64)
        of_users = np.array([asked.request.ts_ms for asked in batch], np.int64)
        moments, names = of_users.repeat(counts), _names(batch)
        items, near, applied = np.empty(len(moments), self._dtype), self._near, self._applied_before
        ages, places = near.take(names, now_ms, moments, NEAR_MS, items)
        rows, wanted, of, stale_ms = lacking(names, starts, moments, ages, NEAR_MS)
        lack = Lack(near, names, wanted, moments[wanted], now_ms)
        raws = await self._fetch(generation, batch, lack)
        users = read(self._layouts[USER], raws[: len(batch)], of_users)
        of_items = raws[len(batch) :]
        if self._backfill:
            await self._backfill.fill([entity_named(ITEM, name) for name in names.of(wanted)], of_items, lack.as_of_ms)
        found, found_places = self._put(lack, of_items)
        whole(items)[rows], places[rows] = whole(found)[of], found_places[of]
        return Read(names, items, places, starts, self._registry.columns(USER, users, of_users), _viewers(users), stale_ms, applied)

    async def _fetch(self, generation: Generation, batch: Sequence[Asked], lack: Lack) -> list[bytes | None]:
        """The records of the batch's users, and behind them those of the items that it lacks. Raises TimeoutError past the budget."""
        users = names_of([(asked.request.tenant, [asked.request.user_id]) for asked in batch])
        keys = keys_of(generation, [(USER, users, np.arange(len(batch))), (ITEM, lack.names, lack.wanted)])
        return await ask(self._store, keys, self._budgets.store_ms / 1000, functools.partial(self._take_late, lack, len(batch)))

    def _take_late(self, lack: Lack, users_count: int, found: Sequence[bytes | None]) -> None:
        """Keep what came past the budget. What is not in the store may be in the snapshot, which there is no time for: it stays unread."""
        self._breaker.answered_late()
        of_items = found[users_count:]
        there = np.array([row for row, raw in enumerate(of_items) if raw is not None], np.int64)
        with contextlib.suppress(StoreError):  # whoever reads that record in time is told
            self._put(lack._replace(wanted=lack.wanted[there], as_of_ms=lack.as_of_ms[there]), [raw for raw in of_items if raw is not None])

    def _put(self, lack: Lack, raws: Sequence[bytes | None]) -> tuple[Rows, Ints]:
        """What records say of the items, which is near from now on, and where, int64 [w]."""
        found = self.rows(read(self._layouts[ITEM], raws, lack.as_of_ms), lack.as_of_ms)
        return found, lack.near.put(lack.names, lack.wanted, found, lack.read_ms, lack.as_of_ms)


def _names(batch: Sequence[Asked]) -> Names:
    """Of all candidates, request by request."""
    return names_of([(asked.request.tenant, asked.item_ids) for asked in batch])


def _viewers(users: Tiles) -> list[Viewer]:
    markets = users.statics.get("market")
    known = [0] * len(users.known) if markets is None else markets.tolist()
    return list(map(Viewer, known, users.is_personalized.tolist()))
