"""A simulated feed is fixed by its seed, behaves as its settings say, and rewards a ranker that finds out what is good."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from replay.simulator import SURFACES, Feed, FeedSettings
from schemas import codec
from schemas.errors import SettingsError
from schemas.records import CLOCK_SKEW_MS_MAX, Click, Dwell, Event, Impression, RankRequest
from schemas.topics import CLICKS, CONTENT, IMPRESSIONS, RANK_REQUESTS, USERS

NOON_MS = 1_650_801_600_000
PAGES = 3_000
#: Arms of u0 to u5. A change would move readers between the arms of a running comparison.
ARMS = ["control", "control", "ranked", "ranked", "ranked", "ranked"]
Page = tuple[RankRequest, list[Event]]
Order = Callable[[Feed, RankRequest], list[str]]


def input_order(_: Feed, request: RankRequest) -> list[str]:
    return request.candidate_item_ids


def best_first(feed: Feed, request: RankRequest) -> list[str]:
    chance = feed.click_probability(request.user_id, request.candidate_item_ids)
    return [request.candidate_item_ids[place] for place in np.argsort(-chance)]


def play(feed: Feed, pages: int = PAGES, order: Order = input_order) -> list[Page]:
    """Pages a second apart."""
    played = []
    for page in range(pages):
        request = feed.request(NOON_MS + page * 1_000)
        shown = order(feed, request)[: feed.settings.page_items_count]
        played.append((request, feed.react(request, shown, request.ts_ms)))
    return played


def count(pages: list[Page], record: type[Event]) -> int:
    return sum(isinstance(event, record) for _, events in pages for event in events)


def ctr(pages: list[Page]) -> float:
    return count(pages, Click) / count(pages, Impression)


@pytest.fixture(scope="module")
def pages() -> list[Page]:
    return play(Feed(FeedSettings(seed=1)))


def test_a_seed_fixes_the_feed() -> None:
    """Two feeds of one seed publish and do the same; another seed does not."""
    one, same, other = (Feed(FeedSettings(seed=seed)) for seed in (1, 1, 2))

    assert (one.content(NOON_MS), one.users(NOON_MS)) == (same.content(NOON_MS), same.users(NOON_MS))
    once = play(one, 50)
    assert once == play(same, 50)
    assert once != play(other, 50)


def test_every_record_can_be_produced() -> None:
    """All that a feed makes comes back from its bytes, and request ids do not repeat."""
    feed = Feed(FeedSettings(seed=1))
    played = play(feed, 50)

    for item, user in zip(feed.content(NOON_MS), feed.users(NOON_MS), strict=False):
        assert codec.decode(CONTENT, codec.encode(item)) == item
        assert codec.decode(USERS, codec.encode(user)) == user
    for request, events in played:
        assert codec.decode(RANK_REQUESTS, codec.encode(request)) == request
        for event in events:
            assert codec.decode(IMPRESSIONS if isinstance(event, Impression) else CLICKS, codec.encode(event)) == event
    assert len({request.request_id for request, _ in played}) == len(played)


def test_candidates_are_distinct_items_of_the_feed(pages: list[Page]) -> None:
    """As many as the settings say, each once, all of them published."""
    items = {item.item_id for item in Feed(FeedSettings(seed=1)).content(NOON_MS)}

    for request, _ in pages[:200]:
        assert len(set(request.candidate_item_ids)) == len(request.candidate_item_ids) == 50
        assert items.issuperset(request.candidate_item_ids)


def test_popularity_is_heavy_tailed(pages: list[Page]) -> None:
    """The most popular tenth of the items takes more than a quarter of the candidates, and half of the items are seen too."""
    drawn = [int(item_id[1:]) for request, _ in pages for item_id in request.candidate_item_ids]
    counts = np.sort(np.bincount(drawn, minlength=1_500))

    assert counts[-150:].sum() / counts.sum() > 0.25
    assert counts[750] > 0


def test_candidates_come_in_no_order(pages: list[Page]) -> None:
    """Popular items stand in the first half of the candidates as often as in the second, so input order is no ranker."""
    places = np.array([[int(item_id[1:]) for item_id in request.candidate_item_ids] for request, _ in pages])
    popular = np.isin(places, np.argsort(np.bincount(places.ravel(), minlength=1_500))[-150:])

    assert popular[:, :25].sum() / popular.sum() == pytest.approx(0.5, abs=0.01)


def test_the_page_is_shown_at_once_in_its_order(pages: list[Page]) -> None:
    """One impression a place, at the moment of the page, with the request's context."""
    for request, events in pages[:200]:
        shown = [event for event in events if isinstance(event, Impression)]
        assert [(event.position, event.item_id) for event in shown] == list(enumerate(request.candidate_item_ids[:10]))
        assert {event.ts_ms for event in shown} == {request.ts_ms}
        assert all(event.context == request.context for event in shown)


def test_events_come_in_order_of_time(pages: list[Page]) -> None:
    """A click follows its impression, a dwell its click, and none is further ahead than what is refused as future-dated."""
    for request, events in pages:
        assert all(before.ts_ms <= after.ts_ms for before, after in pairwise(events))
        assert events[-1].ts_ms - request.ts_ms < CLOCK_SKEW_MS_MAX
        clicked = {event.item_id: event.ts_ms for event in events if isinstance(event, Click)}
        assert all(ts_ms > request.ts_ms for ts_ms in clicked.values())
        assert all(event.ts_ms >= clicked[event.item_id] for event in events if isinstance(event, Dwell))


