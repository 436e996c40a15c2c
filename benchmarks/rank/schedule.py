"""When requests are sent: an open loop at a rate, or a closed one with so many under way.

Open loop: arrivals are a Poisson process, for people do not wait for one another, and request n is due at its own moment whether or
not those before it were answered; its latency counts from then (no coordinated omission, Tene 2013). Closed loop: the next request
goes out when one comes back, which finds how many a second are answered without ever asking for more.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Schedule:
    """due_s: float64 [n], seconds from the beginning, ascending; none where the loop is closed. in_flight: of a closed loop, else 0."""

    due_s: NDArray[np.float64]
    in_flight: int
    seconds: float
    count: int

    def wanted(self, elapsed_s: float, answered: int) -> int:
        """How many requests should have been sent by now."""
        if self.in_flight:
            return min(answered + self.in_flight, self.count) if elapsed_s < self.seconds else 0
        return int(np.searchsorted(self.due_s, elapsed_s, side="right"))

    def intended_s(self, number: int, elapsed_s: float) -> float:
        """When a request that is sent now should have been."""
        return elapsed_s if self.in_flight else float(self.due_s[number])

    def over(self, elapsed_s: float, sent: int) -> bool:
        """Whether nothing is left to send."""
        return sent >= self.count or elapsed_s >= self.seconds


def poisson(rate: float, seconds: float, seed: int) -> Schedule:
    """An open loop of `rate` requests a second on average."""
    random = np.random.default_rng(seed)
    gaps_s = random.exponential(1 / rate, int(rate * seconds * 1.2) + 100)
    due_s = np.cumsum(gaps_s)
    due_s = due_s[due_s < seconds]
    return Schedule(due_s, 0, seconds, len(due_s))


def closed(in_flight: int, seconds: float, count: int) -> Schedule:
    """A closed loop that ends with the time or after `count` requests."""
    return Schedule(np.empty(0), in_flight, seconds, count)
