"""The demo as a person runs it: its figures, and what is left when it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

#: Everything that `--json` prints, as the README says.
FIGURES = {
    "events",
    "events_per_second",
    "entities",
    "entities_wrong",
    "dead_letters",
    "requests",
    "responses",
    "degraded",
    "latency_ms_p50",
    "latency_ms_p99",
    "freshness_ms_p99",
    "ctr_ranked",
    "ctr_control",
    "ctr_lift_ci",
    "auc",
    "ndcg10",
    "ndcg10_random",
    "ndcg10_popularity",
    "seconds",
}
#: A demo that takes longer hangs (seconds): several times what it takes on a busy machine.
DEMO_S = 220


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    """A state folder; whatever still names it at the end is killed, so that a failed test leaves nothing behind."""
    yield tmp_path
    for pid in running(tmp_path):
        os.kill(pid, signal.SIGKILL)


def running(folder: Path) -> list[int]:
    """Processes that name a folder in their command line or in a MILLSTREAM_ variable, this one left out."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in told and int(process.name) != os.getpid():
            found.append(int(process.name))
    return found


def demo(state: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "compose.processes", "demo", "--json", "--state-dir", str(state)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # noqa: S603  # our own command


@pytest.mark.timeout(DEMO_S + 30)
def test_the_demo_ends_with_every_record_right_and_a_ranker_that_pays(state: Path) -> None:
    """No record differs from the oracle's, every request is answered, ranked CTR is above control beyond chance, nothing stays."""
    process = demo(state)
    out, err = process.communicate(timeout=DEMO_S)

    assert process.returncode == 0, err
    figures = json.loads(out.splitlines()[-1])
    assert set(figures) == FIGURES
    assert figures["entities"] > 1_000
    assert figures["entities_wrong"] == 0
    assert figures["dead_letters"] == 0
    assert figures["responses"] == figures["requests"] > 0
    assert figures["ctr_lift_ci"][0] > 0
    assert running(state) == []


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_stops_what_it_started(state: Path, number: signal.Signals) -> None:
    """Ctrl-C (or SIGTERM) while workers run ends the demo with exit code 2 and no process of its own."""
    process = demo(state)
    log = state / "demo" / "ingest.log"
    until_s = time.monotonic() + 60
    while not (log.exists() and b"ingest is up" in log.read_bytes()):
        assert time.monotonic() < until_s
        time.sleep(0.1)
    process.send_signal(number)
    process.communicate(timeout=60)

    assert process.returncode == 2
    assert running(state) == []
