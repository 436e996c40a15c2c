"""Where a rebuilt generation begins, how much goes to the store at once, and what is told meanwhile."""

import json
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from compose.replay.beginning import beginning
from online_store.ingest import Ingest
from online_store.keys import Generation
from online_store.memory import MemoryStore
from online_store.store import Step
from replay import rebuild
from replay.files import FileLog
from replay.log import Message
from replay.rebuild import Progress, begin_at, fill
from schemas import codec
from schemas.errors import GenerationError, SettingsError
from schemas.features import REGISTRY
from schemas.records import Event
from schemas.topics import CLICKS, SOURCES, Batch, Source, Topic
from tests.property.test_rebuild import Read, records
from tests.worlds import NOW_MS, Log, click, impression, replay, topic_of

TARGET = Generation(4, REGISTRY.fingerprint)
PLACE = Source("impressions", 0)
HOUR_MS = 3_600_000


def append(log: FileLog, *sent: Event) -> None:
    """Each under its key, with its own time."""
    for record in sent:
        topic = topic_of(record)
        log.append(topic, [Message(topic.key_of(record), codec.encode(record), record.ts_ms)])


@pytest.fixture
def log(tmp_path: Path) -> FileLog:
    """Impressions and clicks of five hours, one an hour."""
    found = FileLog(tmp_path / "log", partitions=2)
    for number in range(5):
        at: dict[str, Any] = {"request_id": f"r{number}", "user_id": f"u{number}", "ts_ms": NOW_MS + number * HOUR_MS}
        append(found, impression(**at), click(**at))
    return found


async def filled(store: MemoryStore, log: FileLog, begin: str = "earliest") -> rebuild.Filled:
    """TARGET, from where `--from` says."""
    await store.register(TARGET, REGISTRY)
    await begin_at(store, TARGET, beginning(begin, log))
    return await fill(Ingest(store, REGISTRY, target=TARGET), log)


def since(log: FileLog, moment_ms: int) -> Log:
    """The part of a log from a moment on; its offsets begin at 0."""
    found = Log()
    for topic in SOURCES:
        for batch in log.read(topic):
            for record in batch.records:
                if record.timestamp >= moment_ms:
                    found.append(record)  # type: ignore[arg-type]  # a file log's records are StoredRecords
    return found


async def test_a_generation_begins_at_a_moment(log: FileLog) -> None:
    """It is the one that live ingest makes of the log from that moment on."""
    store, other = MemoryStore(REGISTRY), MemoryStore(REGISTRY)
    told = await filled(store, log, "2025-10-09T10:00")
    await replay(since(log, 1_760_004_000_000), other)

    assert (told.events, await records(store, TARGET)) == (6, await records(other, Generation(1, REGISTRY.fingerprint)))


async def test_guards_say_where_it_began(log: FileLog) -> None:
    """Whoever resumes it needs no `--from`, for it reads nothing before them; the same one again is nothing."""
    store = MemoryStore(REGISTRY)
    await filled(store, log, "2025-10-09T10:00")
    again = await filled(store, log), await filled(store, log, "2025-10-09T10:00")

    assert again == (rebuild.Filled(), rebuild.Filled())


