"""`millstream replay verify`: whether what was served is what the log says."""

import argparse
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import Progress

from compose.replay import sources
from compose.settings import Settings
from replay.served import verify as verifying


def verify(settings: Settings, arguments: argparse.Namespace) -> dict[str, Any]:
    """Recompute served vectors; exit code 1 where the ranker computed something else, which no event under way explains."""
    started_s = time.monotonic()
    log = sources.chosen(settings, arguments.source)
    told, left_out = verifying.sample(log, settings.features, arguments.requests)
    with Progress(console=Console(stderr=True), disable=arguments.json or not sys.stderr.isatty(), transient=True) as progress:
        task = progress.add_task("requests", total=len(told))
        found = verifying.verify(log, settings.features, told, lambda more: progress.update(task, advance=more), settings.repeat_offsets)
    lines = verifying.lines(found)
    skewed = [line["name"] for line in lines if line["skew"]]
    return {
        "requests": len(told),
        "left_out": left_out,
        "skewed": skewed,
        "features": lines,
        "seconds": round(time.monotonic() - started_s, 1),
        "exit_code": int(bool(skewed)),
    }
