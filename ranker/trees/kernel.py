"""Scoring with an Ensemble, in compiled loops.

What an item's features leave of every tree is made once for as long as they pass the same tests, what a user's leave once a request; a
score is the leaves that both leave, added up.
"""

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from ranker.reads.prefetch import prefetch
from ranker.trees.ensemble import STEP, Ensemble

Words = NDArray[np.uint64]
Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
#: Features whose words are put together at once: more would not be read faster, fewer write the words more often.
TOGETHER = 4
#: Rows whose leaves are added side by side: each sum waits for its own last addition only.
ROWS = 8
#: Rows whose memory is asked for before it is looked at.
AHEAD = 4
ALL = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
#: A sequence in which every six bits stand once, and which bit each six of them belong to.
DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
PLACES = np.zeros(64, np.uint8)
PLACES[[((int(DE_BRUIJN) << place) % 2**64) >> 58 for place in range(64)]] = np.arange(64)


class Folded(NamedTuple):
    """What rows' own features left of each tree, by places: a row that comes again at its place need not be folded again.

    columns: float32 [p, f]; words: uint64 [p, T], of those columns, or of others that pass the same tests. No tree loses all its leaves, so
    a place with a zero has nothing yet.
    """

    columns: Floats
    words: Words


def room(ensemble: Ensemble, features: Ints, count: int) -> Folded:
    """So many places for rows of these features, int64 [f], with nothing yet."""
    return Folded(np.zeros((count, len(features)), np.float32), np.zeros((count, len(ensemble.leaves)), np.uint64))


def fold(ensemble: Ensemble, columns: Floats, features: Ints) -> Words:
    """What some features leave of each tree, uint64 [n, T].

    columns: float32 [n, f], NaN is missing. features: int64 [f], which of the model's each of them is.
    """
    words = np.empty((len(columns), len(ensemble.leaves)), np.uint64)
    _fold_all(ensemble, _laid_out(columns), features, words)
    return words


def score(ensemble: Ensemble, folded: Folded, columns: Floats, features: Ints, places: Ints, shared: Words, starts: Ints) -> Floats:
    """Scores float32 [n] of n rows of r requests.

    columns, features: as of `fold`, of what rows have of their own. places: int64 [n], where of folded each row's stand or will. shared:
    uint64 [r, T], what those leave that are equal in all rows of a request. starts: int64 [r + 1], where each request's rows begin.
    """
    margins = np.zeros(len(columns), np.float32)
    _score(ensemble, folded, _laid_out(columns), features, places, shared, starts, margins)
    if not ensemble.is_logistic:
        return margins
    one = np.float32(1)
    with np.errstate(over="ignore"):
        return np.asarray(one / (one + np.exp(-margins)), np.float32)


def _laid_out(columns: Floats) -> Floats:
    """In one layout: numba compiles the loops for each that they meet, and the first request would wait for it."""
    return np.ascontiguousarray(columns)


@numba.njit(cache=True, nogil=True)
def _fold_all(ensemble: Ensemble, columns: Floats, features: Ints, words: Words) -> None:
    searches = _searches(len(features))
    for row in range(len(columns)):
        _fold(ensemble, columns[row], features, words[row], searches)


@numba.njit(cache=True, nogil=True)
def _score(  # noqa: PLR0913  # compiled functions take arrays, not objects
    ensemble: Ensemble, folded: Folded, columns: Floats, features: Ints, places: Ints, shared: Words, starts: Ints, margins: Floats
) -> None:
    """A few rows at a time: their words are brought together, then every tree is looked up for all of them."""
    leaves, searches = ensemble.leaves, _searches(len(features))
    words, bits, was = np.empty((ROWS, len(leaves)), np.uint64), columns.view(np.uint32), folded.columns.view(np.uint32)
    for request in range(len(starts) - 1):
        for begin in range(starts[request], starts[request + 1], ROWS):
            count = min(ROWS, starts[request + 1] - begin)
            for row in range(count):
                place, ahead = places[begin + row], begin + row + AHEAD
                if ahead < len(places):
                    prefetch(folded.columns, places[ahead], 0, folded.columns.shape[1] * 4)
                    prefetch(folded.words, places[ahead], 0, folded.words.shape[1] * 8)
                if not folded.words[place, 0] or _differs(bits, begin + row, was, place):
                    _bring(ensemble, folded, columns[begin + row], features, place, searches)
                for tree in range(len(leaves)):
                    words[row, tree] = folded.words[place, tree]
            for tree in range(len(leaves)):
                common = shared[request, tree]
                for row in range(count):
                    margins[begin + row] += leaves[tree, _lowest(words[row, tree] & common)]


