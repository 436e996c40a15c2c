"""Builds and runs an ingest worker: one Faust app on the batch transport, its agents, its guards' watch.

An app is built inside the running event loop, never at import: Faust binds to the first loop it sees.
"""

import asyncio
import logging
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from online_store.ingest import Ingest
from online_store.store import OnlineStore
from schemas.columnar.repeats import REPEAT_OFFSETS
from schemas.errors import LogError, MillstreamError
from schemas.features import Registry
from schemas.records import LETTER_BYTES_MAX
from schemas.topics import DEAD_LETTERS, SOURCES
from streams.agents import add_agents
from streams.schema_registry import schema_ids
from streams.transport import App
from streams.worker import Worker

#: How often a worker looks whether the store still has what it acknowledged (seconds): the longest an idle partition stays wrong.
GUARD_CHECK_S = 5.0
#: How often guards of shards without rows catch up (seconds). Less costs a call a shard and source each time; more lets a
#: restart read further back.
SETTLE_S = 0.25
#: How often Kafka is asked where sources end (seconds): while a store holds everything up, nothing else tells the lag.
LAG_S = 2.0
#: How often a worker looks whether it has crashed or was asked to stop (seconds).
HEALTH_CHECK_S = 0.2
#: How long Kafka may take to say which topics it has (seconds), before a start is given up.
KAFKA_ANSWER_S = 10.0
#: How long an orderly stop may take (seconds); what is not done by then is safe to drop: the guards know.
STOP_S = 10.0

log = logging.getLogger("millstream.ingest")


@dataclass(frozen=True, slots=True)
class IngestSettings:
    """kafka_bootstrap: host:port[,host:port]; group_id: workers that share the partitions.

    fetch_rows_max: records of one fetch, all partitions together. repeat_offsets: as of online_store.ingest.Ingest.
    """

    kafka_bootstrap: str
    group_id: str
    topic_prefix: str = ""
    schema_registry_url: str = ""
    fetch_rows_max: int = 20_000
    session_timeout_s: float = 10.0
    repeat_offsets: int = REPEAT_OFFSETS


def build(settings: IngestSettings, store: OnlineStore, registry: Registry) -> App:
    """An app with its worker behind it, not started."""
    app = App(
        settings.group_id,
        broker=f"kafka://{settings.kafka_bootstrap.replace(',', ';kafka://')}",
        topic_prefix=settings.topic_prefix,
        topic_disable_leader=True,
        topic_allow_declare=False,
        web_enabled=False,
        datadir=Path(tempfile.gettempdir()) / "millstream-faust",
        consumer_auto_offset_reset="earliest",
        broker_max_poll_records=settings.fetch_rows_max,
        broker_session_timeout=settings.session_timeout_s,
        broker_heartbeat_interval=settings.session_timeout_s / 4,
        broker_commit_interval=2.0,
        producer_max_request_size=LETTER_BYTES_MAX,
        producer_compression_type="gzip",
        stream_wait_empty=False,
    )
    worker = Worker(app, Ingest(store, registry, schema_ids(settings.schema_registry_url), settings.repeat_offsets))
    app.positions = worker.assign
    add_agents(app, worker)
    app.timer(GUARD_CHECK_S, name="check_guards")(worker.check_guards)
    app.timer(SETTLE_S, name="settle")(worker.settle)
    app.timer(LAG_S, name="observe_lag")(worker.observe_lag)
    return app


async def run(settings: IngestSettings, store: OnlineStore, registry: Registry) -> int:
    """Ingest until SIGTERM or SIGINT. Returns the exit code: 0 after an orderly stop, 1 when the worker could not go on.

    Raises LogError or StoreError where Kafka, its topics or the store are not there to begin with.
    """
    await asyncio.to_thread(check_topics, settings)
    await Ingest(store, registry).start()
    app = build(settings, store, registry)
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    await app.start()
    log.info("ingest is up: group %s on %s", settings.group_id, settings.kafka_bootstrap)
    while not asked.is_set() and not _crashed(app):  # noqa: ASYNC110  # Faust tells nobody of a crash: it must be looked at
        await asyncio.sleep(HEALTH_CHECK_S)
    crash = _crashed(app)
    if crash:
        log.error("ingest cannot go on: %r. Restart it: it goes on where the guards stand.", crash)
    await _stop(app, store)
    return 1 if crash else 0


def check_topics(settings: IngestSettings) -> None:
    """Raise LogError unless Kafka answers and has the topics: Faust would wait for them for ever, alive and idle."""
    try:
        there = AdminClient({"bootstrap.servers": settings.kafka_bootstrap, "log_level": 0}).list_topics(timeout=KAFKA_ANSWER_S).topics
    except KafkaException as error:
        message = f"Kafka at {settings.kafka_bootstrap} does not answer: {error}. Is it up? `millstream stack up` starts a local one."
        raise LogError(message) from error
    wanted = [settings.topic_prefix + topic.name for topic in (*SOURCES, DEAD_LETTERS)]
    missing = [name for name in wanted if name not in there]
    if missing:
        message = f"Kafka at {settings.kafka_bootstrap} has no topic {', '.join(missing)}. `millstream topics` creates them."
        raise LogError(message)


def _crashed(app: App) -> BaseException | None:
    """What stopped an agent, the fetcher or the app, if anything did; Faust itself may stay alive on such a crash."""
    if app.agent_failure:
        return app.agent_failure
    for service in (app, app.consumer, app._fetcher):  # noqa: SLF001  # the seam: Faust names its fetcher so
        if service is not None and service.crashed:
            return service.crash_reason or MillstreamError(f"{service!r} crashed")
    return None


async def _stop(app: App, store: OnlineStore) -> None:
    try:
        await asyncio.wait_for(app.stop(), STOP_S)
    except TimeoutError:
        log.warning("ingest did not stop within %s s and is left as it is: the guards know what was applied", STOP_S)
    await store.close()
