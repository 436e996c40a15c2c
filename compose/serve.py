"""What `millstream serve` runs: a ranker behind Kafka and HTTP, until it is told to stop."""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn

from compose.settings import Settings
from online_store.redis import RedisStore
from ranker import bundle as bundles
from ranker.fronts import auth
from ranker.fronts.http import HttpFront
from ranker.kafka import RankSettings, RankWorker
from ranker.rank import Ranker
from schemas.errors import SettingsError
from streams.schema_registry import schema_ids

#: Each call to the store from a ranking worker (seconds); the request's own deadline is shorter and comes first.
STORE_TIMEOUT_S = 1.0
#: How long requests under way may take once we are told to stop (seconds); each has a deadline far below it.
DRAIN_S = 5
#: Objects made and not freed before a search for cycles begins. A request leaves none, so it would find nothing; usual is 700, which is
#: every few requests. More would let what a library leaves behind pile up.
GARBAGE_THRESHOLD = 50_000


def serve(settings: Settings) -> str:
    """Rank until SIGTERM or SIGINT, by the newest bundle. Returns its model_version. Raises BundleError where there is none that fits."""
    bundle = bundles.load(bundles.latest(settings.models_uri), feature_version=settings.features.fingerprint)
    asyncio.run(_serve(settings, bundle))
    return bundle.manifest.model_version


async def _serve(settings: Settings, bundle: bundles.Bundle) -> None:
    store = RedisStore(settings.store_url, settings.features, STORE_TIMEOUT_S, settings.store_tls)
    ranker = Ranker(store, settings.features, bundle, settings.budgets_ms)
    await ranker.refresh()
    group_id = f"{settings.group_id}-serve"
    names = RankSettings(settings.kafka_bootstrap, group_id, settings.topic_prefix, settings.reply_topics, settings.kafka_security)
    worker = RankWorker(names, ranker, schema_ids(settings.schema_registry_url))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    tokens = auth.load(settings.tokens_file) if settings.tokens_file else None
    front = HttpFront(ranker, store, settings.features, worker.tell, tokens)
    try:
        async with _listening(front, settings):
            _freeze()
            logging.getLogger("millstream.serve").info("serve is up: model %s", bundle.manifest.model_version)
            await worker.run(stop)
    finally:
        await store.close()


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
    """Answer HTTP within the block, if a port is set; at its end, what is under way is answered first. Raises SettingsError."""
    if not settings.http_port:
        yield
        return
    server = Server(http_config(front))
    listening = asyncio.create_task(server.serve([_socket(settings.http_host, settings.http_port)]))
    try:
        yield
    finally:
        front.is_draining = True
        server.should_exit = True
        await listening


def http_config(front: HttpFront) -> uvicorn.Config:
    """How an HTTP front end is served."""
    said: dict[str, Any] = {"http": "httptools", "lifespan": "off", "access_log": False, "log_level": "warning", "server_header": False}
    return uvicorn.Config(front, timeout_graceful_shutdown=DRAIN_S, **said)


def _socket(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise SettingsError(f"http_port {port} on {host} cannot be listened at: {error.strerror}. Set another one.") from error
