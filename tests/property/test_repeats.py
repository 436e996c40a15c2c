"""Which events are repeats: what plain dictionaries say, however the log is cut into batches."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.columnar.events import WORDS, Events, pack
from schemas.columnar.repeats import Repeats, identities
from schemas.columns import decode_events
from schemas.records import Click, Dwell, Event
from schemas.topics import CLICKS
from tests.oracle import Oracle
from tests.worlds import click, dwell, stored

REACHES = st.integers(0, 20)
#: A log of one partition: how many offsets lie between an event and the one before it, and which of a few events it is.
LOGS = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 7)), max_size=60)
#: The same id means another event beside another record, tenant, request or item.
EVENTS: Sequence[Click | Dwell] = (
    click(),
    dwell(),
    click(request_id="r2"),
    click(item_id="i2"),
    click(tenant="acme"),
    dwell(tenant="acme"),
    click(request_id="r1i", item_id="1"),
    click(request_id="i1", item_id="r1"),
)


def marked(log: list[tuple[int, int]], reach: int, cuts: list[int]) -> list[bool]:
    """What Repeats says of each event of a log that is cut into batches."""
    repeats, offsets = Repeats(reach), np.cumsum([gap for gap, _ in log], dtype=np.int64)
    names = np.array([name for _, name in log], np.uint64)
    edges = sorted({0, len(log), *(cut for cut in cuts if cut < len(log))})
    parts = [repeats.mark(names[start:stop], offsets[start:stop]) for start, stop in itertools.pairwise(edges)]
    return [bool(found) for part in parts for found in part]


def looked_up(log: list[tuple[int, int]], reach: int) -> list[bool]:
    """The same from a dictionary."""
    stood: dict[int, int] = {}
    offset, found = 0, []
    for gap, name in log:
        offset += gap
        found.append(offset - stood.get(name, -1_000) <= reach)
        stood[name] = offset
    return found


@given(LOGS, REACHES, st.lists(st.integers(1, 60)))
def test_repeats_are_those_of_a_dictionary(log: list[tuple[int, int]], reach: int, cuts: list[int]) -> None:
    """Whatever the gaps, the reach and the batches; the last offset of the stretch is inside, the one before it is not."""
    assert marked(log, reach, cuts) == looked_up(log, reach)


@given(LOGS, REACHES, st.integers(0, 240))
def test_who_begins_a_stretch_early_knows_all(log: list[tuple[int, int]], reach: int, begun: int) -> None:
    """Read from any offset on, what lies a whole reach behind it is told as by one who read everything."""
    offsets = np.cumsum([gap for gap, _ in log], dtype=np.int64)
    skipped = int((offsets < begun).sum())
    late = Repeats(reach).mark(np.array([name for _, name in log[skipped:]], np.uint64), offsets[skipped:])
    told = [(int(at), bool(found)) for at, found in zip(offsets[skipped:], late, strict=True) if at >= begun + reach]

    assert told == [(int(at), found) for at, found in zip(offsets, looked_up(log, reach), strict=True) if at >= begun + reach]


@given(LOGS, REACHES)
def test_the_oracle_names_the_same_repeats(log: list[tuple[int, int]], reach: int) -> None:
    """Of decoded records: same record, tenant, request and item are the same event, and nothing less."""
    offsets = np.cumsum([gap for gap, _ in log]).tolist()
    records = [stored(EVENTS[name], offset) for offset, (_, name) in zip(offsets, log, strict=True)]
    kept = Repeats(reach).drop(decode_events(CLICKS, records).events)
    oracle = Oracle(records, {}, repeat_offsets=reach)

    assert oracle.repeats == {("clicks", 0, offset) for offset in offsets if offset not in set(kept.offset.tolist())}


@pytest.mark.parametrize("count", [1, 7, 65_536, 65_537])
def test_the_stretch_is_as_long_as_it_says(count: int) -> None:
    """An event sent again as many offsets later as the reach is a repeat; one offset more, and it is a new one."""
    repeats = Repeats(count)
    first, others = np.zeros(1, np.uint64), np.arange(1, count, dtype=np.uint64)
    repeats.mark(first, np.zeros(1, np.int64))
    repeats.mark(others, np.arange(1, count))

    assert (bool(repeats.mark(first, np.array([count]))[0]), bool(repeats.mark(first, np.array([2 * count + 1]))[0])) == (True, False)


def test_a_good_hash_parts_a_million_events() -> None:
    """Ids that differ in one digit, request and item swapped: a collision here would be no chance."""
    names = [f"{number}" for number in range(1_000)]
    text, spans = pack(names)
    words = np.zeros((len(WORDS), 1_000_000, 2), np.int64)
    words[WORDS.index("request_id")], words[WORDS.index("item_id")] = np.repeat(spans, 1_000, axis=0), np.tile(spans, (1_000, 1))
    zeros = np.zeros(1_000_000, np.int64)
    events = Events(zeros.astype(np.uint8), zeros, np.stack([zeros, zeros]), np.frombuffer(text, np.uint8), words, zeros, zeros)

    assert len(np.unique(identities(events))) == 1_000_000


def test_an_event_is_known_again_in_another_batch() -> None:
    """Beside other events, in another wire form, with other ids that do not name it."""
    repeats = Repeats(10)
    first: list[Event] = [click(dwell_ms=1), click(request_id="r2")]
    repeats.drop(decode_events(CLICKS, [stored(event, at) for at, event in enumerate(first)]).events)
    again = repeats.drop(decode_events(CLICKS, [stored(click("u2", model_version="m"), 5, wire="json"), stored(dwell(), 6)]).events)

    assert again.offset.tolist() == [6]
