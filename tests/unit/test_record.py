"""One entity's record: what deltas do to its bytes, and what they say as of a moment."""

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from online_store.reading import read
from online_store.record import RECORD_VERSION, ROW, TTL_FACTOR, TTL_JITTER, Layout, hash_of, layouts, merge, pack_field
from schemas.aggregates import COUNTERS, SET_HASHES_MAX, Tiles
from schemas.errors import StoreError
from schemas.features import REGISTRY, Registry, Static, category, number
from schemas.records import Content, User
from schemas.windows import DAY_MS, DAYS_30, HOUR_1, LATENESS_MS, MINUTE_MS
from tests.worlds import NOW_MS, content, user

ITEM = layouts(REGISTRY)["item"]
#: The first millisecond of a tile of every window there is: 30 d windows have the longest.
EDGE_MS = NOW_MS - NOW_MS % DAYS_30.hop_ms


def row(ts_ms: int = NOW_MS, counts: tuple[int, int, int, int] = (1, 0, 0, 0), layout: Layout = ITEM) -> NDArray[Any]:
    """What one event adds."""
    return np.array([(0, ts_ms // layout.tile_ms, *counts, ts_ms)], ROW)


def merged(*deltas: NDArray[Any], layout: Layout = ITEM) -> bytes:
    """A record after deltas, one at a time: rows or static sections."""
    record: bytes | None = None
    for delta in deltas:
        rows, sections = (delta, []) if delta.dtype == ROW else (np.zeros(0, ROW), [delta])
        record = merge(layout, record, rows, sections)
    assert record is not None
    return record


def wrote(value: Content | User | None, ts_ms: int = NOW_MS, offset: int = 1, partition: int = 0) -> NDArray[Any]:
    """The static section of a content record; None is a tombstone."""
    return ITEM.pack_static(value, partition, ts_ms, offset)


def said(record: bytes | None, as_of_ms: int = NOW_MS, layout: Layout = ITEM) -> Tiles:
    """What one record says."""
    return read(layout, [record], as_of_ms)


def impressions(record: bytes, as_of_ms: int = NOW_MS) -> dict[str, int]:
    """Impressions by window."""
    found = said(record, as_of_ms).counts[0, :, 0].tolist()
    return dict(zip([window.name for window in ITEM.windows], found, strict=True))


def test_a_missing_record_says_zeros() -> None:
    """And that nothing is known."""
    found = said(None)

    assert [found.counts.any(), found.known[0], found.removed[0], found.last_active_ms[0], found.exact[0]] == [False, False, False, 0, True]


def test_reading_nothing_gives_nothing() -> None:
    """A request without candidates."""
    assert read(ITEM, [], NOW_MS).counts.shape == (0, 4, len(COUNTERS))


def test_an_event_counts_in_every_window() -> None:
    """As of its own time."""
    assert impressions(merged(row())) == {"1h": 1, "24h": 1, "7d": 1, "30d": 1}


def test_all_counters_are_summed() -> None:
    """Each on its own."""
    record = merged(row(counts=(1, 2, 3, 4)), row(counts=(10, 20, 30, 2**33)))

    assert said(record).counts[0, 0].tolist() == [11, 22, 33, 2**33 + 4]


def test_windows_decay_while_nothing_happens() -> None:
    """Reading later counts less, without a write."""
    record = merged(row(EDGE_MS))

    found = [sum(impressions(record, EDGE_MS + days * DAY_MS).values()) for days in (0, 1, 7, 30)]

    assert found == [4, 2, 1, 0]


def test_a_window_forgets_a_tile_exactly_one_span_after_it_began() -> None:
    """Until the millisecond before, it counts."""
    record = merged(row(EDGE_MS))
    end_ms = EDGE_MS + HOUR_1.span_ms

    assert [impressions(record, as_of_ms)["1h"] for as_of_ms in (end_ms - 1, end_ms)] == [1, 0]


def test_an_event_of_the_future_does_not_count_yet() -> None:
    """A tile after as_of's own is outside the window."""
    record = merged(row(EDGE_MS))

    assert impressions(record, EDGE_MS - 1) == {"1h": 0, "24h": 0, "7d": 0, "30d": 0}


def test_a_late_event_counts_in_its_own_tile() -> None:
    """Forty minutes late is outside nothing but the newest tile."""
    record = merged(row(), row(NOW_MS - 40 * MINUTE_MS))

    assert (impressions(record)["1h"], impressions(record, NOW_MS + 30 * MINUTE_MS)["1h"]) == (2, 1)


def test_a_late_event_never_overwrites_a_newer_tile_in_its_slot() -> None:
    """One whole ring later: the newer tile stays, the late one is past every window."""
    ring_ms = HOUR_1.slots_count * HOUR_1.hop_ms
    newer = merged(row())

    late = merged(row(), row(NOW_MS - ring_ms))

    assert (impressions(late)["1h"], impressions(newer)["1h"]) == (1, 1)


def test_a_newer_tile_takes_a_slot_and_its_counts_begin_anew() -> None:
    """What stood there is past every window."""
    ring_ms = HOUR_1.slots_count * HOUR_1.hop_ms
    record = merged(row(NOW_MS - ring_ms, (5, 0, 0, 0)), row())

    assert impressions(record)["1h"] == 1


def test_any_order_of_deltas_gives_the_same_bytes() -> None:
    """Events in one tile, a ring apart, a month apart; content twice; a tombstone between them."""
    ring_ms = HOUR_1.slots_count * HOUR_1.hop_ms
    deltas = [
        row(),
        row(NOW_MS - ring_ms),
        row(NOW_MS - 40 * DAY_MS),
        wrote(content(quality_score=0.5), NOW_MS - 7, 3),
        wrote(content(quality_score=0.7), NOW_MS - 7, 4),
        wrote(None, NOW_MS - 20 * MINUTE_MS, 9),
    ]

    found = {merged(*order) for order in permutations(deltas)}

    assert len(found) == 1


def test_a_read_long_before_the_newest_event_says_that_it_is_not_exact() -> None:
    """The ring may hold a newer tile where that moment's oldest one stood."""
    record = merged(row())

    exact = [bool(said(record, NOW_MS - back_ms).exact[0]) for back_ms in (LATENESS_MS, 2 * LATENESS_MS)]

    assert exact == [True, False]


def test_activity_is_the_newest_event_in_any_order() -> None:
    """A late one does not turn it back."""
    assert said(merged(row(NOW_MS), row(NOW_MS - 5))).last_active_ms[0] == NOW_MS


def test_what_was_written_last_by_event_time_stands() -> None:
    """Not what arrived last."""
    record = merged(wrote(content(quality_score=0.7), NOW_MS, 1), wrote(content(quality_score=0.5), NOW_MS - 1, 2))

    assert said(record).statics["quality_score"][0] == np.float32(0.7)


@pytest.mark.parametrize(("first", "second"), [((5, 0), (6, 0)), ((5, 0), (5, 1)), ((5, 9), (6, 0))])
def test_at_the_same_event_time_the_log_decides(first: tuple[int, int], second: tuple[int, int]) -> None:
    """Higher offset first, then higher partition."""
    earlier, later = (wrote(content(quality_score=score), NOW_MS, *place) for score, place in ((0.1, first), (0.2, second)))

    found = [said(merged(*order)).statics["quality_score"][0] for order in ((earlier, later), (later, earlier))]

    assert found == [np.float32(0.2)] * 2


def test_a_tombstone_forgets_the_fields_and_every_tile_before_it() -> None:
    """The counts of the tile that it falls into go too: the record cannot tell them apart."""
    found = said(merged(row(), wrote(content(quality_score=0.5)), wrote(None, NOW_MS + 1, 2)))

    assert [found.removed[0], found.known[0], found.counts.any(), found.last_active_ms[0]] == [True, False, False, 0]
    assert np.isnan(found.statics["quality_score"][0])


def test_who_comes_back_after_a_tombstone_is_counted_from_then_on() -> None:
    """In tiles that begin after it; activity counts at once."""
    record = merged(wrote(None, EDGE_MS + 1), row(EDGE_MS + 2), row(EDGE_MS + HOUR_1.hop_ms))

    found = said(record, EDGE_MS + HOUR_1.hop_ms)
    assert (impressions(record, EDGE_MS + HOUR_1.hop_ms), found.known[0]) == ({"1h": 1, "24h": 0, "7d": 0, "30d": 0}, True)


def test_an_event_from_before_a_tombstone_stays_forgotten_when_it_comes_late() -> None:
    """The floor is kept in the record."""
    record = merged(wrote(None, NOW_MS), row(NOW_MS - 1))

    assert [said(record).counts.any(), said(record).last_active_ms[0]] == [False, 0]


def test_content_that_is_newer_than_a_tombstone_stands() -> None:
    """The item is back, its old counts are not."""
    found = said(merged(row(), wrote(None, NOW_MS + 1, 2), wrote(content(quality_score=0.5), NOW_MS + 2, 3)))

    assert [found.removed[0], found.statics["quality_score"][0], found.counts.any()] == [False, np.float32(0.5), False]


@pytest.mark.parametrize("record", [b"", b"\1", merged(row())[:-1], merged(row()) + b"\0", b"\1" + merged(row())[1:]])
def test_bytes_of_another_layout_are_refused(record: bytes) -> None:
    """By length and by version, with the next step."""
    with pytest.raises(StoreError, match="Rebuild the generation from the log"):
        said(record)


def test_merging_into_bytes_of_another_layout_is_refused() -> None:
    """They are not ours to overwrite."""
    with pytest.raises(StoreError):
        merge(ITEM, b"\1" + merged(row())[1:], row(), [])


def test_the_layout_has_no_holes() -> None:
    """Head 17, rings of 25, static head 21 and fields, closed tiles of 24 bytes: what lua/apply.lua counts on."""
    for layout in layouts(REGISTRY).values():
        assert layout.head.size == 17 + 25 * len(layout.windows)
        assert layout.dtype.itemsize == layout.head.size + layout.static_dtype.itemsize


def test_tiles_that_nothing_touched_take_no_room() -> None:
    """Two tiles of an hour's ring: one is open, one closed; in longer rings they are the same tile."""
    record = merged(row(EDGE_MS), row(EDGE_MS + HOUR_1.hop_ms))

    assert len(record) == ITEM.dtype.itemsize + 24


def test_a_record_never_outgrows_its_rings() -> None:
    """However many tiles were touched, a ring keeps what a window can want."""
    record = merged(*(row(EDGE_MS + number * 5 * MINUTE_MS) for number in range(12 * 24 * 40)))

    assert len(record) == ITEM.dtype.itemsize + 24 * sum(window.slots_count - 1 for window in ITEM.windows)


def test_a_blank_record_begins_with_its_version_and_counts_nothing() -> None:
    """The bytes that a new entity starts from."""
    assert [ITEM.blank[0], said(ITEM.blank).counts.any(), said(ITEM.blank).removed[0]] == [RECORD_VERSION, False, False]


@pytest.mark.parametrize("layout", layouts(REGISTRY).values(), ids=lambda layout: layout.kind)
def test_the_lowest_time_to_live_is_over_the_longest_window_and_the_lateness(layout: Layout) -> None:
    """1.25 x less a fifth is all of it; it counts from when a tile was opened, hence the shortest hop."""
    longest_ms = max(window.span_ms for window in layout.windows) + min(window.hop_ms for window in layout.windows)

    assert layout.ttl_ms * (1 - TTL_JITTER) >= longest_ms + LATENESS_MS - 1
    assert layout.ttl_ms == int(TTL_FACTOR * (longest_ms + LATENESS_MS))


@pytest.mark.parametrize(
    ("static", "value", "expected"),
    [
        (Static("quality_score", "quality_score", "number"), content(quality_score=0.25), 0.25),
        (Static("price", "attributes.price", "number"), content(attributes={"price": 2.5}), 2.5),
        (Static("created_at_ms", "created_at_ms", "time_ms"), content(created_at_ms=77), 77),
        (Static("author_id", "author_id", "hash"), content(author_id="ann"), hash_of("ann")),
        (Static("author_id", "author_id", "hash"), content(author_id=""), 0),
        (Static("language", "language", "category", ("en", "de")), content(language="de"), 2),
        (Static("language", "language", "category", ("en", "de")), content(language="fr"), 0),
        (Static("region", "region", "category", ("eu",)), user(region="eu"), 1),
    ],
    ids=repr,
)
def test_a_static_field_is_packed_by_its_form(static: Static, value: Content | User, expected: float) -> None:
    """A number, a time, a hash where only equality matters, a word as its place."""
    assert pack_field(static, value) == expected


@pytest.mark.parametrize("value", [None, content(), content(quality_score=1e300), content(quality_score=-1e39)], ids=repr)
def test_a_number_that_is_missing_or_past_float32_is_nan(value: Content | None) -> None:
    """An infinity would stop a trainer."""
    section = ITEM.pack_static(value, 0, NOW_MS, 1)

    assert np.isnan(section["quality_score"][0])


def test_of_a_set_the_first_members_are_kept() -> None:
    """SET_HASHES_MAX of them, the rest of the places are empty."""
    static = Static("topic_tags", "topic_tags", "hashes")
    tags = [f"tag-{place}" for place in range(SET_HASHES_MAX + 2)]

    many, one = pack_field(static, content(topic_tags=tags)), pack_field(static, content(topic_tags=["a"]))

    assert (many.tolist(), one.tolist()) == ([hash_of(tag) for tag in tags[:SET_HASHES_MAX]], [hash_of("a"), 0, 0, 0])


def test_a_kind_without_windows_keeps_its_statics() -> None:
    """A registry may know items by their fields alone."""
    registry = Registry((number("price", "item", "attributes.price"), category("lang", "item", "language", ("en",))))
    layout = layouts(registry)["item"]
    section = layout.pack_static(content(language="en", attributes={"price": 3.0}), 0, NOW_MS, 1)

    found = read(layout, [merge(layout, None, np.zeros(0, ROW), [section])], NOW_MS)

    assert (found.statics["price"][0], found.statics["language"][0], found.counts.shape) == (3.0, 1, (1, 0, 4))
