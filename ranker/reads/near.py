"""Items read lately, as the model and the slate want them: popular ones are in every request, and need not be read for each.

An entry holds for NEAR_MS: against the clock, for what the store says may have changed, and against the moment that a request asks about,
for windows and ages move on. Past that it only serves while the store is away.

A name's hash says in which set of WAYS places an entry may stand; a compiled loop compares names there, so a request makes no object for a
candidate that is near.
"""

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from online_store.keys import Names
from ranker.reads.prefetch import prefetch
from schemas.columnar.words import Buffer, hash64
from schemas.records import ID_BYTES_MAX

Ints = NDArray[np.int64]
#: n items, one row each: an array of a structured dtype. What stands in it, ranker/reads/reader.py says.
Rows = NDArray[Any]

#: How old an entry may be that is served as if it were read now (milliseconds). Longer saves reads of the store; shorter shows a removed
#: item, or a click, sooner.
NEAR_MS = 500
#: Entries (some 400 bytes each with the default registry; what the model makes of one takes 8 a tree), a power of two. With fewer than the
#: items in demand the store is read for each of them again.
NEAR_COUNT_MAX = 131_072
#: Places that share a hash. With fewer, popular items push one another out; more take longer to look through.
WAYS = 8
#: How old an entry may be that is served while the store is away (milliseconds): older than a quarter of an hour, popularity says as much.
STALE_MS_MAX = 900_000
NOWHERE = -1
#: The age of what is not here (milliseconds).
NEVER = 2**62
#: Room for a tenant, a colon and an id at their longest, in whole words: behind it the row is where its numbers may be.
NAME_BYTES_MAX = 2 * ID_BYTES_MAX + 8
#: What stands in an entry's head: when it was read, as of when, and how long its name is.
READ_MS, AS_OF_MS, NAME_BYTES = range(3)
#: Numbers of a head; a power of two, so that none lies in two lines of the processor's cache.
HEAD = 4
SEED = np.uint64(0)
#: A row's memory is asked for so many rows before it is copied, for it takes about as long to come; two to eight were alike.
AHEAD = 4


def names_of(asked: Sequence[tuple[str, Sequence[str]]]) -> Names:
    """The names of several tenants' items, in their order. asked: (tenant, item_ids)."""
    text = np.frombuffer("".join([f"\0{tenant}:".join(("", *item_ids)) for tenant, item_ids in asked]).encode(), np.uint8)
    starts = np.empty(sum([len(item_ids) for _, item_ids in asked]) + 1, np.int64)
    if not _split(text, starts):
        # Some name has what stands before each one.
        names = [f"{tenant}:{item_id}" for tenant, item_ids in asked for item_id in item_ids]
        starts[:] = 1 + np.cumsum([0, *(1 + len(name.encode()) for name in names)])
    return Names(text, starts)


@numba.njit(cache=True, nogil=True)
def _split(text: Buffer, starts: Ints) -> bool:
    """Fill starts; False if there are not as many names."""
    count = 0
    for at in range(len(text)):
        if text[at] == 0:
            if count + 1 == len(starts):
                return False
            starts[count] = at + 1
            count += 1
    starts[count] = len(text) + 1
    return True


class Near:
    """At most `count_max` items; of those that share a set the ones that were read first go first."""

    def __init__(self, unknown: Rows, count_max: int = NEAR_COUNT_MAX) -> None:
        """Nothing is here. unknown: the row of an item of which nothing is known, [1]."""
        #: A name's hash; what says how old an entry is and how long its name, 0 where nothing is; the name, and behind it the row.
        self._hashes = np.zeros(count_max, np.uint64)
        self._heads = np.zeros((count_max, HEAD), np.int64)
        self._bodies = np.zeros((count_max + 1, NAME_BYTES_MAX + unknown.dtype.itemsize), np.uint8)
        #: Of each place, to be read only; at NOWHERE, which is the last one, what is not here.
        self.rows: Rows = self._bodies[:, NAME_BYTES_MAX:].view(unknown.dtype)[:, 0]
        self.rows[NOWHERE] = unknown[0]

    def places(self, names: Names) -> Ints:
        """Where the names' entries stand, however old, int64 [n]: NOWHERE for what is not here."""
        return _places(names.text, names.starts, self._hashes, self._heads, self._bodies)

    def take(self, names: Names, now_ms: int, as_of_ms: Ints, age_ms_max: int, rows: Rows) -> tuple[Ints, Ints]:
        """Fill rows [n]: with an entry's where it is here and no older than that, else with an unknown item's.

        Returns how old entries are, by the clock or against each one's moment, whichever is more: int64 [n], NEVER for what is not here;
        and the rows' places, int64 [n]. now_ms: of one clock. as_of_ms: int64 [n].
        """
        ages = np.empty(len(rows), np.int64)
        places = _take(
            names.text,
            names.starts,
            self._hashes,
            self._heads,
            self._bodies,
            now_ms,
            as_of_ms,
            age_ms_max,
            ages,
            _raw(rows),
        )
        return ages, places

    def put(self, names: Names, of: Ints, rows: Rows, now_ms: int, as_of_ms: Ints) -> Ints:
        """Keep what was read of some of the names; returns where, int64 [n].

        of: int64 [n], which; rows [n]; now_ms: by the clock of `take`; as_of_ms: int64 [n].
        """
        return _put(names.text, names.starts, of, self._hashes, self._heads, self._bodies, now_ms, as_of_ms, _raw(rows))


