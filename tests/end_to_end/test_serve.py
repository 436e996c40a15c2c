"""`millstream serve` as it is deployed: Kafka, HTTP and gRPC at once, in one process and in two, and how it ends."""

import asyncio
import contextlib
import itertools
import json
import os
import re
import signal
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import msgspec
import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict

from compose import topics
from compose.stack.local import Server
from online_store.redis import RedisStore
from ranker.fronts.quick.answers import ranked_again
from schemas import codec
from schemas.features import REGISTRY
from schemas.proto.millstream.v1 import rank_pb2, rank_pb2_grpc
from schemas.records import RankRequest, RankResponse
from schemas.topics import RANK_REQUESTS, RANK_RESPONSES
from tests import rankers
from tests.services import free_port
from tests.workers import PATIENCE_S, Process, Reader, command, own_store, send, wait_until

#: Request ids that no other test uses.
NUMBERS = itertools.count()
#: What a request says on every front end.
FIELDS = ("request_id", "user_id", "candidate_item_ids", "k", "ts_ms", "deadline_ms")
Answer = dict[str, Any]


class World(NamedTuple):
    """Topics of this module's own, a store with a past that a test may stop, a model, and ports for both front ends."""

    kafka_bootstrap: str
    settings: dict[str, str]
    store: Server
    reader: Reader

    @property
    def topic_prefix(self) -> str:
        """Of all topics."""
        return self.settings["topic_prefix"]

    def by_kafka(self, asked: RankRequest) -> Answer:
        """The answer to a request from rank-requests, as HTTP would show it."""
        send(self.kafka_bootstrap, [(self.topic_prefix + RANK_REQUESTS.name, b"u1", codec.encode(asked))])
        found: list[bytes] = []

        def answered() -> bool:
            self.reader.read()
            values = [record.value or b"" for record in self.reader.records[self.topic_prefix + RANK_RESPONSES.name]]
            found[:] = [value for value in values if _request_id(value) == asked.request_id]
            return bool(found)

        wait_until(answered)
        answer: Answer = json.loads(msgspec.json.encode(ranked_again(found[-1])))
        return answer

    def by_http(self, asked: RankRequest) -> Answer:
        """The answer of POST /v1/rank, on a connection of its own."""
        body = json.dumps({name: getattr(asked, name) for name in FIELDS}).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.settings['http_port']}/v1/rank", body, PATIENCE_S) as answer:
            found: Answer = json.loads(answer.read())
        return found

    def by_grpc(self, asked: RankRequest) -> Answer:
        """The answer of Ranking.Rank, on a connection of its own."""
        alone = (("grpc.use_local_subchannel_pool", 1),)
        with grpc.insecure_channel(f"127.0.0.1:{self.settings['grpc_port']}", alone) as channel:
            said = rank_pb2.RankRequest(**{name: getattr(asked, name) for name in FIELDS})
            answer = rank_pb2_grpc.RankingStub(channel).Rank(said, timeout=PATIENCE_S)
        found: Answer = MessageToDict(answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        return found

    def counted(self, metric: str, number: int = 0) -> float:
        """What one process of `serve` has counted. metric: a pattern of its name and labels."""
        port = int(self.settings["metrics_port"]) + number
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S) as page:
            return sum(map(float, re.findall(f"^{metric} (.*)$", page.read().decode(), re.MULTILINE)))


def _request_id(value: bytes) -> str:
    found = codec.decode(RANK_RESPONSES, value)
    assert isinstance(found, RankResponse)
    return found.request_id


