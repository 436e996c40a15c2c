"""Which generation is read: `millstream replay generations`, `cutover`, `rollback` and `drop`.

A cutover is one change of the pointer, which names the generation and the model that ranks by it; ingest and rankers follow by themselves.
What speaks against it is listed with its values, and refused; with --force the same list says what is being risked.
"""

import argparse
import asyncio
import re
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from rich.console import Console
from rich.progress import Progress

from compose.settings import Settings
from online_store.keys import Generation, Pointer
from online_store.redis import RedisStore
from online_store.store import OnlineStore
from replay.log import KafkaLog
from schemas.errors import BundleError, GenerationError, SettingsError
from schemas.topics import SOURCES, Source

#: Events that the current generation has and the next one may lack: ingest has them applied within the second that the change takes. More
#: would show in features, and longer than anybody expects of a cutover. What neither has applied yet is no reason against it.
LAG_COUNT_MAX = 1_000
#: How long it is looked for a moment at which no more is missing (seconds): on a busy machine one is further ahead now, then the other.
LAG_PATIENCE_S = 5.0
#: How long after its making a parity report is believed (milliseconds). What ingest has done to both generations since, it has not seen.
PARITY_AGE_MS_MAX = 3_600_000
#: How long after what a generation should have its guards are read (seconds): those of shards without rows follow four times a second.
SETTLED_S = 0.6

Result = dict[str, Any]
T = TypeVar("T")


class Parity(msgspec.Struct, frozen=True):
    """What a cutover wants to know of a parity report. made_at_ms: when it was made, by the clock."""

    first: str
    second: str
    passed: bool
    made_at_ms: int


def generations(settings: Settings, _: argparse.Namespace) -> Result:
    """List the generations of the store."""
    return asyncio.run(_within(settings, _generations))


async def _generations(settings: Settings, store: OnlineStore) -> Result:
    pointer, known = await store.pointer(), await store.generations()
    current = pointer.generation if pointer else None
    behind = await lags(settings, store, known)
    rows = [{"name": one.name, "feature_version": one.feature_version, "current": one == current, "lag": behind[one]} for one in known]
    return {"model_version": pointer.model_version if pointer else "", "generations": rows}


async def lags(settings: Settings, store: OnlineStore, known: Iterable[Generation]) -> dict[Generation, int]:
    """How many events each generation lacks that were in Kafka a moment ago. Raises LogError, StoreError."""
    ends = await asyncio.to_thread(_ends, settings)
    await asyncio.sleep(SETTLED_S)
    return {generation: await _lacking(store, generation, ends) for generation in known}


async def lag_behind(settings: Settings, store: OnlineStore, current: Generation, generation: Generation) -> int:
    """How many events a generation lacks that the current one had a moment ago. Raises LogError, StoreError."""
    sources = list(await asyncio.to_thread(_ends, settings))
    had = (await store.guards(current, sources)).min(axis=1).tolist()
    await asyncio.sleep(SETTLED_S)
    return await _lacking(store, generation, dict(zip(sources, had, strict=True)))


def _ends(settings: Settings) -> dict[Source, int]:
    log = KafkaLog(settings.kafka_bootstrap, settings.topic_prefix, settings.kafka_security)
    return {Source(topic.name, partition): end for topic in SOURCES for partition, end in log.end_offsets(topic).items()}


async def _lacking(store: OnlineStore, generation: Generation, offsets: Mapping[Source, int]) -> int:
    """How many events before these offsets a generation lacks."""
    lowest = (await store.guards(generation, list(offsets))).min(axis=1).tolist()
    return sum(max(offset - guard, 0) for offset, guard in zip(offsets.values(), lowest, strict=True))


def cutover(settings: Settings, arguments: argparse.Namespace) -> Result:
    """Make a generation the current one."""
    return asyncio.run(_within(settings, lambda settings, store: _cutover(settings, store, arguments)))


async def _cutover(settings: Settings, store: OnlineStore, arguments: argparse.Namespace) -> Result:
    pointer, generation = await _pointer(store), _known(await store.generations(), arguments.generation)
    if generation == pointer.generation:
        return {"current": generation.name, "model_version": pointer.model_version, "moved": False}
    model_version, faults = _bundle(settings, pointer, generation)
    faults += _parity_faults(settings.state_dir, pointer, generation)
    faults += await _lag_faults(settings, store, pointer.generation, generation, arguments.lag_max)
    named = (generation.number, generation.feature_version, generation.shards)
    wanted = Pointer(*named, model_version, msgspec.structs.replace(pointer, previous=None))
    return await _move(store, pointer, wanted, faults, force=arguments.force)


def rollback(settings: Settings, arguments: argparse.Namespace) -> Result:
    """Make the generation before the current one current again, with its model."""
    return asyncio.run(_within(settings, lambda settings, store: _rollback(settings, store, arguments)))


async def _rollback(settings: Settings, store: OnlineStore, arguments: argparse.Namespace) -> Result:
    pointer, known = await _pointer(store), await store.generations()
    before = pointer.previous
    if before is None:
        raise GenerationError(
            f"{pointer.name} was current from the beginning: there is none to go back to. `millstream replay cutover` goes to another."
        )
    generation = _known(known, before.name)
    wanted = msgspec.structs.replace(before, previous=msgspec.structs.replace(pointer, previous=None))
    _, faults = _bundle(settings, pointer, generation)
    faults += await _lag_faults(settings, store, pointer.generation, generation, arguments.lag_max)
    return await _move(store, pointer, wanted, faults, force=arguments.force)


