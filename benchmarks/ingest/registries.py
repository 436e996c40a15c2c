"""A registry as large as a platform's with many teams: how the cost of an event grows with what is counted."""

from schemas.aggregates import ITEM, MODEL, USER
from schemas.features import Feature, Registry, ctr
from schemas.windows import DAY_MS, HOUR_MS, MINUTE_MS, Window

#: Spans and hops of ten windows, 6 to 12 tiles each.
SHAPES_MS = (
    (10 * MINUTE_MS, MINUTE_MS),
    (30 * MINUTE_MS, 5 * MINUTE_MS),
    (HOUR_MS, 5 * MINUTE_MS),
    (2 * HOUR_MS, 10 * MINUTE_MS),
    (3 * HOUR_MS, 15 * MINUTE_MS),
    (6 * HOUR_MS, 30 * MINUTE_MS),
    (12 * HOUR_MS, HOUR_MS),
    (DAY_MS, 3 * HOUR_MS),
    (3 * DAY_MS, 6 * HOUR_MS),
    (7 * DAY_MS, DAY_MS),
)


def _windows(count: int) -> list[Window]:
    """So many windows, each of another span."""
    found = []
    for number in range(count):
        span_ms, hop_ms = SHAPES_MS[number % len(SHAPES_MS)]
        spans = span_ms + number // len(SHAPES_MS) * hop_ms
        found.append(Window(f"w{number}", spans, hop_ms))
    return found


def _features(kind: str, count: int) -> list[Feature]:
    return [ctr(f"{kind}_ctr_{window.name}", kind, window) for window in _windows(count)]


#: 64 windows: 32 of an item, 28 of a user, 4 of a model.
WIDE = Registry(tuple(_features(ITEM, 32) + _features(USER, 28) + _features(MODEL, 4)))
