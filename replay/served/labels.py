"""What came of what was served: clicks and dwell, joined by tenant, request and item inside the attribution window.

Held as columns of numbers, some 30 bytes an event, so that a month of events fits where its strings would not.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.columnar.bodies import NONE
from schemas.columnar.events import RECORDS, Events
from schemas.columnar.repeats import IDENTITY, named
from schemas.records import Click, Impression
from schemas.windows import ATTRIBUTION_MS

#: Who read for so long, all visits of the window together, meant it (milliseconds): a long view.
LONG_VIEW_MS = 30_000

Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]


class Outcome(NamedTuple):
    """What came of n served items. shown: whether somebody saw it, or acted on it. dwell_ms: all of it. Each [n], dwell_ms int64."""

    shown: NDArray[np.bool_]
    clicked: NDArray[np.bool_]
    dwell_ms: Ints

    @property
    def long_view(self) -> NDArray[np.bool_]:
        """Whether it was read for LONG_VIEW_MS or more, bool [n]."""
        found: NDArray[np.bool_] = self.dwell_ms >= LONG_VIEW_MS
        return found

    def where(self, wanted: NDArray[np.bool_]) -> "Outcome":
        """Of some of them. wanted: bool [n]."""
        return Outcome(self.shown[wanted], self.clicked[wanted], self.dwell_ms[wanted])


@dataclass
class Labels:
    """Impressions and acts of a log. attribution_ms: how long after its request an act counts."""

    attribution_ms: int = ATTRIBUTION_MS
    _shown: list[Hashes] = field(default_factory=list)
    _acts: list[tuple[Hashes, Ints, Ints, NDArray[np.bool_]]] = field(default_factory=list)

    def add(self, events: Events) -> None:
        """Remember a batch's, repeats already dropped."""
        names = named(events.text, np.stack([events.word(name) for name in IDENTITY]))
        shown = events.record == RECORDS.index(Impression.__name__)
        self._shown.append(names[shown])
        dwell_ms = events.number("dwell_ms")
        clicked = events.record == RECORDS.index(Click.__name__)
        acts = (names, events.number("ts_ms"), np.where(dwell_ms == NONE, 0, dwell_ms), clicked)
        self._acts.append(tuple(column[~shown] for column in acts))

    def sort(self) -> None:
        """Make ready to be asked, once all is added."""
        self._shown = [np.unique(np.concatenate([*self._shown, np.zeros(0, np.uint64)]))]
        nothing = (np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.bool_))
        columns = [np.concatenate(parts) for parts in zip(*self._acts, nothing, strict=True)]
        order = np.argsort(columns[0], kind="stable")
        self._acts = [tuple(column[order] for column in columns)]  # type: ignore[list-item]  # four columns, four columns

    def of(self, names: Hashes, moments_ms: Ints) -> Outcome:
        """What came of served items. names: uint64 [n], what names each, by IDENTITY. moments_ms: int64 [n], their requests' moments."""
        hashes, ts_ms, dwell_ms, clicked = self._acts[0]
        first, stop = np.searchsorted(hashes, names), np.searchsorted(hashes, names, "right")
        row = np.repeat(np.arange(len(names)), stop - first)
        act = np.arange(len(row)) - np.repeat(np.cumsum(stop - first) - (stop - first), stop - first) + np.repeat(first, stop - first)
        after_ms = ts_ms[act] - moments_ms[row]
        inside = (after_ms >= 0) & (after_ms < self.attribution_ms)
        row, act = row[inside], act[inside]
        clicks, dwelled = np.zeros(len(names), np.int64), np.zeros(len(names), np.int64)
        np.add.at(clicks, row, clicked[act])
        np.add.at(dwelled, row, dwell_ms[act])
        acted = np.bincount(row, minlength=len(names)) > 0
        places = np.minimum(np.searchsorted(self._shown[0], names), len(self._shown[0]) - 1)
        shown = self._shown[0][places] == names if len(self._shown[0]) else np.zeros(len(names), np.bool_)
        return Outcome(shown | acted, clicks > 0, dwelled)