async def _move(store: OnlineStore, pointer: Pointer, wanted: Pointer, faults: list[str], *, force: bool) -> Result:
    """Change the pointer, unless something speaks against it and nobody forces it."""
    if faults and not force:
        return {"current": pointer.name, "refused": wanted.name, "faults": faults, "exit_code": 1}
    if not await store.point(pointer, wanted):
        raise GenerationError(f"somebody else moved the pointer from {pointer.name} meanwhile. Look with `millstream replay generations`.")
    return {"current": wanted.name, "before": pointer.name, "model_version": wanted.model_version, "moved": True, "risked": faults}


def drop(settings: Settings, arguments: argparse.Namespace) -> Result:
    """Remove a generation that is not current: records, guards, registration."""
    number = _number(arguments.generation)
    with Progress(console=Console(stderr=True), disable=arguments.json or not sys.stderr.isatty(), transient=True) as progress:
        task = progress.add_task("records", total=None)

        async def dropped(_: Settings, store: OnlineStore) -> int:
            return await store.drop(number, lambda count: progress.update(task, completed=count))

        return {"dropped": f"g{number}", "records": asyncio.run(_within(settings, dropped))}


def _parity_faults(state_dir: Path, pointer: Pointer, generation: Generation) -> list[str]:
    path = state_dir / "parity" / f"{pointer.name}-{generation.name}.json"
    again = f"`millstream replay parity {pointer.name} {generation.name}` makes one."
    try:
        report = msgspec.json.decode(path.read_bytes(), type=Parity)
    except FileNotFoundError:
        return [f"there is no parity report {path}: nobody has compared {generation.name} with {pointer.name}. {again}"]
    except (OSError, msgspec.DecodeError) as error:
        return [f"{path} is no parity report ({error}). {again}"]
    if (report.first, report.second) != (pointer.name, generation.name):
        return [f"{path} compares {report.first} with {report.second}. {again}"]
    if not report.passed:
        return [f"{path} says that {generation.name} differs from {pointer.name} by more than is tolerated. It lists where; then {again}"]
    age_ms = time.time_ns() // 1_000_000 - report.made_at_ms
    if age_ms > PARITY_AGE_MS_MAX:
        return [f"{path} is {age_ms // 60_000} minutes old, and believed for {PARITY_AGE_MS_MAX // 60_000}. {again}"]
    return []


async def _lag_faults(settings: Settings, store: OnlineStore, current: Generation, generation: Generation, lag_max: int) -> list[str]:
    until_s = time.monotonic() + LAG_PATIENCE_S
    while (lag := await lag_behind(settings, store, current, generation)) > lag_max and time.monotonic() < until_s:
        pass
    if lag <= lag_max:
        return []
    lacks = f"{generation.name} lacks {lag} events that {current.name} has, at most {lag_max} are tolerated: features would go back."
    return [f"{lacks} Wait until `millstream replay rebuild` has caught up, or say --lag-max."]


def _newest(settings: Settings, feature_version: str) -> str:
    """The model_version of the newest bundle for a registry. Raises BundleError where there is none."""
    from ranker import bundle as bundles  # noqa: PLC0415  # scoring's libraries are 60 MB: verbs that rank nothing do without

    return bundles.latest(settings.models_uri, feature_version).name


def _bundle(settings: Settings, pointer: Pointer, generation: Generation) -> tuple[str, list[str]]:
    """The model that a generation is to be ranked by, and what speaks against it; of the same registry it is the one that is."""
    try:
        newest = _newest(settings, generation.feature_version)
    except BundleError as error:
        meanwhile = f"rankers go on with {pointer.name} and its model, and one that starts answers by popularity"
        return "", [f"no bundle serves {generation.name}: {error} Until there is one, {meanwhile}."]
    return pointer.model_version if generation.feature_version == pointer.feature_version else newest, []


async def _pointer(store: OnlineStore) -> Pointer:
    found = await store.pointer()
    if found is None:
        raise GenerationError("the store holds no generation yet. Start `millstream ingest` once to begin one.")
    return found


def _number(name: str) -> int:
    if not re.fullmatch("g?[0-9]{1,9}", name):
        raise SettingsError(f"generation is {name!r}: it takes a name like g4. `millstream replay generations` lists them.")
    return int(name.removeprefix("g"))


def _known(known: Mapping[Generation, object], name: str) -> Generation:
    number = _number(name)
    for generation in known:
        if generation.number == number:
            return generation
    there = ", ".join(generation.name for generation in known) or "none"
    raise GenerationError(f"g{number} is not registered (any more); the store has {there}. `millstream replay rebuild` makes one.")


async def _within(settings: Settings, work: Callable[[Settings, OnlineStore], Awaitable[T]]) -> T:
    """Do something with the store, and let go of it."""
    store = RedisStore(settings.store_url, settings.features, tls=settings.store_tls)
    try:
        return await work(settings, store)
    finally:
        await store.close()