def whole(rows: Rows) -> NDArray[np.void]:
    """The same rows as one value each: numpy would copy field by field, which takes three times as long."""
    return rows.view(np.dtype((np.void, rows.dtype.itemsize)))


def _raw(rows: Rows) -> NDArray[np.uint8]:
    return rows.view(np.uint8).reshape(len(rows), rows.dtype.itemsize)


@numba.njit(cache=True, nogil=True)
def _places(text: Buffer, starts: Ints, hashes: NDArray[np.uint64], heads: Ints, bodies: NDArray[np.uint8]) -> Ints:
    values, places = np.empty(len(starts) - 1, np.uint64), np.empty(len(starts) - 1, np.int64)
    for row in range(len(places)):
        values[row] = hash64(text, starts[row], starts[row + 1] - 1 - starts[row], SEED)
        prefetch(hashes, _first(values[row], len(hashes)), 0, 1)
    for row in range(len(places)):
        places[row] = _place(values[row], hashes)
        if places[row] != NOWHERE:
            prefetch(heads, places[row], 0, 1)
            prefetch(bodies, places[row], 0, 1)
    for row in range(len(places)):
        place, begin, length = places[row], starts[row], starts[row + 1] - 1 - starts[row]
        if place != NOWHERE and not _is_named(bodies[place], heads[place, NAME_BYTES], text, begin, length):
            places[row] = NOWHERE
    return places


@numba.njit(cache=True, nogil=True)
def _take(  # noqa: PLR0913  # compiled functions take arrays, not objects
    text: Buffer,
    starts: Ints,
    hashes: NDArray[np.uint64],
    heads: Ints,
    bodies: NDArray[np.uint8],
    now_ms: int,
    as_of_ms: Ints,
    age_ms_max: int,
    ages: Ints,
    rows: NDArray[np.uint8],
) -> Ints:
    places, nowhere = _places(text, starts, hashes, heads, bodies), len(bodies) + NOWHERE
    for row in range(len(rows)):
        place = places[row]
        ages[row] = NEVER
        if place != NOWHERE:
            ages[row] = max(now_ms - heads[place, READ_MS], abs(as_of_ms[row] - heads[place, AS_OF_MS]))
        if ages[row] > age_ms_max:
            places[row] = nowhere
    for row in range(len(rows)):
        place, ahead = places[row], row + AHEAD
        if ahead < len(rows):
            prefetch(bodies, places[ahead], NAME_BYTES_MAX, bodies.shape[1])
        for at in range(rows.shape[1]):
            rows[row, at] = bodies[place, NAME_BYTES_MAX + at]
    return places


@numba.njit(cache=True, nogil=True)
def _put(  # noqa: PLR0913  # as above
    text: Buffer,
    starts: Ints,
    of: Ints,
    hashes: NDArray[np.uint64],
    heads: Ints,
    bodies: NDArray[np.uint8],
    now_ms: int,
    as_of_ms: Ints,
    rows: NDArray[np.uint8],
) -> Ints:
    values, places = np.empty(len(rows), np.uint64), np.empty(len(rows), np.int64)
    for row in range(len(rows)):
        values[row] = hash64(text, starts[of[row]], starts[of[row] + 1] - 1 - starts[of[row]], SEED)
        first = _first(values[row], len(hashes))
        prefetch(hashes, first, 0, 1)
        for place in range(first, first + WAYS):
            prefetch(heads, place, 0, 1)
    for row in range(len(rows)):
        ahead = row + AHEAD
        if ahead < len(rows):
            prefetch(bodies, _room(values[ahead], hashes, heads), 0, bodies.shape[1])
        begin, length = starts[of[row]], starts[of[row] + 1] - 1 - starts[of[row]]
        place = places[row] = _room(values[row], hashes, heads)
        hashes[place] = values[row]
        heads[place, READ_MS], heads[place, AS_OF_MS], heads[place, NAME_BYTES] = now_ms, as_of_ms[row], length
        for at in range(length):
            bodies[place, at] = text[begin + at]
        for at in range(rows.shape[1]):
            bodies[place, NAME_BYTES_MAX + at] = rows[row, at]
    return places


@numba.njit(cache=True, inline="always")
def _first(value: np.uint64, count: int) -> int:
    """Where the set of a hash begins."""
    first: int = np.int64(value & np.uint64(count - 1)) & -WAYS  # type: ignore[assignment]  # an int where it is compiled
    return first


@numba.njit(cache=True, inline="always")
def _place(value: np.uint64, hashes: NDArray[np.uint64]) -> int:
    """Where an entry of this hash stands, or NOWHERE; two names of one hash would take each other's place."""
    first = _first(value, len(hashes))
    for place in range(first, first + WAYS):
        if hashes[place] == value:
            return place
    return NOWHERE


@numba.njit(cache=True, inline="always")
def _is_named(body: NDArray[np.uint8], size: int, text: Buffer, begin: int, length: int) -> bool:
    if size != length:
        return False
    for at in range(length):  # noqa: SIM110  # numba compiles no all(...)
        if body[at] != text[begin + at]:
            return False
    return True


@numba.njit(cache=True, inline="always")
def _room(value: np.uint64, hashes: NDArray[np.uint64], heads: Ints) -> int:
    """Where an entry of this hash goes: where one stands; else, of its set, where nothing is or what was read first."""
    place = _place(value, hashes)
    if place != NOWHERE:
        return place
    oldest = first = _first(value, len(hashes))
    for place in range(first, first + WAYS):
        if heads[place, NAME_BYTES] == 0:
            return place
        if heads[place, READ_MS] < heads[oldest, READ_MS]:
            oldest = place
    return oldest
