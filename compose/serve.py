"""What `millstream serve` runs: a ranker behind Kafka, HTTP and gRPC, until it is told to stop."""

import asyncio
import contextlib
import functools
import gc
import logging
import multiprocessing
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn

from compose.settings import Settings
from online_store.redis import RedisStore
from online_store.servers.address import without_password
from online_store.snapshot import file as snapshots
from ranker import bundle as bundles
from ranker.fronts import auth
from ranker.fronts.grpc import GrpcFront
from ranker.fronts.http import HttpFront
from ranker.fronts.quick.http import RankProtocol
from ranker.kafka.sender import RankSettings
from ranker.kafka.worker import RankWorker
from ranker.rank import Ranker
from schemas import codec
from schemas.errors import BundleError, SettingsError, StoreAwayError, StoreError
from schemas.features import Registry
from schemas.records import RankRequest
from streams.schema_registry import schema_ids

#: Each call to the store from a ranking worker (seconds); the request's own deadline is shorter and comes first.
STORE_TIMEOUT_S = 1.0
#: How long requests under way may take once we are told to stop (seconds); each has a deadline far below it.
DRAIN_S = 5
#: How long an idle connection is kept (seconds): longer than balancers keep theirs, 60 as a rule. Who hangs up first must not be us, or a
#: request is on its way to a closed connection.
KEEP_ALIVE_S = 75
#: Objects made and not freed before a search for cycles begins. A request leaves none, so it would find nothing; usual is 700, which is
#: every few requests. More would let what a library leaves behind pile up.
GARBAGE_THRESHOLD = 50_000

Found = tuple[bundles.Bundle, snapshots.Snapshot | None]

log = logging.getLogger("millstream.serve")


def serve(settings: Settings) -> str:
    """Rank until SIGTERM or SIGINT, by the model of the current generation. Returns its model_version at the start.

    Raises BundleError where there is none that fits, SettingsError for a snapshot that does not.
    """
    return asyncio.run(_serve(settings))


def explain(settings: Settings, request: RankRequest) -> dict[str, Any]:
    """How a request would come to its slate now, ready for JSON. Raises MillstreamError where it would fall back."""
    codec.check_request(request)
    return asyncio.run(_explain(settings, request))


async def _explain(settings: Settings, request: RankRequest) -> dict[str, Any]:
    store = RedisStore(settings.store_url, settings.features, STORE_TIMEOUT_S, settings.store_tls)
    try:
        _, ranker = await _ranker(settings, store)
        return await ranker.explain(request)
    except TimeoutError as error:
        raise StoreAwayError(f"the store at {without_password(settings.store_url)} did not answer in time. Is it up?") from error
    finally:
        await store.close()


async def _ranker(settings: Settings, store: RedisStore) -> tuple[str, Ranker]:
    """A ranker by the model of the current generation, and that model's version; while it cannot be had, by the newest for `features`."""
    registry, (bundle, snapshot) = await _found_for_current(settings, store) or (settings.features, find(settings, settings.features, ""))
    found = functools.partial(find, settings)
    ranker = Ranker(store, registry, bundle, settings.budgets_ms, settings.slate, snapshot, found)
    await ranker.refresh()
    return bundle.manifest.model_version, ranker


async def _found_for_current(
    settings: Settings, store: RedisStore
) -> tuple[Registry, tuple[bundles.Bundle, snapshots.Snapshot | None]] | None:
    try:
        pointer = await store.pointer()
        registry = (await store.generations()).get(pointer.generation) if pointer else None
        return (registry, find(settings, registry, pointer.model_version)) if pointer and registry else None
    except (StoreError, BundleError) as error:
        log.warning("what is current cannot be served yet: %s", error)
        return None


def find(settings: Settings, registry: Registry, model_version: str) -> Found:
    """A bundle for a registry, the newest that fits if no version is named, and the snapshot, if there is one for that registry.

    Raises BundleError where there is none that fits, SettingsError for a snapshot that does not fit `features`.
    """
    folder = settings.models_uri / model_version if model_version else bundles.latest(settings.models_uri, registry.fingerprint)
    bundle = bundles.load(folder, feature_version=registry.fingerprint)
    if settings.snapshot_file is None:
        return bundle, None
    try:
        return bundle, snapshots.load(settings.snapshot_file, registry)
    except SettingsError as error:
        if registry.fingerprint == settings.features.fingerprint:
            raise
        log.warning("items that the store has lost are not looked up: %s", error)
        return bundle, None


