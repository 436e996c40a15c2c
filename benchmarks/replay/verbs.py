"""An action of `millstream replay` as a process of its own: what it says, and the memory and the processor time that it took."""

import json
import os
import subprocess
import sys
from typing import Any

from benchmarks import machine
from benchmarks.stack import Stack
from schemas.errors import MillstreamError


def run(stack: Stack, prefix: str, cores: set[int], *arguments: str) -> dict[str, Any]:
    """Run one on these cores. Raises MillstreamError where it finds a fault."""
    places = ["--kafka-bootstrap", stack.kafka_bootstrap, "--store-url", stack.store_url, "--topic-prefix", prefix]
    command = [sys.executable, "-m", "compose.cli", "replay", *arguments, "--json", "--state-dir", str(stack.folder / "state"), *places]
    with machine.pinned(cores):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603  # our own command
    assert process.stdout is not None, "it is a pipe"
    said = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise MillstreamError(f"replay {arguments[0]} ended with {process.returncode}: {said[-2_000:]}")
    told = json.loads(said.splitlines()[-1])
    return {**told, "rss_mb_max": round(used.ru_maxrss / 1024), "cpu_s": round(used.ru_utime + used.ru_stime, 1)}
