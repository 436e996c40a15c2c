"""When the store is left alone: after failures in a row it is not asked for a while, then by one batch, and so on until it answers.

Whoever waits for a store that is gone answers late, and all that wait at once would hold it down when it is back.
"""

import random
from dataclasses import dataclass

#: Failures in a row after which the store is left alone. One may be a hiccup; each costs its requests the store's budget.
FAILURES_MAX = 2
#: The first pause, and the longest (seconds); each is jittered by half, so that a fleet does not ask at once. The longest bounds how long
#: answers stay degraded once the store is back.
PAUSE_S, PAUSE_S_MAX = 0.05, 1.0


@dataclass(slots=True)
class Breaker:
    """One store's. Times are seconds of one clock."""

    failures: int = 0
    asked_again_at_s: float = 0.0
    pause_s: float = PAUSE_S
    probing: bool = False

    @property
    def is_open(self) -> bool:
        """Whether the store is left alone, but for one batch now and then."""
        return self.failures >= FAILURES_MAX

    def allows(self, now_s: float) -> bool:
        """Whether the store may be asked now; of those who are told yes while it is left alone, one must come back with how it went."""
        if not self.is_open:
            return True
        if self.probing or now_s < self.asked_again_at_s:
            return False
        self.probing = True
        return True

    def succeeded(self) -> None:
        """The store answered."""
        self.failures, self.pause_s, self.probing = 0, PAUSE_S, False

    def failed(self, now_s: float) -> None:
        """The store did not answer."""
        self.failures += 1
        self.probing = False
        if self.is_open:
            self.asked_again_at_s = now_s + self.pause_s * random.uniform(0.5, 1.0)  # noqa: S311  # spreads load, keeps no secret
            self.pause_s = min(2 * self.pause_s, PAUSE_S_MAX)
