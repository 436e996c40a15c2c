"""Items read lately, as the model and the slate want them: popular ones are in every request, and need not be read for each.

An entry holds for NEAR_MS: against the clock, for what the store says may have changed, and against the moment that a request asks about,
for windows and ages move on. Past that it only serves while the store is away.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

#: How old an entry may be that is served as if it were read now (milliseconds). Longer saves reads of the store; shorter shows a removed
#: item, or a click, sooner.
NEAR_MS = 500
#: Entries (some 400 bytes each with the default registry, and 8 a tree of the model). With fewer than the items in demand the store is
#: read for each of them again.
NEAR_COUNT_MAX = 100_000
#: How old an entry may be that is served while the store is away (milliseconds): older than a quarter of an hour, popularity says as much.
STALE_MS_MAX = 900_000
NOWHERE = -1


@dataclass(slots=True)
class Columns:
    """n items. vectors: float32 [n, item features], as scored. facts: whatever else a slate wants, one array [n, ...] a name."""

    vectors: NDArray[np.float32]
    facts: dict[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.vectors)

    def take(self, places: Ints) -> "Columns":
        """Some of them."""
        return Columns(self.vectors[places], {name: column[places] for name, column in self.facts.items()})


@dataclass(slots=True)
class Near:
    """At most `count_max` items; the ones that came first go first."""

    count_max: int = NEAR_COUNT_MAX
    #: By tenant, then by item: a lookup by both at once would make a tuple for each candidate.
    _places: dict[str, dict[str, int]] = field(default_factory=dict)
    _ids: list[tuple[str, str]] = field(default_factory=list)
    _next: int = 0
    _columns: Columns | None = None
    _read_ms: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    _as_of_ms: Ints = field(default_factory=lambda: np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self._ids)

    def find(self, tenant: str, item_ids: Sequence[str]) -> Ints:
        """Where items stand, int64 [n], NOWHERE for those that are not here; holds until the next `put`."""
        return np.fromiter(map(self._places.get(tenant, {}).get, item_ids, itertools.repeat(NOWHERE)), np.int64, len(item_ids))

    def ages(self, places: Ints, now_ms: float, as_of_ms: Ints) -> NDArray[np.float64]:
        """How old entries are, by the clock or against each one's moment, whichever is more: float64 [n], infinite for NOWHERE."""
        if not len(self):
            return np.full(len(places), np.inf)
        ages = np.maximum(now_ms - self._read_ms[places], np.abs(as_of_ms - self._as_of_ms[places]))
        return np.where(places == NOWHERE, np.inf, ages)

    def take(self, places: Ints) -> Columns:
        """What entries hold. places: of entries that are here."""
        assert self._columns is not None, "nothing was put here"
        return self._columns.take(places)

    def put(self, ids: Sequence[tuple[str, str]], columns: Columns, now_ms: float, as_of_ms: Ints) -> None:
        """Keep what was read. ids: (tenant, item_id) [n]; now_ms: by the clock of `ages`; as_of_ms: int64 [n]."""
        if self._columns is None:
            self._begin(columns)
        assert self._columns is not None
        places = np.fromiter(map(self._place, ids), np.int64, len(ids))
        self._columns.vectors[places] = columns.vectors
        for name, column in columns.facts.items():
            self._columns.facts[name][places] = column
        self._read_ms[places], self._as_of_ms[places] = now_ms, as_of_ms

    def _begin(self, columns: Columns) -> None:
        def room(like: NDArray[Any]) -> NDArray[Any]:
            return np.zeros((self.count_max, *like.shape[1:]), like.dtype)

        self._columns = Columns(room(columns.vectors), {name: room(column) for name, column in columns.facts.items()})
        self._read_ms, self._as_of_ms = np.zeros(self.count_max), np.zeros(self.count_max, np.int64)

    def _place(self, of: tuple[str, str]) -> int:
        tenant, item_id = of
        place = self._places.get(tenant, {}).get(item_id, NOWHERE)
        if place != NOWHERE:
            return place
        place = self._next
        self._next = (place + 1) % self.count_max
        if place < len(self._ids):
            old_tenant, old_id = self._ids[place]
            del self._places[old_tenant][old_id]
            if not self._places[old_tenant]:
                del self._places[old_tenant]
            self._ids[place] = of
        else:
            self._ids.append(of)
        self._places.setdefault(tenant, {})[item_id] = place
        return place
