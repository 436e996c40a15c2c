"""What a ranking worker tells Prometheus."""

import functools

from prometheus_client import Counter, Gauge, Histogram

#: Buckets are 1.35 apart from 0.1 ms to 3 s: a quantile read from them is at most a sixth off.
BUCKETS = [round(0.0001 * 1.35**step, 7) for step in range(35)]

REQUESTS = Counter("millstream_rank_requests", "Rank requests answered, by how far they fell back.", ["degraded"])
#: One of them; looking it up took as long as counting four times.
requests = functools.cache(REQUESTS.labels)
REPEATS = Counter("millstream_rank_repeats", "Rank requests answered with the answer kept from before.")
FALLBACKS = Counter("millstream_rank_fallbacks", "Fallbacks, by what was at fault.", ["cause"])
LATENCY = Histogram("millstream_rank_latency_seconds", "From a request's receipt to its answer.", buckets=BUCKETS)
STAGES = Histogram("millstream_rank_stage_seconds", "Time that a batch of requests spent in each stage.", ["stage"], buckets=BUCKETS)
#: In their order. A batch is timed once a stage, not each of its requests; looking the stage up each time took as long as observing it.
QUEUE, STORE, BACKFILL, VECTOR, SCORE, CALIBRATE, SLATE, ENCODE, KEEP = map(
    STAGES.labels, ("queue", "store", "backfill", "vector", "score", "calibrate", "slate", "encode", "keep")
)
OVER_BUDGET = Counter("millstream_rank_over_budget", "Batches whose stage took longer than its budget; of the total, requests.", ["stage"])
BACKFILLED = Counter("millstream_rank_backfilled", "Items that the store lacked, by what the snapshot had of them.", ["outcome"])
DEAD_LETTERS = Counter("millstream_rank_dead_letters", "Rank requests sent to dead-letters.", ["reason"])
REPLIES_REFUSED = Counter("millstream_rank_replies_refused", "Reply topics named by a request that are not on the allow-list.")
TELEMETRY_DROPPED = Counter("millstream_rank_telemetry_dropped", "Telemetry of HTTP and gRPC answers that Kafka did not take in time.")
LAG = Gauge("millstream_rank_lag_records", "Rank requests not read yet, by partition, as of the last read.", ["partition"])
FRESHNESS = Histogram(
    "millstream_rank_freshness_seconds",
    "From a request's Kafka timestamp to its receipt here.",
    buckets=BUCKETS,
)


def spent(stage: str, took_s: float, budget_ms: float) -> None:
    """Count a stage that took longer than its budget."""
    if took_s * 1000 > budget_ms:
        OVER_BUDGET.labels(stage).inc()
