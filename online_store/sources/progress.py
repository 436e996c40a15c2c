"""How far the reading of one source has come, and what a new beginning may keep of it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.columnar.repeats import Repeats

#: Of who sends nothing to dead-letters: past every offset.
ALL_SENT = int(np.iinfo(np.int64).max)


@dataclass(slots=True)
class Reading:
    """Where the reading of one source stands. A return to the guards begins a new one, so that what was decoded before is told apart.

    guards: int64 [shards], as far as we know; a shard without rows of late lags behind the position until `settle`. position: the next
    offset to apply. decoded: the next one to decode, ahead of it while a batch is under way. lowest: the lowest guard when this began:
    what stands before it was said and done. sent: what is bad before it is in dead-letters for sure. sent_guard: the same in the store.
    """

    guards: NDArray[np.int64]
    position: int
    decoded: int
    lowest: int
    repeats: Repeats
    sent: int
    sent_guard: int

    def is_current(self, guards: NDArray[np.int64]) -> bool:
        """Whether nobody moved a guard and all that was decoded is applied: what is known of the log is then still true."""
        return self.decoded == self.position and np.array_equal(self.guards, guards)

    def is_being_passed(self, guards: NDArray[np.int64]) -> bool:
        """Whether somebody else moves guards, and not all of them are past what we have decoded."""
        return bool((guards > self.guards).any()) and int(guards.min()) < self.decoded


def begun(known: Reading | None, guards: NDArray[np.int64], sent: int, sent_guard: int, reach: int) -> Reading:
    """A new reading, from the lowest guard on, and of events a stretch before it; from where bad records are not sent, if that is earlier.

    It goes on where a reading was that is known, if all shards have what that one decoded, and it knows of the log what it must.
    """
    lowest = int(guards.min())
    start = max(lowest - reach, 0)
    if known and known.lowest <= lowest and start <= known.decoded <= min(lowest, sent):
        return Reading(guards, known.decoded, known.decoded, lowest, known.repeats, sent, sent_guard)
    start = min(start, sent)
    return Reading(guards, start, start, lowest, Repeats(reach), sent, sent_guard)
