"""The simulated feed: days of history, a model trained on it, then live pages of which half are ranked by it."""

import time
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from compose.demo.loop import Answers, Watch, freshness_ms
from compose.demo.parts import Parts
from compose.demo.view import View
from compose.train import train
from replay.log import Publisher
from replay.simulator import Feed, FeedSettings
from schemas.features import REGISTRY
from schemas.records import Click, Event, Impression, RankRequest, RankResponse
from schemas.topics import CLICKS, CONTENT, IMPRESSIONS, RANK_REQUESTS, USERS
from schemas.windows import DAY_MS, MINUTE_MS

HISTORY_DAYS = 3
HISTORY_PAGES = 20_000
LIVE_S = 25.0
PAGES_PER_S = 150
PAGE_ITEMS = 10
#: A live reader is back this soon at the latest (milliseconds): what comes later would miss the end of the demo.
LIVE_DELAY_MS = 3_000
#: 97.5 % point of the normal distribution: two-sided intervals of 95 %.
Z_95 = 1.96


@dataclass(slots=True)
class Arm:
    """What users of one arm saw and did; by user, because users are what chance assigned."""

    impressions: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    clicks: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    dwells_s: list[float] = field(default_factory=list)

    def add(self, event: Event) -> None:
        """Count one event."""
        if isinstance(event, Impression):
            self.impressions[event.user_id] += 1
        elif isinstance(event, Click):
            self.clicks[event.user_id] += 1
        if not isinstance(event, Impression) and event.dwell_ms is not None:
            self.dwells_s.append(event.dwell_ms / 1000)

    def ctr(self) -> tuple[float, float]:
        """Clicks per impression and its standard error, by the delta method over users (Deng et al., KDD 2018)."""
        shown = np.array(list(self.impressions.values()), dtype=np.float64)
        clicked = np.array([self.clicks.get(user, 0) for user in self.impressions], dtype=np.float64)
        if not shown.sum():
            return 0.0, 0.0
        ratio = clicked.sum() / shown.sum()
        return float(ratio), float(np.sqrt(np.square(clicked - ratio * shown).sum()) / shown.sum())

    def shown(self) -> str:
        """CTR and dwell for the table, with 95 % intervals."""
        ratio, error = self.ctr()
        dwells = np.array(self.dwells_s or [0.0])
        dwell_error = dwells.std() / np.sqrt(len(dwells))
        return f"{ratio:.2%} ±{Z_95 * error:.2%}, dwell {dwells.mean():.1f} ±{Z_95 * dwell_error:.1f} s"


def lift(ranked: Arm, control: Arm) -> list[float] | None:
    """95 % interval of ranked CTR / control CTR - 1, by the delta method on the logarithm; None without clicks."""
    (a, a_error), (b, b_error) = ranked.ctr(), control.ctr()
    if not a or not b:
        return None
    half = Z_95 * np.hypot(a_error / a, b_error / b)
    return [round(float(a / b * np.exp(sign * half) - 1), 4) for sign in (-1, 1)]


def run(parts: Parts, view: View, seed: int) -> dict[str, object]:
    """The whole loop on a simulated feed; returns the figures of the summary."""
    feed = Feed(FeedSettings(seed=seed, page_items_count=PAGE_ITEMS))
    publisher = Publisher(parts.addresses.kafka_bootstrap)
    watch = Watch(parts, REGISTRY, parts.start("ingest"), view)
    started_s = time.perf_counter()
    events_count = _publish_history(feed, publisher, view)
    watch.wait_until_applied("ingest: history", 0.4)
    rate = events_count / (time.perf_counter() - started_s)
    view.show("training", 0.45, {"events/s, history": f"{rate:,.0f}"})
    bundle = train(watch.log, REGISTRY, parts.models, now_ms=_now_ms())
    before = watch.freshness()
    arms, answers, live_count = _live(parts, feed, publisher, watch, view)
    watch.wait_until_applied("ingest: live", 0.9)
    fresh = freshness_ms(before, watch.freshness(), 0.99)
    view.show("checking every record against the oracle", 0.95)
    entities, differences = watch.check([_now_ms(), _now_ms() - 5 * MINUTE_MS])
    return {
        "events": events_count + live_count,
        "events_per_second": round(rate),
        "entities": entities,
        "entities_wrong": len(differences),
        "dead_letters": watch.dead_letters(),
        "requests": len(answers.sent_s),
        "responses": len(answers.responses),
        "degraded": answers.degraded,
        "latency_ms_p50": answers.latency_ms(0.5),
        "latency_ms_p99": answers.latency_ms(0.99),
        "freshness_ms_p99": None if fresh is None else round(fresh, 1),
        "ctr_ranked": round(arms["ranked"].ctr()[0], 4),
        "ctr_control": round(arms["control"].ctr()[0], 4),
        "ctr_lift_ci": lift(arms["ranked"], arms["control"]),
        # Of the last fifth of the history, whose pages were shown in no ranker's order.
        "auc": round(bundle.manifest.metrics["auc"], 4),
        "ndcg10": round(bundle.manifest.metrics["ndcg10"], 4),
        "ndcg10_random": None,
        "ndcg10_popularity": None,
    }


