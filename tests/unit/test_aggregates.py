"""What each event adds, to whom, and how updates are summed."""

import polars as pl

from schemas.aggregates import COUNTERS
from schemas.columnar.table import entities, event_table, updates
from schemas.columns import decode_events
from schemas.records import Event
from schemas.topics import CLICKS, IMPRESSIONS
from tests.worlds import click, dwell, impression, raw, stored, topic_of


def updates_of(*events: Event) -> pl.DataFrame:
    """The updates of events of one topic, by their place in the log."""
    records = [stored(event, offset) for offset, event in enumerate(events)]
    return updates(event_table(decode_events(topic_of(events[0]), records).events)).sort("offset")


def added_by(event: Event) -> tuple[int, ...]:
    """What one event adds to each counter."""
    return updates_of(event).select(COUNTERS).row(0)


def test_an_impression_counts_one_impression() -> None:
    """And nothing else."""
    assert added_by(impression()) == (1, 0, 0, 0)


def test_a_click_without_a_dwell_counts_one_click() -> None:
    """And no dwell: the reader is still away."""
    assert added_by(click()) == (0, 1, 0, 0)


def test_a_click_with_a_dwell_counts_both() -> None:
    """One click, one dwell of its length."""
    assert added_by(click(dwell_ms=1_234)) == (0, 1, 1, 1_234)


def test_a_click_with_a_dwell_of_zero_is_a_dwell() -> None:
    """A reader who left at once was there: zero is not missing."""
    assert added_by(click(dwell_ms=0)) == (0, 1, 1, 0)


def test_a_dwell_counts_towards_dwell_only() -> None:
    """It is no second click."""
    assert added_by(dwell(dwell_ms=5)) == (0, 0, 1, 5)


def test_clicks_and_dwells_of_one_batch_keep_their_own_sums() -> None:
    """The topic clicks carries both records, in any order."""
    rows = updates_of(dwell(dwell_ms=7), click(), dwell(dwell_ms=9)).select(COUNTERS).rows()

    assert rows == [(0, 0, 1, 7), (0, 1, 0, 0), (0, 0, 1, 9)]


def test_a_batch_without_a_good_record_updates_nothing() -> None:
    """Bad records alone leave an empty table, not an error."""
    events = decode_events(IMPRESSIONS, [raw(b"nonsense", "impressions")])

    assert updates(event_table(events.events)).is_empty()


def test_every_entity_that_an_event_names_is_updated() -> None:
    """User, item and model version, each under the event's tenant."""
    rows = updates_of(impression("u", "i", model_version="m", tenant="acme"))

    named = [entities(rows, kind).select("tenant", "id").row(0) for kind in ("user", "item", "model")]
    assert named == [("acme", "u"), ("acme", "i"), ("acme", "m")]


def test_an_event_without_a_model_version_updates_no_model() -> None:
    """Null is nobody's id."""
    assert entities(updates_of(impression()), "model").is_empty()


def test_the_topic_of_an_event_says_what_it_is() -> None:
    """Impressions and clicks have topics of their own; dwells come with clicks."""
    assert [topic_of(event) for event in (impression(), click(), dwell())] == [IMPRESSIONS, CLICKS, CLICKS]
