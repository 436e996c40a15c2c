"""Which candidate stands where: by score alone, or one compiled loop over the places, best first.

In the second a place goes to the highest value among those that keep every cap and that may stand there without being moved further than
`displacement_max` places. Where caps leave nobody in that stretch, to the next behind it that keeps them; where nobody at all keeps them,
topic caps are given up, then author caps. So caps come before the bound on displacement, and that before values.
"""

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from ranker.slate.rules import OUT, Touch

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Hashes = NDArray[np.uint64]

#: What a cap is of, in `Caps`.
AUTHOR, TOPIC = 0, 1
#: What is given up, in this order, where nobody keeps all caps.
ALL_CAPS, AUTHOR_CAPS, NO_CAPS = 0, 1, 2
#: A component of an embedding that is 1 (online_store/record.py).
UNIT = 127
SEEN, OUT_OF_IT = int(Touch.SEEN), int(OUT)
AUTHOR_CAP, TOPIC_CAP, CAP_RELAXED, DIVERSITY, EXPLORED = (
    int(touch) for touch in (Touch.AUTHOR_CAP, Touch.TOPIC_CAP, Touch.CAP_RELAXED, Touch.DIVERSITY, Touch.EXPLORED)
)


class Ordered(NamedTuple):
    """n candidates in the order of their scores, best first; the first `unseen` of them go before all others.

    values: float64 [n], over [0, 1]. authors: uint64 [n], topics: uint64 [n, t], 0 is none. embeddings: int8 [n, d], of unit length.
    """

    unseen: int
    values: Floats
    authors: Hashes
    topics: Hashes
    embeddings: NDArray[np.int8]


class Plan(NamedTuple):
    """What the rules ask for. caps: int64 [c, 4], of what, count, window, 1 for any run of places; the others as ranker/slate/rules.py."""

    caps: Ints
    weight: float
    diverse: int
    epsilon: float
    explored: int
    displacement_max: int


@numba.njit(cache=True, nogil=True)
def by_score(scores: NDArray[np.float32], touched: Ints, starts: Ints, ks: Ints) -> tuple[Ints, Ints]:
    """Of each of r requests the first k candidates that are not out: who was seen behind the others, the first of equal ones first.

    scores: float32 [n], NaN goes last. touched: int64 [n]. starts: int64 [r + 1], where each request's candidates begin. ks: int64 [r].
    Returns which rows they are, int64 [m], request by request, and how many of each, int64 [r].
    """
    rows, counts, count = np.empty(len(scores), np.int64), np.empty(len(ks), np.int64), 0
    for request in range(len(ks)):
        counts[request] = _fill(scores, touched, starts[request], starts[request + 1], rows[count : count + ks[request]])
        count += counts[request]
    return rows[:count], counts


@numba.njit(cache=True, inline="always")
def _fill(scores: NDArray[np.float32], touched: Ints, begin: int, end: int, order: Ints) -> int:
    """Fill order with the best of the candidates from begin to before end; returns how many they are."""
    count = 0
    for candidate in range(begin, end):
        if touched[candidate] & OUT_OF_IT:
            continue
        place = min(count, len(order) - 1)
        if place < count and not _goes_before(scores, touched, candidate, order[place]):
            continue
        while place > 0 and _goes_before(scores, touched, candidate, order[place - 1]):
            order[place] = order[place - 1]
            place -= 1
        order[place] = candidate
        count = min(count + 1, len(order))
    return count


@numba.njit(cache=True, inline="always")
def _goes_before(scores: NDArray[np.float32], touched: Ints, one: int, other: int) -> bool:
    seen, was_seen = touched[one] & SEEN, touched[other] & SEEN
    if seen != was_seen:
        return bool(seen < was_seen)
    return bool(scores[one] > scores[other] or (np.isnan(scores[other]) and not np.isnan(scores[one])))


@numba.njit(cache=True, nogil=True)
def arrange(ordered: Ordered, plan: Plan, k: int, seed: np.uint64) -> tuple[Ints, Ints, Floats]:
    """The first k places, int64 [k], candidates by their rank; what touched each candidate, int64 [n]; propensities, float64 [k]."""
    count = len(ordered.values)
    order, touched, propensities = np.zeros(k, np.int64), np.zeros(count, np.int64), np.ones(k)
    is_placed, blocked, alike = np.zeros(count, np.bool_), np.zeros(count, np.int64), np.zeros(count)
    fitting, state = np.zeros(count, np.int64), np.array([seed], np.uint64)
    lowest = 0
    for place in range(k):
        while is_placed[lowest]:
            lowest += 1
        limit = ordered.unseen if place < ordered.unseen else count
        weight = plan.weight if place < plan.diverse else 0.0
        epsilon = plan.epsilon if place < plan.explored else 0.0
        values = (1 - weight) * ordered.values - weight * alike
        blocked[lowest:limit] = 0
        found, level = 0, ALL_CAPS
        while not found:
            found = _fitting(ordered, plan, order[:place], is_placed, lowest, limit, level, blocked, fitting)
            level += 1
        chosen, propensities[place], why = _chosen(ordered.values, values, fitting[:found], epsilon, state)
        touched[chosen] |= why | (CAP_RELAXED if level > 1 else 0)
        order[place], is_placed[chosen] = chosen, True
        for rank in range(lowest, limit):
            if not is_placed[rank] and values[rank] > values[chosen]:
                touched[rank] |= blocked[rank]
        if weight > 0:
            _compare(ordered.embeddings, chosen, is_placed, alike)
    return order, touched, propensities


