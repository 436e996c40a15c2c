"""Events that a producer sent before: dropped, as a function of the log alone.

An event is a repeat if a good event of the same record kind, tenant, request and item stands in the offsets before it in its own
partition, at most so many back, be that one a repeat or not. Whoever reads the log from there on finds the same ones.
"""

import numba
import numpy as np
from numpy.typing import NDArray

from schemas.columnar.events import Events
from schemas.columnar.words import Buffer, hash64

#: How far back an event is looked for (offsets of its partition). More finds what was sent again later, costs memory (24 bytes an offset
#: and partition) and is read again at every start; fewer lets the retries of a producer that was away for a minute count twice.
REPEAT_OFFSETS = 65_536
#: What makes two events of one record kind the same.
IDENTITY = ("tenant", "request_id", "item_id")
#: Before every offset there is, and before every stretch.
_NOWHERE = np.iinfo(np.int64).min

Identities = NDArray[np.uint64]
Offsets = NDArray[np.int64]


class Repeats:
    """What stood in the last offsets of one partition.

    reach: how many offsets back an event is looked for; 0 finds none. The newest `reach` offsets stand in a ring, and those of one hash
    bucket are chained from the newest to the oldest: nothing is ever deleted, a chain ends where it leaves the stretch.
    """

    def __init__(self, reach: int = REPEAT_OFFSETS) -> None:
        """Empty: right for what comes once a whole stretch before it was marked."""
        self.reach = reach
        slots = 1 << max(reach - 1, 0).bit_length() if reach else 0
        self._identities = np.zeros(slots, np.uint64)
        self._older = np.full(slots, _NOWHERE, np.int64)
        self._newest = np.full(slots, _NOWHERE, np.int64)

    def mark(self, identities: Identities, offsets: Offsets) -> NDArray[np.bool_]:
        """Which events are repeats, bool [n]; all are remembered.

        identities: uint64 [n], as `identities` gives them. offsets: int64 [n], in any order, all above those that were marked before.
        """
        found = np.zeros(len(offsets), np.bool_)
        if not self.reach or not len(offsets):
            return found
        order = np.argsort(offsets, kind="stable")
        _mark(identities, offsets, order, self.reach, (self._identities, self._older, self._newest), found)
        return found

    def drop(self, events: Events) -> Events:
        """The events that are no repeats, in the order that they came in; offsets as for `mark`."""
        return events.where(~self.mark(identities(events), events.offset))


def identities(events: Events) -> Identities:
    """What makes each event itself, in 64 bits: uint64 [n], the same for the same event as long as this process runs.

    Two events that differ are taken for one with a probability of 2^-64 a pair: 4e-15 an event of a stretch of 65,536, which is one event
    in 35 years at 250,000 a second.
    """
    words = np.stack([events.word(name) for name in IDENTITY])
    return _hashed(events.text, events.record, words)


def named(text: Buffer, words: Offsets) -> Identities:
    """What some words name together, in 64 bits: uint64 [n], else as `identities`. words: int64 [words, n, 2], spans in text."""
    return _hashed(text, np.zeros(words.shape[1], np.uint8), words)


@numba.njit(cache=True, nogil=True)
def _hashed(text: Buffer, record: NDArray[np.uint8], words: Offsets) -> Identities:
    found = np.zeros(len(record), np.uint64)
    for row in range(len(record)):
        value = np.uint64(record[row])
        for word in range(len(words)):
            value = hash64(text, words[word, row, 0], words[word, row, 1], value)
        found[row] = value
    return found


@numba.njit(cache=True, nogil=True)
def _mark(
    identities: Identities,
    offsets: Offsets,
    order: NDArray[np.intp],
    reach: int,
    ring: tuple[Identities, Offsets, Offsets],
    found: NDArray[np.bool_],
) -> None:
    """Look each event up and remember it, in the order of the log.

    ring: by offset the identity there and the older offset of its bucket, by bucket the newest offset.
    """
    held, older, newest = ring
    mask = len(held) - 1
    for row in order:
        offset, identity = offsets[row], identities[row]
        bucket = np.int64(identity & np.uint64(mask))
        standing = newest[bucket]
        while standing >= offset - reach:
            if held[standing & mask] == identity:
                found[row] = True
                break
            standing = older[standing & mask]
        place = offset & mask
        held[place], older[place], newest[bucket] = identity, newest[bucket], offset
