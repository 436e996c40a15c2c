"""What of a batch's candidates must be read: each item once, however many requests want it."""

from typing import NamedTuple

import numba
import numpy as np

from online_store.keys import Names
from ranker.reads.near import NOWHERE, Ints
from schemas.columnar.words import Buffer, hash64, same


class Lacking(NamedTuple):
    """What of n candidates of r requests is not near.

    rows: int64 [m], those candidates. wanted: int64 [w], who of them wants something first: each is read as of that moment. of: int64 [m],
    which of what is wanted each is. stale_ms: int64 [r], how old the oldest of a request's other entries is.
    """

    rows: Ints
    wanted: Ints
    of: Ints
    stale_ms: Ints


def lacking(names: Names, starts: Ints, as_of_ms: Ints, ages: Ints, age_ms_max: int) -> Lacking:
    """What must be read: what is older than that, once for all who want it as of about the same moment.

    starts: int64 [r + 1], where each request's candidates begin. as_of_ms, ages: int64 [n], ages as `Near.take` gives them.
    """
    rows, wanted, of = np.empty((3, len(ages)), np.int64)
    stale_ms = np.zeros(len(starts) - 1, np.int64)
    rows_count, wanted_count = _lacking(names.text, names.starts, starts, as_of_ms, ages, age_ms_max, rows, wanted, of, stale_ms)
    return Lacking(rows[:rows_count], wanted[:wanted_count], of[:rows_count], stale_ms)


@numba.njit(cache=True, nogil=True)
def _lacking(  # noqa: PLR0913  # compiled functions take arrays, not objects
    text: Buffer,
    names: Ints,
    starts: Ints,
    as_of_ms: Ints,
    ages: Ints,
    age_ms_max: int,
    rows: Ints,
    wanted: Ints,
    of: Ints,
    stale_ms: Ints,
) -> tuple[int, int]:
    """Fill rows, wanted, of and stale_ms; returns how many rows there are, and how many are wanted."""
    room = 1
    while room < 2 * len(ages):
        room *= 2
    places = np.full(room, NOWHERE)
    rows_count = wanted_count = 0
    for request in range(len(stale_ms)):
        for row in range(starts[request], starts[request + 1]):
            if ages[row] <= age_ms_max:
                stale_ms[request] = max(stale_ms[request], ages[row])
                continue
            begin, length, moment = names[row], names[row + 1] - 1 - names[row], as_of_ms[row] // age_ms_max
            place = np.int64(hash64(text, begin, length, np.uint64(moment)) & np.uint64(room - 1))
            while places[place] != NOWHERE:
                other = wanted[places[place]]
                is_as_long = names[other + 1] - 1 - names[other] == length
                if is_as_long and as_of_ms[other] // age_ms_max == moment and same(text, names[other], begin, length):
                    break
                place = (place + 1) & (room - 1)
            if places[place] == NOWHERE:
                places[place], wanted[wanted_count] = wanted_count, row
                wanted_count += 1
            rows[rows_count], of[rows_count] = row, places[place]
            rows_count += 1
    return rows_count, wanted_count