def test_a_delay_can_be_bounded() -> None:
    """A live view that waits for two seconds misses no event of a page; what readers do stays the same."""
    patient, hurried = (Feed(FeedSettings(seed=1)) for _ in range(2))
    for page in range(300):
        request, same = patient.request(NOON_MS + page), hurried.request(NOON_MS + page)
        slow = patient.react(request, request.candidate_item_ids[:10], request.ts_ms)
        fast = hurried.react(same, same.candidate_item_ids[:10], same.ts_ms, delay_ms_max=2_000)

        assert fast[-1].ts_ms - same.ts_ms <= 2_000
        assert sorted(said(event) for event in slow) == sorted(said(event) for event in fast)


def said(event: Event) -> tuple[str, str, int]:
    return type(event).__name__, event.item_id, getattr(event, "dwell_ms", None) or 0


def test_a_model_version_is_on_every_event() -> None:
    """What a ranked page earned is known to be the model's."""
    feed = Feed(FeedSettings(seed=1))
    pages_of_model = [feed.react(request, request.candidate_item_ids[:10], NOON_MS, "m7") for request in map(feed.request, [NOON_MS] * 100)]

    assert {event.model_version for events in pages_of_model for event in events} == {"m7"}


def test_ctr_is_near_eight_per_cent(pages: list[Page]) -> None:
    """Pages in input order are clicked as a news feed is."""
    assert ctr(pages) == pytest.approx(0.08, abs=0.01)


def test_higher_places_are_clicked_more(pages: list[Page]) -> None:
    """Candidates come in no order, so what the first half of the page has more is position bias."""
    place_of = [{item_id: place for place, item_id in enumerate(request.candidate_item_ids)} for request, _ in pages]
    clicks = [
        places[event.item_id] for places, (_, events) in zip(place_of, pages, strict=True) for event in events if isinstance(event, Click)
    ]

    assert np.mean(np.array(clicks) < 5) > 0.55


def test_a_perfect_ranker_earns_half_as_many_clicks_again(pages: list[Page]) -> None:
    """Ordering by the true chance of a click lifts CTR by at least a half; so there is something to learn."""
    ranked = play(Feed(FeedSettings(seed=1)), PAGES // 3, best_first)

    assert ctr(ranked) > 1.5 * ctr(pages)


def test_an_items_clicks_say_what_is_good(pages: list[Page]) -> None:
    """Pages ordered by the items' CTR of earlier pages lift CTR by a quarter: a ranker need not know the hidden quality."""
    shown, clicked = np.zeros(1_500), np.zeros(1_500)
    for _, events in pages:
        for event in events:
            (shown if isinstance(event, Impression) else clicked)[int(event.item_id[1:])] += not isinstance(event, Dwell)
    smoothed = (clicked + 1.6) / (shown + 20)
    feed = Feed(FeedSettings(seed=1))

    ranked = play(feed, PAGES // 3, lambda _, asked: sorted(asked.candidate_item_ids, key=lambda item_id: -smoothed[int(item_id[1:])]))

    assert ctr(ranked) > 1.25 * ctr(pages)


def test_quality_shows_through_its_score() -> None:
    """quality_score goes with the chance of a click, and is not the same."""
    feed = Feed(FeedSettings(seed=1))
    items = feed.content(NOON_MS)
    chance = np.mean([feed.click_probability(f"u{user}", [item.item_id for item in items]) for user in range(200)], axis=0)

    assert 0.4 < np.corrcoef([item.quality_score or 0 for item in items], chance)[0, 1] < 0.8


@pytest.mark.parametrize("surface", SURFACES)
def test_dwell_is_log_normal(surface: str) -> None:
    """Median and spread of log seconds are the surface's; news readers are back at once in 6 % of the clicks."""
    played = play(Feed(FeedSettings(seed=2, surface=surface)), 4_000)
    dwells_ms = np.array([event.dwell_ms for _, events in played for event in events if isinstance(event, Dwell)])
    log_s = np.log(dwells_ms[dwells_ms > 0] / 1000)

    assert np.mean(dwells_ms == 0) == pytest.approx(0.06 if surface == "news" else 0, abs=0.015)
    assert log_s.mean() == pytest.approx(SURFACES[surface].mu, abs=0.2)
    assert log_s.std() == pytest.approx(SURFACES[surface].sigma, abs=0.1)


def test_dwell_is_told_later_within_the_click_or_not_at_all(pages: list[Page]) -> None:
    """Of the clicks 60 % have a dwell event, 20 % carry the dwell, no click has both."""
    later = {(event.request_id, event.item_id) for _, events in pages for event in events if isinstance(event, Dwell)}
    within = {
        (event.request_id, event.item_id)
        for _, events in pages
        for event in events
        if isinstance(event, Click) and event.dwell_ms is not None
    }

    assert len(later) / count(pages, Click) == pytest.approx(0.6, abs=0.04)
    assert len(within) / count(pages, Click) == pytest.approx(0.2, abs=0.04)
    assert not later & within


def test_arms_are_halves_and_stay() -> None:
    """A user's arm is the same in every feed, and either arm has half of the users."""
    arms = [Feed.arm(f"u{user}") for user in range(3_000)]

    assert arms[:6] == ARMS
    assert arms.count("ranked") / len(arms) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"surface": "radio"}, "'radio'"),
        ({"candidates_count": 201, "items_count": 500}, "201 candidates"),
        ({"candidates_count": 5}, "pages of 10 from 5"),
        ({"page_items_count": 0}, "pages of 0"),
        ({"items_count": 40}, "40 items"),
        ({"users_count": 0}, "0 users"),
    ],
)
def test_settings_that_make_no_page_are_named(wrong: dict[str, Any], named: str) -> None:
    """The offending value stands in the error."""
    with pytest.raises(SettingsError, match=named):
        FeedSettings(**wrong)
