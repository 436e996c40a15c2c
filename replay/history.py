"""A log decoded as ingest takes it: no bad record, and no event that its producer had sent before."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from replay.log import ReadableLog
from replay.rows import Contexts, contexts_of
from schemas import codec
from schemas.columnar.events import Events
from schemas.columnar.repeats import REPEAT_OFFSETS, Repeats
from schemas.columnar.table import EVENT_COLUMNS, event_table
from schemas.columns import Profile, decode_events, decode_profiles
from schemas.features import REQUEST, Registry
from schemas.records import Impression
from schemas.topics import CLICKS, CONTENT, IMPRESSIONS, USERS, Batch, Source, Topic


@dataclass(frozen=True, slots=True)
class LogHistory:
    """A log, decoded. events: schemas.columnar.table.EVENT_COLUMNS."""

    events: pl.DataFrame
    profiles: list[Profile]
    contexts: Contexts


def read_history(log: ReadableLog, registry: Registry, repeat_offsets: int = REPEAT_OFFSETS) -> LogHistory:
    """Everything that the log's source topics hold."""
    events = [pl.DataFrame(schema=EVENT_COLUMNS)]
    shown: list[Impression] = []
    for batch, found in events_of(log, repeat_offsets):
        events.append(event_table(found))
        if wants_context(registry) and batch.source.topic == IMPRESSIONS.name:
            shown += _impressions(batch, set(events[-1]["offset"]))
    return LogHistory(pl.concat(events), profiles_of(log), contexts_of(shown))


def events_of(log: ReadableLog, repeat_offsets: int = REPEAT_OFFSETS) -> Iterator[tuple[Batch, Events]]:
    """The events of each batch of impressions and clicks."""
    repeats: dict[Source, Repeats] = defaultdict(lambda: Repeats(repeat_offsets))
    for topic, batch in _batches(log, IMPRESSIONS, CLICKS):
        yield batch, repeats[batch.source].drop(decode_events(topic, batch.records).events)


def profiles_of(log: ReadableLog) -> list[Profile]:
    """All content and users."""
    return [profile for topic, batch in _batches(log, CONTENT, USERS) for profile in decode_profiles(topic, batch.records)[0]]


def wants_context(registry: Registry) -> bool:
    """Whether some feature is a request's own."""
    return any(feature.kind == REQUEST for feature in registry.features)


def _batches(log: ReadableLog, *topics: Topic) -> Iterator[tuple[Topic, Batch]]:
    for topic in topics:
        for batch in log.read(topic):
            yield topic, batch


def _impressions(batch: Batch, offsets: set[int]) -> Iterator[Impression]:
    """The impressions that stand at these offsets."""
    for record in batch.records:
        if record.offset in offsets:
            value = codec.decode(IMPRESSIONS, record.value, record.headers)
            assert isinstance(value, Impression), value
            yield value