@numba.njit(cache=True, inline="always")
def _differs(bits: NDArray[np.uint32], row: int, others: NDArray[np.uint32], place: int) -> bool:
    """Told by all the bits, without a branch for each: most rows say what they said."""
    found = np.uint32(0)
    for number in range(bits.shape[1]):
        found |= bits[row, number] ^ others[place, number]
    return bool(found)


@numba.njit(cache=True, nogil=True)
def _bring(ensemble: Ensemble, folded: Folded, columns: Floats, features: Ints, place: int, searches: Ints) -> None:
    """Have a row's words at its place. Most that differ pass the same tests, and have them already."""
    is_there = folded.words[place, 0] != 0
    for number in range(len(features)):
        old, new = folded.columns[place, number], columns[number]
        if is_there and old != new:
            begin, end = ensemble.first[features[number]], ensemble.first[features[number] + 1]
            is_there = _passes_the_same(old, new, ensemble.threshold, begin, end, ensemble.holds_at)
    if not is_there:
        _fold(ensemble, columns, features, folded.words[place], searches)
    folded.columns[place] = columns


@numba.njit(cache=True, nogil=True, inline="always")
def _passes_the_same(old: np.float32, new: np.float32, threshold: Floats, begin: int, end: int, holds_at: bool) -> bool:  # noqa: FBT001  # as above
    """Whether two values of a feature are on the same side of all its thresholds; one that is missing, only where the other is."""
    if np.isnan(old) or np.isnan(new):
        return bool(np.isnan(old) and np.isnan(new))
    return bool(_failed(old, threshold, begin, end, holds_at) == _failed(new, threshold, begin, end, holds_at))


@numba.njit(cache=True, nogil=True)
def _searches(count: int) -> Ints:
    """Room for what `_fold` finds of so many features, int64 [3, that or more]: where tests end to fail, and which masks hold of them."""
    return np.empty((3, -(-count // TOGETHER) * TOGETHER), np.int64)


@numba.njit(cache=True, nogil=True)
def _fold(ensemble: Ensemble, columns: Floats, features: Ints, words: Words, searches: Ints) -> None:
    """One row's words. searches: as `_searches` gives it."""
    first, threshold, blocks, block_first = ensemble.first, ensemble.threshold, ensemble.blocks, ensemble.block_first
    ends, begins, taken = searches[0], searches[1], searches[2]
    # Places without a feature take what leaves all: the last of blocks.
    taken[:] = len(blocks) - 1
    # All searches first: none waits for another one, and the processor has several under way at once.
    for place in range(len(features)):
        ends[place] = _failed(columns[place], threshold, first[features[place]], first[features[place] + 1], ensemble.holds_at)
    for place in range(len(features)):
        feature, begin = features[place], first[features[place]]
        whole = (ends[place] - begin) // STEP
        taken[place], begins[place] = block_first[feature] + whole, begin + whole * STEP
        if np.isnan(columns[place]):
            taken[place], begins[place] = block_first[feature + 1] - 1, ends[place]
    words[:] = ALL
    for place in range(0, len(taken), TOGETHER):
        a, b, c, d = blocks[taken[place]], blocks[taken[place + 1]], blocks[taken[place + 2]], blocks[taken[place + 3]]
        for number in range(len(words)):
            words[number] &= a[number] & b[number] & c[number] & d[number]
    for place in range(len(features)):
        for node in range(begins[place], ends[place]):
            words[np.uint64(ensemble.tree[node])] &= ensemble.mask[node]


@numba.njit(cache=True, nogil=True, inline="always")
def _failed(value: np.float32, threshold: Floats, begin: int, end: int, holds_at: bool) -> int:  # noqa: FBT001  # as above
    """Behind the last test that fails. Steps are added, not branched to: which way they go is not to be guessed."""
    count = end - begin
    if count == 0:
        return begin
    while count > 1:
        half = count // 2
        at = threshold[np.uint64(begin + half - 1)]
        begin += half * ((at < value) | ((at == value) & (not holds_at)))
        count -= half
    at = threshold[begin]
    failed: int = begin + ((at < value) | ((at == value) & (not holds_at)))
    return failed


@numba.njit(cache=True, nogil=True, inline="always")
def _lowest(word: np.uint64) -> np.uint8:
    """The place of a word's lowest bit (Leiserson, Prokop, Randall: Using de Bruijn Sequences to Index a 1 in a Computer Word, 1998)."""
    place: np.uint8 = PLACES[((word & (~word + np.uint64(1))) * DE_BRUIJN) >> np.uint64(58)]
    return place
