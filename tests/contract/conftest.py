"""The servers that the store suite runs on, each started once and only when asked for."""

from collections.abc import Iterator

import pytest

from tests import servers


@pytest.fixture(scope="session")
def redis_7_0(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.StoreServer]:
    """Debian's Redis 7.0."""
    with servers.single(servers.redis_7_0(), tmp_path_factory.mktemp("redis-7.0")) as server:
        yield server


@pytest.fixture(scope="session")
def store_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Cluster]:
    """Three nodes, which a test leaves running and with the slots they had."""
    with servers.cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def watched_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Watched]:
    """A primary behind a sentinel, which a test leaves in its office."""
    with servers.sentinel(tmp_path_factory.mktemp("sentinel")) as watched:
        yield watched


@pytest.fixture
def empty_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty store of the sort that the test is parametrized with; none for one in memory."""
    match request.param:
        case "memory":
            return ""
        case "valkey":
            return str(request.getfixturevalue("store_db"))
        case "redis-7.0":
            server: servers.StoreServer = request.getfixturevalue("redis_7_0")
            server.ask("FLUSHALL")
            return f"redis://{server.address}"
        case "cluster":
            cluster: servers.Cluster = request.getfixturevalue("store_cluster")
            cluster.empty()
            return cluster.url
    watched: servers.Watched = request.getfixturevalue("watched_store")
    watched.primary.ask("FLUSHALL")
    return watched.url
