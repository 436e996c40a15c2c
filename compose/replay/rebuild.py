"""`millstream replay rebuild`: a generation is filled from the lake and from Kafka, and kept up to date until nobody needs it.

    lake, up to its last offset -> Kafka, up to where it ended then -> the live tail, by the worker that live ingest is

Once the pointer names its generation, live ingest keeps that one: a rebuild then keeps the one before it up to date, so that a rollback is
instant, and ends when that one is dropped or there is none.
"""

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from compose.replay import SOURCE
from compose.replay.beginning import beginning
from compose.replay.columns import ColumnLog
from compose.replay.sources import chosen, lake_of
from compose.settings import Settings
from online_store.bulk.stores import BulkRedisStore
from online_store.ingest import Ingest
from online_store.keys import Generation
from online_store.redis import RedisStore
from online_store.store import OnlineStore
from replay.log import KafkaLog, ReadableLog
from replay.rebuild import Filled, begin_at, fill
from schemas.errors import GenerationError, LogError, StoreAwayError
from schemas.features import Registry
from schemas.topics import SOURCES, Source
from streams.app import IngestSettings, build, check_topics, work
from streams.schema_registry import schema_ids
from streams.worker import Worker

ARGUMENTS: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "--from",
        {
            "dest": "begin",
            "default": "earliest",
            "metavar": "earliest|DATE|OFFSETS",
            "help": "2026-11-20 or 2026-11-20T08:30 (UTC), topic/partition=offset,..., or a JSON file of those",
        },
    ),
    SOURCE,
    ("--generation", {"default": "new", "help": "new: of the registry in `features`; g4: that one is resumed, with its own"}),
    (
        "--until-caught-up",
        {"action": "store_true", "help": "end with exit code 0 once nothing is left, instead of going on at the live tail"},
    ),
)
#: How long a call to the store may take that fills (seconds): it is larger than those of live ingest.
STORE_S = 30.0
#: How often the pointer, the registrations and the lag are looked at (seconds).
LOOK_S = 0.5
#: How long a generation is still filled after it became current (seconds): live workers have come to it by then.
HANDOVER_S = 5.0
#: After how long without a change an idle worker's lag is no record's (seconds): marks of transactions have offsets, too.
UNCHANGED_S = 10.0

#: How a bar reads. said: what of events, how quickly, and how many are left.
COLUMNS = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"))

Result = dict[str, Any]


def rebuild(settings: Settings, arguments: argparse.Namespace) -> Result:
    """Fill a generation, then keep it up to date until SIGTERM, Ctrl-C, or the end that is asked for."""
    with Progress(*COLUMNS, console=Console(stderr=True), disable=arguments.json or not sys.stderr.isatty(), transient=True) as bar:
        return asyncio.run(_rebuild(settings, arguments, bar))


async def _rebuild(settings: Settings, arguments: argparse.Namespace, bar: Progress) -> Result:
    store = RedisStore(settings.store_url, settings.features, tls=settings.store_tls)
    bulk = BulkRedisStore(settings.store_url, settings.features, STORE_S, settings.store_tls)
    kafka = KafkaLog(settings.kafka_bootstrap, settings.topic_prefix, settings.kafka_security)
    begun_s = time.monotonic()
    try:
        generation, registry = await _chosen(store, settings.features, arguments.generation)
        lake, past = lake_of(settings, arguments.source), Filling(settings, bulk.of(registry), registry, generation, bar)
        await begin_at(store, generation, await asyncio.to_thread(beginning, arguments.begin, chosen(settings, arguments.source)))
        from_lake = await past.fill(lake, "the lake") if lake else Filled()
        from_kafka = Filled()
        run = Following(settings, store, generation, registry, bar, until_caught_up=arguments.until_caught_up)
        if arguments.source != "lake":
            await _check_join(store, generation, kafka)
            from_kafka = await past.fill(ColumnLog(settings.kafka_bootstrap, settings.topic_prefix, settings.kafka_security), "Kafka")
            await run.follow()
    finally:
        await store.close()
        await bulk.close()
    seconds = time.monotonic() - begun_s
    of_kafka = from_kafka.events + run.events
    events = from_lake.events + of_kafka
    return {
        "generation": generation.name,
        "feature_version": generation.feature_version,
        "events": events,
        "seconds": round(seconds, 1),
        "events_per_second": round(events / max(seconds, 1e-3)),
        "dead_letters": from_lake.dead_letters + from_kafka.dead_letters + run.dead_letters,
        "repeats": from_lake.repeats + from_kafka.repeats + run.repeats,
        "from_lake": from_lake.events,
        "from_kafka": of_kafka,
        "lag": run.lag,
        "exit_code": run.exit_code,
    }


async def _chosen(store: OnlineStore, features: Registry, name: str) -> tuple[Generation, Registry]:
    """The generation of this name with its registry, or a new one. Raises GenerationError for one that is not there."""
    known = await store.generations()
    if name == "new":
        # Live ingest begins the first one by itself, from what Kafka has: that number is left to it.
        generation = Generation(max([1, *(one.number for one in known)]) + 1, features.fingerprint)
        await store.register(generation, features)
        return generation, features
    for generation, registry in known.items():
        if generation.name == name:
            return generation, registry
    raise GenerationError(f"the store has no generation {name}, but {', '.join(one.name for one in known) or 'none'}. `new` makes one.")


@dataclass(frozen=True, slots=True)
class Filling:
    """Fills a generation from logs, each from where the one before it ended."""

    settings: Settings
    store: OnlineStore
    registry: Registry
    generation: Generation
    bar: Progress

    async def fill(self, log: ReadableLog, name: str) -> Filled:
        """Apply what a log holds up to its end as it is now."""
        settings, task = self.settings, self.bar.add_task(f"{self.generation.name} from {name}", total=None, said="")
        ingest = Ingest(self.store, self.registry, schema_ids(settings.schema_registry_url), settings.repeat_offsets, self.generation)
        return await fill(ingest, log, lambda at: self.bar.update(task, completed=at.done, total=at.done + at.left, said=str(at)))


