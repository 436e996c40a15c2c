"""One client a front end, as lean as Python allows: what a generator uses of its core, the store and Kafka do not have."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import grpc
import msgspec
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from benchmarks.rank.generator import ROUND_S, Client, Said, Task
from ranker.budgets import BUDGETS
from ranker.fronts.records import CORRELATION_ID
from schemas import codec
from schemas.errors import MillstreamError
from schemas.proto.millstream.v1 import rank_pb2
from schemas.records import RankRequest, RankResponse
from schemas.topics import RANK_REQUESTS, RANK_RESPONSES

#: Connections of the HTTP client at least, kept alive. An open loop has as many as are under way where each answer takes its whole deadline
#: (Little's law): with fewer, requests wait here while the server could have taken them, and it never sees how many there are.
CONNECTIONS_COUNT_MIN = 64
#: How long Kafka may take to name a topic's partitions (seconds).
ANSWER_S = 30.0
#: How long the Kafka client waits for a first answer (seconds): librdkafka takes whole milliseconds. Less is no wait, and took half of the
#: core that Kafka and the store have.
POLL_S = 0.001
#: Connections that requests go out on by Kafka and by gRPC, as from so many gateways. A broker sees to one request of a connection at a
#: time: with one, that was what some 800 requests a second waited for, 50 ms each.
CONNECTIONS_COUNT = 4
METHOD = "/millstream.v1.Ranking/Rank"
Answers = list[tuple[int, float, bytes | None]]


class KafkaClient:
    """Requests to rank-requests, answers from rank-responses, told apart by Spring's correlation id."""

    def __init__(self, task: Task) -> None:
        """Nothing is connected."""
        self._task = task
        common: dict[str, Any] = {"bootstrap.servers": task.address, "log_level": 0}
        sending = common | {"linger.ms": 0, "queue.buffering.max.messages": 1_000_000}
        self._producers = [Producer(sending) for _ in range(CONNECTIONS_COUNT)]
        self._consumer = Consumer(common | {"group.id": f"{task.prefix}bench", "enable.auto.commit": False, "fetch.wait.max.ms": 100})
        self._topic = task.prefix + RANK_REQUESTS.name
        self._keys: list[str] = []

    async def open(self) -> None:
        """Read the responses that come from now on."""
        topic = self._task.prefix + RANK_RESPONSES.name
        partitions = self._consumer.list_topics(topic, timeout=ANSWER_S).topics[topic].partitions
        places = [TopicPartition(topic, partition) for partition in partitions]
        ends = [self._consumer.get_watermark_offsets(place, timeout=ANSWER_S)[1] for place in places]
        self._consumer.assign([TopicPartition(topic, place.partition, end) for place, end in zip(places, ends, strict=True)])

    def encode(self, request: RankRequest) -> bytes:
        """Avro, single-object encoding; the first is number -1."""
        self._keys.append(request.user_id)
        return codec.encode(request)

    def send(self, number: int, body: bytes) -> None:
        """Keyed by user."""
        headers: Any = [(CORRELATION_ID, number.to_bytes(8, "little", signed=True))]
        producer = self._producers[number % CONNECTIONS_COUNT]
        producer.produce(self._topic, body, self._keys[number + 1], headers=headers)

    async def answers(self) -> Answers:
        """Waits in librdkafka for the first one, then takes what is there."""
        for producer in self._producers:
            producer.poll(0)
        first = self._consumer.poll(POLL_S)
        if first is None:
            return []
        messages = [first, *self._consumer.consume(1_000, 0)]
        now_s = time.perf_counter()
        return [(_number(message), now_s, message.value()) for message in messages if not message.error()]

    def decode(self, body: bytes) -> Said:
        """A RankResponse."""
        found = codec.decode(RANK_RESPONSES, body)
        assert isinstance(found, RankResponse), found
        return Said([item.item_id for item in found.ranked_items], found.degraded)

    async def close(self) -> None:
        """Leave."""
        for producer in self._producers:
            producer.flush(ANSWER_S)
        self._consumer.close()


def _number(message: Message) -> int:
    headers: Any = message.headers()
    return int.from_bytes(dict(headers)[CORRELATION_ID], "little", signed=True)


class _Item(msgspec.Struct):
    item_id: str


class _Body(msgspec.Struct):
    """An answer over HTTP."""

    ranked_items: list[_Item]
    degraded: str


