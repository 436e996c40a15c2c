"""The ranking worker on Kafka: what goes out for what came in, whatever stops in between."""

import asyncio
import itertools
import json
import os
import random
import signal
import socket
import string
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from compose import topics
from compose.stack.local import Server
from online_store.memory import MemoryStore
from online_store.redis import RedisStore
from online_store.snapshot.file import Made, writing
from ranker.budgets import BUDGETS
from ranker.fronts.quick.answers import ranked_again
from ranker.kafka.sender import RankSettings
from ranker.kafka.worker import RankWorker
from schemas import codec
from schemas.features import REGISTRY
from schemas.records import DeadLetter, Degraded, RankRequest, RankResponse, RankTelemetry, Reason
from schemas.topics import DEAD_LETTERS, RANK_RESPONSES, RANK_TELEMETRY, StoredRecord
from tests import rankers
from tests.rankers import ITEMS
from tests.services import free_port
from tests.workers import PATIENCE_S, Process, Reader, command, committed, ends, log_records, own_broker, own_store, send, wait_until
from tests.worlds import Log, NotUtf8, content, replay

CORRELATION, TRACE, REPLY_TOPIC, REPLY_PARTITION = "kafka_correlationId", "traceparent", "kafka_replyTopic", "kafka_replyPartition"
#: Request ids that no other test uses.
NUMBERS = itertools.count()


class World(NamedTuple):
    """Topics of this module's own, a store with a past that a test may stop, and a model."""

    kafka_bootstrap: str
    prefix: str
    store: Server
    start_store: Callable[[], None]
    settings: dict[str, str]
    reader: Reader

    @property
    def replies(self) -> str:
        """The topic that requests may name for their answers, of three partitions."""
        return f"{self.prefix}replies"

    def send(self, *requests: RankRequest | bytes, headers: tuple[tuple[str, bytes], ...] = ()) -> None:
        """Send requests, or bytes in their place."""
        values = [codec.encode(each) if isinstance(each, RankRequest) else each for each in requests]
        topic = f"{self.prefix}rank-requests"
        send(self.kafka_bootstrap, [(topic, b"u1", value) for value in values], headers=list(headers), **{"message.max.bytes": 2_000_000})

    def records(self, topic: str) -> list[StoredRecord]:
        """Everything that one of the topics holds so far."""
        self.reader.read()
        return self.reader.records[self.prefix + topic]

    def responses(self, topic: str = "rank-responses") -> dict[str, list[StoredRecord]]:
        """Every answer so far, by request."""
        found: dict[str, list[StoredRecord]] = {}
        for record in self.records(topic):
            found.setdefault(response(record).request_id, []).append(record)
        return found

    def answers(self, *request_ids: str, topic: str = "rank-responses", count: int = 1) -> list[StoredRecord]:
        """The newest answer to each request, once each has as many as `count`."""
        wait_until(
            lambda: all(len(self.responses(topic).get(name, ())) >= count for name in request_ids), lambda: list(self.responses(topic))
        )
        return [self.responses(topic)[name][-1] for name in request_ids]

    def telemetry(self, asked: RankRequest) -> StoredRecord:
        """What was told of one request, once it is there."""
        key = asked.request_id.encode()
        wait_until(lambda: any(record.key == key for record in self.records("rank-telemetry")))
        (found,) = [record for record in self.records("rank-telemetry") if record.key == key]
        return found

    def reasons(self, value: bytes) -> list[str]:
        """Of the dead letters of a record with this value, once there is one."""
        wait_until(lambda: any(value in (record.value or b"") for record in self.records("dead-letters")))
        letters = [codec.decode(DEAD_LETTERS, record.value) for record in self.records("dead-letters")]
        return [letter.reason for letter in letters if isinstance(letter, DeadLetter) and letter.value == value]

    def ask(self, *requests: RankRequest, headers: tuple[tuple[str, bytes], ...] = (), topic: str = "rank-responses") -> list[StoredRecord]:
        """Send requests and return their answers."""
        self.send(*requests, headers=headers)
        return self.answers(*(each.request_id for each in requests), topic=topic)


def response(record: StoredRecord) -> RankResponse:
    found = codec.decode(RANK_RESPONSES, record.value)
    assert isinstance(found, RankResponse)
    return found


