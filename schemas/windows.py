"""Windows over event time: which tiles count at a given moment.

A window of span 7 d and hop 1 d holds the tiles whose number lies in (tile(as_of) - 7, tile(as_of)]: open exclusive, close
inclusive. The head is exact, the tail is rounded to one hop. Nothing here reads a clock.
"""

from dataclasses import dataclass

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS

#: How far behind a record's newest event an `as_of` may lie and still be read exactly (milliseconds): a request may be
#: CLOCK_SKEW_MS_MAX early and an event as much late. It costs spare slots in every ring; less would make reads during
#: back-pressure approximate.
LATENESS_MS = 600_000
#: What comes later than this after its request is no label of it (milliseconds). Longer makes labels of readers who came back for another
#: reason, and training wait for them; shorter takes slow readers for uninterested ones.
ATTRIBUTION_MS = DAY_MS


@dataclass(frozen=True, slots=True)
class Window:
    """A sliding window made of tiles.

    span_ms, hop_ms: milliseconds; hop divides span.
    """

    name: str
    span_ms: int
    hop_ms: int

    def __post_init__(self) -> None:
        """A window that is not made of whole tiles would count some events in no tile."""
        assert self.hop_ms > 0, self
        assert self.span_ms % self.hop_ms == 0, self

    @property
    def tiles_count(self) -> int:
        """How many tiles count at any moment."""
        return self.span_ms // self.hop_ms

    @property
    def slots_count(self) -> int:
        """Slots of the ring: the tiles that count, and spare ones so that newer tiles do not overwrite them at once."""
        return self.tiles_count + -(-LATENESS_MS // self.hop_ms)

    def tiles(self, as_of_ms: int) -> range:
        """Tile numbers that count at as_of_ms, oldest first; len == tiles_count."""
        newest = as_of_ms // self.hop_ms
        return range(newest - self.tiles_count + 1, newest + 1)

    def start_ms(self, as_of_ms: int) -> int:
        """The first moment that counts at as_of_ms."""
        return self.tiles(as_of_ms).start * self.hop_ms


HOUR_1 = Window("1h", HOUR_MS, 5 * MINUTE_MS)
HOURS_24 = Window("24h", DAY_MS, 3 * HOUR_MS)
DAYS_7 = Window("7d", 7 * DAY_MS, DAY_MS)
DAYS_30 = Window("30d", 30 * DAY_MS, 3 * DAY_MS)
