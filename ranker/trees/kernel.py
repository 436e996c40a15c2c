"""Scoring with an Ensemble, in one compiled loop: a request's own columns once, then item by item what differs."""

import numba
import numpy as np
from numpy.typing import NDArray

from ranker.trees.ensemble import STEP, Ensemble

Words = NDArray[np.uint64]
Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
#: Rows whose leaves are added side by side: each sum waits for its own last addition only.
ROWS = 8
#: A sequence in which every six bits stand once, and which bit each six of them belong to.
DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
PLACES = np.zeros(64, np.uint8)
PLACES[[((int(DE_BRUIJN) << place) % 2**64) >> 58 for place in range(64)]] = np.arange(64)


def score(ensemble: Ensemble, matrix: Floats, starts: Ints, is_shared: NDArray[np.bool_]) -> Floats:
    """Scores float32 [n] of a matrix float32 [n, F], C order; NaN is missing.

    starts: int64 [r + 1], where each request's rows begin. is_shared: bool [F], the columns that are equal in all rows of a request.
    """
    margins = np.zeros(len(matrix), np.float32)
    shared, own = np.flatnonzero(is_shared), np.flatnonzero(~is_shared)
    _score(matrix, starts, shared, own, *ensemble[:8], ensemble.holds_at, margins)
    if not ensemble.is_logistic:
        return margins
    one = np.float32(1)
    with np.errstate(over="ignore"):
        return np.asarray(one / (one + np.exp(-margins)), np.float32)


@numba.njit(cache=True, nogil=True, inline="always")
def _lowest(word: np.uint64) -> np.uint8:
    """The place of a word's lowest bit (Leiserson, Prokop, Randall: Using de Bruijn Sequences to Index a 1 in a Computer Word, 1998)."""
    place: np.uint8 = PLACES[((word & (~word + np.uint64(1))) * DE_BRUIJN) >> np.uint64(58)]
    return place


@numba.njit(cache=True, nogil=True)
def _score(  # noqa: PLR0913  # compiled functions take arrays, not objects
    matrix: Floats,
    starts: Ints,
    shared: Ints,
    own: Ints,
    first: Ints,
    threshold: Floats,
    tree: NDArray[np.int32],
    mask: Words,
    block_first: Ints,
    blocks: Words,
    missing: Words,
    leaves: Floats,
    holds_at: bool,  # noqa: FBT001  # as above
    margins: Floats,
) -> None:
    trees = leaves.shape[0]
    common = np.empty(trees, np.uint64)
    words = np.empty((ROWS, trees), np.uint64)
    for request in range(len(starts) - 1):
        if starts[request] == starts[request + 1]:
            continue
        common[:] = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
        for feature in shared:
            value = matrix[starts[request], feature]
            _take_away(value, feature, first, threshold, tree, mask, block_first, blocks, missing, holds_at, common)
        for begin in range(starts[request], starts[request + 1], ROWS):
            count = min(ROWS, starts[request + 1] - begin)
            for row in range(count):
                words[row] = common
                for feature in own:
                    value = matrix[begin + row, feature]
                    _take_away(value, feature, first, threshold, tree, mask, block_first, blocks, missing, holds_at, words[row])
            for number in range(trees):
                for row in range(count):
                    margins[begin + row] += leaves[number, _lowest(words[row, number])]


@numba.njit(cache=True, nogil=True, inline="always")
def _take_away(  # noqa: PLR0913  # as above
    value: np.float32,
    feature: int,
    first: Ints,
    threshold: Floats,
    tree: NDArray[np.int32],
    mask: Words,
    block_first: Ints,
    blocks: Words,
    missing: Words,
    holds_at: bool,  # noqa: FBT001  # as above
    words: Words,
) -> None:
    """Take away the leaves that a feature's value excludes, in every tree."""
    begin, end = first[feature], first[feature + 1]
    if begin == end:
        return
    if np.isnan(value):
        gone = missing[feature]
        for number in range(len(words)):
            words[number] &= gone[number]
        return
    low, high = begin, end
    while low < high:
        middle = (low + high) // 2
        fails = threshold[middle] < value if holds_at else threshold[middle] <= value
        if fails:
            low = middle + 1
        else:
            high = middle
    whole = (low - begin) // STEP
    if whole:
        gone = blocks[block_first[feature] + whole]
        for number in range(len(words)):
            words[number] &= gone[number]
    for place in range(begin + whole * STEP, low):
        words[tree[place]] &= mask[place]
