"""Builds and runs an ingest worker: one Faust app on the batch transport, its agents, its guards' watch.

An app is built inside the running event loop, never at import: Faust binds to the first loop it sees.
"""

import asyncio
import gc
import logging
import signal
import ssl
import tempfile
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiokafka.errors import KafkaConnectionError
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from faust import SASLCredentials, SSLCredentials

from online_store.ingest import Ingest
from online_store.keys import Generation
from online_store.store import OnlineStore
from schemas.columnar.repeats import REPEAT_OFFSETS
from schemas.errors import LogError, MillstreamError, SettingsError, kafka_advice
from schemas.features import Registry
from schemas.records import LETTER_BYTES_MAX
from schemas.topics import DEAD_LETTERS, SOURCES
from streams.agents import add_agents
from streams.schema_registry import schema_ids
from streams.transport import App
from streams.warm import warm
from streams.worker import Worker

#: How often a worker looks whether the store still has what it acknowledged (seconds): the longest an idle partition stays wrong.
GUARD_CHECK_S = 5.0
#: How often guards of shards without rows catch up (seconds). Less costs a call a shard and source each time; more lets a
#: restart read further back.
SETTLE_S = 0.25
#: How often a worker looks which generation is current (seconds). With RIVAL_S it must stay inside the two seconds of a cutover.
FOLLOW_S = 0.5
#: How long a live worker lets another writer of its generation pass (seconds): guards of shards without rows move every SETTLE_S. Behind a
#: cutover that is who kept the generation up to date. Less reads a stretch of the source again; more stands still for nothing where two
#: hold each other up.
RIVAL_S = 0.5
#: The same for who keeps a generation up to date beside live workers (seconds): longer, so that of two that hold each other up one goes on.
TARGET_RIVAL_S = 2.0
#: How often Kafka is asked where sources end (seconds): while a store holds everything up, nothing else tells the lag.
LAG_S = 2.0
#: Bytes that one answer of the broker holds of a partition. Under load it bounds a batch, and large batches touch a popular item's
#: record once; the default of 1 MiB costs the store a fifth more an event. Each partition may hold as many in memory.
PARTITION_BYTES_MAX = 4 << 20
#: Objects made and not freed before a search for cycles begins. Usual is 700; more would let what Faust leaves behind pile up.
GARBAGE_THRESHOLD = 200_000
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

    repeat_offsets: as of online_store.ingest.Ingest. partition_bytes_max: of one answer of the broker, for each partition.
    security: TLS and SASL by librdkafka's names (security.protocol, ssl.ca.location, sasl.username and so on); none is plain text.
    """

    kafka_bootstrap: str
    group_id: str
    topic_prefix: str = ""
    schema_registry_url: str = ""
    session_timeout_s: float = 10.0
    repeat_offsets: int = REPEAT_OFFSETS
    partition_bytes_max: int = PARTITION_BYTES_MAX
    security: Mapping[str, str] = field(default_factory=dict, repr=False)


def build(settings: IngestSettings, store: OnlineStore, registry: Registry, target: Generation | None = None) -> Worker:
    """A worker with its app, not started. target: as of online_store.ingest.Ingest."""
    app = App(
        settings.group_id,
        broker=f"kafka://{settings.kafka_bootstrap.replace(',', ';kafka://')}",
        broker_credentials=credentials(settings.security),
        topic_prefix=settings.topic_prefix,
        topic_disable_leader=True,
        topic_allow_declare=False,
        web_enabled=False,
        datadir=Path(tempfile.gettempdir()) / "millstream-faust",
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=settings.partition_bytes_max,
        broker_session_timeout=settings.session_timeout_s,
        broker_heartbeat_interval=settings.session_timeout_s / 4,
        broker_commit_interval=2.0,
        producer_max_request_size=LETTER_BYTES_MAX,
        producer_compression_type="gzip",
        stream_wait_empty=False,
    )
    patience_s = TARGET_RIVAL_S if target else RIVAL_S
    ingest = Ingest(store, registry, schema_ids(settings.schema_registry_url), settings.repeat_offsets, target, patience_s)
    worker = Worker(app, ingest)
    app.positions = worker.assign
    add_agents(app, worker)
    app.timer(GUARD_CHECK_S, name="check_guards")(worker.check_guards)
    app.timer(SETTLE_S, name="settle")(worker.settle)
    app.timer(FOLLOW_S, name="follow")(worker.follow)
    app.timer(LAG_S, name="observe_lag")(worker.observe_lag)
    return worker


async def run(settings: IngestSettings, store: OnlineStore, registry: Registry) -> int:
    """Ingest until SIGTERM or SIGINT. Returns the exit code: 0 after an orderly stop, 1 when the worker could not go on.

    Raises LogError or StoreError where Kafka, its topics or the store are not there to begin with.
    """
    await asyncio.to_thread(check_topics, settings)
    await Ingest(store, registry).start()
    await warm(registry)
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)

    async def is_over() -> bool:
        return asked.is_set()

    try:
        return await work(build(settings, store, registry), is_over)
    finally:
        await store.close()


async def work(worker: Worker, is_over: Callable[[], Awaitable[bool]]) -> int:
    """Start a worker and let it take batches until it is over. Returns the exit code, as `run` does. Raises LogError."""
    app = worker.app
    await _start(app)
    _tame_garbage_collection()
    log.info("ingest is up: group %s on %s", app.conf.id, app.conf.broker)
    while not _crashed(app) and not await is_over():  # noqa: ASYNC110  # Faust tells nobody of a crash: it must be looked at
        await asyncio.sleep(HEALTH_CHECK_S)
    crash = _crashed(app)
    if crash:
        log.error("ingest cannot go on: %r. Restart it: it goes on where the guards stand.", crash)
    await _stop(app)
    return 1 if crash else 0


async def _start(app: App) -> None:
    """Raise LogError where Kafka went away since its topics were looked for."""
    try:
        await app.start()
    except KafkaConnectionError as error:
        where = ", ".join(map(str, app.conf.broker))
        raise LogError(f"{where} went away while ingest began: {error}. Start it again once Kafka is up.") from error


def check_topics(settings: IngestSettings) -> None:
    """Raise LogError unless Kafka answers and has the topics: Faust would wait for them for ever, alive and idle."""
    said: deque[KafkaError] = deque(maxlen=10)
    client: dict[str, Any] = {"bootstrap.servers": settings.kafka_bootstrap, "log_level": 0, "error_cb": said.append, **settings.security}
    admin = AdminClient(client)
    try:
        there = admin.list_topics(timeout=KAFKA_ANSWER_S).topics
    except KafkaException as error:
        admin.poll(0)
        message = f"Kafka at {settings.kafka_bootstrap} does not answer: {error}. {kafka_advice(said)}"
        raise LogError(message) from error
    wanted = [settings.topic_prefix + topic.name for topic in (*SOURCES, DEAD_LETTERS)]
    missing = [name for name in wanted if name not in there]
    if missing:
        message = f"Kafka at {settings.kafka_bootstrap} has no topic {', '.join(missing)}. `millstream topics` creates them."
        raise LogError(message)


def credentials(security: Mapping[str, str]) -> SASLCredentials | SSLCredentials | None:
    """What Faust needs of librdkafka's settings. Raises SettingsError for files that cannot be used."""
    protocol = security.get("security.protocol", "PLAINTEXT")
    context = _tls(security) if protocol.endswith("SSL") else None
    if not protocol.startswith("SASL"):
        return SSLCredentials(context) if context else None
    login = {"username": security["sasl.username"], "password": security["sasl.password"]}
    return SASLCredentials(**login, mechanism=security["sasl.mechanism"], ssl_context=context)


