"""What an ingest worker tells Prometheus."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Counter, Gauge, Histogram

from schemas.topics import Source

EVENTS = Counter("millstream_events", "Records taken from Kafka and applied.", ["topic"])
DEAD_LETTERS = Counter("millstream_dead_letters", "Records sent to dead-letters.", ["topic", "reason"])
REPEATS = Counter("millstream_repeats", "Events dropped because their producer had sent them before.", ["topic"])
REWINDS = Counter(
    "millstream_rewinds",
    "Times a source was read again: a batch did not follow, the store had lost writes, or another generation became current.",
    ["topic", "reason"],
)
LAG = Gauge("millstream_lag_records", "Records of a source not applied yet.", ["topic", "partition"])
#: Buckets are 1.35 apart from 1 ms to 40 s: a quantile read from them is at most a sixth off.
FRESHNESS = Histogram(
    "millstream_freshness_seconds",
    "From a batch's newest Kafka timestamp to its counts being readable.",
    buckets=[round(0.001 * 1.35**step, 6) for step in range(36)],
)
STAGES = Histogram(
    "millstream_ingest_stage_seconds",
    "Time a batch spent in each stage.",
    ["stage"],
    buckets=[0.0001 * 2**step for step in range(16)],
)
LAKE_ROWS = Counter("millstream_lake_rows", "Records written to the lake.", ["topic"])
LAKE_LAG = Gauge("millstream_lake_lag_records", "Records of a source that are not in the lake yet.", ["topic", "partition"])
LAKE_MISSED = Counter("millstream_lake_missed", "Offsets that Kafka removed before the lake had them.", ["topic"])
LAKE_COMMIT = Histogram(
    "millstream_lake_commit_seconds",
    "Time that a table's transaction took.",
    ["topic"],
    buckets=[0.01 * 2**step for step in range(12)],
)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Time one stage of a batch."""
    with STAGES.labels(name).time():
        yield


def observe_lag(highwater: int | None, source: Source, position: int) -> None:
    """How far a source's position is behind its end, as of its last fetch."""
    LAG.labels(source.topic, source.partition).set(max((highwater or 0) - position, 0))