@numba.njit(cache=True, nogil=True)
def _chosen(scores: Floats, values: Floats, fitting: Ints, epsilon: float, state: NDArray[np.uint64]) -> tuple[int, float, int]:
    """Who of those that fit stands there, how likely that was, and what touched it. values: scores, less what is like those above."""
    best = _highest(values, fitting)
    by_lot = epsilon / len(fitting)
    if epsilon > 0 and _draw(state) < epsilon:
        drawn = fitting[int(_draw(state) * len(fitting))]
        if drawn != best:
            return drawn, by_lot, EXPLORED
    return best, 1 - epsilon + by_lot, DIVERSITY if best != _highest(scores, fitting) else 0


@numba.njit(cache=True, nogil=True)
def _fitting(  # noqa: PLR0913  # compiled functions take arrays, not objects
    ordered: Ordered,
    plan: Plan,
    above: Ints,
    is_placed: NDArray[np.bool_],
    lowest: int,
    limit: int,
    level: int,
    blocked: Ints,
    fitting: Ints,
) -> int:
    """Fill `fitting` with those that may stand at the next place, and say how many; `blocked` with the caps that hold others back."""
    place, found = len(above), 0
    for rank in range(lowest, limit):
        if found and rank > place + plan.displacement_max:
            break
        if is_placed[rank]:
            continue
        broken = _broken(ordered, plan.caps, above, rank, level)
        if broken:
            if level == ALL_CAPS:
                blocked[rank] = broken
            continue
        fitting[found] = rank
        found += 1
        if rank + plan.displacement_max <= place:
            # It cannot wait any longer.
            fitting[0] = rank
            return 1
    return found


@numba.njit(cache=True, nogil=True)
def _broken(ordered: Ordered, caps: Ints, above: Ints, rank: int, level: int) -> int:
    """Which cap a candidate would break at the next place, of those that hold at this level: what it is touched by, 0 for none."""
    place = len(above)
    for cap in range(len(caps)):
        of, count, window, is_any = caps[cap]
        if level == NO_CAPS or (level == AUTHOR_CAPS and of == TOPIC) or (not is_any and place >= window):
            continue
        run = above[max(place - window + 1, 0) :] if is_any else above
        if of == AUTHOR:
            if ordered.authors[rank] and _with_author(ordered.authors, run, ordered.authors[rank]) >= count:
                return AUTHOR_CAP
        else:
            for topic in ordered.topics[rank]:
                if topic and _with_topic(ordered.topics, run, topic) >= count:
                    return TOPIC_CAP
    return 0


@numba.njit(cache=True, inline="always")
def _with_author(authors: Hashes, run: Ints, author: np.uint64) -> int:
    count = 0
    for rank in run:
        count += authors[rank] == author
    return count


@numba.njit(cache=True, inline="always")
def _with_topic(topics: Hashes, run: Ints, topic: np.uint64) -> int:
    count = 0
    for rank in run:
        for one in topics[rank]:
            if one == topic:
                count += 1
                break
    return count


@numba.njit(cache=True, inline="always")
def _highest(values: Floats, ranks: Ints) -> int:
    """Whose value is highest; of equal ones the first."""
    best = 0
    for place in range(len(ranks)):
        if values[ranks[place]] > values[ranks[best]]:
            best = place
    return int(ranks[best])


@numba.njit(cache=True, inline="always")
def _compare(embeddings: NDArray[np.int8], chosen: int, is_placed: NDArray[np.bool_], alike: Floats) -> None:
    """How like each that is left is to what stands above, at most: the cosine, 0 where it has no embedding."""
    for rank in range(len(embeddings)):
        if not is_placed[rank]:
            product = 0
            for component in range(embeddings.shape[1]):
                product += int(embeddings[chosen, component]) * int(embeddings[rank, component])
            alike[rank] = max(alike[rank], product / (UNIT * UNIT))


@numba.njit(cache=True, inline="always")
def _draw(state: NDArray[np.uint64]) -> float:
    """The next number of [0, 1) (SplitMix64: Steele, Lea and Flood, 2014)."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    mixed = state[0]
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return float((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53
