"""`python -m benchmarks.switch.asking '{...}'`: rank requests at a rate until SIGTERM, half by Kafka and half by HTTP.

An open loop: request n is due at n / rate, whatever became of those before it. Each answer is looked into as it comes. Result: a .npz
file with, a row a request, due_s and answered_s (time.perf_counter(), which all processes of a machine share; NaN is never), verdict, and
what it was made with (generation, registry, model; empty without an answer).
"""

import asyncio
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks import wire
from benchmarks.rank.clients import HttpClient, KafkaClient
from benchmarks.rank.generator import DRAIN_S, FIRST_S, Client, Verdict
from benchmarks.rank.generator import Task as ClientTask
from benchmarks.rank.requests import draw
from ranker.fronts.shapes import Ranked
from schemas import codec
from schemas.records import Degraded, RankRequest, RankResponse
from schemas.topics import RANK_RESPONSES

#: How long the loop rests (seconds): how late a request may go out, and how late an answer from Kafka is seen; both count as its latency.
ROUND_S = 0.003
#: Requests that are drawn at once: more would hold up those that are due meanwhile.
BLOCK_ROWS = 10
#: Items asked for.
PAGE_ITEMS = 10
CANDIDATES = 200


class Task(msgspec.Struct, frozen=True):
    """rate: requests a second. out: the result's file; out.begun is there once both front ends have answered."""

    kafka_bootstrap: str
    http_address: str
    prefix: str
    rate: int
    users: int
    items: int
    seed: int
    out: str


def requests(task: Task) -> Iterator[RankRequest]:
    """All requests, for ever; each as of when it is drawn."""
    items = wire.texts(wire.item_ids(np.arange(task.items)))
    users = wire.texts(wire.user_ids(np.arange(task.users)))
    block = 0
    while True:
        block += 1
        drawn = draw((task.seed << 20) + block, BLOCK_ROWS, CANDIDATES, task.users, task.items)
        for row, user in enumerate(drawn.user.tolist()):
            candidates = [items[number] for number in drawn.items[row].tolist()]
            now_ms = time.time_ns() // 1_000_000
            request_id = f"q{task.seed}-{block}-{row}"
            yield RankRequest(request_id=request_id, user_id=users[user], candidate_item_ids=candidates, k=PAGE_ITEMS, ts_ms=now_ms)


class Asking:
    """Two front ends, and what became of each request."""

    def __init__(self, task: Task) -> None:
        """Nothing is sent yet."""
        self.task = task
        of_client: dict[str, Any] = {"candidates": CANDIDATES, "k": PAGE_ITEMS, "seconds": 0, "out": "", "seed": 0, "users": 0, "items": 0}
        kafka = ClientTask(front_end="kafka", address=task.kafka_bootstrap, prefix=task.prefix, **of_client)
        http = ClientTask(front_end="http", address=task.http_address, prefix=task.prefix, **of_client)
        self.clients: tuple[Client, ...] = (KafkaClient(kafka), HttpClient(http))
        self.due_s: list[float] = []
        self.answered_s: list[float] = []
        self.verdicts: list[int] = []
        self.makers: list[str] = []
        self._asked: dict[tuple[int, int], tuple[int, RankRequest]] = {}
        self._drawn = requests(task)

    async def first(self) -> None:
        """Return once both answer. Raises TimeoutError where one does not."""
        for client in self.clients:
            await client.open()
            client.send(-1, client.encode(next(self._drawn)))
            await asyncio.wait_for(_answer(client), FIRST_S)

    async def drive(self, told: asyncio.Event) -> None:
        """Ask until told to stop, and wait for what is under way."""
        begun_s, last_s = time.perf_counter(), 0.0
        while not told.is_set() or (self._asked and time.perf_counter() < last_s + DRAIN_S):
            if not told.is_set():
                last_s = time.perf_counter()
                while (due_s := begun_s + len(self.due_s) / self.task.rate) <= last_s:
                    self._send(due_s)
            for place, client in enumerate(self.clients):
                for number, at_s, body in await client.answers():
                    self._take(place, number, at_s, body)
            await asyncio.sleep(ROUND_S)
        for client in self.clients:
            await client.close()

    def _send(self, due_s: float) -> None:
        """To one front end, then to the other."""
        number, place = divmod(len(self.due_s), len(self.clients))
        request = next(self._drawn)
        self._asked[place, number] = (len(self.due_s), request)
        self.due_s.append(due_s)
        self.answered_s.append(np.nan)
        self.verdicts.append(Verdict.ERROR)
        self.makers.append("")
        self.clients[place].send(number, self.clients[place].encode(request))

    def _take(self, place: int, number: int, at_s: float, body: bytes | None) -> None:
        if (place, number) not in self._asked:
            return
        row, request = self._asked.pop((place, number))
        self.answered_s[row] = at_s
        if body is not None:
            said = _kafka(body) if place == 0 else msgspec.json.decode(body, type=Ranked)
            self.makers[row] = f"{said.generation} {said.feature_version} {said.model_version}"
            self.verdicts[row] = _verdict(said, request)


async def _answer(client: Client) -> None:
    found: Sequence[object] = ()
    while not found:
        found = await client.answers()


def _kafka(body: bytes) -> RankResponse:
    found = codec.decode(RANK_RESPONSES, body)
    assert isinstance(found, RankResponse), found
    return found


def _verdict(said: RankResponse | Ranked, request: RankRequest) -> Verdict:
    found = [item.item_id for item in said.ranked_items]
    if len(found) != request.k or len(set(found)) != request.k or not set(found) <= set(request.candidate_item_ids):
        return Verdict.ERROR
    return Verdict.FULL if said.degraded == Degraded.NONE else Verdict.DEGRADED


async def run(task: Task) -> Asking:
    """The whole task."""
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    asking = Asking(task)
    await asking.first()
    await asyncio.to_thread(Path(f"{task.out}.begun").touch)
    await asking.drive(told)
    return asking


def main(argv: Sequence[str]) -> int:
    """One task from the command line."""
    task = msgspec.json.decode(argv[0], type=Task)
    found = asyncio.run(run(task))
    with Path(task.out).open("wb") as file:
        np.savez(
            file,
            due_s=np.array(found.due_s),
            answered_s=np.array(found.answered_s),
            verdict=np.array(found.verdicts, np.int8),
            maker=np.array(found.makers),
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
