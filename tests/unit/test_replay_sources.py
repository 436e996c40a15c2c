"""A log that is in the lake as far as it goes, and in Kafka from some offset on, is read once."""

from pathlib import Path

from compose.replay.sources import LakeThenKafka
from replay.files import FileLog
from replay.log import Message
from schemas import codec
from schemas.topics import IMPRESSIONS
from tests.worlds import NOW_MS, impression


def log_of(folder: Path, users: str) -> FileLog:
    """One impression of each of these users, in two partitions."""
    log = FileLog(folder, 2)
    shown = [impression(user, ts_ms=NOW_MS) for user in users]
    log.append(IMPRESSIONS, [Message(one.user_id.encode(), codec.encode(one), NOW_MS) for one in shown])
    return log


def test_what_the_lake_lacks_comes_from_kafka(tmp_path: Path) -> None:
    """In the order of offsets, each once."""
    whole = log_of(tmp_path / "kafka", "abcdefgh")
    found = LakeThenKafka(log_of(tmp_path / "lake", "abcde"), whole)

    def places(log: FileLog | LakeThenKafka) -> list[tuple[int, int]]:
        return [(record.partition, record.offset) for batch in log.read(IMPRESSIONS) for record in batch.records]

    assert (sorted(places(found)), found.end_offsets(IMPRESSIONS)) == (places(whole), whole.end_offsets(IMPRESSIONS))


def test_a_topic_that_is_not_in_the_lake_comes_from_kafka(tmp_path: Path) -> None:
    """From its start, or from where it is asked for."""
    found = LakeThenKafka(FileLog(tmp_path / "lake", 2), log_of(tmp_path / "kafka", "abcdefgh"))
    ends = found.end_offsets(IMPRESSIONS)
    last = {partition: end - 1 for partition, end in ends.items()}

    assert [(batch.start, batch.following) for batch in found.read(IMPRESSIONS, last)] == [(end - 1, end) for end in ends.values()]


def test_a_moment_is_where_the_lake_has_it_else_kafka(tmp_path: Path) -> None:
    """Whichever of them still holds what was then."""
    later = [Message(b"z", codec.encode(impression("z", ts_ms=NOW_MS)), NOW_MS + 5)]
    lake, kafka = log_of(tmp_path / "lake", "abcde"), log_of(tmp_path / "kafka", "abcde")
    kafka.append(IMPRESSIONS, later)
    found = LakeThenKafka(lake, kafka)

    assert (found.offsets_at(IMPRESSIONS, NOW_MS), found.offsets_at(IMPRESSIONS, NOW_MS + 1)) == (
        lake.offsets_at(IMPRESSIONS, NOW_MS),
        kafka.offsets_at(IMPRESSIONS, NOW_MS + 1),
    )
