"""Windows: which tiles count, and how many slots a ring needs."""

import pytest

from schemas.windows import DAY_MS, DAYS_7, DAYS_30, HOUR_1, HOUR_MS, HOURS_24, LATENESS_MS, MINUTE_MS, Window

WINDOWS = (HOUR_1, HOURS_24, DAYS_7, DAYS_30)


@pytest.mark.parametrize("window", WINDOWS, ids=lambda window: window.name)
def test_a_window_counts_span_over_hop_tiles_up_to_the_one_that_holds_as_of(window: Window) -> None:
    """The newest tile that counts holds as_of itself; the oldest lies tiles_count - 1 before it."""
    as_of_ms = 1_760_000_000_000

    tiles = window.tiles(as_of_ms)

    newest = as_of_ms // window.hop_ms
    assert (tiles[0], tiles[-1], len(tiles)) == (newest - window.span_ms // window.hop_ms + 1, newest, window.tiles_count)


def test_a_tile_begins_to_count_with_its_first_millisecond() -> None:
    """As of the last millisecond of a tile the next one does not count yet; a millisecond later it does."""
    edge_ms = 1_000 * HOUR_1.hop_ms

    newest = [HOUR_1.tiles(as_of_ms)[-1] for as_of_ms in (edge_ms - 1, edge_ms)]

    assert newest == [999, 1_000]


def test_the_first_moment_that_counts_is_the_start_of_the_oldest_tile() -> None:
    """One hour in tiles of five minutes, at 8:53: everything since 7:55."""
    as_of_ms = 8 * HOUR_MS + 53 * MINUTE_MS

    assert HOUR_1.start_ms(as_of_ms) == 7 * HOUR_MS + 55 * MINUTE_MS


@pytest.mark.parametrize("window", WINDOWS, ids=lambda window: window.name)
def test_a_ring_still_holds_the_whole_window_as_of_the_lateness_before_its_newest_event(window: Window) -> None:
    """Writing the newest tile overwrites no tile that a read LATENESS_MS earlier counts."""
    newest_ms = 1_760_000_000_000
    oldest_needed = window.tiles(newest_ms - LATENESS_MS).start

    overwritten = newest_ms // window.hop_ms - window.slots_count

    assert overwritten < oldest_needed


@pytest.mark.parametrize(("span_ms", "hop_ms"), [(HOUR_MS, 7 * MINUTE_MS), (HOUR_MS, 0), (DAY_MS, -HOUR_MS)])
def test_a_window_that_is_not_made_of_whole_tiles_is_refused(span_ms: int, hop_ms: int) -> None:
    """The hop must be positive and divide the span."""
    with pytest.raises(AssertionError):
        Window("odd", span_ms, hop_ms)
