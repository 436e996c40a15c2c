"""The Kafka and the store that integration tests talk to: ours on this machine, or the same two in containers."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from compose.stack.kafka_jars import BROKER_SETTINGS, broker_answers
from compose.stack.local import LocalStack, StackAddresses

#: Until then a broker in a container must answer, its image pulled.
CONTAINER_START_TIMEOUT_S = 60.0

#: What free_port gave to this process.
_given_ports: set[int] = set()


@contextmanager
def local_services(state_dir: Path) -> Iterator[StackAddresses]:
    """Our own stack on free ports, stopped again whatever happens."""
    stack = LocalStack(state_dir, kafka_port=0, store_port=0)
    try:
        yield stack.up()
    finally:
        stack.down()


@contextmanager
def docker_services() -> Iterator[StackAddresses]:
    """The images of compose/docker-compose.yml, started by testcontainers."""
    container = import_module("testcontainers.core.container").DockerContainer
    redis_container = import_module("testcontainers.community.redis").RedisContainer
    port = free_port()
    kafka = container("apache/kafka:4.1.0", env=broker_environment(port)).with_bind_ports(port, port)
    with kafka, redis_container("valkey/valkey:9") as store:
        deadline_s = time.monotonic() + CONTAINER_START_TIMEOUT_S
        while not broker_answers(port):
            assert time.monotonic() < deadline_s, kafka.get_logs()
        store_url = f"redis://{store.get_container_host_ip()}:{store.get_exposed_port(6379)}"
        yield StackAddresses(kafka_bootstrap=f"127.0.0.1:{port}", store_url=store_url)


def broker_environment(port: int) -> dict[str, str]:
    """Environment of an apache/kafka container whose clients reach it on this port of 127.0.0.1."""
    settings = {
        **BROKER_SETTINGS,
        "process.roles": "broker,controller",
        "node.id": "1",
        "listeners": f"PLAINTEXT://:{port},CONTROLLER://:29093",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "controller.quorum.voters": "1@localhost:29093",
    }
    return {environment_name(name): value for name, value in settings.items()}


def environment_name(setting: str) -> str:
    """How the apache/kafka image spells a broker setting."""
    return "KAFKA_" + setting.upper().replace(".", "_")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has, another one each time: who asks for two listens on neither yet."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    if port in _given_ports:
        return free_port()
    _given_ports.add(port)
    return port
