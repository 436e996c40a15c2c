"""Latencies to quantiles, by HdrHistogram: microseconds to a minute, three significant digits."""

import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

HIGHEST_US = 60_000_000
DIGITS = 3
QUANTILES = (50, 90, 99, 99.9)


def quantiles(latency_s: NDArray[np.float64]) -> dict[str, float]:
    """latency_ms_p50, _p90, _p99, _p999 and _max of latencies in seconds [n]; nothing where there are none."""
    if not len(latency_s):
        return {}
    histogram = HdrHistogram(1, HIGHEST_US, DIGITS)
    for latency_us in (latency_s * 1e6).astype(np.int64).clip(1, HIGHEST_US).tolist():
        histogram.record_value(latency_us)
    named = {f"latency_ms_p{quantile:g}".replace(".", ""): histogram.get_value_at_percentile(quantile) for quantile in QUANTILES}
    return {**{name: round(value / 1000, 3) for name, value in named.items()}, "latency_ms_max": round(float(latency_s.max()) * 1000, 3)}
