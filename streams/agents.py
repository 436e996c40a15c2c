"""The agents: one for each topic that changes features. They decide nothing; they hand batches on."""

from faust.types import StreamT

from schemas.topics import CLICKS, CONTENT, IMPRESSIONS, USERS, Batch
from streams.transport import App
from streams.worker import Worker

#: Batches of a topic in hand at once, of two partitions: one is decoded while the store has the other. With one, worker and store wait for
#: each other by turns; more would be more memory, for a store that is busy already.
BATCHES_AT_ONCE = 2


def add_agents(app: App, worker: Worker) -> None:
    """Let the worker take every batch of the four source topics."""

    async def impressions(stream: StreamT[Batch]) -> None:
        async for batch in stream:
            await worker.take(batch)

    async def clicks(stream: StreamT[Batch]) -> None:
        async for batch in stream:
            await worker.take(batch)

    async def content(stream: StreamT[Batch]) -> None:
        async for batch in stream:
            await worker.take(batch)

    async def users(stream: StreamT[Batch]) -> None:
        async for batch in stream:
            await worker.take(batch)

    agents = {IMPRESSIONS: impressions, CLICKS: clicks, CONTENT: content, USERS: users}
    for topic, agent in agents.items():
        name = app.topic_prefix + topic.name
        app.source_topics.add(name)
        # A few batches wait between fetch and agent; more would only be more to drop when a partition is read again.
        channel = app.topic(name, key_serializer="raw", value_serializer="raw", value_type=bytes, key_type=bytes, maxsize=4)
        app.agent(channel, name=topic.name, concurrency=BATCHES_AT_ONCE)(agent)
