"""The lake in an object store: written and read over S3's own protocol."""

import logging
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from deltalake import DeltaTable
from moto.server import ThreadedMotoServer

from compose import topics
from replay.lake import Lake
from schemas.errors import LogError
from schemas.topics import IMPRESSIONS, StoredRecord
from streams.lake.sink import LakeSettings
from streams.lake.table import LakePlace, Table
from streams.lake.upkeep import FILES_MAX, keep
from tests.lakes import TODAY, lake_sink
from tests.workers import SESSION_TIMEOUT_S, events, log_records, produce, wait_until
from tests.worlds import impression, stored


@pytest.fixture
def bucket() -> Iterator[LakePlace]:
    """A bucket of an S3 server on this machine."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    httpx.put(f"{url}/feed").raise_for_status()
    options = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
    }
    try:
        yield LakePlace("s3://feed/lake", options)
    finally:
        server.stop()


def opened(place: LakePlace) -> Table:
    """A writer that took over the only partition."""
    table = Table(place, IMPRESSIONS, 1)
    table.begin([0])
    return table


def shown(first: int, count: int) -> list[StoredRecord]:
    return [stored(impression(f"u{offset % 7}"), offset) for offset in range(first, first + count)]


def offsets(place: LakePlace) -> list[int]:
    return [record.offset for batch in Lake(*place).read(IMPRESSIONS) for record in batch.records]


def test_of_two_writers_one_is_refused(bucket: LakePlace) -> None:
    """As on a disk: the store itself refuses a second commit of one number (a conditional put)."""
    first, second = opened(bucket), opened(bucket)
    for table in (first, second):
        table.take(shown(0, 10))
    first.commit(TODAY)

    with pytest.raises(LogError, match="another writer"):
        second.commit(TODAY)
    assert (second.begin([0]), offsets(bucket)) == ({0: 10}, [*range(10)])


def test_upkeep_works_there(bucket: LakePlace) -> None:
    """Small files are put together, and every row is read as before."""
    table = opened(bucket)
    for first in range(0, 3 * FILES_MAX, 2):
        table.take(shown(first, 2))
        table.commit(TODAY)

    keep(bucket, IMPRESSIONS, TODAY)

    files = DeltaTable(f"{bucket.uri}/impressions", storage_options=dict(bucket.options)).file_uris()
    assert (len(files), offsets(bucket)) == (1, [*range(3 * FILES_MAX)])


def test_a_sink_writes_there(bucket: LakePlace, kafka_bootstrap: str, topic_prefix: str, tmp_path: Path) -> None:
    """Killed once on its way, it has every record of Kafka once."""
    topics.create(kafka_bootstrap, topic_prefix, partitions=1)
    settings = LakeSettings(kafka_bootstrap, f"{topic_prefix}lake", bucket, topic_prefix, commit_s=0.2, session_timeout_s=SESSION_TIMEOUT_S)
    produce(kafka_bootstrap, topic_prefix, events(300))
    with lake_sink(tmp_path, settings) as sink:
        wait_until(lambda: len(offsets(bucket)) > 0, lambda: sink.log)
    produce(kafka_bootstrap, topic_prefix, events(300, 1))
    with lake_sink(tmp_path, settings) as sink:
        wanted = [record.offset for record in log_records(kafka_bootstrap, topic_prefix + IMPRESSIONS.name)]
        wait_until(lambda: len(offsets(bucket)) >= len(wanted), lambda: sink.log)

    assert offsets(bucket) == wanted