class HttpClient:
    """POST /v1/rank on connections that are kept alive; a request waits here for one that is free."""

    def __init__(self, task: Task) -> None:
        """Nothing is connected."""
        self._task = task
        self._host, _, port = task.address.rpartition(":")
        self._port = int(port)
        self._head = f"POST /v1/rank HTTP/1.1\r\nhost: {task.address}\r\ncontent-type: application/json\r\ncontent-length: ".encode()
        self._free: list[_Connection] = []
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._found: Answers = []
        self._connections: list[_Connection] = []

    async def open(self) -> None:
        """All connections, tried again until the server listens."""
        loop = asyncio.get_running_loop()
        until_s = time.perf_counter() + ANSWER_S
        count = max(CONNECTIONS_COUNT_MIN, self._task.in_flight, math.ceil(self._task.rate * BUDGETS.total_ms / 1000))
        while len(self._free) < count:
            try:
                _, connection = await loop.create_connection(lambda: _Connection(self._answered), self._host, self._port)
            except ConnectionRefusedError as error:
                if time.perf_counter() > until_s:
                    raise MillstreamError(f"nothing listens on {self._host}:{self._port} after {ANSWER_S} s. See serve's log.") from error
                await asyncio.sleep(0.1)
            else:
                self._free.append(connection)
        self._connections = list(self._free)

    def encode(self, request: RankRequest) -> bytes:
        """Head and JSON body in one."""
        fields = ("user_id", "candidate_item_ids", "k", "request_id", "ts_ms")
        body = msgspec.json.encode({name: getattr(request, name) for name in fields})
        return self._head + str(len(body)).encode() + b"\r\n\r\n" + body

    def send(self, number: int, body: bytes) -> None:
        """On a free connection, else when one is."""
        if self._free:
            self._free.pop().send(number, body)
        else:
            self._waiting.append((number, body))

    async def answers(self) -> Answers:
        """What arrived."""
        await asyncio.sleep(0 if self._found else ROUND_S)
        found, self._found = self._found, []
        return found

    def _answered(self, connection: "_Connection", number: int, body: bytes | None) -> None:
        self._found.append((number, time.perf_counter(), body))
        if connection.transport.is_closing():
            return
        if self._waiting:
            connection.send(*self._waiting.popleft())
        else:
            self._free.append(connection)

    def decode(self, body: bytes) -> Said:
        """JSON."""
        found = msgspec.json.decode(body, type=_Body)
        return Said([item.item_id for item in found.ranked_items], found.degraded)

    async def close(self) -> None:
        """All of them."""
        for connection in self._connections:
            connection.transport.close()


class _Connection(asyncio.Protocol):
    """One request at a time; an answer other than 200, or a connection that ends, is no body."""

    transport: asyncio.Transport

    def __init__(self, answered: Callable[["_Connection", int, bytes | None], None]) -> None:
        self._answered = answered
        self._number: int | None = None
        self._read = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def send(self, number: int, body: bytes) -> None:
        self._number = number
        self.transport.write(body)

    def data_received(self, data: bytes) -> None:
        self._read += data
        head = self._read.find(b"\r\n\r\n")
        if head < 0:
            return
        length = int(bytes(self._read[:head]).lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(self._read) >= head + 4 + length:
            body = bytes(self._read[head + 4 : head + 4 + length])
            status = self._read[9:12]
            self._read.clear()
            self._end(body if status == b"200" else None)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self._number is not None:
            self._end(None)

    def _end(self, body: bytes | None) -> None:
        number, self._number = self._number, None
        assert number is not None, "an answer that nobody asked for"
        self._answered(self, number, body)


class GrpcClient:
    """millstream.v1.Ranking over a few channels; messages are bytes on this side, so that grpc's own work is all there is."""

    def __init__(self, task: Task) -> None:
        """Nothing is connected."""
        self._address = task.address
        self._found: Answers = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """All channels, once the server listens."""
        options = (("grpc.use_local_subchannel_pool", 1),)
        self._channels = [grpc.aio.insecure_channel(self._address, options) for _ in range(CONNECTIONS_COUNT)]
        for channel in self._channels:
            await asyncio.wait_for(channel.channel_ready(), ANSWER_S)
        self._calls = [channel.unary_unary(METHOD) for channel in self._channels]

    def encode(self, request: RankRequest) -> bytes:
        """A message."""
        fields = ("user_id", "candidate_item_ids", "k", "request_id", "ts_ms")
        message: bytes = rank_pb2.RankRequest(**{name: getattr(request, name) for name in fields}).SerializeToString()
        return message

    def send(self, number: int, body: bytes) -> None:
        """On one of the channels."""
        task = asyncio.get_running_loop().create_task(self._ask(number, body))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, number: int, body: bytes) -> None:
        try:
            answer = await self._calls[number % CONNECTIONS_COUNT](body)
        except grpc.aio.AioRpcError:
            answer = None
        self._found.append((number, time.perf_counter(), answer))

    async def answers(self) -> Answers:
        """What arrived."""
        await asyncio.sleep(0 if self._found else ROUND_S)
        found, self._found = self._found, []
        return found

    def decode(self, body: bytes) -> Said:
        """A message."""
        found = rank_pb2.RankResponse.FromString(body)
        return Said([item.item_id for item in found.ranked_items], found.degraded)

    async def close(self) -> None:
        """All of them."""
        for channel in self._channels:
            await channel.close()


CLIENTS: dict[str, Callable[[Task], Client]] = {"kafka": KafkaClient, "http": HttpClient, "grpc": GrpcClient}


def client_of(task: Task) -> Client:
    """The client of the task's front end."""
    return CLIENTS[task.front_end](task)
