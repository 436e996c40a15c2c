"""What each verb of `millstream` does: a function that gets the settings and its own arguments, and returns its result."""

import argparse
import asyncio
import pkgutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import start_http_server
from rich.console import Console
from rich.progress import Progress

from compose import processes
from compose import redrive as redrives
from compose import topics as topics_module
from compose.demo import run as demo_module
from compose.replay import PARITY, ROWS, VERIFY, cutover, snapshot
from compose.replay import rebuild as rebuilds
from compose.settings import Settings
from compose.stack.local import LocalStack
from online_store.keys import Entity
from online_store.redis import RedisStore
from online_store.view import describe
from replay.log import KafkaLog
from schemas.errors import SettingsError
from schemas.records import CANDIDATES_COUNT_MAX, DeadLetter, RankRequest
from schemas.topics import DEAD_LETTERS
from streams.app import IngestSettings
from streams.app import run as run_ingest

Arguments = argparse.Namespace
Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb. arguments: what it takes besides settings, as argparse takes it."""

    run: Callable[[Settings, Arguments], Result]
    help: str
    arguments: tuple[tuple[str, dict[str, Any]], ...] = ()


def stack(settings: Settings, arguments: Arguments) -> Result:
    """Start, stop or look at the local Kafka and store."""
    local = LocalStack(settings.state_dir, _port(settings.kafka_bootstrap), _port(settings.store_url))
    if arguments.action == "up":
        return asdict(local.up())
    if arguments.action == "down":
        local.down(remove_data=arguments.remove_data)
    status = local.status()
    wrong = arguments.action == "status" and not (status.kafka.answering and status.store.answering)
    return {**asdict(status), "exit_code": int(wrong)}


def topics(settings: Settings, arguments: Arguments) -> Result:
    """Create the topics that are not there yet."""
    wanted = (arguments.partitions, arguments.retention_ms, settings.kafka_security)
    created = topics_module.create(settings.kafka_bootstrap, settings.topic_prefix, *wanted)
    return {"created": created}


def ingest(settings: Settings, _: Arguments) -> Result:
    """Run an ingest worker until SIGTERM or Ctrl-C."""
    _serve_metrics(settings, 0)
    worker = IngestSettings(
        settings.kafka_bootstrap,
        f"{settings.group_id}-ingest",
        settings.topic_prefix,
        settings.schema_registry_url,
        repeat_offsets=settings.repeat_offsets,
        security=settings.kafka_security,
    )
    store = RedisStore(settings.store_url, settings.features, tls=settings.store_tls)
    return {"exit_code": asyncio.run(run_ingest(worker, store, settings.features))}


def lake_(settings: Settings, _: Arguments) -> Result:
    """Run a sink of the lake until SIGTERM or Ctrl-C."""
    _serve_metrics(settings, 0)
    from compose import lake  # noqa: PLC0415  # its libraries are 60 MB: verbs without a lake do without

    return {"lake": lake.sink(settings)}


def serve(settings: Settings, arguments: Arguments) -> Result:
    """Run a ranking worker until SIGTERM or Ctrl-C, or several."""
    number = getattr(arguments, "number", None)
    if settings.processes > 1 and number is None:
        return {"processes": settings.processes, "exit_code": processes.run(partial(_serve_one, vars(arguments)), settings.processes)}
    _serve_metrics(settings, number or 0)
    from compose.serve import serve  # noqa: PLC0415  # scoring's libraries are 60 MB: verbs that rank nothing do without

    return {"model_version": serve(settings)}


def _serve_one(said: dict[str, Any], number: int) -> None:
    """One of several, in a process of its own. said: the command's arguments."""
    from compose.cli import run  # noqa: PLC0415  # it imports this module

    sys.exit(run(Arguments(**said, number=number)))


def train_(settings: Settings, arguments: Arguments) -> Result:
    """Train on the log in Kafka and write a bundle."""
    from compose.train import train  # noqa: PLC0415  # as in `serve`

    log = KafkaLog(settings.kafka_bootstrap, settings.topic_prefix, settings.kafka_security)
    chosen = {"objective": arguments.objective, "repeat_offsets": settings.repeat_offsets}
    bundle = train(log, settings.features, settings.models_uri, now_ms=_now_ms(), **chosen)
    return {"model_version": bundle.manifest.model_version, "folder": str(bundle.folder), **bundle.manifest.metrics}


