"""A store cluster of three nodes without replicas: slots move while workers write, and a node that is killed comes back with nothing."""

import random
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import redis

from compose.stack.kafka_jars import HOST
from tests.servers import cluster
from tests.workers import wait_until

#: Keys of a slot that move at once: few, so that workers write while the slot stands on both nodes.
MOVE_ROWS = 5


class ClusterStores:
    """The cluster, as a run wants its store."""

    def __init__(self, folder: Path) -> None:
        """folder: of its nodes."""
        self._folder = folder / "cluster"
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        """Start it."""
        self._cluster = self._exit.enter_context(cluster(self._folder))
        self.client: Any = redis.RedisCluster(host=HOST, port=self._cluster.nodes[0].port, socket_timeout=2.0)
        self._exit.callback(self.client.close)
        return self

    def __exit__(self, *_: object) -> None:
        """Kill it."""
        self._exit.close()

    @property
    def url(self) -> str:
        """Where workers find it."""
        return self._cluster.url

    @property
    def primary_url(self) -> str:
        """Where its records are: there is no proxy."""
        return self._cluster.url

    def move_slot(self, slot: int, draw: random.Random, rest: Callable[[], None]) -> None:
        """Move a slot to another node, a few keys at a time; `rest` lets workers write while it stands on both."""
        source = self._cluster.owner(slot)
        to = draw.choice([node for node in self._cluster.nodes if node is not source])
        self._cluster.begin_move(slot, to)
        for _ in range(3):
            rest()
            self._cluster.move_keys(slot, to, MOVE_ROWS)
        while self._cluster.move_keys(slot, to, MOVE_ROWS):
            pass
        self._cluster.end_move(slot, to)

    def lose_node(self, draw: random.Random, rest: Callable[[], None]) -> None:
        """Kill a node, and start it again after a while: without its records, which no replica has."""
        node = draw.choice(self._cluster.nodes)
        node.kill()
        rest()
        node.start()
        wait_until(lambda: node.answering)
