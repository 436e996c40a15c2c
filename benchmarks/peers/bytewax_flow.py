"""Bytewax: clicks per impression of each item, over the last hour, in windows that begin every ten seconds.

Its topic is keyed by item, so that each item's events come in order: windows need wait only LATE for late ones, and close as the feed goes
on. Variants: "sliding" is that rolling hour; "tumbling" only sums ten seconds, and leaves the hour to whoever reads. The run ends with the
last event, before what is open is written out.
"""

import os
from datetime import UTC, datetime, timedelta

import bytewax.operators as op
from bytewax.connectors.kafka import KafkaSource, KafkaSourceMessage
from bytewax.dataflow import Dataflow
from bytewax.operators import windowing
from bytewax.testing import TestingSink, run_main

from benchmarks.peers.task import HOP_MS, SPAN_MS, Task, decode, told

#: An event as windows see it: 1 for a click, and when.
Seen = tuple[int, datetime]
Sums = tuple[int, int]

HOP, SPAN = timedelta(milliseconds=HOP_MS), timedelta(milliseconds=SPAN_MS)
#: The clock runs on with the machine's own while an item has no event: less than a run stands still for would drop events.
LATE = timedelta(seconds=60)


def keyed(message: KafkaSourceMessage[bytes, bytes]) -> tuple[str, Seen]:
    """An event by its item."""
    event = decode(message.value)
    return event["item_id"], (int("position" not in event), datetime.fromtimestamp(event["ts_ms"] / 1000, UTC))


def nothing() -> Sums:
    """Impressions and clicks of a new window."""
    return 0, 0


class Added:
    """Adds events to windows, and ends the program with the last event's last window.

    Counted here and not before the windows: an engine that works a stage at a time decodes far ahead. windows_count: of each event.
    """

    def __init__(self, task: Task, windows_count: int) -> None:
        """None yet."""
        self.task = task
        self.left = task.events * windows_count
        self.windows_count = windows_count
        self.clicks = 0

    def __call__(self, sums: Sums, seen: Seen) -> Sums:
        """The window with one event more."""
        self.clicks += seen[0]
        self.left -= 1
        if not self.left:
            self.task.saw(self.task.events)
            self.task.tell(clicks=self.clicks // self.windows_count)
            os._exit(0)
        return sums[0] + 1 - seen[0], sums[1] + seen[0]


def joined(one: Sums, other: Sums) -> Sums:
    """Two windows that became one."""
    return one[0] + other[0], one[1] + other[1]


def ctr(sums: tuple[str, tuple[int, Sums]]) -> tuple[str, float]:
    """Clicks per impression of a window."""
    item_id, (_, (impressions, clicks)) = sums
    return item_id, clicks / max(impressions, 1)


def run(task: Task) -> None:
    """Take all events."""
    epoch = datetime(2025, 1, 1, tzinfo=UTC)
    windower, windows_count = {
        "sliding": (windowing.SlidingWindower(length=SPAN, offset=HOP, align_to=epoch), SPAN // HOP),
        "tumbling": (windowing.TumblingWindower(length=HOP, align_to=epoch), 1),
    }[task.variant]
    clock = windowing.EventClock(lambda seen: seen[1], wait_for_system_duration=LATE)
    flow = Dataflow("ctr")
    messages = op.input("kafka", flow, KafkaSource([task.bootstrap], task.topics[:1], tail=False))
    begun = op.inspect("begun", messages, lambda _, __: task.begin())
    events = op.map("keyed", begun, keyed)
    sums = windowing.fold_window("sums", events, clock, windower, nothing, Added(task, windows_count), joined)
    op.output("out", op.map("ctr", sums.down, ctr), TestingSink([]))
    run_main(flow)


if __name__ == "__main__":
    run(told())