def features(settings: Settings, arguments: Arguments) -> Result:
    """Show what the store knows of one entity."""
    return asyncio.run(_features(settings, Entity(arguments.tenant, arguments.kind, arguments.id), arguments.as_of_ms))


async def _features(settings: Settings, entity: Entity, as_of_ms: int | None) -> Result:
    store = RedisStore(settings.store_url, settings.features, tls=settings.store_tls)
    try:
        return await describe(store, settings.features, entity, as_of_ms or _now_ms())
    finally:
        await store.close()


def explain(settings: Settings, arguments: Arguments) -> Result:
    """Show how a request would come to its slate now."""
    from compose import serve  # noqa: PLC0415  # as in `serve`

    context = dict(word.partition("=")[::2] for word in arguments.context)
    request = RankRequest(
        request_id=arguments.request_id,
        user_id=arguments.user_id,
        candidate_item_ids=arguments.item_ids,
        k=arguments.k,
        ts_ms=_now_ms(),
        context=context,
        tenant=arguments.tenant,
    )
    return serve.explain(settings, request)


def dead_letters(settings: Settings, arguments: Arguments) -> Result:
    """List what could not be used, the newest last, or send it again."""
    log = KafkaLog(settings.kafka_bootstrap, settings.topic_prefix, settings.kafka_security)
    if arguments.action == "redrive":
        choice = redrives.Choice(arguments.reason, arguments.topic, arguments.from_offset, redrives.repair_of(arguments.repair))
        sender = redrives.Sender(settings.kafka_bootstrap, settings.topic_prefix, settings.kafka_security)
        with _progress(arguments) as progress:
            task = progress.add_task("letters", total=sum(log.end_offsets(DEAD_LETTERS).values()))
            return asdict(redrives.redrive(log, sender, choice, lambda read: progress.update(task, completed=read)))
    letters = [found.letter for found in redrives.letters(log)]
    return {"count": len(letters), "letters": [_letter(letter) for letter in letters[-arguments.limit :]]}


def _letter(letter: DeadLetter) -> Result:
    where = {"topic": letter.topic, "partition": letter.partition, "offset": letter.offset}
    return {**where, "reason": letter.reason, "detail": letter.detail, "bytes": len(letter.value or b"")}


def demo(settings: Settings, arguments: Arguments) -> Result:
    """Run the whole loop on this machine: a feed, ingest, training, ranking, and a check against the oracle."""
    return demo_module.run(settings.state_dir, data=arguments.data, seed=arguments.seed, live=not arguments.json)


def _later(name: str) -> Callable[[Settings, Arguments], Result]:
    """A verb that is imported when it runs, for what it imports (compose/replay/__init__.py). name: module:function."""

    def run(settings: Settings, arguments: Arguments) -> Result:
        result: Result = pkgutil.resolve_name(name)(settings, arguments)
        return result

    return run


def _progress(arguments: Arguments) -> Progress:
    return Progress(console=Console(stderr=True), disable=arguments.json or not sys.stderr.isatty(), transient=True)


def _serve_metrics(settings: Settings, number: int) -> None:
    """At metrics_port, if it is set. number: of this process; each has its own counters, and so a port of its own."""
    if not settings.metrics_port:
        return
    port = settings.metrics_port + number
    try:
        start_http_server(port)
    except OSError as error:
        raise SettingsError(f"metrics_port {port} cannot be opened: {error.strerror}. Choose another, or 0 for none.") from error


def _port(address: str) -> int:
    """The port of the first host:port in an address or URL."""
    return int(address.split(",", maxsplit=1)[0].rstrip("/").rpartition(":")[2].split("/")[0])


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


#: How a pointer is moved though something speaks against it.
MOVING: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--lag-max", {"type": int, "default": cutover.LAG_COUNT_MAX, "help": "events of the current one that may be missing in it"}),
    ("--force", {"action": "store_true", "help": "go on, and say what is being risked"}),
)
GENERATION = ("generation", {"metavar": "GENERATION", "help": "its name, for one g4"})

