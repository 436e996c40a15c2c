"""A batch, taken apart: what is to be applied, what belongs into dead-letters, what its producer had sent before."""

from dataclasses import dataclass, field

from online_store.sources.progress import Reading
from schemas.codec import SchemaIds
from schemas.columnar.events import Events
from schemas.columns import Profile, decode_events, decode_profiles
from schemas.topics import CLICKS, IMPRESSIONS, TOPICS, BadRecord, Batch

EVENT_TOPICS = (IMPRESSIONS.name, CLICKS.name)


@dataclass(frozen=True, slots=True)
class Decoded:
    """A batch, decoded.

    reading: the one that it follows in, None where it does not follow. start: the first offset that is held. bad: what belongs into
    dead-letters before the rest is applied. good_count, repeats_count, bad_count: events and profiles to apply, events dropped as repeats,
    and records that are no events, sent or not.
    """

    batch: Batch
    reading: Reading | None = None
    start: int = 0
    events: Events | None = None
    profiles: list[Profile] = field(default_factory=list)
    bad: list[BadRecord] = field(default_factory=list)
    good_count: int = 0
    repeats_count: int = 0
    bad_count: int = 0


def decode(batch: Batch, reading: Reading, schema_ids: SchemaIds) -> Decoded:
    """Take a batch apart; never raises for what a record holds. One that does not follow what was decoded in its reading is empty."""
    start = reading.decoded
    if not batch.start <= start < batch.following:
        return Decoded(batch)
    reading.decoded = batch.following
    if batch.source.topic in EVENT_TOPICS:
        return _decoded_events(batch, reading, start, schema_ids)
    profiles, bad = decode_profiles(TOPICS[batch.source.topic], batch.records, schema_ids)
    return Decoded(batch, reading, start, None, profiles, _unsent(bad, reading), len(profiles), bad_count=_new(bad, reading))


def _decoded_events(batch: Batch, reading: Reading, start: int, schema_ids: SchemaIds) -> Decoded:
    events, bad = decode_events(TOPICS[batch.source.topic], batch.records, schema_ids, min(reading.sent, reading.lowest))
    if batch.start < start:
        events = events.where(events.offset >= start)
    kept = reading.repeats.drop(events)
    if batch.start < reading.lowest:
        events, kept = (part.where(part.offset >= reading.lowest) for part in (events, kept))
    counts = len(kept), len(events) - len(kept), _new(bad, reading)
    return Decoded(batch, reading, start, kept, [], _unsent(bad, reading), *counts)


def _unsent(bad: list[BadRecord], reading: Reading) -> list[BadRecord]:
    """The bad records that are not in dead-letters for sure: a guard moves only behind what was sent."""
    return [one for one in bad if one.record.offset >= reading.sent]


def _new(bad: list[BadRecord], reading: Reading) -> int:
    """How many of the bad records were not passed before."""
    return sum(one.record.offset >= reading.lowest for one in bad)
