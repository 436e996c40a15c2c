"""The feed that benchmarks drive the platform with, as columns; benchmarks/wire.py turns them into what producers send.

Pages of ten impressions a user, 8 % of the impressions clicked, 60 % of the clicks with a dwell. Users come back at random (each page
is one of USERS_COUNT users, all alike: the hardest case, for few batches see a user twice). Items are Zipf distributed: item n is drawn
with a weight of 1 / n, and a page never shows an item twice, so the first of 100,000 has 6 % of the impressions. Event time moves on by
EVENTS_PER_S. Two feeds of one seed are equal.
"""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

PAGE_ITEMS = 10
CLICKS_SHARE = 0.08
DWELLS_SHARE = 0.6
USERS_COUNT = 1_000_000
ITEMS_COUNT = 100_000
PARTITIONS_COUNT = 8
#: Events of one second of event time: a million users who open ten pages a day each.
EVENTS_PER_S = 1_250
#: Where event time begins (2025-01-01 06:00 UTC): history for every machine, so no broker refuses it as ahead of its clock.
BEGIN_MS = 1_735_711_200_000
#: Who chose the items of a page, and how often.
MODELS = ("ctr-2024-12-19", "ctr-2024-12-27")
MODEL_SHARES = (0.9, 0.1)
SURFACES = ("home", "for-you", "following", "search")
#: A hot feed's first item stands in three of a page's ten places, each in a request of its own: a request shows an item once.
HOT_PLACES = (0, 3, 6)
#: No impression, no click: "no position", "no dwell".
NONE = -1

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Feed:
    """Events in the order in which they are sent, int64 [n] each.

    user, item, request, model, surface: numbers that stand for ids and names. position: NONE for a click. dwell_ms: NONE without one.
    """

    seed: int
    user: Ints
    item: Ints
    request: Ints
    model: Ints
    surface: Ints
    ts_ms: Ints
    position: Ints
    dwell_ms: Ints

    def __len__(self) -> int:
        return len(self.user)

    def rows(self, start: int, stop: int) -> "Feed":
        """Some of the events, as a feed."""
        columns = {column.name: getattr(self, column.name)[start:stop] for column in fields(self) if column.name != "seed"}
        return Feed(self.seed, **columns)

    def take(self, rows: Ints) -> "Feed":
        """The events of these rows, as a feed."""
        return Feed(self.seed, **{column.name: getattr(self, column.name)[rows] for column in fields(self) if column.name != "seed"})

    @property
    def is_click(self) -> NDArray[np.bool_]:
        """Which events are clicks; the others are impressions."""
        clicks: NDArray[np.bool_] = self.position == NONE
        return clicks

    @property
    def partition(self) -> Ints:
        """Of its topic, by user: int64 [n]."""
        return (mixed(self.user) % np.uint64(PARTITIONS_COUNT)).astype(np.int64)

    @property
    def as_of_ms(self) -> int:
        """The moment of the newest event."""
        return int(self.ts_ms.max())


def make(events_count: int, seed: int = 1, *, hot: bool = False, begin_ms: int = BEGIN_MS, events_per_s: float = EVENTS_PER_S) -> Feed:
    """A feed of so many events. hot: one item draws 30 % of all, on pages of three requests each."""
    random = np.random.default_rng(seed)
    pages_count = round(events_count / (PAGE_ITEMS * (1 + CLICKS_SHARE)))
    shown_count = pages_count * PAGE_ITEMS
    page = np.repeat(np.arange(pages_count), PAGE_ITEMS)
    position = np.tile(np.arange(PAGE_ITEMS), pages_count)
    span_ms = events_count * 1000 / events_per_s
    page_ms = begin_ms + np.sort(random.integers(0, int(span_ms), pages_count))
    item = pages_of_items(random, pages_count, hot=hot).reshape(-1)
    clicked = np.sort(random.choice(shown_count, events_count - shown_count, replace=False))
    clicked_ms = page_ms[page[clicked]] + random.exponential(20_000, len(clicked)).astype(np.int64)
    dwell_ms = random.lognormal(np.log(25_000), 1.0, len(clicked)).clip(500, 3_600_000).astype(np.int64)
    dwell_ms[random.random(len(clicked)) >= DWELLS_SHARE] = NONE
    request = page * 3 + np.minimum(position // 3, 2) if hot else page
    shown = np.concatenate([np.arange(shown_count), clicked])
    ts_ms = np.concatenate([page_ms[page], clicked_ms])
    order = np.argsort(ts_ms, kind="stable")
    of_event, of_page = shown[order], page[shown[order]]
    return Feed(
        seed,
        user=random.integers(0, USERS_COUNT, pages_count)[of_page],
        item=item[of_event],
        request=request[of_event],
        model=random.choice(len(MODELS), pages_count, p=MODEL_SHARES)[of_page],
        surface=random.integers(0, len(SURFACES), pages_count)[of_page],
        ts_ms=ts_ms[order],
        position=np.concatenate([position, np.full(len(clicked), NONE)])[order],
        dwell_ms=np.concatenate([np.full(shown_count, NONE), dwell_ms])[order],
    )


def mixed(numbers: Ints) -> NDArray[np.uint64]:
    """Numbers scattered over 64 bits, each to another one (splitmix64's finalizer, Steele et al. 2014)."""
    z = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def pages_of_items(
    random: np.random.Generator, pages_count: int, page_items: int = PAGE_ITEMS, items_count: int = ITEMS_COUNT, *, hot: bool = False
) -> Ints:
    """Items of pages, int64 [pages, page_items], none twice on a page but the hot one."""
    weights = 1 / np.arange(1, items_count + 1)
    weights[0] = 0 if hot else 1
    heights = np.cumsum(weights / weights.sum())
    items = np.searchsorted(heights, random.random((pages_count, page_items)) * heights[-1], side="right")
    while (again := _repeated(items)).any():
        items[again] = np.searchsorted(heights, random.random(int(again.sum())) * heights[-1], side="right")
    if hot:
        items[:, list(HOT_PLACES)] = 0
    return np.asarray(items, dtype=np.int64)


def _repeated(items: Ints) -> NDArray[np.bool_]:
    """Where a page shows an item that it has shown before, bool, as items."""
    repeated = np.zeros(items.shape, dtype=np.bool_)
    for place in range(1, items.shape[1]):
        repeated[:, place] = (items[:, :place] == items[:, place : place + 1]).any(axis=1)
    return repeated
