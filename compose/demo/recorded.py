"""The recorded feed: KuaiRand-Pure through the same topics, in order of time; its last days ranked as of their own moments.

Events of an hour are published after the requests of that hour are answered, so no answer can know what it is asked about.
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from compose.demo.loop import Answers, Judged, Watch
from compose.demo.parts import Parts
from compose.demo.view import View
from compose.train import Split, popularity, train
from replay import kuairand
from replay.history import read_history
from replay.log import Publisher
from schemas.features import CTR_PRIOR
from schemas.records import Event, Impression, RankResponse
from schemas.topics import CLICKS, CONTENT, IMPRESSIONS, RANK_REQUESTS, USERS
from schemas.windows import DAY_MS, HOUR_MS

#: Midnights of the data set's zone, milliseconds UTC.
TRAIN_MS = kuairand.PUBLISHED_TS_MS
VALIDATION_MS = TRAIN_MS + len(kuairand.TRAINING_DATES) * DAY_MS
TEST_MS = VALIDATION_MS + len(kuairand.STOPPING_DATES) * DAY_MS
STOP_MS = TEST_MS + len(kuairand.TEST_DATES) * DAY_MS
STEP_MS = HOUR_MS
#: Requests without an answer at any time: one worker answers them one after the other, each inside its deadline.
WAITING_MAX = 16


def run(parts: Parts, view: View, folder: Path) -> dict[str, object]:
    """Replay, train on the days before the test days, rank the test days; returns the figures of the summary."""
    view.show("reading the data", 0.0)
    data = kuairand.read(folder)
    publisher = Publisher(parts.addresses.kafka_bootstrap)
    watch = Watch(parts, kuairand.REGISTRY, parts.start("ingest"), view)
    started_s = time.perf_counter()
    events = _Recorded(kuairand.events(data), publisher)
    count = _publish_profiles(data, publisher) + events.publish_until(TEST_MS, view)
    watch.wait_until_applied("ingest: the days before the test", 0.3)
    rate = count / (time.perf_counter() - started_s)
    view.show("training", 0.35, {"events/s, replay": f"{rate:,.0f}"})
    split = Split(TRAIN_MS, VALIDATION_MS, TEST_MS)
    train(watch.log, kuairand.REGISTRY, parts.models, now_ms=time.time_ns() // 1_000_000, objective=kuairand.OBJECTIVE, split=split)
    popular = popularity(read_history(watch.log, kuairand.REGISTRY).events)
    answers, groups = _rank(parts, data, events, watch, view)
    count += events.publish_until(None, view) + events.count
    watch.wait_until_applied("ingest: the rest", 0.9)
    view.show("checking every record against the oracle", 0.95)
    entities, differences = watch.check([STOP_MS + DAY_MS, STOP_MS + DAY_MS + 6 * HOUR_MS, STOP_MS + 6 * DAY_MS])
    return {
        "events": count,
        "events_per_second": round(rate),
        "entities": entities,
        "entities_wrong": len(differences),
        "dead_letters": watch.dead_letters(),
        "requests": len(answers.sent_s),
        "responses": len(answers.responses),
        "degraded": answers.degraded,
        "latency_ms_p50": answers.latency_ms(0.5),
        "latency_ms_p99": answers.latency_ms(0.99),
        # The log's timestamps are of 2022: how fresh a record is cannot be told from them.
        "freshness_ms_p99": None,
        "ctr_ranked": None,
        "ctr_control": None,
        "ctr_lift_ci": None,
        **_judge(groups, answers.responses, popular).figures(),
    }


@dataclass(slots=True)
class _Recorded:
    """The data set's events, published as time goes on."""

    events: Iterator[Event]
    publisher: Publisher
    count: int = 0

    def publish_until(self, stop_ms: int | None, view: View | None = None) -> int:
        """Publish the events before a moment, or all that are left; returns how many."""
        count = 0
        for event in self.events:
            if stop_ms is not None and event.ts_ms >= stop_ms:
                self.events = itertools.chain([event], self.events)
                break
            self.publisher.send(IMPRESSIONS if isinstance(event, Impression) else CLICKS, event, event.ts_ms)
            count += 1
            if view and count % 10_000 == 0:
                view.show("publishing the recorded days", 0.3, {"events published": f"{count:,}"})
        self.publisher.flush()
        return count


def _publish_profiles(data: kuairand.KuaiRand, publisher: Publisher) -> int:
    count = 0
    for topic, profiles in ((CONTENT, kuairand.contents(data)), (USERS, kuairand.users(data))):
        for profile in profiles:
            publisher.send(topic, profile, profile.ts_ms)
            count += 1
    publisher.flush()
    return count


def _rank(
    parts: Parts, data: kuairand.KuaiRand, events: _Recorded, watch: Watch, view: View
) -> tuple[Answers, list[kuairand.RankingGroup]]:
    """Ask for every group of the test days, hour by hour between the events."""
    view.show("starting the ranking worker", 0.4)
    parts.start("serve")
    answers = Answers.open(parts.addresses.kafka_bootstrap)
    answers.wait_for_ranker(events.publisher)
    groups = kuairand.ranking_groups(data)
    for hour, found in itertools.groupby(groups, lambda group: (group.request.ts_ms - TEST_MS) // STEP_MS):
        events.count += events.publish_until(TEST_MS + hour * STEP_MS)
        done = 0.4 + 0.5 * hour * STEP_MS / (STOP_MS - TEST_MS)
        watch.wait_until_applied("ranking the test days", done)
        for group in found:
            _ask(group, events.publisher, answers)
        list(answers.take_rest())
        view.show("ranking the test days", done, {"answers": f"{len(answers.responses):,}", "answer p99": f"{answers.latency_ms(0.99)} ms"})
    return answers, groups


def _ask(group: kuairand.RankingGroup, publisher: Publisher, answers: Answers) -> None:
    while answers.waiting >= WAITING_MAX:
        answers.take(0.1)
    answers.asked(group.request.request_id)
    publisher.send(RANK_REQUESTS, group.request, group.request.ts_ms)


def _judge(groups: Sequence[kuairand.RankingGroup], responses: dict[str, RankResponse], popular: dict[str, float]) -> Judged:
    judged = Judged([], [], [], [])
    for number, group in enumerate(groups):
        scores = {item.item_id: item.score for item in responses[group.request.request_id].ranked_items}
        for item_id, label in zip(group.request.candidate_item_ids, group.labels, strict=True):
            judged.add(number, label, scores[item_id], popular.get(item_id, CTR_PRIOR))
    return judged
