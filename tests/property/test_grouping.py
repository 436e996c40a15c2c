"""Columns against plain Python: what a batch adds to whom, words compared and hashed, whatever stands in them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from online_store.deltas import deltas_of_events
from online_store.keys import Entity, Generation, record_key, shard_of
from online_store.record import ROW, layouts, merge
from schemas.aggregates import ENTITY_ID
from schemas.columnar.words import is_utf8, xxh32
from schemas.columns import decode_events
from schemas.features import REGISTRY
from schemas.records import Click, Dwell
from schemas.topics import CLICKS
from schemas.windows import MINUTE_MS
from tests.worlds import NOW_MS, click, stored

LAYOUTS = layouts(REGISTRY)
GENERATION = Generation(7, REGISTRY.fingerprint, shards=8)
#: Few ids, so that they meet again; some that differ only in where the tenant ends, some past ASCII.
IDS = st.sampled_from(["a", "b", "a:b", "ab", "été", "0123456789abcdef0123456789"])
#: Where rings end, seen from NOW_MS.
EDGES_MS = [
    (NOW_MS // window.hop_ms - window.slots_count + past) * window.hop_ms
    for layout in LAYOUTS.values()
    for window in layout.windows
    for past in (0, 1)
]
NAMED = {
    "request_id": st.just("r"),
    "user_id": IDS,
    "item_id": IDS,
    "ts_ms": st.integers(NOW_MS - 10**8, NOW_MS)
    | st.integers(NOW_MS - 4 * 10**9, NOW_MS)
    | st.sampled_from([NOW_MS, NOW_MS - 1, *EDGES_MS]),
    "tenant": st.sampled_from(["", "a", "b"]),
    "model_version": st.sampled_from([None, "", "a", "m"]),
}
EVENTS = st.builds(Click, **NAMED, dwell_ms=st.none() | st.integers(0, 10**6)) | st.builds(Dwell, **NAMED, dwell_ms=st.integers(0, 10**6))
GUARDS = st.lists(st.integers(0, 12), min_size=8, max_size=8)


def expected(parts: Sequence[Sequence[Click | Dwell]], guards: Sequence[Sequence[int]]) -> dict[tuple[bytes, int], tuple[int, ...]]:
    """By key and tile: what is added, and the newest event."""
    found: dict[tuple[bytes, int], list[tuple[int, ...]]] = defaultdict(list)
    for source, offset, event in ((source, *one) for source, events in enumerate(parts) for one in enumerate(events)):
        dwelled = event.dwell_ms is not None
        adds = (0, isinstance(event, Click), dwelled, event.dwell_ms or 0)
        for kind, field in ENTITY_ID.items():
            name = getattr(event, field)
            if name is not None and offset >= guards[source][shard_of(event.tenant, name, 8)]:
                key = record_key(GENERATION, Entity(event.tenant, kind, name))
                found[key, event.ts_ms // LAYOUTS[kind].tile_ms].append((*adds, event.ts_ms))
    columns = {name: list(zip(*rows, strict=True)) for name, rows in found.items()}
    return {name: (*map(sum, adds), max(times)) for name, (*adds, times) in columns.items()}


@given(st.lists(st.tuples(st.lists(EVENTS, max_size=40), GUARDS), min_size=1, max_size=3))
def test_batches_become_what_their_events_add(sources: list[tuple[list[Click | Dwell], list[int]]]) -> None:
    """Each entity once, in its own shard, with what its record needs of them; nothing of what a shard has of that source already."""
    parts, guards = [events for events, _ in sources], [found for _, found in sources]
    columns = [decode_events(CLICKS, [stored(event, offset) for offset, event in enumerate(events)]).events for events in parts]
    found: dict[bytes, bytes] = {}
    for shard, deltas in deltas_of_events(columns, LAYOUTS, GENERATION, np.array(guards, np.int64)).items():
        assert set(deltas.rows["key"].tolist()) == set(range(len(deltas.keys)))
        for place, (key, kind) in enumerate(zip(deltas.keys, deltas.kinds, strict=True)):
            assert key.decode().split(":")[0] == list(LAYOUTS)[kind]
            assert (f"{{g7.{shard}}}" in key.decode(), key in found) == (True, False)
            found[key] = merge(LAYOUTS[list(LAYOUTS)[kind]], None, deltas.rows[deltas.rows["key"] == place], [])

    assert found == records(expected(parts, guards))


def records(rows: Mapping[tuple[bytes, int], tuple[int, ...]]) -> dict[bytes, bytes]:
    """What rows, each of one tile, make of blank records."""
    by_key: dict[bytes, list[tuple[int, ...]]] = defaultdict(list)
    for (key, tile), (*adds, last_ms) in rows.items():
        by_key[key].append((0, tile, *adds, last_ms))
    return {key: merge(LAYOUTS[key.decode().split(":")[0]], None, np.array(found, ROW), []) for key, found in by_key.items()}


def test_old_tiles_go_to_the_store_as_coarse_as_it_keeps_them() -> None:
    """Of three days of an item's clicks, one every five minutes: the last hour tile by tile, a day by three hours, the rest by days."""
    clicks = [click(item_id="i", ts_ms=NOW_MS - number * 5 * MINUTE_MS) for number in range(3 * 24 * 12)]
    columns = decode_events(CLICKS, [stored(event, offset) for offset, event in enumerate(clicks)]).events
    deltas = deltas_of_events([columns], {"item": LAYOUTS["item"]}, GENERATION, np.zeros((1, 8), np.int64))
    ((rows,),) = [[one.rows for one in deltas.values()]]

    assert (len(rows), int(rows["clicks"].sum())) == (14 + 9 + 3, len(clicks))


@given(st.binary(max_size=40))
def test_bytes_are_utf8_where_python_says_so(data: bytes) -> None:
    """Overlong forms, surrogates, cut sequences: all as RFC 3629 has it."""
    try:
        data.decode()
        decodes = True
    except UnicodeDecodeError:
        decodes = False

    assert is_utf8(np.frombuffer(data, np.uint8), 0, len(data)) == decodes


@pytest.mark.parametrize("lead", range(0xC0, 0x100))
def test_every_lead_byte_is_judged_with_every_second_one(lead: int) -> None:
    """Random bytes rarely come near the edges of what is allowed."""

    def decodes(data: bytes) -> bool:
        return data.decode(errors="ignore").encode() == data

    tried = [bytes([lead, second, *rest]) for second in range(256) for rest in ((), (0x80,), (0x80, 0xBF), (0x80, 0x41))]

    assert [is_utf8(np.frombuffer(data, np.uint8), 0, len(data)) for data in tried] == [decodes(data) for data in tried]


@given(st.binary(max_size=80))
def test_shards_are_those_of_xxhash(data: bytes) -> None:
    """The compiled hash is the library's, at every length."""
    assert xxh32(np.frombuffer(data, np.uint8), len(data)) == xxhash.xxh32_intdigest(data)
