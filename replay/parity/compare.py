"""Every entity of two generations, compared as of one moment while both are written to.

Whoever differs at the first look is looked at again at the end (replay/parity/lag.py), for one generation may be ahead of the other.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from online_store.keys import entity_key, entity_of
from online_store.snapshot.file import hashes_of
from online_store.store import OnlineStore
from replay.parity.lag import Look, look_again
from replay.parity.side import Reader, Said, Side
from replay.parity.tally import Tally, differences, shared_of
from schemas.topics import Source

#: Entities that are compared at once. More are held in memory at once; fewer cost the formulas' fixed price more often.
BLOCK_COUNT = 8_000
#: Entities of a kind that are looked at again. So many are not on their way at one time, unless a generation is not followed at all: what
#: is past them is counted as it was found.
AGAIN_COUNT_MAX = 100_000

Shown = Callable[[int], None]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Question:
    """What is compared. sample: the share of entities, the same in both. tolerance: relative difference that is taken for none."""

    as_of_ms: int
    sample: float = 1.0
    tolerance: float = 0.0
    sources: Sequence[Source] = ()


@dataclass
class Entities:
    """How many entities of one kind were found where. expired: one has let the record go, which nothing touched for that long."""

    kind: str
    first: int = 0
    second: int = 0
    missing: int = 0
    extra: int = 0
    expired: int = 0
    looked_again: int = 0
    unsettled: int = 0


@dataclass
class Comparison:
    """One kind in two generations."""

    first: Reader
    second: Reader
    question: Question
    tally: Tally
    entities: Entities
    _again: list[bytes] = field(default_factory=list)
    _hashes: list[Hashes] = field(default_factory=list)

    @property
    def is_within(self) -> bool:
        """Whether both say the same of everybody, as far as they should."""
        return self.tally.is_within and not (self.entities.missing + self.entities.extra + self.entities.unsettled)

    async def run(self, shown: Shown) -> None:
        """Compare everybody. shown: told how many more keys were looked at."""
        async for keys, hashes in self._blocks(self.first, shown):
            self._hashes.append(hashes)
            self.entities.first += len(keys)
            await self._compare(keys)
        known = np.sort(np.concatenate([*self._hashes, np.zeros(0, np.uint64)]))
        async for keys, hashes in self._blocks(self.second, shown):
            self.entities.second += len(keys)
            new = [self.first.key(keys[place]) for place in np.flatnonzero(~_is_in(hashes, known)).tolist()]
            left = AGAIN_COUNT_MAX - len(self._again)
            self._again += new[:left]
            self.entities.extra += len(new[left:])
        while self._again:
            part, self._again = self._again[:BLOCK_COUNT], self._again[BLOCK_COUNT:]
            look = await look_again(self.first, self.second, part, self.question.sources)
            self._settle(part, look)
            if not look.settled.any():
                # One of them is not followed at all: the others would be waited for as long, and as vainly.
                self.entities.unsettled += len(self._again)
                self._again = []

    async def _blocks(self, side: Reader, shown: Shown) -> AsyncIterator[tuple[list[bytes], Hashes]]:
        """The sampled keys of a generation with their entities' hashes, some at a time."""
        keys: list[bytes] = []
        async for key in side.everybody():
            keys.append(key)
            if len(keys) == BLOCK_COUNT:
                yield self._sampled(keys)
                shown(len(keys))
                keys = []
        yield self._sampled(keys)
        shown(len(keys))

    def _sampled(self, keys: list[bytes]) -> tuple[list[bytes], Hashes]:
        hashes = hashes_of(entity_key(entity_of(key)) for key in keys)
        if self.question.sample >= 1:
            return keys, hashes
        places = np.flatnonzero(hashes < np.uint64(self.question.sample * 2**64))
        return [keys[place] for place in places.tolist()], hashes[places]

    async def _compare(self, keys: list[bytes]) -> None:
        """Read entities from both. keys: of their records in the first."""
        first, second = await self.first.read(keys), await self.second.read([self.second.key(key) for key in keys])
        apart = differences(first.values, second.values)
        odd = (apart[:, self.tally.is_same] > self.question.tolerance).any(axis=1) | (first.present != second.present)
        odd &= np.cumsum(odd) <= AGAIN_COUNT_MAX - len(self._again)
        self._again += [keys[place] for place in np.flatnonzero(odd).tolist()]
        self.entities.missing += int((~odd & first.present & ~second.present).sum())
        self._count(keys, first, second, apart, ~odd)

    def _settle(self, keys: list[bytes], look: Look) -> None:
        """Count entities that were looked at again."""
        self.entities.looked_again += len(keys)
        self.entities.unsettled += int((~look.settled).sum())
        expired = look.missing & self.second.may_have_expired(look.first, self.first.layout)
        expired |= look.extra & self.first.may_have_expired(look.second, self.second.layout)
        counted = look.settled & ~expired
        self.entities.expired += int((look.settled & expired).sum())
        self.entities.missing += int((counted & look.missing).sum())
        self.entities.extra += int((counted & look.extra).sum())
        self._count(keys, look.first, look.second, look.apart, counted)

    def _count(self, keys: list[bytes], first: Said, second: Said, apart: NDArray[np.float64], rows: NDArray[np.bool_]) -> None:
        """Count the features of those of these entities that are in rows, bool [n]."""
        counted = np.flatnonzero(rows)
        self.tally.add([keys[place] for place in counted.tolist()], first.values[counted], second.values[counted], apart[counted])


async def compare(store: OnlineStore, first: Side, second: Side, question: Question, shown: Shown) -> list[Comparison]:
    """Compare two generations, one kind after the other. shown: told how many more keys were looked at. Raises StoreError."""
    kinds = [kind for kind in first.registry.kinds if kind in second.registry.kinds]
    found = [_comparison(store, first, second, kind, question) for kind in kinds]
    for comparison in found:
        await comparison.run(shown)
    return found


def _comparison(store: OnlineStore, first: Side, second: Side, kind: str, question: Question) -> Comparison:
    shared = shared_of(first.registry, second.registry, kind)
    ours = Reader(store, first, kind, tuple(one.first for one in shared), question.as_of_ms)
    theirs = Reader(store, second, kind, tuple(one.second for one in shared), question.as_of_ms)
    return Comparison(ours, theirs, question, Tally(shared, question.tolerance), Entities(kind))


def _is_in(hashes: Hashes, known: Hashes) -> NDArray[np.bool_]:
    """Which hashes are among known ones, ascending: bool [n]."""
    places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return known[places] == hashes if len(known) else np.zeros(len(hashes), np.bool_)
