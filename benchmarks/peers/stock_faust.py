"""Faust as it comes: one agent over both topics, an event at a time.

Variants: "dict" counts each item's ten seconds in a dict of the process, which is the least one can do; "table" is its own idiom, a
table of hopping windows (an hour, every ten seconds) in memory, with the changelog that Faust keeps of it.
"""

import asyncio
import os
from collections import defaultdict
from typing import Any

import faust

from benchmarks.peers.task import HOP_MS, SPAN_MS, Task, decode, told

#: Partitions of the feed's topics; a table's changelog must have as many.
PARTITIONS = 8


class Dict:
    """Counts by item and ten seconds."""

    def __init__(self) -> None:
        """None yet."""
        self.sums: dict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0])

    def add(self, event: dict[str, Any], *, is_click: bool) -> None:
        """One event more."""
        self.sums[event["item_id"], event["ts_ms"] // HOP_MS][is_click] += 1


class Table:
    """Counts by item in Faust's own windows."""

    def __init__(self, app: Any) -> None:  # noqa: ANN401  # Faust's
        """None yet."""
        self.sums = [
            app.Table(name, default=int, partitions=PARTITIONS).hopping(SPAN_MS / 1000, HOP_MS / 1000) for name in ("impressions", "clicks")
        ]

    def add(self, event: dict[str, Any], *, is_click: bool) -> None:
        """One event more."""
        self.sums[is_click][event["item_id"]] += 1


async def run(task: Task) -> None:
    """Take all events."""
    app = faust.App(
        # A group of its own: Faust commits when it stops, and the next run would find nothing to read.
        f"{task.topics[0]}-{os.getpid()}",
        broker=f"kafka://{task.bootstrap}",
        store="memory://",
        datadir=task.folder,
        web_enabled=False,
        topic_partitions=PARTITIONS,
        consumer_auto_offset_reset="earliest",
    )
    counts = Dict() if task.variant == "dict" else Table(app)
    done = asyncio.Event()
    clicks = 0

    async def agent(stream: Any) -> None:  # noqa: ANN401  # Faust's
        nonlocal clicks
        async for value in stream:
            event = decode(value)
            is_click = "position" not in event
            clicks += is_click
            counts.add(event, is_click=is_click)
            if task.saw():
                task.tell(clicks=clicks)
                done.set()

    app.agent(app.topic(*task.topics, key_serializer="raw", value_serializer="raw"))(agent)
    await app.start()
    await done.wait()
    await app.stop()


if __name__ == "__main__":
    asyncio.run(run(told()))
