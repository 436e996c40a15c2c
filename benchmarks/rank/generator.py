"""`python -m benchmarks.rank.generator '{...}'`: one process that sends rank requests by a schedule and notes when each was answered.

It waits for a first answer, which no figure counts, then sends by the schedule and waits DRAIN_S for what is still under way. Answers
are only kept while it sends, and looked into afterwards: each must name its own candidates, as many as were asked for. Result: a .npz
file with begun_s (time.perf_counter(), one clock for all processes of a machine) and, a row a request that was sent, intended_s and
answered_s from there (NaN is never) and verdict.
"""

import asyncio
import gc
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.rank.requests import Requests, draw
from benchmarks.rank.schedule import Schedule, closed, poisson
from schemas.records import Degraded, RankRequest

#: How long answers are waited for once the last request is out (seconds); what is not there then is an error.
DRAIN_S = 3.0
#: How long a front end may take to answer its first request (seconds).
FIRST_S = 60.0
#: How long the loop rests when nothing is due (seconds): how late a request may go out, which its latency then counts.
ROUND_S = 0.0005


class Verdict(IntEnum):
    """What a request got."""

    FULL = 0
    DEGRADED = 1
    ERROR = 2


class Task(msgspec.Struct, frozen=True):
    """address: of the front end. rate: requests a second, 0 for a closed loop with in_flight under way. out: the result's file.

    requests_count_max: of a closed loop. prefix: of the topics, for Kafka.
    """

    front_end: str
    address: str
    prefix: str
    seed: int
    candidates: int
    k: int
    users: int
    items: int
    seconds: float
    out: str
    rate: float = 0
    in_flight: int = 0
    requests_count_max: int = 0

    def schedule(self) -> Schedule:
        """As the task says."""
        if self.rate:
            return poisson(self.rate, self.seconds, self.seed)
        return closed(self.in_flight, self.seconds, self.requests_count_max)


def begun_file(task: Task) -> Path:
    """Is there once the task's first request is answered and the others go out."""
    return Path(f"{task.out}.begun")


class Said(msgspec.Struct):
    """What is looked at in an answer: the items, and how far it fell back."""

    items: list[str]
    degraded: str


class Client(Protocol):
    """One front end's. Answers are (number of the request, bytes; none where the front end refused)."""

    async def open(self) -> None:
        """Connect."""

    def encode(self, request: RankRequest) -> bytes:
        """A request as it is sent."""

    def send(self, number: int, body: bytes) -> None:
        """Send without waiting."""

    async def answers(self) -> Sequence[tuple[int, float, bytes | None]]:
        """What came back since, with time.perf_counter(); waits up to ROUND_S for it."""

    def decode(self, body: bytes) -> Said:
        """An answer."""

    async def close(self) -> None:
        """Let go of connections."""


@dataclass(slots=True)
class Outcome:
    """Seconds from begun_s, a place a request that was sent; answered_s is NaN until it is."""

    begun_s: float
    intended_s: NDArray[np.float64]
    answered_s: NDArray[np.float64]
    bodies: list[bytes | None]
    sent: int = 0
    answered: int = 0
    verdicts: NDArray[np.int8] = field(default_factory=lambda: np.empty(0, dtype=np.int8))


async def drive(client: Client, schedule: Schedule, bodies: Sequence[bytes]) -> Outcome:
    """Send bodies[1:] by the schedule; bodies[0] went before."""
    count = schedule.count
    outcome = Outcome(time.perf_counter(), np.full(count, np.nan), np.full(count, np.nan), [None] * count)
    last_s = 0.0
    while True:
        elapsed_s = time.perf_counter() - outcome.begun_s
        for number in range(outcome.sent, schedule.wanted(elapsed_s, outcome.answered)):
            outcome.intended_s[number] = schedule.intended_s(number, elapsed_s)
            client.send(number, bodies[number + 1])
            outcome.sent, last_s = number + 1, elapsed_s
        for number, at_s, body in await client.answers():
            if number >= 0:
                outcome.answered_s[number] = at_s - outcome.begun_s
                outcome.bodies[number] = body
                outcome.answered += 1
        if schedule.over(elapsed_s, outcome.sent) and (outcome.answered == outcome.sent or elapsed_s > last_s + DRAIN_S):
            return outcome


async def _first(client: Client, body: bytes) -> None:
    client.send(-1, body)
    answered: Sequence[object] = ()
    while not answered:
        answered = await client.answers()


def judged(client: Client, requests: Sequence[RankRequest], outcome: Outcome) -> NDArray[np.int8]:
    """A verdict a request that was sent."""
    return np.array([_verdict(client, request, outcome.bodies[row]) for row, request in enumerate(requests[: outcome.sent])], dtype=np.int8)


def _verdict(client: Client, request: RankRequest, body: bytes | None) -> Verdict:
    if body is None:
        return Verdict.ERROR
    said = client.decode(body)
    wanted = min(request.k, len(request.candidate_item_ids))
    if len(said.items) != wanted or len(set(said.items)) != wanted or not set(said.items) <= set(request.candidate_item_ids):
        return Verdict.ERROR
    return Verdict.FULL if said.degraded == Degraded.NONE else Verdict.DEGRADED


async def run(task: Task, client: Client) -> Outcome:
    """The whole task, judged. Raises TimeoutError where nothing answers the first request."""
    schedule = task.schedule()
    drawn: Requests = draw(task.seed, schedule.count + 1, task.candidates, task.users, task.items)
    requests = list(drawn.records(task.k, time.time_ns() // 1_000_000))
    bodies = [client.encode(request) for request in requests]
    await client.open()
    # A search for cycles among all the requests would be seen as the ranker's latency.
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        await asyncio.wait_for(_first(client, bodies[0]), FIRST_S)
        begun_file(task).touch()
        outcome = await drive(client, schedule, bodies)
    finally:
        await client.close()
    outcome.verdicts = judged(client, requests[1:], outcome)
    return outcome


def main(argv: Sequence[str]) -> int:
    """One task from the command line."""
    from benchmarks.rank.clients import client_of  # noqa: PLC0415  # clients know this module's words

    task = msgspec.json.decode(argv[0], type=Task)
    outcome = asyncio.run(run(task, client_of(task)))
    sent = slice(0, outcome.sent)
    with Path(task.out).open("wb") as file:
        np.savez(
            file,
            begun_s=outcome.begun_s,
            intended_s=outcome.intended_s[sent],
            answered_s=outcome.answered_s[sent],
            verdict=outcome.verdicts,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
