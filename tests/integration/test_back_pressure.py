"""A store that stands still: the backlog waits in Kafka and shows as lag, not in the worker's memory, and nothing of it is lost."""

import os
import re
import signal
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compose import topics
from compose.stack.local import Server
from schemas.records import Event, Impression
from tests.services import free_port
from tests.workers import Process, caught_up, command, counted, events, own_store, produce, stored, wait_until

#: Bytes that each event brings along, so that a backlog of few events is large.
LOAD_BYTES = 4_000
LAG = re.compile(r"^millstream_lag_records\{.*\} (\S+)$", re.MULTILINE)


def loaded(count: int, seed: int) -> list[Event]:
    """Impressions with a load."""
    shown = [event for event in events(3 * count, seed) if isinstance(event, Impression)][:count]
    fields = ("request_id", "user_id", "item_id", "ts_ms", "position", "model_version")
    return [Impression(**{name: getattr(event, name) for name in fields}, context={"load": "x" * LOAD_BYTES}) for event in shown]


def lag(port: int) -> float:
    """Records not applied, by the worker's own metric."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return sum(float(value) for value in LAG.findall(answer.read().decode()))


def memory_mb(worker: Process) -> float:
    """What a worker holds of memory."""
    status = Path(f"/proc/{worker.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1_024


@contextmanager
def standing_still(store: Server) -> Iterator[None]:
    """A store that neither answers nor hangs up."""
    running = store.process()
    assert running is not None
    os.kill(running[0], signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(running[0], signal.SIGCONT)


def test_a_backlog_waits_in_kafka(kafka_bootstrap: str, topic_prefix: str, tmp_path: Path) -> None:
    """80 MB arrive while the store stands still: lag tells all of it, memory grows by a fraction, and in the end each event counts."""
    topics.create(kafka_bootstrap, topic_prefix, partitions=2)
    port = free_port()
    places = {"kafka_bootstrap": kafka_bootstrap, "topic_prefix": topic_prefix, "group_id": topic_prefix, "metrics_port": str(port)}
    sent, backlog = loaded(5_000, seed=1), loaded(20_000, seed=2)
    with own_store(tmp_path) as (store, _, url), command(tmp_path, "ingest", store_url=url, **places) as worker:
        produce(kafka_bootstrap, topic_prefix, sent)
        caught_up(kafka_bootstrap, topic_prefix, url, worker)
        before_mb = memory_mb(worker)
        with standing_still(store):
            produce(kafka_bootstrap, topic_prefix, backlog)
            wait_until(lambda: lag(port) == len(backlog), lambda: (lag(port), worker.log[-2_000:]))
            grown_mb = memory_mb(worker) - before_mb
        caught_up(kafka_bootstrap, topic_prefix, url, worker)
        wait_until(lambda: lag(port) == 0)
        exact = stored(url) == counted([*sent, *backlog])

    assert (exact, grown_mb < 40) == (True, True), grown_mb
