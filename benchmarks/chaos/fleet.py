"""Worker processes of one consumer group: started, killed, frozen, told where to die, and started again."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from streams.app import IngestSettings
from tests.workers import REPOSITORY

#: How long a worker has to reach the step at which it was told to die (seconds).
STEP_S = 8.0
#: Steps that a worker comes to only when the group changes: another worker is killed for it.
REBALANCE_STEPS = ("in assignment", "after assignment", "in the seek", "after the seek")
#: How long a worker may take to stop (seconds).
STOP_S = 20.0


class Member:
    """One worker process. asked: whether its end was asked for."""

    def __init__(self, folder: Path, name: str, settings: IngestSettings, store_url: str) -> None:
        """Start it."""
        self.log, self.notes_file = folder / f"{name}.log", folder / f"{name}.notes"
        arguments = [json.dumps(asdict(settings)), store_url]
        with self.log.open("wb") as log, self.notes_file.open("wb") as notes:
            self._popen = subprocess.Popen(  # noqa: S603  # our own command
                [sys.executable, "-m", "benchmarks.chaos.launcher", *arguments],
                stdin=subprocess.PIPE,
                stdout=notes,
                stderr=log,
                cwd=REPOSITORY,
                env={**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"},
            )
        self.asked = False

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._popen.poll()

    @property
    def is_up(self) -> bool:
        """Whether it has said that it ingests."""
        return "ingest is up" in self.log.read_text(errors="replace")

    @property
    def frozen(self) -> bool:
        """Whether it stands still."""
        return self.exit_code is None and Path(f"/proc/{self._popen.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"

    def notes(self) -> list[dict[str, Any]]:
        """What it noted."""
        return [json.loads(line) for line in self.notes_file.read_text().splitlines()]

    def send(self, number: int) -> None:
        """Send it a signal."""
        self.asked = self.asked or number in {signal.SIGKILL, signal.SIGTERM}
        self._popen.send_signal(number)

    def order(self, step: str, number: int, nth: int = 1) -> None:
        """Tell it to send itself a signal at a step."""
        assert self._popen.stdin is not None
        self.asked = self.asked or number == signal.SIGKILL
        try:
            self._popen.stdin.write(json.dumps({"step": step, "nth": nth, "signal": int(number)}).encode() + b"\n")
            self._popen.stdin.flush()
        except BrokenPipeError:
            return

    def wait(self, timeout_s: float = STOP_S) -> bool:
        """Whether it ends in time."""
        try:
            self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        if self._popen.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._popen.stdin.close()
        return True


class Fleet:
    """Slots, each with a worker that is started again when it ends. kills: how they were killed, by step or "random"."""

    def __init__(self, folder: Path, settings: IngestSettings, store_url: str, count: int = 3) -> None:
        """count: how many slots."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._settings, self._store_url = folder, settings, store_url
        self.all: list[Member] = []
        self.members: list[Member] = []
        self.kills: list[str] = []
        self.zombies = 0
        self._count = count

    def __enter__(self) -> Self:
        """Start all."""
        for _ in range(self._count):
            self.join()
        return self

    def __exit__(self, *_: object) -> None:
        """Kill what is left."""
        for member in self.members:
            member.send(signal.SIGKILL)
            member.wait()

    def join(self) -> None:
        """One more."""
        self.members.append(self._start())

    def leave(self) -> None:
        """One less, in order."""
        member = self.members.pop()
        member.send(signal.SIGTERM)
        self._see_end(member)

    def tend(self) -> None:
        """Start again whoever has ended."""
        for slot, member in enumerate(self.members):
            if member.exit_code is not None:
                member.wait()
                self.members[slot] = self._start()

    def rest(self, seconds: float) -> None:
        """Let time pass, and start again whoever ends meanwhile."""
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            self.tend()
            time.sleep(0.1)

    def kill(self, draw: random.Random) -> None:
        """Kill one at this moment."""
        self._kill(draw.choice(self.members))
        self.tend()

    def kill_at(self, step: str, draw: random.Random) -> None:
        """Tell one to die at a step, and bring it there; kill it if it does not come there in time."""
        member = self._draw_up(draw)
        member.order(step, signal.SIGKILL, draw.randint(1, 20) if step == "between shards" else 1)
        if step == "in shutdown":
            member.send(signal.SIGTERM)
        if step in REBALANCE_STEPS:
            self._kill(draw.choice([other for other in self.members if other is not member]))
        if not member.wait(STEP_S):
            member.send(signal.SIGKILL)
            member.wait()
        self.kills.append(next((found["killed"] for found in member.notes() if "killed" in found), "random"))
        self.tend()

    def freeze(self, seconds: float, draw: random.Random, *, at_step: bool) -> None:
        """Freeze one, at this moment or with a batch in its hands, and let it go on when others have its partitions."""
        member = self._draw_up(draw)
        if at_step:
            member.order("before the store", signal.SIGSTOP)
            until_s = time.monotonic() + STEP_S
            while not member.frozen and time.monotonic() < until_s:
                time.sleep(0.05)
        if not member.frozen:
            member.order("", signal.SIGSTOP)
            member.send(signal.SIGSTOP)
        self.rest(seconds)
        member.send(signal.SIGCONT)
        self.zombies += 1

    def stop(self) -> None:
        """End all, in order."""
        members, self.members = self.members, []
        for member in members:
            member.send(signal.SIGTERM)
        for member in members:
            self._see_end(member)

    def unasked(self) -> list[int]:
        """Exit codes of workers that ended though nobody asked them to."""
        return [member.exit_code for member in self.all if member.exit_code is not None and not member.asked]

    def noted(self, word: str) -> Iterator[Any]:
        """What all workers noted under a word."""
        return (found[word] for member in self.all for found in member.notes() if word in found)

    def _start(self) -> Member:
        self.all.append(Member(self._folder, f"worker-{len(self.all)}", self._settings, self._store_url))
        return self.all[-1]

    def _draw_up(self, draw: random.Random) -> Member:
        """One that works, if any does."""
        return draw.choice([member for member in self.members if member.is_up and member.exit_code is None] or self.members)

    def _kill(self, member: Member) -> None:
        member.send(signal.SIGKILL)
        member.wait()
        self.kills.append("random")

    def _see_end(self, member: Member) -> None:
        if not member.wait():
            member.send(signal.SIGKILL)
            member.wait()