async def test_a_beginning_that_was_cut_off_is_done_again(log: FileLog) -> None:
    """Some shards have their guards, others not: the same `--from` moves the rest."""
    store, other = MemoryStore(REGISTRY), MemoryStore(REGISTRY)
    await filled(other, log, "2025-10-09T10:00")
    await store.register(TARGET, REGISTRY)
    starts = beginning("2025-10-09T10:00", log)
    halved = Generation(TARGET.number, TARGET.feature_version, TARGET.shards // 2)
    await begin_at(store, halved, starts)
    await filled(store, log, "2025-10-09T10:00")

    assert await records(store, TARGET) == await records(other, TARGET)


async def test_a_generation_that_began_elsewhere_is_left_alone() -> None:
    """Guards that moved to another beginning would pass over what is missing."""
    store = MemoryStore(REGISTRY)
    await store.register(TARGET, REGISTRY)
    await begin_at(store, TARGET, {PLACE: 1})

    with pytest.raises(GenerationError, match="g4 has begun at other offsets"):
        await begin_at(store, TARGET, {PLACE: 2, Source("impressions", 1): 2})


async def test_a_repeat_of_what_stands_before_the_beginning_is_a_repeat(tmp_path: Path) -> None:
    """What is a repeat the whole log says, not the part of it that is counted."""
    log = FileLog(tmp_path, partitions=1)
    append(log, impression(), impression(), impression(request_id="r2"))
    told = await filled(MemoryStore(REGISTRY), log, "impressions/0=1")

    assert (told.events, told.repeats) == (1, 1)


async def test_records_that_are_none_are_counted(tmp_path: Path) -> None:
    """They are in dead-letters since live ingest met them."""
    log = FileLog(tmp_path, partitions=1)
    log.append(CLICKS, [Message(b"u", b"noise", NOW_MS)] * 3)
    append(log, click())

    assert await filled(MemoryStore(REGISTRY), log) == rebuild.Filled(1, 3, 0)


async def shown(log: FileLog) -> list[Progress]:
    """What is told of a rebuild."""
    store, seen = MemoryStore(REGISTRY), list[Progress]()
    await store.register(TARGET, REGISTRY)
    await fill(Ingest(store, REGISTRY, target=TARGET), log, seen.append)
    return seen


@pytest.mark.parametrize("bound", ["CALL_RECORDS_MAX", "CALL_ROWS_MAX", "CALL_EVENTS_MAX"])
async def test_calls_keep_their_bounds(log: FileLog, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    """So memory does: no call takes another batch once there is enough of anything."""
    monkeypatch.setattr(rebuild, "BATCH_EVENTS_MAX", 1)
    monkeypatch.setattr(rebuild, bound, 1)

    assert [at.done for at in await shown(log)] == list(range(1, 11))


async def test_who_looks_is_told_how_far_it_is(log: FileLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events done and left, call by call; each has twice as many as the one before."""
    monkeypatch.setattr(rebuild, "BATCH_EVENTS_MAX", 1)

    assert [(at.done, at.left) for at in await shown(log)] == [(1, 9), (3, 7), (7, 3), (10, 0)]
    assert str(Progress(400_000, 200_000, 2.0)) == "400,000 events, 200,000/s, 200,000 left, 0:00:01 to go"


class Noted(Read):
    """A log that notes in which threads its readers ended."""

    def __init__(self, log: Log) -> None:
        super().__init__(log)
        self.ended_in: set[int] = set()

    def read(self, topic: Topic, starts: Mapping[int, int] | None = None, batch_rows_max: int = 5_000) -> Iterator[Batch]:
        """As ReadableLog says."""
        try:
            yield from super().read(topic, starts, batch_rows_max)
        finally:
            self.ended_in.add(threading.get_ident())


class Visited(MemoryStore):
    """A store in which somebody else does something before its n-th step."""

    def __init__(self, number: int, visit: Callable[[], Awaitable[object]]) -> None:
        super().__init__(REGISTRY)
        self.left, self.visit = number, visit

    async def apply(self, generation: Generation, steps: Sequence[Step]) -> list[list[int]]:
        """As MemoryStore.apply."""
        self.left -= 1
        if self.left == 0:
            await self.visit()
        return await super().apply(generation, steps)


@pytest.mark.parametrize("number", [1, 2, 3])
async def test_another_rebuild_of_the_same_generation_does_no_harm(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Whose guards it moved reads on from where they stand: each event counts once, whoever took it.

    The reader that is given up ends in a thread of its own: one with a loop, as Kafka's, cannot end where a loop runs.
    """
    found = Log()
    for event in range(24):
        found.add(impression(f"u{event % 5}", request_id=f"r{event}"), partition=event % 2)
    monkeypatch.setattr(rebuild, "BATCH_EVENTS_MAX", 6)
    monkeypatch.setattr(rebuild, "CALL_EVENTS_MAX", 6)

    async def rival() -> None:
        other = Ingest(store, REGISTRY, target=TARGET)
        for source, start in (await other.positions([Source("impressions", 1)])).items():
            batch = found.fetch(source, start, 2)
            assert batch is not None
            await other.apply([other.decode(batch)])
            await other.settle([source])

    store, alone = Visited(number, rival), MemoryStore(REGISTRY)
    await replay(found, alone)
    await store.register(TARGET, REGISTRY)
    log = Noted(found)
    await fill(Ingest(store, REGISTRY, repeat_offsets=0, target=TARGET), log)

    assert await records(store, TARGET) == await records(alone, Generation(1, REGISTRY.fingerprint))
    assert threading.get_ident() not in log.ended_in


def test_offsets_are_named_by_source(log: FileLog, tmp_path: Path) -> None:
    """In the command or in a file."""
    file = tmp_path / "offsets.json"
    file.write_text(json.dumps({"impressions/0": 12, "clicks/3": 7}))
    expected = {Source("impressions", 0): 12, Source("clicks", 3): 7}

    assert (beginning("impressions/0=12, clicks/3=7", log), beginning(str(file), log)) == (expected, expected)


@pytest.mark.parametrize("said", ["yesterday", "impressions=3", "impressions/0=x", "nobody/0=3", "impressions/0=-1", "2026-13-01"])
def test_what_is_no_beginning_is_refused(log: FileLog, said: str) -> None:
    """With what would be right."""
    with pytest.raises(SettingsError, match="it takes"):
        beginning(said, log)


@pytest.mark.parametrize("text", ["[]", "{", '{"impressions": 3}'])
def test_a_file_of_offsets_that_is_none_is_refused(log: FileLog, tmp_path: Path, text: str) -> None:
    """With what would be right."""
    file = tmp_path / "offsets.json"
    file.write_text(text)

    with pytest.raises(SettingsError, match=r"[Ii]t takes"):
        beginning(str(file), log)