def _tls(security: Mapping[str, str]) -> ssl.SSLContext:
    ca, certificate, key = (security.get(f"ssl.{name}.location") for name in ("ca", "certificate", "key"))
    try:
        context = ssl.create_default_context(cafile=ca)
        if certificate:
            context.load_cert_chain(certificate, key)
    except OSError as error:
        files = f"kafka_tls_ca_file {ca}, kafka_tls_cert_file {certificate}, kafka_tls_key_file {key}"
        raise SettingsError(f"{files}: {error}. Each is a PEM file that we may read; the key belongs to the certificate.") from error
    return context


def _crashed(app: App) -> BaseException | None:
    """What stopped an agent, the fetcher or the app, if anything did; Faust itself may stay alive on such a crash."""
    if app.agent_failure:
        return app.agent_failure
    for service in (app, app.consumer, app._fetcher):  # noqa: SLF001  # the seam: Faust names its fetcher so
        if service is not None and service.crashed:
            return service.crash_reason or MillstreamError(f"{service!r} crashed")
    return None


def _tame_garbage_collection() -> None:
    """A batch leaves thousands of young objects and no cycle: looking for cycles as often as usual took a quarter of a worker's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD)


async def _stop(app: App) -> None:
    try:
        await asyncio.wait_for(app.stop(), STOP_S)
    except TimeoutError:
        log.warning("ingest did not stop within %s s and is left as it is: the guards know what was applied", STOP_S)