async def _check_join(store: OnlineStore, generation: Generation, kafka: KafkaLog) -> None:
    """Raise LogError where Kafka has lost what comes next: the worker would read on behind it, and nobody would know."""
    begins = await asyncio.to_thread(_of_sources, kafka.begin_offsets)
    lowest = (await store.guards(generation, list(begins))).min(axis=1).tolist()
    for (source, begin), guard in zip(begins.items(), lowest, strict=True):
        if 0 < guard < begin:
            raise LogError(
                f"{generation.name} has {source} up to offset {guard}, and Kafka begins at {begin}: what lies between is in neither. "
                "Rebuild from a lake that reaches further, or begin another generation there: --from topic/partition=offset."
            )


def _of_sources(ask: Callable[[Any], Mapping[int, int]]) -> dict[Source, int]:
    return {Source(topic.name, partition): offset for topic in SOURCES for partition, offset in ask(topic).items()}


@dataclass(slots=True)
class Following:
    """Keeps a generation up to date from Kafka; after a cutover the one that a rollback would go back to.

    events, repeats, dead_letters: what was new, of the first generation. lag: records that were not applied when last looked.
    """

    settings: Settings
    store: OnlineStore
    generation: Generation
    registry: Registry
    bar: Progress
    until_caught_up: bool
    events: int = 0
    repeats: int = 0
    dead_letters: int = 0
    lag: int | None = None
    exit_code: int = 0
    _asked: asyncio.Event = field(default_factory=asyncio.Event)

    async def follow(self) -> None:
        """Until SIGTERM or Ctrl-C, until nothing is left if that is asked for, or until nobody needs it any more."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._asked.set)
        settings = self._worker_settings(self.generation)
        await asyncio.to_thread(check_topics, settings)
        wanted: tuple[Generation, Registry] | None = (self.generation, self.registry)
        while wanted:
            wanted = await self._follow(*wanted)

    async def _follow(self, generation: Generation, registry: Registry) -> tuple[Generation, Registry] | None:
        """Follow one generation to its end. Returns the next."""
        worker = build(self._worker_settings(generation), self.store.of(registry), registry, generation)
        watch = Watch(self, worker, generation)
        code = await work(worker, watch.is_over)
        if generation == self.generation:
            self.events, self.repeats, self.dead_letters = worker.events_count, worker.repeats_count, worker.bad_count
        if watch.is_current:
            return await self._before(generation)
        is_dropped = generation not in await self.store.generations()
        self.exit_code = 0 if is_dropped else code or int(self.until_caught_up and not watch.is_caught_up)
        return None

    async def _before(self, current: Generation) -> tuple[Generation, Registry] | None:
        """The generation that a rollback goes back to, else the newest that is not current."""
        pointer, known = await self.store.pointer(), await self.store.generations()
        if pointer and pointer.previous and pointer.previous.generation in known:
            return pointer.previous.generation, known[pointer.previous.generation]
        others = [one for one in known if one != current]
        return (others[-1], known[others[-1]]) if others else None

    def _worker_settings(self, generation: Generation) -> IngestSettings:
        settings = self.settings
        return IngestSettings(
            settings.kafka_bootstrap,
            f"{settings.group_id}-replay-{generation.name}",
            settings.topic_prefix,
            settings.schema_registry_url,
            repeat_offsets=settings.repeat_offsets,
            security=settings.kafka_security,
        )


class Watch:
    """Looks whether a generation is to be followed any longer. is_caught_up, is_current: why it is not."""

    def __init__(self, of: Following, worker: Worker, generation: Generation) -> None:
        """Nothing is seen yet."""
        self.is_caught_up = self.is_current = False
        self._of, self._worker, self._generation = of, worker, generation
        self._task = of.bar.add_task(f"{generation.name} at the live tail", total=None, said="")
        self._looked_s = self._current_s = self._changed_s = 0.0
        self._seen: tuple[int | None, int] = (None, 0)

    async def is_over(self) -> bool:
        """Look now and then; what the store or Kafka does not say now is the worker's business, and asked again."""
        if self._of._asked.is_set():  # noqa: SLF001  # one command, two classes
            return True
        if time.monotonic() - self._looked_s < LOOK_S:
            return False
        self._looked_s = time.monotonic()
        try:
            return await self._is_left() or await self._is_done()
        except (StoreAwayError, LogError):
            return False

    async def _is_left(self) -> bool:
        """Whether the generation was dropped, or has been current for long enough."""
        if self._generation not in await self._of.store.generations():
            return True
        if await self._of.store.current() != self._generation:
            self._current_s = 0.0
            return False
        self._current_s = self._current_s or self._looked_s
        self.is_current = self._looked_s - self._current_s >= HANDOVER_S
        return self.is_current

    async def _is_done(self) -> bool:
        """Whether nothing is left to apply, and that is the end."""
        lag = await self._worker.lag()
        if lag is None:
            return False
        self._of.lag = lag
        count = self._worker.events_count
        self._of.bar.update(self._task, completed=count, total=count + lag, said=f"{count:,} events, lag {lag:,}")
        seen = (lag, count)
        if seen != self._seen:
            self._seen, self._changed_s = seen, self._looked_s
        unchanged = self._looked_s - self._changed_s >= UNCHANGED_S and self._worker.app.is_idle
        if not self._of.until_caught_up or (lag and not unchanged):
            return False
        await self._worker.settle()
        self.is_caught_up = True
        return True
