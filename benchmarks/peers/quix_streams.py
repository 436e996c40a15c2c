"""Quix Streams: clicks per impression of each item, over the last hour, in windows that begin every ten seconds.

Its topic is keyed by item, so that it need not send the feed through Kafka once more (`group_by`), and its state has no changelog topic:
both in its favour. Variants: "hopping" is that rolling hour; "tumbling" only sums ten seconds, and leaves the hour to whoever reads.
"""

import os
from functools import partial
from typing import Any

from quixstreams import Application

from benchmarks.peers.task import HOP_MS, SPAN_MS, Task, decode, told

Sums = dict[str, int]


class Seen:
    """Notes each event on its way into the window; the last one ends the program."""

    def __init__(self, task: Task, app: Application) -> None:
        """None yet."""
        self.task = task
        self.app = app
        self.clicks = 0

    def __call__(self, value: bytes) -> Sums:
        """What an event adds."""
        event = decode(value)
        is_click = "position" not in event
        self.clicks += is_click
        if self.task.saw():
            self.task.tell(clicks=self.clicks)
            self.app.stop()
        return {"impressions": not is_click, "clicks": is_click}


def added(sums: Sums, event: Sums) -> Sums:
    """The window with one event more."""
    return {name: count + event[name] for name, count in sums.items()}


def ctr(window: dict[str, Any]) -> float:
    """Clicks per impression of a window."""
    sums: Sums = window["value"]
    return sums["clicks"] / max(sums["impressions"], 1)


def run(task: Task) -> None:
    """Take all events."""
    app = Application(
        task.bootstrap,
        # A group of its own: a run of more than five seconds commits, and the next would find nothing to read.
        consumer_group=f"{task.topics[0]}-{os.getpid()}",
        auto_offset_reset="earliest",
        state_dir=task.folder,
        use_changelog_topics=False,
        loglevel="ERROR",
    )
    topic = app.topic(task.topics[0], key_deserializer="str", value_deserializer="bytes")
    events = app.dataframe(topic).apply(Seen(task, app))
    windows = {"hopping": partial(events.hopping_window, SPAN_MS, HOP_MS), "tumbling": partial(events.tumbling_window, HOP_MS)}
    windows[task.variant]().reduce(reducer=added, initializer=dict).current().apply(ctr)
    app.run()


if __name__ == "__main__":
    run(told())
