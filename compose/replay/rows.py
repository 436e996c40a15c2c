"""`millstream replay rows`: what was served and what came of it, as training rows in a Parquet file."""

import argparse
import gc
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import Progress

from compose.replay import sources
from compose.settings import Settings
from replay.history import events_of, read_history
from replay.served.labels import LONG_VIEW_MS, Labels
from replay.served.training import Made, groups, write
from replay.served.vectors import Recomputed

#: Objects made and not freed before a search for cycles begins. A log's records have none, and usual (700) is a walk through them every few
#: batches: a third of all the time. More would let what a library leaves behind pile up.
GARBAGE_THRESHOLD = 50_000


def rows(settings: Settings, arguments: argparse.Namespace) -> dict[str, Any]:
    """Write a row for each served item that somebody saw."""
    gc.set_threshold(GARBAGE_THRESHOLD)
    started_s = time.monotonic()
    log = sources.chosen(settings, arguments.source)
    made = Made(
        feature_version=settings.features.fingerprint,
        vectors=arguments.vectors,
        source=f"{arguments.source}: lake {settings.lake[0]}, kafka {settings.kafka_bootstrap}, prefix {settings.topic_prefix!r}",
        attribution_ms=arguments.attribution_ms,
        long_view_ms=LONG_VIEW_MS,
        made_at_ms=time.time_ns() // 1_000_000,
    )
    labels = Labels(arguments.attribution_ms)
    for _, events in events_of(log, settings.repeat_offsets):
        labels.add(events)
    labels.sort()
    recomputed = None
    if arguments.vectors == "recomputed":
        recomputed = Recomputed(settings.features, read_history(log, settings.features, settings.repeat_offsets))
    with Progress(console=Console(stderr=True), disable=arguments.json or not sys.stderr.isatty(), transient=True) as progress:
        task = progress.add_task("served items", total=None)
        found = groups(log, settings.features, labels, recomputed, lambda more: progress.update(task, advance=more))
        count = write(arguments.file, settings.features, made, found)
    return {
        "rows": count,
        "file": str(arguments.file),
        "bytes": arguments.file.stat().st_size,
        "seconds": round(time.monotonic() - started_s, 1),
    }
