"""When a server is left alone: after failures in a row it is not asked for a while, then by one caller, and so on until it answers.

Whoever waits for a server that is gone is late, and all that wait at once would hold it down when it is back. The ranker has one for its
store, its HTTP client one for the ranker.
"""

import random
from dataclasses import dataclass

#: Failures in a row after which a server is left alone. One may be a hiccup; each costs its caller all the time that it had.
FAILURES_MAX = 2
#: The first pause, and the longest (seconds); each is jittered by half, so that a fleet does not ask at once. The longest bounds for how
#: long a server that is back is not asked: four of them in a second, for one that is just back may well miss the first. Shorter, and
#: those who wait for a server that hangs would be many.
PAUSE_S, PAUSE_S_MAX = 0.05, 0.25


@dataclass(slots=True)
class Breaker:
    """One server's. Times are seconds of one clock."""

    failures: int = 0
    asked_again_at_s: float = 0.0
    pause_s: float = PAUSE_S
    probing: bool = False

    @property
    def is_open(self) -> bool:
        """Whether the server is left alone, but for one request now and then."""
        return self.failures >= FAILURES_MAX

    def allows(self, now_s: float) -> bool:
        """Whether the server may be asked now; who is told yes while it is left alone must come back with how it went."""
        if not self.is_open:
            return True
        if self.probing or now_s < self.asked_again_at_s:
            return False
        self.probing = True
        return True

    def succeeded(self) -> None:
        """The server answered."""
        self.failures, self.pause_s, self.probing = 0, PAUSE_S, False

    def failed(self, now_s: float) -> None:
        """The server did not answer."""
        self.failures += 1
        self.probing = False
        if self.is_open:
            self.asked_again_at_s = now_s + self.pause_s * random.uniform(0.5, 1.0)  # noqa: S311  # spreads load, keeps no secret
            self.pause_s = min(2 * self.pause_s, PAUSE_S_MAX)

    def answered_late(self) -> None:
        """The server is there, and slow: everybody may ask now, and the next failure is one too many again."""
        self.failures, self.pause_s = min(self.failures, FAILURES_MAX - 1), PAUSE_S
