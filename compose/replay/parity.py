"""`millstream replay parity`: whether two generations say the same of everybody."""

import argparse
import asyncio
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import Progress

from compose.replay import sources
from compose.settings import Settings
from online_store.redis import RedisStore
from online_store.store import OnlineStore
from replay.log import KafkaLog
from replay.parity import logged
from replay.parity import report as reports
from replay.parity.compare import Question, compare
from replay.parity.side import Side
from schemas.errors import GenerationError
from schemas.topics import SOURCES, Source


def parity(settings: Settings, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare two generations; exit code 1 where they differ. The whole report is in state_dir/parity."""
    started_s = time.monotonic()
    log = KafkaLog(settings.kafka_bootstrap, settings.topic_prefix, settings.kafka_security)
    places = [Source(topic.name, partition) for topic in SOURCES for partition in log.end_offsets(topic)]
    question = Question(arguments.as_of_ms or _now_ms(), arguments.sample, arguments.tolerance, places)
    with Progress(console=Console(stderr=True), disable=arguments.json or not sys.stderr.isatty(), transient=True) as progress:
        task = progress.add_task("keys", total=None)
        said = asyncio.run(_parity(settings, arguments, question, lambda more: progress.update(task, advance=more)))
    file = reports.save(settings.state_dir / "parity", said)
    return {
        **{name: said[name] for name in ("first", "second", "passed", "as_of_ms", "entities")},
        "features_off": [line["name"] for line in said["features"] if line["mismatch"] + line["missing"] + line["extra"]],
        "off_against_log": [line["name"] for line in said["against_log"] if line["mismatch"] + line["missing"] + line["extra"]],
        "seconds": round(time.monotonic() - started_s, 1),
        "report": str(file),
        "page": str(file.with_suffix(".html")),
        "exit_code": int(not said["passed"]),
    }


async def _parity(settings: Settings, arguments: argparse.Namespace, question: Question, shown: Callable[[int], None]) -> reports.Report:
    store = RedisStore(settings.store_url, settings.features, tls=settings.store_tls)
    try:
        first, second = await _sides(store, arguments.first, arguments.second)
        found = await compare(store, first, second, question, shown)
        drawn = await logged.draw(store, second, question, arguments.against_log) if arguments.against_log else []
    finally:
        await store.close()
    told = logged.against(sources.chosen(settings, arguments.source), drawn, question, settings.repeat_offsets) if drawn else []
    return reports.report(first, second, question, _now_ms(), found, told)


async def _sides(store: OnlineStore, *names: str) -> list[Side]:
    """The generations of these names. Raises GenerationError for one that is not there."""
    there = {generation.name: Side(generation, registry) for generation, registry in (await store.generations()).items()}
    if unknown := [name for name in names if name not in there]:
        raise GenerationError(f"the store has no generation {', '.join(unknown)}, but {', '.join(there) or 'none'}.")
    return [there[name] for name in names]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
