"""Runs peers (benchmarks/peers) in processes of their own, on the worker's core."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.feed import Feed
from benchmarks.stack import Stack
from schemas.errors import MillstreamError
from schemas.topics import CLICKS, IMPRESSIONS

#: Peers have requirements that contradict ours (another confluent-kafka), so they live in an environment of their own.
PYTHON = Path(".venv-peers/bin/python")
#: How long one run may take (seconds).
RUN_S = 180.0


def run(stack: Stack, sent: tuple[Feed, str], name: str, cores: set[int], variant: str = "") -> dict[str, Any]:
    """One run of a peer through a feed. Raises MillstreamError where it fails, or where it counts other clicks than the feed has."""
    feed, prefix = sent
    python = sys.executable if name == "raw" else str(PYTHON)
    with tempfile.TemporaryDirectory(dir=stack.folder) as folder, machine.pinned(cores):
        topics = [prefix + topic.name for topic in (IMPRESSIONS, CLICKS)]
        task = {"bootstrap": stack.kafka_bootstrap, "topics": topics, "events": len(feed), "variant": variant, "folder": folder}
        command = [python, "-m", f"benchmarks.peers.{name}", json.dumps(task)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S, check=False)  # noqa: S603  # our own command
        except subprocess.TimeoutExpired as error:
            raise MillstreamError(f"peer {name} {variant} was not done after {RUN_S} s. Try it alone: --only peers.") from error
    if done.returncode or not done.stdout:
        raise MillstreamError(f"peer {name} ended with {done.returncode}: {done.stderr[-2_000:]}. `make .venv-peers/ready` installs peers.")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    clicks = int(feed.is_click.sum())
    if (result["events"], counted := result.pop("clicks")) != (len(feed), clicks):
        said = f"{counted} clicks in {result['events']} events, the feed has {clicks} in {len(feed)}"
        raise MillstreamError(f"peer {name} {variant} counted {said}: a wrong run has no speed.")
    return result