VERBS: dict[str, Verb] = {
    "stack": Verb(
        stack,
        "start, stop or look at the local Kafka and store",
        (
            ("action", {"choices": ["up", "down", "status"]}),
            ("--remove-data", {"action": "store_true", "help": "with down: forget what they held"}),
        ),
    ),
    "topics": Verb(
        topics,
        "create the topics",
        (
            ("--partitions", {"type": int, "default": 8, "help": "of each topic"}),
            ("--retention-ms", {"type": int, "default": topics_module.RETENTION_MS, "help": "how long records stay; -1 is for ever"}),
        ),
    ),
    "ingest": Verb(ingest, "run an ingest worker"),
    "lake": Verb(lake_, "write every topic to the lake"),
    "serve": Verb(serve, "run a ranking worker"),
    "train": Verb(
        train_,
        "train on the log and write a bundle",
        (("--objective", {"default": "binary:logistic", "choices": ["binary:logistic", "rank:ndcg"], "help": "what trees minimise"}),),
    ),
    "features": Verb(
        features,
        "show what the store knows of one entity",
        (
            ("kind", {"help": "user, item or model"}),
            ("id", {}),
            ("--tenant", {"default": ""}),
            ("--as-of-ms", {"type": int, "help": "event time in milliseconds UTC; now if absent"}),
        ),
    ),
    "explain": Verb(
        explain,
        "show how candidates would come to their places for a user",
        (
            ("user_id", {}),
            ("item_ids", {"nargs": "+", "metavar": "item_id"}),
            ("--k", {"type": int, "default": CANDIDATES_COUNT_MAX, "help": "how many to return"}),
            ("--request-id", {"default": "explain", "help": "lots are drawn from it"}),
            ("--context", {"action": "append", "default": [], "metavar": "KEY=VALUE", "help": "of the request's context; may be repeated"}),
            ("--tenant", {"default": ""}),
        ),
    ),
    "replay rebuild": Verb(rebuilds.rebuild, "fill a generation from the lake and Kafka, and keep it up to date", rebuilds.ARGUMENTS),
    "replay generations": Verb(cutover.generations, "list the generations of the store"),
    "replay cutover": Verb(cutover.cutover, "make a generation the current one", (GENERATION, *MOVING)),
    "replay rollback": Verb(cutover.rollback, "make the generation before the current one current again", MOVING),
    "replay drop": Verb(cutover.drop, "remove a generation that is not current", (GENERATION,)),
    "dead-letters": Verb(
        dead_letters,
        "list what could not be used, or send it again once that is mended",
        (
            ("action", {"choices": ["list", "redrive"]}),
            ("--limit", {"type": int, "default": 100, "help": "with list: how many to show"}),
            ("--reason", {"default": "", "help": "with redrive: only letters of this reason"}),
            ("--topic", {"default": "", "help": "with redrive: only letters of this topic, without prefix"}),
            ("--from-offset", {"type": int, "default": 0, "help": "with redrive: from this offset of each partition on"}),
            ("--repair", {"default": "", "help": "with redrive: module:function, bytes to mended bytes, None to leave a letter"}),
        ),
    ),
    "replay parity": Verb(_later("compose.replay.parity:parity"), "compare two generations, feature by feature", PARITY),
    "replay rows": Verb(_later("compose.replay.rows:rows"), "write what was served and what came of it as training rows", ROWS),
    "replay backfill-snapshot": Verb(snapshot.snapshot, "write what the store knows of its items into a file", snapshot.ARGUMENTS),
    "replay verify": Verb(_later("compose.replay.verify:verify"), "hold what was served against the log", VERIFY),
    "demo": Verb(
        demo,
        "run the whole loop on this machine",
        (
            ("--data", {"type": Path, "help": "folder of KuaiRand-Pure: replay it instead of simulating a feed"}),
            ("--seed", {"type": int, "default": 1, "help": "of the simulated feed"}),
        ),
    ),
}
