"""Rank requests as a feed asks them: any of its users, candidates as popular as its items, no two requests alike.

Candidates are drawn one after the other by Zipf's law with exponent 1, what is drawn twice is drawn again: popular items stand in
most requests, as in benchmarks/feed.py, which is what a cache of decoded records lives on.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks import wire
from schemas.records import RankRequest

#: Places of a feed's page: what a request asks back.
PAGE_ITEMS = 10
#: Draws for each candidate wanted: of 100,000 items, so many bring 300 different ones but once in a great while.
DRAWS_PER_CANDIDATE = 2
#: Requests whose candidates are drawn at once: bounds the memory that drawing takes.
BLOCK_ROWS = 4_096


@dataclass(frozen=True, slots=True)
class Requests:
    """seed: of the run, part of each request_id. user: int64 [n], numbers of users. items: int32 [n, candidates], of items."""

    seed: int
    user: NDArray[np.int64]
    items: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.user)

    def records(self, k: int, ts_ms: int) -> Iterator[RankRequest]:
        """The requests as of one moment. k: items to return."""
        names = np.array(wire.texts(wire.item_ids(np.arange(int(self.items.max()) + 1))), dtype=object)
        users = wire.texts(wire.user_ids(self.user))
        request_ids = wire.texts(wire.request_ids(np.arange(len(self)), self.seed))
        for row, (user_id, request_id) in enumerate(zip(users, request_ids, strict=True)):
            candidates = names[self.items[row]].tolist()
            yield RankRequest(request_id=request_id, user_id=user_id, candidate_item_ids=candidates, k=k, ts_ms=ts_ms)


def draw(seed: int, requests_count: int, candidates_count: int, users_count: int, items_count: int) -> Requests:
    """So many requests of so many candidates each, none twice in a request. Requests of one seed are equal."""
    random = np.random.default_rng(seed)
    heights = np.cumsum(1 / np.arange(1, items_count + 1))
    items = np.empty((requests_count, candidates_count), dtype=np.int32)
    for start in range(0, requests_count, BLOCK_ROWS):
        rows = items[start : start + BLOCK_ROWS]
        drawn = _drawn(random, heights, (len(rows), DRAWS_PER_CANDIDATE * candidates_count))
        for row, numbers in zip(rows, drawn.tolist(), strict=True):
            row[:] = _different(random, heights, numbers, candidates_count)
    return Requests(seed, random.integers(0, users_count, requests_count), items)


def _drawn(random: np.random.Generator, heights: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.int64]:
    found: NDArray[np.int64] = np.searchsorted(heights, random.random(shape) * heights[-1], side="right")
    return found


def _different(random: np.random.Generator, heights: NDArray[np.float64], numbers: list[int], count: int) -> list[int]:
    """The first so many different ones, drawing more while there are fewer."""
    found = dict.fromkeys(numbers)
    while len(found) < count:
        found |= dict.fromkeys(_drawn(random, heights, (count,)).tolist())
    return list(found)[:count]
