"""Fixtures every test may ask for: real servers, started once and only when asked for, and how hard Hypothesis tries."""

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
import redis
from hypothesis import settings

from compose.stack.local import StackAddresses
from tests.services import docker_services, local_services

for profile, examples in (("dev", 50), ("ci", 200), ("nightly", 5_000)):
    settings.register_profile(profile, max_examples=examples, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

#: Database 0 stays as the stack's owner left it: an address from the environment may be somebody's own store.
STORE_DATABASES = itertools.cycle(range(1, 16))

#: Starts at another number in every run, so that a Kafka that outlives the run never shows a test an old topic.
TOPIC_PREFIXES = itertools.count(os.getpid() * 1_000)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--services", choices=["local", "docker"], default="local", help="where Kafka and the store run (default: local)")


def pytest_configure() -> None:
    """Let SIGTERM end a run as Ctrl-C does: fixtures are torn down, so no server outlives it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session")
def services(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackAddresses]:
    """Kafka and the store: those of MILLSTREAM_KAFKA_BOOTSTRAP and MILLSTREAM_STORE_URL if both are set, else as --services says."""
    kafka_bootstrap, store_url = os.environ.get("MILLSTREAM_KAFKA_BOOTSTRAP"), os.environ.get("MILLSTREAM_STORE_URL")
    if kafka_bootstrap and store_url:
        yield StackAddresses(kafka_bootstrap=kafka_bootstrap, store_url=store_url)
        return
    folder: Path = tmp_path_factory.mktemp("stack")
    docker = request.config.getoption("--services") == "docker"
    with docker_services() if docker else local_services(folder) as addresses:
        yield addresses


@pytest.fixture(scope="session")
def kafka_bootstrap(services: StackAddresses) -> str:
    """Address of a Kafka broker, host:port."""
    return services.kafka_bootstrap


@pytest.fixture(scope="session")
def store_url(services: StackAddresses) -> str:
    """Address of the store, redis://host:port."""
    return services.store_url


@pytest.fixture
def store_db(store_url: str) -> str:
    """Address of an empty logical database of the store, redis://host:port/N: the test's own until 14 others have begun."""
    url = urlunsplit(urlsplit(store_url)._replace(path=f"/{next(STORE_DATABASES)}"))
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


@pytest.fixture
def topic_prefix() -> str:
    """A prefix for topic and group names that no other test has."""
    return f"t{next(TOPIC_PREFIXES)}-"
