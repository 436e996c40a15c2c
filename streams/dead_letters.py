"""The way out for records that could not be used: to the topic dead-letters, before anything behind them is applied."""

import asyncio
from collections.abc import Sequence

from schemas.codec import dead_letter
from schemas.topics import DEAD_LETTERS, BadRecord
from streams import metrics
from streams.transport import App


async def send(app: App, bad: Sequence[BadRecord]) -> None:
    """Send each bad record and wait until Kafka has it.

    A worker killed between this and the guard's move sends them again: (topic, partition, offset) names a letter, once.
    """
    if not bad:
        return
    await app.maybe_start_producer()
    await asyncio.gather(*(_send(app, record) for record in bad))
    for record in bad:
        metrics.DEAD_LETTERS.labels(record.record.topic.removeprefix(app.topic_prefix), record.reason).inc()


async def _send(app: App, bad: BadRecord) -> None:
    value, headers = dead_letter(bad)
    topic = app.topic_prefix + DEAD_LETTERS.name
    await app.producer.send_and_wait(topic, bad.record.key, value, None, None, headers)
