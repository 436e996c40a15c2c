"""How often a tenant may ask: a token bucket.

A bucket holds one second's worth of requests, one at least, and fills evenly. It is this process's own: with N processes a tenant may ask
up to N times as often.
"""


class Limit:
    """A bucket that is full at first."""

    def __init__(self, rate: float) -> None:
        """Rate: requests a second, over 0."""
        assert rate > 0, rate
        self.rate = rate
        self._room = max(rate, 1.0)
        self._left = self._room
        self._seen_s: float | None = None

    def wait_s(self, now_s: float) -> float:
        """Take one request out. Returns 0, or after how many seconds there will be one. now_s: a monotonic clock, seconds."""
        since_s = 0.0 if self._seen_s is None else max(0.0, now_s - self._seen_s)
        self._seen_s = now_s
        self._left = min(self._room, self._left + since_s * self.rate)
        if self._left < 1:
            return (1 - self._left) / self.rate
        self._left -= 1
        return 0.0
