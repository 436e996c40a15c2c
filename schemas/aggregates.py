"""What an event adds to whose counters: the one definition that ingest, replay and training share.

An event becomes updates: a row for the user, the item and the model version it names, each with the event's time and what it
adds to each counter. All sums are integers, so the order of addition cannot matter.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from schemas.columnar.bodies import NONE
from schemas.columnar.events import RECORDS
from schemas.records import Click, Impression

USER, ITEM, MODEL = "user", "item", "model"
#: Kind of entity -> the event field that holds its id; an event without one (null) updates nothing of that kind.
ENTITY_ID = {USER: "user_id", ITEM: "item_id", MODEL: "model_version"}

COUNTERS = ("impressions", "clicks", "dwell_count", "dwell_sum_ms")
IMPRESSIONS, CLICKS, DWELL_COUNT, DWELL_SUM_MS = range(4)
#: One tile of a ring: its number and its counters. An all-zero slot is empty.
TILE = np.dtype(
    [
        ("tile", "<u4"),
        ("impressions", "<u4"),
        ("clicks", "<u4"),
        ("dwell_count", "<u4"),
        ("dwell_sum_ms", "<u8"),
    ]
)

#: How many of a set's members (topic tags, safety labels) a record keeps: later ones are not stored.
SET_HASHES_MAX = 4
#: In the last place of labels: there are more than are kept. Whoever must not miss one has to take each for present.
LABELS_LEFT_OUT = 2**64 - 1
#: Components of an embedding that a record keeps, a byte each; longer ones are folded into as many (online_store/record.py).
EMBEDDING_DIMS = 64
#: The static field of a user that says whether they want to be known by what they did: 1, 0, or missing.
PERSONALIZATION = "personalization"


def adds(record: NDArray[np.uint8], dwell_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    """What each event adds to each counter, int64 [n, COUNTERS]. record: places in columnar.events.RECORDS; dwell_ms: NONE without one."""
    dwelled = dwell_ms != NONE
    said = (record == RECORDS.index(Impression.__name__), record == RECORDS.index(Click.__name__), dwelled, np.where(dwelled, dwell_ms, 0))
    return np.stack([counter.astype(np.int64) for counter in said], axis=1)


@dataclass(slots=True)
class Tiles:
    """What the records of n entities of one kind say as of a moment.

    counts: int64 [n, windows, counters], windows as Registry.windows(kind), counters as schemas.aggregates.COUNTERS.
    statics: one array [n] a static field (hashes, labels: [n, SET_HASHES_MAX], an embedding: [n, EMBEDDING_DIMS]). last_active_ms: int64
    [n], 0 is never. known, removed: bool [n]. exact: bool [n], False where as_of lies further back than the rings hold.
    """

    counts: NDArray[np.int64]
    statics: Mapping[str, NDArray[np.generic]]
    last_active_ms: NDArray[np.int64]
    known: NDArray[np.bool_]
    removed: NDArray[np.bool_]
    exact: NDArray[np.bool_]

    @property
    def is_personalized(self) -> NDArray[np.bool_]:
        """Which users want to be known by what they did, bool [n]; who did not say does."""
        said = self.statics.get(PERSONALIZATION)
        return np.ones(len(self.known), np.bool_) if said is None else said != 0

    def without(self, rows: NDArray[np.int64]) -> "Tiles":
        """The same, of these rows as if there were no record."""
        if not len(rows):
            return self
        counts, last_active_ms, known = self.counts.copy(), self.last_active_ms.copy(), self.known.copy()
        counts[rows], last_active_ms[rows], known[rows] = 0, 0, False
        statics = {name: column.copy() for name, column in self.statics.items()}
        for column in statics.values():
            column[rows] = np.nan if column.dtype.kind == "f" else 0
        return replace(self, counts=counts, statics=statics, last_active_ms=last_active_ms, known=known)
