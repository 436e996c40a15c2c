"""Whether the store holds what the feed says: every entity, every window, every counter, counted again by numpy alone.

A run whose counts are wrong has no speed.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import wire
from benchmarks.feed import MODELS, NONE, Feed, Ints
from online_store.keys import Entity, Generation, record_key
from online_store.reading import read
from online_store.record import layouts
from online_store.store import OnlineStore
from schemas.aggregates import COUNTERS, ITEM, MODEL, USER
from schemas.features import Registry

#: Records read at once: what one MGET of a benchmark may bring.
READ_KEYS_MAX = 5_000


async def wrong(store: OnlineStore, registry: Registry, generation: Generation, feed: Feed) -> tuple[int, int]:
    """How many entities were compared, and how many of them the store says something else of."""
    compared = faults = 0
    for kind, layout in layouts(registry).items():
        numbers, place = np.unique(_numbers(feed)[kind], return_inverse=True)
        names = _names(kind, numbers)
        wanted = np.stack([_counted(feed, place, len(numbers), window.span_ms, window.hop_ms) for window in layout.windows], axis=1)
        for start in range(0, len(numbers), READ_KEYS_MAX):
            part = slice(start, start + READ_KEYS_MAX)
            keys = [record_key(generation, Entity("", kind, name)) for name in names[part]]
            found = read(layout, await store.read(keys), feed.as_of_ms)
            faults += int((found.counts != wanted[part]).any(axis=(1, 2)).sum())
        compared += len(numbers)
    return compared, faults


def _numbers(feed: Feed) -> Mapping[str, Ints]:
    return {USER: feed.user, ITEM: feed.item, MODEL: feed.model}


def _names(kind: str, numbers: Ints) -> list[str]:
    if kind == MODEL:
        return [MODELS[number] for number in numbers]
    return wire.texts(wire.user_ids(numbers) if kind == USER else wire.item_ids(numbers))


def _counted(feed: Feed, place: NDArray[np.intp], count: int, span_ms: int, hop_ms: int) -> NDArray[Any]:
    """One window of every entity, int64 [count, COUNTERS]: tiles newer than the newest less as many as the span has."""
    tile = feed.ts_ms // hop_ms
    holds = tile > feed.as_of_ms // hop_ms - span_ms // hop_ms
    has_dwell = holds & (feed.dwell_ms != NONE)
    added = {
        "impressions": holds & ~feed.is_click,
        "clicks": holds & feed.is_click,
        "dwell_count": has_dwell,
        "dwell_sum_ms": np.where(has_dwell, feed.dwell_ms, 0),
    }
    sums = [np.bincount(place, weights=added[counter], minlength=count) for counter in COUNTERS]
    return np.stack(sums, axis=1).astype(np.int64)
