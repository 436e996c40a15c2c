"""A rebuilt generation is the one that live ingest makes of the same log, record for record, however often the rebuild is killed."""

from collections.abc import Iterator, Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from online_store.bulk.stores import BulkMemoryStore
from online_store.ingest import Ingest
from online_store.keys import Entity, Generation, entity_of
from online_store.store import OnlineStore, Step
from replay import rebuild
from schemas.errors import StoreAwayError
from schemas.features import REGISTRY
from schemas.topics import Batch, Source, StoredRecord, Topic
from tests.property.test_exactness import logs, oracle_of
from tests.verify import compare
from tests.worlds import NOW_MS, SCHEMA_IDS, Log, replay

TARGET = Generation(4, REGISTRY.fingerprint)


class Read:
    """A log of one process as a rebuild reads it."""

    def __init__(self, log: Log) -> None:
        self.log = log

    def end_offsets(self, topic: Topic) -> dict[int, int]:
        """As ReadableLog says."""
        return {source.partition: self.log.end(source) for source in self.log.sources if source.topic == topic.name}

    def offsets_at(self, topic: Topic, moment_ms: int) -> dict[int, int]:
        """As ReadableLog says."""
        late = {at: [record.offset for record in self._of(topic, at) if record.timestamp >= moment_ms] for at in self.end_offsets(topic)}
        return {at: min([end, *late[at]]) for at, end in self.end_offsets(topic).items()}

    def _of(self, topic: Topic, partition: int) -> list[StoredRecord]:
        return self.log.partitions[Source(topic.name, partition)]

    def read(self, topic: Topic, starts: Mapping[int, int] | None = None, batch_rows_max: int = 5_000) -> Iterator[Batch]:
        """As ReadableLog says."""
        for partition, end in self.end_offsets(topic).items():
            source, position = Source(topic.name, partition), (starts or {}).get(partition, 0)
            while position < end and (found := self.log.fetch(source, position, batch_rows_max)):
                yield found
                position = found.following


class MortalStore(BulkMemoryStore):
    """A store whose caller dies at its n-th step, before or after it is done; further lives are longer."""

    def __init__(self) -> None:
        super().__init__(REGISTRY)
        self.lives: Iterator[tuple[int, str]] = iter(())
        self.steps_left, self.when = 1 << 30, ""

    def begin_life(self) -> None:
        """The next one; the last of them ends by itself."""
        self.steps_left, self.when = next(self.lives, (1 << 30, ""))

    async def apply(self, generation: Generation, steps: Sequence[Step]) -> list[list[int]]:
        """As MemoryStore.apply, step by step."""
        standing: list[list[int]] = []
        for step in steps:
            self.steps_left -= 1
            if self.steps_left < 0 and self.when == "before":
                raise StoreAwayError(self.when)
            standing += await super().apply(generation, [step])
            if self.steps_left < 0:
                raise StoreAwayError(self.when)
        return standing


async def rebuilt(store: MortalStore, log: Log, lives: Sequence[tuple[int, str]] = (), repeat_offsets: int = 65_536) -> None:
    """Fill TARGET, in as many lives as it takes."""
    await store.register(TARGET, REGISTRY)
    store.lives = iter(lives)
    while True:
        store.begin_life()
        try:
            await rebuild.fill(Ingest(store, REGISTRY, SCHEMA_IDS, repeat_offsets, target=TARGET), Read(log))
        except StoreAwayError:
            continue
        return


async def records(store: OnlineStore, generation: Generation) -> dict[Entity, bytes | None]:
    """A generation, record by record."""
    keys = [key async for key in store.records(generation)]
    return dict(zip(map(entity_of, keys), await store.read(keys), strict=True))


@given(log=logs(), call_events=st.sampled_from([1, 2, 7, 1_000]), repeat_offsets=st.sampled_from([0, 3, 65_536]))
async def test_a_rebuilt_generation_is_the_live_one(log: Log, call_events: int, repeat_offsets: int) -> None:
    """The same bytes under every entity, whatever the log holds and however many events go to the store at once."""
    store = MortalStore()
    await replay(log, store, repeat_offsets=repeat_offsets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rebuild, "BATCH_EVENTS_MAX", call_events)
        patch.setattr(rebuild, "CALL_EVENTS_MAX", call_events)
        await rebuilt(store, log, repeat_offsets=repeat_offsets)

    assert await records(store, TARGET) == await records(store, Generation(1, REGISTRY.fingerprint))


@given(
    log=logs(),
    call_events=st.sampled_from([1, 3, 1_000]),
    repeat_offsets=st.sampled_from([0, 3, 65_536]),
    lives=st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["before", "after"])), max_size=12),
)
async def test_a_rebuild_that_is_killed_and_resumed_is_exact(
    log: Log, call_events: int, repeat_offsets: int, lives: list[tuple[int, str]]
) -> None:
    """Killed before or after any step of a shard, as often as drawn: each life goes on at the guards, and the end is the oracle's."""
    store = MortalStore()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rebuild, "BATCH_EVENTS_MAX", call_events)
        patch.setattr(rebuild, "CALL_EVENTS_MAX", call_events)
        await rebuilt(store, log, lives, repeat_offsets)

    assert await compare(store, REGISTRY, TARGET, oracle_of(log, repeat_offsets=repeat_offsets), [NOW_MS + 60_000]) == []
