"""An action of `millstream replay` as a process of its own: what it says, and the memory and the processor time that it took."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.stack import Stack
from schemas.errors import MillstreamError

#: How often its memory is looked at (seconds).
LOOK_S = 0.1


def run(stack: Stack, prefix: str, cores: set[int], *arguments: str) -> dict[str, Any]:
    """Run one on these cores. Raises MillstreamError where it finds a fault."""
    places = ["--kafka-bootstrap", stack.kafka_bootstrap, "--store-url", stack.store_url, "--topic-prefix", prefix]
    command = [
        sys.executable,
        "-m",
        "compose.processes",
        "replay",
        *arguments,
        "--json",
        "--state-dir",
        str(stack.folder / "state"),
        *places,
    ]
    with machine.pinned(cores):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603  # our own command
    assert process.stdout is not None, "it is a pipe"
    peak_mb = 0.0
    with ThreadPoolExecutor(1) as reading:
        reads = reading.submit(process.stdout.read)
        while not reads.done():
            peak_mb = max(peak_mb, _peak_mb(process.pid))
            time.sleep(LOOK_S)
    said = reads.result()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise MillstreamError(f"replay {arguments[0]} ended with {process.returncode}: {said[-2_000:]}")
    told = json.loads(said.splitlines()[-1])
    return {**told, "rss_mb_max": round(peak_mb), "cpu_s": round(used.ru_utime + used.ru_stime, 1)}


def _peak_mb(pid: int) -> float:
    """Its peak of resident memory, MiB; 0 once it has ended. The peak that the kernel tells of an ended child may be its parent's."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return max((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), default=0.0)
