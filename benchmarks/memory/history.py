"""Two weeks of a feed, a day at a time: who came back how often, and what they were shown.

Each user comes at least once; visits a user are 1 + a lognormal count (median 1.8, sigma 1: a mean of 3.5, a few came a hundred times),
at moments that are uniform over the two weeks. A visit shows PAGE_ITEMS items, Zipf distributed as in benchmarks/feed.py: how many it
shows changes what is counted, not what a user's record takes, and two keep the filling short. 8 % are clicked, 60 % of those with a dwell.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.feed import BEGIN_MS, CLICKS_SHARE, DWELLS_SHARE, MODEL_SHARES, MODELS, NONE, Feed, Ints, pages_of_items
from schemas.windows import DAY_MS

DAYS = 14
PAGE_ITEMS = 2


@dataclass(frozen=True, slots=True)
class History:
    """users_count, items_count: who there is. seed: two histories of one seed are equal."""

    users_count: int
    items_count: int
    seed: int

    def days(self) -> Iterator[Feed]:
        """A feed a day, oldest first."""
        random = np.random.default_rng(self.seed)
        visits = 1 + random.lognormal(0.6, 1.0, self.users_count).astype(np.int64)
        user = np.repeat(np.arange(self.users_count), visits)
        ts_ms = BEGIN_MS + random.integers(0, DAYS * DAY_MS, len(user))
        day = (ts_ms - BEGIN_MS) // DAY_MS
        for number in range(DAYS):
            today = np.flatnonzero(day == number)
            today = today[np.argsort(ts_ms[today], kind="stable")]
            yield self._day(random, today, user[today], ts_ms[today])

    def _day(self, random: np.random.Generator, request: Ints, user: Ints, ts_ms: Ints) -> Feed:
        """The events of a day's visits: their impressions, then the clicks, which reach their own topic."""
        item = pages_of_items(random, len(request), PAGE_ITEMS, self.items_count).reshape(-1)
        shown = np.repeat(np.arange(len(request)), PAGE_ITEMS)
        clicked = np.flatnonzero(random.random(len(shown)) < CLICKS_SHARE)
        visit = np.concatenate([shown, shown[clicked]])
        dwell_ms = np.full(len(visit), NONE)
        read = len(shown) + np.flatnonzero(random.random(len(clicked)) < DWELLS_SHARE)
        dwell_ms[read] = random.integers(500, 120_000, len(read))
        position = np.concatenate([np.tile(np.arange(PAGE_ITEMS), len(request)), np.full(len(clicked), NONE)])
        return Feed(
            self.seed,
            user=user[visit],
            item=np.concatenate([item, item[clicked]]),
            request=request[visit],
            model=random.choice(len(MODELS), len(request), p=MODEL_SHARES)[visit],
            surface=np.zeros(len(visit), dtype=np.int64),
            ts_ms=ts_ms[visit],
            position=position,
            dwell_ms=dwell_ms,
        )