def _publish_history(feed: Feed, publisher: Publisher, view: View) -> int:
    """Days of pages in the order of the feed, with their own times; returns how many records."""
    stop_ms = _now_ms() - MINUTE_MS
    start_ms = stop_ms - HISTORY_DAYS * DAY_MS
    count = 0
    for topic, profiles in ((CONTENT, feed.content(start_ms)), (USERS, feed.users(start_ms))):
        for profile in profiles:
            publisher.send(topic, profile, profile.ts_ms)
            count += 1
    for page in range(HISTORY_PAGES):
        ts_ms = start_ms + page * (stop_ms - start_ms) // HISTORY_PAGES
        request = feed.request(ts_ms)
        shown = request.candidate_item_ids[:PAGE_ITEMS]
        count += _publish(publisher, feed.react(request, shown, ts_ms, None, LIVE_DELAY_MS))
        if page % 500 == 0:
            view.show("publishing history", 0.3 * page / HISTORY_PAGES, {"events published": f"{count:,}"})
    publisher.flush()
    return count


def _publish(publisher: Publisher, events: list[Event]) -> int:
    for event in events:
        publisher.send(IMPRESSIONS if isinstance(event, Impression) else CLICKS, event, event.ts_ms)
    return len(events)


@dataclass(slots=True)
class _Pages:
    """The live feed's own state: pages asked for, events to come, what was judged."""

    feed: Feed
    publisher: Publisher
    arms: dict[str, Arm]
    asked: dict[str, RankRequest] = field(default_factory=dict)
    later: list[Event] = field(default_factory=list)
    count: int = 0

    def show(self, request: RankRequest, item_ids: list[str], arm: str, model_version: str | None) -> list[Event]:
        """A page is on the screen: what its reader does, now and later."""
        events = self.feed.react(request, item_ids, _now_ms(), model_version, LIVE_DELAY_MS)
        for event in events:
            self.arms[arm].add(event)
        self.later += events
        return events

    def publish_due(self, until_ms: int) -> None:
        """Publish what has happened by now."""
        due = [event for event in self.later if event.ts_ms <= until_ms]
        self.later = [event for event in self.later if event.ts_ms > until_ms]
        self.count += _publish(self.publisher, due)


def _live(parts: Parts, feed: Feed, publisher: Publisher, watch: Watch, view: View) -> tuple[dict[str, Arm], Answers, int]:
    view.show("starting the ranking worker", 0.5)
    parts.start("serve")
    answers = Answers.open(parts.addresses.kafka_bootstrap)
    answers.wait_for_ranker(publisher)
    pages = _Pages(feed, publisher, {"ranked": Arm(), "control": Arm()})
    began_s = time.monotonic()
    sent = 0
    while (elapsed_s := time.monotonic() - began_s) < LIVE_S:
        while sent < elapsed_s * PAGES_PER_S:
            _ask(pages, answers)
            sent += 1
        for response in answers.take(0.002):
            _use(pages, response)
        pages.publish_due(_now_ms())
        if view.due():
            figures = _figures(pages, answers) | watch.figures()
            view.show("live: half of the users get ranked pages", 0.5 + 0.4 * elapsed_s / LIVE_S, figures)
    for response in answers.take_rest():
        _use(pages, response)
    time.sleep(LIVE_DELAY_MS / 1000)
    pages.publish_due(_now_ms())
    publisher.flush()
    return pages.arms, answers, pages.count


def _ask(pages: _Pages, answers: Answers) -> None:
    """A user opens the feed: those of the ranked arm wait for the ranker, the others see the input order."""
    request = pages.feed.request(_now_ms())
    if pages.feed.arm(request.user_id) == "control":
        pages.show(request, request.candidate_item_ids[:PAGE_ITEMS], "control", None)
        return
    pages.asked[request.request_id] = request
    answers.asked(request.request_id)
    pages.publisher.send(RANK_REQUESTS, request, request.ts_ms)


def _use(pages: _Pages, response: RankResponse) -> None:
    """Show a ranked page."""
    request = pages.asked.pop(response.request_id)
    shown = [item.item_id for item in response.ranked_items[:PAGE_ITEMS]]
    pages.show(request, shown, "ranked", response.model_version)


def _figures(pages: _Pages, answers: Answers) -> dict[str, str]:
    latency_ms = answers.latency_ms(0.99)
    return {
        "rank requests": f"{len(answers.sent_s):,}",
        "answers": f"{len(answers.responses):,} ({answers.degraded} degraded)",
        "answer p99": "" if latency_ms is None else f"{latency_ms} ms",
        "CTR ranked": pages.arms["ranked"].shown(),
        "CTR control": pages.arms["control"].shown(),
    }


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
