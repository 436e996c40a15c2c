"""Puts a sink of the lake together, and stops it when it is told to."""

import signal
import threading

from compose.settings import Settings
from streams.lake.sink import LakeSettings, Sink
from streams.lake.table import LakePlace


def sink(settings: Settings) -> str:
    """Run a sink until SIGTERM or Ctrl-C; returns where the lake is. Raises LogError when it cannot go on."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    chosen = LakeSettings(
        settings.kafka_bootstrap,
        f"{settings.group_id}-lake",
        LakePlace(*settings.lake),
        settings.topic_prefix,
        settings.schema_registry_url,
        settings.lake_retention_days,
        settings.kafka_security,
    )
    Sink(chosen).run(stop)
    return chosen.lake.uri
