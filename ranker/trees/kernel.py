"""Scoring with an Ensemble, in compiled loops.

What an item's features leave of every tree is made when it is read, what a user's leave once a request; a score is the leaves that both
leave, added up.
"""

import numba
import numpy as np
from numpy.typing import NDArray

from ranker.trees.ensemble import STEP, Ensemble

Words = NDArray[np.uint64]
Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
#: Features whose words are put together at once: more would not be read faster, fewer write the words more often.
TOGETHER = 4
#: Rows whose leaves are added side by side: each sum waits for its own last addition only.
ROWS = 8
ALL = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
#: A sequence in which every six bits stand once, and which bit each six of them belong to.
DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
PLACES = np.zeros(64, np.uint8)
PLACES[[((int(DE_BRUIJN) << place) % 2**64) >> 58 for place in range(64)]] = np.arange(64)


def fold(ensemble: Ensemble, columns: Floats, features: Ints) -> Words:
    """What some features leave of each tree, uint64 [n, T].

    columns: float32 [n, f], NaN is missing. features: int64 [f], which of the model's each of them is.
    """
    words = np.empty((len(columns), len(ensemble.leaves)), np.uint64)
    fold_into(ensemble, columns, features, words)
    return words


def fold_into(ensemble: Ensemble, columns: Floats, features: Ints, words: Words, before: Floats | None = None) -> None:
    """As `fold`, into words, uint64 [n, T or more]; more stays as it is. before: of which columns they are now, if they are of any."""
    # One layout: numba compiles the loops for each that they meet, and the first request would wait for it.
    columns = np.ascontiguousarray(columns)
    if before is None:
        rows = np.arange(len(columns))
    else:
        rows = _moved(np.ascontiguousarray(before), columns, features, ensemble.first, ensemble.threshold, ensemble.holds_at)
    _fold(rows, columns, features, *ensemble[:6], ensemble.holds_at, len(ensemble.leaves), words)


def score(ensemble: Ensemble, own: Words, shared: Words, starts: Ints) -> Floats:
    """Scores float32 [n] of n rows of r requests.

    own: uint64 [n, T or more], what each row's own features leave; more is not looked at. shared: uint64 [r, T], what those leave that are
    equal in all rows of a request. starts: int64 [r + 1], where each request's rows begin.
    """
    margins = np.zeros(len(own), np.float32)
    _add_up(own, shared, starts, ensemble.leaves, margins)
    if not ensemble.is_logistic:
        return margins
    one = np.float32(1)
    with np.errstate(over="ignore"):
        return np.asarray(one / (one + np.exp(-margins)), np.float32)


@numba.njit(cache=True, nogil=True)
def _moved(
    before: Floats,
    columns: Floats,
    features: Ints,
    first: Ints,
    threshold: Floats,
    holds_at: bool,  # noqa: FBT001  # compiled functions take arrays, not objects
) -> Ints:
    """Which rows are on another side of some threshold than before. A feature that says what it said is not searched for."""
    moved, count = np.empty(len(columns), np.int64), 0
    for row in range(len(columns)):
        for place in range(len(features)):
            old, new = before[row, place], columns[row, place]
            if old == new or (np.isnan(old) and np.isnan(new)):
                continue
            begin, end = first[features[place]], first[features[place] + 1]
            is_other = np.isnan(old) or np.isnan(new)
            if is_other or _failed(old, threshold, begin, end, holds_at) != _failed(new, threshold, begin, end, holds_at):
                moved[count] = row
                count += 1
                break
    return moved[:count]


@numba.njit(cache=True, nogil=True)
def _fold(  # noqa: PLR0913  # as above
    rows: Ints,
    columns: Floats,
    features: Ints,
    first: Ints,
    threshold: Floats,
    tree: NDArray[np.int32],
    mask: Words,
    block_first: Ints,
    blocks: Words,
    holds_at: bool,  # noqa: FBT001  # as above
    trees_count: int,
    words: Words,
) -> None:
    count = len(features)
    ends, begins = np.empty(count, np.int64), np.empty(count, np.int64)
    # Places without a feature take what leaves all: the last of blocks.
    taken = np.full(-(-count // TOGETHER) * TOGETHER, len(blocks) - 1)
    for row in rows:
        # All searches first: none waits for another one, and the processor has several under way at once.
        for place in range(count):
            ends[place] = _failed(columns[row, place], threshold, first[features[place]], first[features[place] + 1], holds_at)
        for place in range(count):
            feature, begin = features[place], first[features[place]]
            whole = (ends[place] - begin) // STEP
            taken[place], begins[place] = block_first[feature] + whole, begin + whole * STEP
            if np.isnan(columns[row, place]):
                taken[place], begins[place] = block_first[feature + 1] - 1, ends[place]
        for number in range(trees_count):
            words[row, number] = ALL
        for place in range(0, len(taken), TOGETHER):
            a, b, c, d = blocks[taken[place]], blocks[taken[place + 1]], blocks[taken[place + 2]], blocks[taken[place + 3]]
            for number in range(trees_count):
                words[row, number] &= a[number] & b[number] & c[number] & d[number]
        for place in range(count):
            for node in range(begins[place], ends[place]):
                words[row, np.uint64(tree[node])] &= mask[node]


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


@numba.njit(cache=True, nogil=True)
def _add_up(own: Words, shared: Words, starts: Ints, leaves: Floats, margins: Floats) -> None:
    for request in range(len(starts) - 1):
        for begin in range(starts[request], starts[request + 1], ROWS):
            count = min(ROWS, starts[request + 1] - begin)
            for tree in range(leaves.shape[0]):
                common = shared[request, tree]
                for row in range(begin, begin + count):
                    margins[row] += leaves[tree, _lowest(own[row, tree] & common)]


@numba.njit(cache=True, nogil=True, inline="always")
def _lowest(word: np.uint64) -> np.uint8:
    """The place of a word's lowest bit (Leiserson, Prokop, Randall: Using de Bruijn Sequences to Index a 1 in a Computer Word, 1998)."""
    place: np.uint8 = PLACES[((word & (~word + np.uint64(1))) * DE_BRUIJN) >> np.uint64(58)]
    return place
