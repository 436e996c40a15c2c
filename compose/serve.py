"""What `millstream serve` runs: a ranking worker on Kafka, until it is told to stop."""

import asyncio
import logging
import signal

from compose.settings import Settings
from online_store.redis import RedisStore
from ranker import bundle as bundles
from ranker.kafka import RankSettings, RankWorker
from ranker.rank import Ranker
from streams.schema_registry import schema_ids

#: Each call to the store from a ranking worker (seconds); the request's own deadline is shorter and comes first.
STORE_TIMEOUT_S = 1.0


def serve(settings: Settings) -> str:
    """Rank until SIGTERM or SIGINT, by the newest bundle. Returns its model_version. Raises BundleError where there is none that fits."""
    bundle = bundles.load(bundles.latest(settings.models_uri), feature_version=settings.features.fingerprint)
    asyncio.run(_serve(settings, bundle))
    return bundle.manifest.model_version


async def _serve(settings: Settings, bundle: bundles.Bundle) -> None:
    store = RedisStore(settings.store_url, settings.features, STORE_TIMEOUT_S, settings.store_tls)
    ranker = Ranker(store, settings.features, bundle)
    await ranker.refresh()
    group_id = f"{settings.group_id}-serve"
    names = RankSettings(settings.kafka_bootstrap, group_id, settings.topic_prefix, settings.reply_topics, settings.kafka_security)
    worker = RankWorker(names, ranker, schema_ids(settings.schema_registry_url))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    logging.getLogger("millstream.serve").info("serve is up: model %s", bundle.manifest.model_version)
    try:
        await worker.run(stop)
    finally:
        await store.close()
