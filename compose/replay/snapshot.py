"""`millstream replay backfill-snapshot`: what the store knows of its items, in a file that ranking falls back on."""

import argparse
import asyncio
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from compose.settings import Settings
from online_store.redis import RedisStore
from online_store.snapshot.take import take
from schemas.errors import SettingsError

ARGUMENTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--every", {"type": float, "default": 0.0, "metavar": "SECONDS", "help": "take it anew so often, until SIGTERM or Ctrl-C; 0 is once"}),
)

log = logging.getLogger("millstream.snapshot")


def snapshot(settings: Settings, arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the file, once or again and again. Rankers go over to a new one by themselves."""
    file = settings.snapshot_file
    if file is None:
        raise SettingsError("snapshot_file is not set: name the file, for one --snapshot-file items.arrow, and set it for `serve` too.")
    found: dict[str, Any] = {}
    try:
        while not found or arguments.every:
            found = _take(settings, file, is_shown=not arguments.json and sys.stderr.isatty())
            log.info("%s: %s records in %s s", file, found["records"], found["seconds"])
            time.sleep(max(arguments.every - found["seconds"], 0))
    except KeyboardInterrupt:
        if not arguments.every:
            raise
    return found


def _take(settings: Settings, file: Path, *, is_shown: bool) -> dict[str, Any]:
    started_s = time.monotonic()
    with Progress(console=Console(stderr=True), disable=not is_shown, transient=True) as progress:
        task = progress.add_task("records", total=None)
        records = asyncio.run(_taken(settings, file, lambda read, of: progress.update(task, completed=read, total=of)))
    return {"records": records, "bytes": file.stat().st_size, "seconds": round(time.monotonic() - started_s, 1), "file": str(file)}


async def _taken(settings: Settings, file: Path, shown: Callable[[int, int], None]) -> int:
    store = RedisStore(settings.store_url, settings.features, tls=settings.store_tls)
    try:
        return await take(store, settings.features, file, time.time_ns() // 1_000_000, shown)
    finally:
        await store.close()