def request(**rest: object) -> RankRequest:
    return rankers.request(**{"request_id": f"s{next(NUMBERS)}", "ts_ms": time.time_ns() // 1_000_000, **rest})


async def fill(url: str) -> None:
    store = RedisStore(url, REGISTRY)
    await rankers.fill(store, time.time_ns() // 1_000_000 - 120_000)
    await store.close()


@pytest.fixture(scope="module")
def world(kafka_bootstrap: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Everything but `serve` itself."""
    folder, prefix = tmp_path_factory.mktemp("serve"), f"serve{time.time_ns()}-"
    topics.create(kafka_bootstrap, prefix, partitions=2)
    rankers.trained(folder / "models")
    reader = Reader(kafka_bootstrap, prefix + RANK_RESPONSES.name)
    ports = {name: str(free_port()) for name in ("http_port", "grpc_port")}
    with own_store(folder) as (store, _, url):
        asyncio.run(fill(url))
        settings = {"kafka_bootstrap": kafka_bootstrap, "topic_prefix": prefix, "store_url": url, "models_uri": str(folder / "models")}
        yield World(kafka_bootstrap, {**settings, **ports, "metrics_port": str(two_free_ports())}, store, reader)
    reader.close()


def two_free_ports() -> int:
    """The first of two that follow each other."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                second.bind(("127.0.0.1", port + 1))
                return port


@contextlib.contextmanager
def serving(world: World, folder: Path, count: int = 1) -> Iterator[Process]:
    """`millstream serve` in so many processes, once all of them answer."""
    with command(folder, "serve", **world.settings, processes=str(count), group_id=f"g{next(NUMBERS)}") as running:
        wait_until(lambda: running.said("serve is up") and running.log.count("serve is up") == count, lambda: running.log)
        yield running


def answered(world: World) -> list[float]:
    """How many requests each of two processes has answered."""
    return [world.counted("millstream_rank_requests_total{.*}", number) for number in range(2)]


def children(pid: int) -> list[int]:
    """The processes that one has started to serve."""
    found = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [child for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or only waits for somebody to take note of it."""
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_every_front_end_gives_one_answer(world: World, tmp_path: Path) -> None:
    """To one request_id, whichever is asked first."""
    with serving(world, tmp_path):
        fronts: tuple[Callable[[RankRequest], Answer], ...] = (world.by_kafka, world.by_http, world.by_grpc)
        found = [[front(asked) for front in order] for order, asked in ((order, request(k=3)) for order in itertools.permutations(fronts))]

    assert [(answers[0] == answers[1] == answers[2], answers[0]["degraded"]) for answers in found] == [(True, "NONE")] * 6


def test_what_is_under_way_is_answered_before_it_ends(world: World, tmp_path: Path) -> None:
    """On all front ends, though the store stands still; the exit code is 0."""
    pid = (world.store.process() or (0, 0))[0]
    with serving(world, tmp_path) as running, ThreadPoolExecutor() as pool:
        # What other tests asked by Kafka stands before it, and is answered anew before it.
        world.by_kafka(request())
        os.kill(pid, signal.SIGSTOP)
        try:
            asked = [pool.submit(front, request(deadline_ms=2_000)) for front in (world.by_kafka, world.by_http, world.by_grpc)]
            # What is read for in vain is about to fall back, and is then held up by the keeping of its answer.
            wait_until(lambda: world.counted('millstream_rank_fallbacks_total{cause="(?:deadline|store)"}') == len(asked))
            code = running.stop()
        finally:
            os.kill(pid, signal.SIGCONT)
        answers = [each.result() for each in asked]

    assert (code, [answer["degraded"] != "NONE" for answer in answers]) == (0, [True] * 3)


def test_two_processes_share_ports_and_topics(world: World, tmp_path: Path) -> None:
    """Connections go to both, and each counts what it answered; told to stop, both end in order."""
    with serving(world, tmp_path, count=2) as running:
        pids = children(running.pid)
        # As above.
        degraded, counts = {world.by_kafka(request())["degraded"]}, [answered(world)]
        for front in (world.by_http, world.by_grpc):
            degraded |= {front(request())["degraded"] for _ in range(20)}
            counts.append(answered(world))
        code = running.stop()
    each = np.diff(counts, axis=0)

    assert (degraded, each.sum(axis=1).tolist(), bool((each > 0).all())) == ({"NONE"}, [20, 20], True)
    assert (code, len(pids), [has_ended(pid) for pid in pids]) == (0, 2, [True, True])


def test_one_process_that_dies_ends_them_all(world: World, tmp_path: Path) -> None:
    """With an exit code that a supervisor sees: it starts them again."""
    with serving(world, tmp_path, count=2) as running:
        killed, other = children(running.pid)
        os.kill(killed, signal.SIGKILL)
        code = running.exit_code()

    said = re.search("process [01] of 2 ended by itself, with -9", running.log)
    assert (code, has_ended(other), said is None) == (1, True, False), running.log


def test_processes_without_their_parent_end(world: World, tmp_path: Path) -> None:
    """Nobody would start them again; the ports are free for those that come."""
    with serving(world, tmp_path, count=2) as running:
        pids = children(running.pid)
        running.kill()
        wait_until(lambda: all(map(has_ended, pids)))

    assert len(pids) == 2


def test_a_port_that_is_taken_is_said(world: World, tmp_path: Path) -> None:
    """By its setting, with exit code 2."""
    with serving(world, tmp_path), command(tmp_path, "serve", **{**world.settings, "metrics_port": "0", "http_port": "0"}) as second:
        code = second.exit_code()

    assert (code, f"grpc_port {world.settings['grpc_port']} on 127.0.0.1 cannot be listened at" in second.log) == (2, True)