async def _serve(settings: Settings) -> str:
    store = RedisStore(settings.store_url, settings.features, STORE_TIMEOUT_S, settings.store_tls)
    model_version, ranker = await _ranker(settings, store)
    group_id = f"{settings.group_id}-serve"
    names = RankSettings(settings.kafka_bootstrap, group_id, settings.topic_prefix, settings.reply_topics, settings.kafka_security)
    worker = RankWorker(names, ranker, schema_ids(settings.schema_registry_url))
    tokens = auth.load(settings.tokens_file) if settings.tokens_file else None
    http, rpc = HttpFront(ranker, store, settings.features, worker.sender.tell, tokens), GrpcFront(ranker, worker.sender.tell, tokens)
    told, stop = asyncio.Event(), asyncio.Event()
    _set_when_told(told)
    try:
        async with contextlib.AsyncExitStack() as fronts:
            if settings.http_port:
                await fronts.enter_async_context(_listening(http, settings))
            if settings.grpc_port:
                address = (settings.http_host, settings.grpc_port)
                await fronts.enter_async_context(rpc.listening(*address, DRAIN_S, shares_port=settings.processes > 1))
            _freeze()
            log.info("serve is up: model %s", model_version)
            working = asyncio.create_task(worker.run(stop))
            await asyncio.wait((working, asyncio.create_task(told.wait())), return_when=asyncio.FIRST_COMPLETED)
            # Readiness ends first: a balancer looks elsewhere while what is under way is answered.
            http.is_draining = True
            await rpc.leave()
        # Kafka comes last, for the others' telemetry goes there.
        stop.set()
        await working
        await asyncio.to_thread(worker.sender.flush_telemetry)
        return model_version
    finally:
        await store.close()


def _set_when_told(told: asyncio.Event) -> None:
    """By SIGTERM, by SIGINT, or by the end of the process that began this one as one of several: nobody would begin it anew."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    if parent := multiprocessing.parent_process():

        def orphaned() -> None:
            loop.remove_reader(parent.sentinel)
            told.set()

        loop.add_reader(parent.sentinel, orphaned)


def _freeze() -> None:
    """What is here once all is warm stays: a search for cycles in it would take longer than a request may."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD)


class Server(uvicorn.Server):
    """Signals are ours: the Kafka front end stops by them, too."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them alone."""
        yield


@contextlib.asynccontextmanager
async def _listening(front: HttpFront, settings: Settings) -> AsyncIterator[None]:
    """Answer HTTP within the block; at its end, what is under way is answered first. Raises SettingsError."""
    server = Server(http_config(front))
    at = http_socket(settings.http_host, settings.http_port, shares_port=settings.processes > 1)
    listening = asyncio.create_task(server.serve([at]))
    try:
        yield
    finally:
        server.should_exit = True
        await listening


def http_config(front: HttpFront) -> uvicorn.Config:
    """How an HTTP front end is served."""
    # WebSockets are refused as any upgrade is: uvicorn would hand them on, were there a library for them.
    said: dict[str, Any] = {"http": RankProtocol, "ws": "none", "lifespan": "off", "access_log": False}
    said |= {"log_level": "warning", "server_header": False, "proxy_headers": False}
    return uvicorn.Config(front, timeout_graceful_shutdown=DRAIN_S, timeout_keep_alive=KEEP_ALIVE_S, **said)


def http_socket(host: str, port: int, *, shares_port: bool = False) -> socket.socket:
    """Where HTTP is listened at. shares_port: with other processes that say so, too. Raises SettingsError for an address that is taken."""
    try:
        listening = socket.create_server((host, port), reuse_port=shares_port)
    except OSError as error:
        raise SettingsError(f"http_port {port} on {host} cannot be listened at: {error.strerror}. Set another one.") from error
    # Connections inherit it. An answer's head and body are two writes, and without it the second waits for the client's
    # acknowledgement of the first, which Linux puts off for 40 ms; asyncio says it of sockets of its own only.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening
