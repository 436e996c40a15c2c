"""A primary store and its replica behind one address that fails over, and everything that may happen to them."""

import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import redis

from benchmarks.chaos.servers.proxy import Proxy
from compose.stack.kafka_jars import HOST
from compose.stack.local import Server, store_answers, store_command
from tests.services import free_port
from tests.workers import GENERATION, wait_until


class Node:
    """One server that keeps nothing on disk: whoever kills it empties it."""

    def __init__(self, folder: Path) -> None:
        """folder: of its settings and its log."""
        self.port = free_port()
        self._server = Server("Valkey", folder / "valkey.conf", store_answers)
        self.client: Any = redis.Redis(host=HOST, port=self.port, socket_timeout=2.0)

    def start(self) -> None:
        """Start it, empty."""
        command = store_command(self._server.settings, self.port)
        with self._server.settings.open("a") as settings:
            settings.write("appendonly no\nrepl-diskless-sync-delay 0\n")
        self._server.launch(command, self.port)
        self._server.await_answer(self.port)

    def kill(self) -> None:
        """End it as a power cut would."""
        self._signal(signal.SIGKILL)
        wait_until(lambda: self._server.process() is None)

    def pause(self, seconds: float) -> None:
        """Let it stand still for a while."""
        self._signal(signal.SIGSTOP)
        time.sleep(seconds)
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Stop it if it runs."""
        self.client.close()
        self._server.stop()

    def _signal(self, number: int) -> None:
        process = self._server.process()
        assert process is not None, f"the store on port {self.port} does not run"
        os.kill(process[0], number)


class Stores:
    """Two nodes: workers reach the primary through one proxy, the replica reaches it through another."""

    def __init__(self, folder: Path) -> None:
        """folder: of both nodes."""
        self.primary, self.replica = Node(folder / "a"), Node(folder / "b")
        self.front = Proxy(self.primary.port)
        self.replication = Proxy(self.primary.port)
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        """Start both and wait until the replica follows."""
        with ExitStack() as undo:
            for node in (self.primary, self.replica):
                undo.callback(node.stop)
                node.start()
            undo.enter_context(self.front)
            undo.enter_context(self.replication)
            self._follow()
            self._exit = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop both."""
        self._exit.close()

    @property
    def client(self) -> Any:  # noqa: ANN401  # redis-py's client
        """Asks the store where it is now, past the proxy."""
        return self.primary.client

    @property
    def url(self) -> str:
        """Where workers find the store, whichever node it is."""
        return f"redis://{HOST}:{self.front.port}"

    @property
    def primary_url(self) -> str:
        """Where the store is now, past the proxy."""
        return f"redis://{HOST}:{self.primary.port}"

    def cut_replication(self) -> None:
        """From now on the replica hears nothing."""
        self.replication.switch(None)

    def fail_over(self) -> int:
        """Kill the primary and promote the replica, which lacks what it did not hear: returns how many offsets of the log that is."""
        self.front.switch(None)
        lost = _applied(self.primary.client) - _applied(self.replica.client)
        self.primary.kill()
        self.replica.client.replicaof("NO", "ONE")
        self.primary, self.replica = self.replica, self.primary
        self.front.switch(self.primary.port)
        return lost

    def rejoin(self) -> None:
        """Start the killed node again, as the replica."""
        self.replica.start()
        self.replication.switch(self.primary.port)
        self._follow()

    def flush(self) -> None:
        """Empty the store."""
        self.primary.client.flushall()

    def restart_empty(self) -> None:
        """Kill the primary and start it again with nothing."""
        self.primary.kill()
        self.primary.start()

    def _follow(self) -> None:
        self.replica.client.replicaof(HOST, self.replication.port)
        wait_until(lambda: self.replica.client.info("replication").get("master_link_status") == "up")


def _applied(client: Any) -> int:  # noqa: ANN401  # a client
    """Offsets that a store has applied: of each source, the mean over its shards."""
    guards = [int(guard) for key in client.scan_iter("guard:*", count=1_000) for guard in client.hvals(key)]
    return sum(guards) // GENERATION.shards