def request(*candidates: str, **rest: object) -> RankRequest:
    return rankers.request(*candidates, **{"request_id": f"q{next(NUMBERS)}", "ts_ms": time.time_ns() // 1_000_000, **rest})


def late_request(ahead_ms: int) -> bytes:
    return codec.encode(request(ts_ms=time.time_ns() // 1_000_000 + ahead_ms))


async def fill(url: str) -> None:
    store = RedisStore(url, REGISTRY)
    await rankers.fill(store, time.time_ns() // 1_000_000 - 120_000)
    await store.close()


async def make_snapshot(folder: Path, item_id: str) -> None:
    """items.arrow in a folder, of one item that no store has."""
    log, store, now_ms = Log(), MemoryStore(REGISTRY), time.time_ns() // 1_000_000
    log.add(content(item_id, now_ms))
    await replay(log, store)
    await rankers.snapshot_of(store, folder, now_ms)


@pytest.fixture(scope="module")
def world(kafka_bootstrap: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Everything but the worker."""
    folder, prefix = tmp_path_factory.mktemp("rank"), f"rank{time.time_ns()}-"
    topics.create(kafka_bootstrap, prefix, partitions=2)
    admin = AdminClient({"bootstrap.servers": kafka_bootstrap})
    admin.create_topics([NewTopic(f"{prefix}replies", 3, 1)])[f"{prefix}replies"].result(20)
    rankers.trained(folder / "models")
    with own_store(folder) as (store, start, url):
        asyncio.run(fill(url))
        settings = {"kafka_bootstrap": kafka_bootstrap, "topic_prefix": prefix, "store_url": url, "models_uri": str(folder / "models")}
        names = ("rank-responses", "rank-telemetry", "dead-letters", "users", "replies")
        reader = Reader(kafka_bootstrap, *(prefix + name for name in names))
        yield World(kafka_bootstrap, prefix, store, start, {**settings, "reply_topics": f"{prefix}replies", "group_id": "rank"}, reader)
        reader.close()


@contextmanager
def serving(world: World, folder: Path, **settings: str) -> Iterator[Process]:
    """`millstream serve`, once it answers."""
    with command(folder, "serve", **{**world.settings, **settings}) as worker:
        wait_until(lambda: worker.said("serve is up"))
        yield worker


@pytest.fixture(scope="module")
def worker(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """The worker that most tests here ask; it must still be there in the end."""
    with serving(world, tmp_path_factory.mktemp("worker")) as running:
        yield running
        assert running.alive, running.log


@pytest.mark.usefixtures("worker")
def test_a_request_gets_a_response_and_telemetry(world: World) -> None:
    """The answer goes to rank-responses under the user's key, what was served to rank-telemetry under the request's."""
    asked = request(k=3)
    (answer,) = world.ask(asked)
    telemetry = codec.decode(RANK_TELEMETRY, world.telemetry(asked).value)
    assert isinstance(telemetry, RankTelemetry)

    assert (answer.key, response(answer).degraded, len(response(answer).ranked_items)) == (b"u1", Degraded.NONE, 3)
    assert [item.item_id for item in telemetry.items] == [item.item_id for item in response(answer).ranked_items]


@pytest.mark.usefixtures("worker")
def test_an_answer_goes_where_the_request_asks(world: World) -> None:
    """An allowed topic, its partition, and the caller's correlation and trace ids are honoured."""
    carried = ((CORRELATION, b"\x01\x02"), (TRACE, b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"))
    headers = ((REPLY_TOPIC, world.replies.encode()), (REPLY_PARTITION, (2).to_bytes(4)), ("other", b"stays behind"), *carried)
    asked = request()
    (answer,) = world.ask(asked, headers=headers, topic="replies")

    assert (answer.partition, answer.headers, world.telemetry(asked).headers) == (2, carried, carried[1:])


@pytest.mark.usefixtures("worker")
def test_a_topic_that_is_not_allowed_gets_nothing(world: World) -> None:
    """A request cannot write into other people's topics: its answer goes where all answers go."""
    (answer,) = world.ask(request(), headers=((REPLY_TOPIC, f"{world.prefix}users".encode()), (CORRELATION, b"c")))

    assert (answer.headers, world.records("users")) == (((CORRELATION, b"c"),), [])


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("partition", [(3).to_bytes(4), b"\xff\xff\xff\xff", b"\x01", b"12345678", b""])
def test_a_partition_that_is_not_there_stops_nobody(world: World, partition: bytes) -> None:
    """One client's wrong header costs it the partition, and nobody the worker."""
    headers = ((REPLY_TOPIC, world.replies.encode()), (REPLY_PARTITION, partition))

    assert len(world.ask(request(), headers=headers, topic="replies")) == 1


BAD: dict[str, tuple[Callable[[], bytes], Reason]] = {
    "no candidates": (
        lambda: codec.encode_json(request()).replace(json.dumps(ITEMS, separators=(",", ":")).encode(), b"[]"),
        Reason.OUT_OF_RANGE,
    ),
    "too many candidates": (lambda: codec.encode(request(*[f"i{n}" for n in range(201)])), Reason.OUT_OF_RANGE),
    "nothing wanted": (lambda: codec.encode(request(k=0)), Reason.OUT_OF_RANGE),
    "an id too long": (lambda: codec.encode(request(user_id="u" * 129)), Reason.OVERSIZE),
    "a candidate too long": (lambda: codec.encode(request("i" * 129)), Reason.OVERSIZE),
    "no user": (lambda: codec.encode(msgspec.structs.replace(request(), user_id="")), Reason.MISSING_ID),
    "JSON cut short": (lambda: codec.encode_json(request())[:-1], Reason.MALFORMED),
    "a word for a number": (lambda: codec.encode_json(request()).replace(b'"k":200', b'"k":"all"'), Reason.WRONG_TYPE),
    "six minutes ahead": (lambda: late_request(360_000), Reason.FUTURE_DATED),
    "six minutes ago": (lambda: late_request(-360_000), Reason.OUT_OF_RANGE),
    "as long as Kafka takes it": (lambda: os.urandom(1_048_400), Reason.OVERSIZE),
}


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_a_dead_letter_and_the_loop_goes_on(world: World, name: str) -> None:
    """Its bytes and its reason are in dead-letters, and the request behind it is answered."""
    make, reason = BAD[name]
    value, good = make(), request()
    world.send(value, codec.encode(good))
    world.answers(good.request_id)

    assert world.reasons(value) == [reason]


@pytest.mark.usefixtures("worker")
def test_a_header_whose_name_is_not_utf_8_stops_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its request is a dead letter, for nobody can say where it should be answered."""
    monkeypatch.setattr("aiokafka.producer.producer.DefaultRecordBatchBuilder", _DefaultRecordBatchBuilderPy)
    monkeypatch.setattr("aiokafka.producer.message_accumulator.DefaultRecordBatchBuilder", _DefaultRecordBatchBuilderPy)
    bad, good = codec.encode(request()), request()

    async def send() -> None:
        async with AIOKafkaProducer(bootstrap_servers=world.kafka_bootstrap) as producer:
            await producer.send_and_wait(f"{world.prefix}rank-requests", bad, headers=[(NotUtf8("name"), b"value")])

    # A warm interpreter sees an error that is left set later than a cold one.
    world.ask(*(request() for _ in range(100)))
    asyncio.run(send())
    world.ask(good)

    assert world.reasons(bad) == [Reason.MALFORMED]


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("name", [CORRELATION, TRACE])
def test_a_header_that_would_make_an_answer_too_long_stops_nobody(world: World, name: str) -> None:
    """Carried on, it would be refused by Kafka: its request is a dead letter."""
    bad, good = codec.encode(request()), request()
    world.send(bad, headers=((name, b"x" * 1_048_000),))
    world.ask(good)

    assert world.reasons(bad) == [Reason.OVERSIZE]


@pytest.mark.usefixtures("worker")
def test_a_letter_may_be_longer_than_its_record(world: World) -> None:
    """A key stands in it twice, and words before each header's name: neither keeps a record from dead-letters."""
    draw = random.Random(1)
    headers = [("".join(draw.choices(string.ascii_letters, k=6)), b"") for _ in range(99_000)]
    of_key, of_headers, good = os.urandom(50), os.urandom(50), request()
    topic, large = f"{world.prefix}rank-requests", {"message.max.bytes": 2_000_000}
    send(world.kafka_bootstrap, [(topic, os.urandom(1_048_400), of_key)], **large)
    send(world.kafka_bootstrap, [(topic, b"u1", of_headers)], headers=headers, **large)
    world.ask(good)

    assert [*world.reasons(of_key), *world.reasons(of_headers)] == [Reason.MALFORMED] * 2


@pytest.mark.usefixtures("worker")
def test_a_request_sent_twice_gets_the_same_bytes(world: World) -> None:
    """Every delivery is answered, each time with the first answer."""
    asked = request()
    world.send(asked, asked)
    world.send(asked)
    world.answers(asked.request_id, count=3)

    assert len({record.value for record in world.responses()[asked.request_id]}) == 1


@pytest.mark.usefixtures("worker")
def test_another_worker_repeats_every_answer(world: World, tmp_path: Path) -> None:
    """A worker that reads all requests again, as after a crash before the commit, gives every one its first answer."""
    world.ask(*(request() for _ in range(5)))
    before = {name: records[0].value for name, records in world.responses().items()}
    with serving(world, tmp_path, group_id="again"):
        world.answers(*before, count=2)
    after = {name: {record.value for record in records} for name, records in world.responses().items()}

    assert after == {name: {value} for name, value in before.items()}


@pytest.mark.usefixtures("worker")
def test_a_worker_ends_in_order(world: World, tmp_path: Path) -> None:
    """After SIGTERM the exit code is 0, and what was answered is committed."""
    asked = request()
    with serving(world, tmp_path, group_id="ends") as ending:
        world.ask(asked)
        world.answers(asked.request_id, count=2)
        wanted = {place: end for place, end in ends(world.kafka_bootstrap, world.prefix, ["rank-requests"]).items() if end}
        wait_until(lambda: committed(world.kafka_bootstrap, world.prefix, "ends-serve", ["rank-requests"]) == wanted)
        code = ending.stop()
    found = committed(world.kafka_bootstrap, world.prefix, "ends-serve", ["rank-requests"])

    assert (code, found) == (0, wanted)


@pytest.mark.usefixtures("worker")
async def test_a_request_does_not_wait_for_a_flush(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While Kafka has not acknowledged the answers before, others are polled for and answered."""
    store = rankers.Failing()
    await rankers.fill(store)
    ranker = await rankers.on(store, rankers.trained(tmp_path))
    worker = RankWorker(RankSettings(world.kafka_bootstrap, "beside", world.prefix), ranker)
    is_flushing, go_on, flush = threading.Event(), threading.Event(), worker.sender.flush

    def held_up() -> None:
        is_flushing.set()
        go_on.wait()
        flush()

    monkeypatch.setattr(worker.sender, "flush", held_up)
    stop, asked = asyncio.Event(), [request(), request()]
    running = asyncio.create_task(worker.run(stop))
    try:
        await asyncio.to_thread(world.ask, asked[0])
        assert await asyncio.to_thread(is_flushing.wait, PATIENCE_S)
        world.send(asked[1])
        await asyncio.to_thread(world.answers, asked[1].request_id, count=2)
    finally:
        go_on.set()
        stop.set()
        await running

    assert committed(world.kafka_bootstrap, world.prefix, "beside", ["rank-requests"])


@pytest.mark.usefixtures("worker")
def test_workers_come_and_go_and_every_request_is_answered(world: World, tmp_path: Path) -> None:
    """Partitions change hands in the middle of the stream: nobody fails over them, and nothing is left unanswered."""
    asked: list[RankRequest] = []

    def some() -> None:
        for _ in range(10):
            asked.append(request())
            world.send(asked[-1])

    with serving(world, tmp_path, group_id="two") as first:
        some()
        with serving(world, tmp_path, group_id="two") as second:
            some()
            time.sleep(0.5)
            some()
            code = first.stop()
            some()
            world.answers(*(each.request_id for each in asked), count=2)
            codes = (code, second.stop())

    assert codes == (0, 0)


@pytest.mark.usefixtures("worker")
def test_a_store_that_is_away_or_hangs_costs_the_full_answer_only(world: World) -> None:
    """Requests are answered in time, saying how far they fell back; when the store is back, in full, and nobody gets another's answer."""
    before = world.ask(request())
    pid = (world.store.process() or (0, 0))[0]
    os.kill(pid, signal.SIGSTOP)
    hung = world.ask(*(request("i1", "i3", deadline_ms=None) for _ in range(5)))
    os.kill(pid, signal.SIGCONT)
    world.store.stop()
    gone = world.ask(*(request("i1", "x", deadline_ms=None) for _ in range(5)))
    world.start_store()
    wait_until(lambda: response(world.ask(request())[0]).degraded == Degraded.NONE)
    after = world.ask(*(request(f"n{number}", ITEMS[number]) for number in range(5)))
    found = [{response(record).degraded for record in records} for records in (before, hung, gone, after)]
    slates = [{item.item_id for item in response(record).ranked_items} for record in after]

    assert (found, slates) == ([{"NONE"}, {"STALE"}, {"STALE"}, {"NONE"}], [{f"n{number}", ITEMS[number]} for number in range(5)])
    assert max(response(record).latency_ms for record in (*hung, *gone)) < BUDGETS.total_ms


@pytest.mark.usefixtures("worker")
def test_metrics_tell_of_answers_and_lag(world: World, tmp_path: Path) -> None:
    """A worker with a metrics port says there what it answered and how many requests wait."""
    port, asked = free_port(), request()
    with serving(world, tmp_path, group_id="metrics", metrics_port=str(port)):
        world.ask(asked)
        world.answers(asked.request_id, count=2)

        def page() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                return str(answer.read().decode())

        wait_until(lambda: 'millstream_rank_lag_records{partition="0"} 0.0' in page(), page)
        found = page()

    assert "millstream_rank_repeats_total 0.0" not in found


def test_missing_topics_are_named(world: World, tmp_path: Path) -> None:
    """A reply topic that is not there is said at the start, not when the first request names it."""
    with command(tmp_path, "serve", **{**world.settings, "reply_topics": "nowhere"}) as worker:
        code = worker.exit_code()

    assert (code, "has no topic nowhere" in worker.log) == (2, True)


def test_items_that_the_store_lost_come_from_the_snapshot(world: World, tmp_path: Path) -> None:
    """An item in the file that `snapshot_file` names is not scored as one that never was."""
    asyncio.run(make_snapshot(tmp_path, "lost"))
    with serving(world, tmp_path, http_port=str(port := free_port()), snapshot_file=str(tmp_path / "items.arrow"), group_id="backfill"):
        wait_until(lambda: len(set(vectors(world, port, "lost", "never"))) == 2)
        unknown = vectors(world, port, "never", "nor this")

    assert len(set(unknown)) == 1


def test_a_snapshot_of_another_registry_is_told_at_the_start(world: World, tmp_path: Path) -> None:
    """Nobody serves by records that would be read wrongly."""
    with writing(tmp_path / "items.arrow", Made("g1", "another", 0)):
        pass
    with command(tmp_path, "serve", **world.settings, snapshot_file=str(tmp_path / "items.arrow")) as worker:
        code = worker.exit_code()

    assert (code, "Make it anew with `millstream replay backfill-snapshot`" in worker.log) == (2, True)


def test_http_and_kafka_give_one_answer(world: World, tmp_path: Path) -> None:
    """To one request_id, whichever front end is asked first; what HTTP alone was asked is told to Kafka all the same."""
    with serving(world, tmp_path, http_port=str(port := free_port()), group_id="rank-http"):
        both, alone = request("i1", "i2", "i3"), request("i2", "i1")
        by_kafka = msgspec.json.encode(ranked_again(world.ask(both)[0].value or b""))
        by_http = [over_http(port, asked) for asked in (both, alone)]
        told = codec.decode(RANK_TELEMETRY, world.telemetry(alone).value)

    assert isinstance(told, RankTelemetry)
    ranked = [item["item_id"] for item in json.loads(by_http[1])["ranked_items"]]
    assert (by_http[0], [item.item_id for item in told.items]) == (by_kafka, ranked)


def vectors(world: World, port: int, *candidates: str) -> list[bytes]:
    """What a worker's model was shown of some items, asked over HTTP."""
    asked = request(*candidates)
    over_http(port, asked)
    told = codec.decode(RANK_TELEMETRY, world.telemetry(asked).value)
    assert isinstance(told, RankTelemetry)
    return [item.vector for item in told.items]


def test_what_is_under_way_over_http_is_answered_and_told_at_the_end(world: World, tmp_path: Path) -> None:
    """SIGTERM, then the store holds the answer up and Kafka its telemetry: both arrive before the process ends, with exit code 0."""
    asked, port = request("i1", "i3", deadline_ms=3_000), free_port()
    with own_broker(tmp_path) as (broker, _, bootstrap), ThreadPoolExecutor(2) as beside:
        topics.create(bootstrap, world.prefix, partitions=1)
        settings = {"kafka_bootstrap": bootstrap, "reply_topics": "", "group_id": "drains", "http_port": str(port)}
        with serving(world, tmp_path, **settings) as ending, paused(world.store):
            answer = beside.submit(over_http, port, asked)
            time.sleep(0.2)
            ended = beside.submit(ending.stop)
            wait_until(lambda: refuses(port))
            with paused(broker):
                body = json.loads(answer.result())
                time.sleep(1)
            code = ended.result()
        told = [record.key for record in log_records(bootstrap, f"{world.prefix}rank-telemetry")]

    assert (code, body["request_id"], told) == (0, asked.request_id, [asked.request_id.encode()])


def refuses(port: int) -> bool:
    """Whether nobody listens at a port any more."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0


@contextmanager
def paused(server: Server) -> Iterator[None]:
    """A server that stands still within the block."""
    pid = (server.process() or (0, 0))[0]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def over_http(port: int, asked: RankRequest) -> bytes:
    """The body of an answer to the same request."""
    fields = msgspec.to_builtins(asked)
    body = json.dumps({name: fields[name] for name in ("request_id", "user_id", "candidate_item_ids", "k", "ts_ms", "deadline_ms")})
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/rank", body.encode(), timeout=30) as answer:
        found: bytes = answer.read()
    return found
