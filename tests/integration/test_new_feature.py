"""A new feature is one more line in the registry: it is streamed, served, trained on and checked, and nothing else changes."""

import json
import random
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from compose import cli, topics
from compose.train import train
from online_store.keys import Generation
from online_store.redis import RedisStore
from ranker.bundle import Bundle
from ranker.rank import Ranker
from replay.history import read_history
from replay.log import KafkaLog
from replay.rows import rows
from schemas.features import FEATURES, REGISTRY, STATICS, Registry, ctr
from schemas.records import Click, Event, Impression, RankRequest
from schemas.windows import HOUR_MS, MINUTE_MS, Window
from tests.oracle import Oracle
from tests.property.test_exactness import windows_of
from tests.rankers import telemetry
from tests.verify import compare
from tests.workers import SOURCE_NAMES, caught_up, command, log_records, own_store, produce

HOURS_3 = Window("3h", 3 * HOUR_MS, 15 * MINUTE_MS)
#: The default registry and one more line.
GROWN = Registry(
    (
        *FEATURES,
        ctr("ctr_3h", "item", HOURS_3),
    ),
    STATICS,
)
GROWN_NAME = f"{__name__}:GROWN"
NOW_MS = time.time_ns() // 1_000_000
ITEMS = [f"i{number}" for number in range(12)]


class Lived(NamedTuple):
    """A log, the store that a worker with the grown registry made of it, and a bundle that was trained on it."""

    kafka_bootstrap: str
    prefix: str
    store_url: str
    sent: list[Event]
    oracle: Oracle
    bundle: Bundle

    @property
    def log(self) -> KafkaLog:
        """As replay and training read it."""
        return KafkaLog(self.kafka_bootstrap, self.prefix)

    def ctr_3h(self, item_id: str, as_of_ms: int) -> float:
        """The feature by a formula of this test's own, from what the oracle counted."""
        shown, clicked, _, _ = self.oracle.counts(("", "item", item_id), as_of_ms)["3h"]
        return float(np.float32((clicked + 1) / (shown + 20)))


def pages() -> list[Event]:
    """Pages of three items over the last nine hours, and the clicks on them."""
    draw = random.Random(3)
    found: list[Event] = []
    for number in range(600):
        ts_ms = NOW_MS - draw.randrange(9 * HOUR_MS)
        for position, item_id in enumerate(draw.sample(ITEMS, 3)):
            named: dict[str, Any] = {"request_id": f"r{number}", "user_id": f"u{number % 30}", "item_id": item_id}
            found.append(Impression(**named, ts_ms=ts_ms, position=position))
            if draw.random() < 0.05 * (1 + ITEMS.index(item_id)):
                found.append(Click(**named, ts_ms=ts_ms + draw.randrange(30_000), dwell_ms=draw.randrange(60_000)))
    return found


@pytest.fixture(scope="module")
def lived(kafka_bootstrap: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lived]:
    """`millstream ingest` with the grown registry over a log, on a store of its own."""
    prefix, folder, sent = f"grown{NOW_MS}-", tmp_path_factory.mktemp("grown"), pages()
    topics.create(kafka_bootstrap, prefix, partitions=2)
    produce(kafka_bootstrap, prefix, sent)
    with own_store(folder) as (_, _, url):
        places = {"kafka_bootstrap": kafka_bootstrap, "topic_prefix": prefix, "store_url": url}
        with command(folder, "ingest", features=GROWN_NAME, group_id=prefix, **places) as worker:
            caught_up(kafka_bootstrap, prefix, url, worker)
        records = [record for name in SOURCE_NAMES for record in log_records(kafka_bootstrap, prefix + name)]
        bundle = train(KafkaLog(kafka_bootstrap, prefix), GROWN, folder / "models", now_ms=NOW_MS)
        yield Lived(kafka_bootstrap, prefix, url, sent, Oracle(records, windows_of(GROWN), prefix), bundle)


async def test_it_is_streamed_and_checked(lived: Lived) -> None:
    """Every window of every record, the new one among them, is what the oracle says, now and hours later."""
    store = RedisStore(lived.store_url, GROWN)
    moments = [NOW_MS + 60_000, NOW_MS + 2 * HOUR_MS, NOW_MS + 5 * HOUR_MS]
    differences = await compare(store, GROWN, Generation(1, GROWN.fingerprint), lived.oracle, moments)
    await store.close()

    assert (differences, {window.name for window in GROWN.windows("item")} >= {"3h"}) == ([], True)


def test_it_is_shown(lived: Lived, capsys: pytest.CaptureFixture[str]) -> None:
    """`millstream features` gives its value and its window."""
    flags = ["--json", "--store-url", lived.store_url, "--features", GROWN_NAME, "--as-of-ms", str(NOW_MS + HOUR_MS)]
    code = cli.main(["features", "item", "i3", *flags])
    told = json.loads(capsys.readouterr().out)

    assert (code, told["features"]["ctr_3h"], "3h" in told["windows"]) == (0, lived.ctr_3h("i3", NOW_MS + HOUR_MS), True)


async def test_it_is_served(lived: Lived) -> None:
    """A ranker with a bundle of the grown registry scores vectors that hold it."""
    store = RedisStore(lived.store_url, GROWN)
    ranker = Ranker(store, GROWN, lived.bundle)
    await ranker.refresh()
    asked = RankRequest(request_id="q", user_id="u1", candidate_item_ids=ITEMS, k=12, ts_ms=NOW_MS + 60_000, deadline_ms=20_000)
    served = telemetry(await ranker.answer(asked, time.perf_counter()))
    await store.close()
    place = GROWN.feature_names.index("ctr_3h")

    assert {item.item_id: float(np.frombuffer(item.vector, "<f4")[place]) for item in served.items} == {
        item_id: lived.ctr_3h(item_id, asked.ts_ms) for item_id in ITEMS
    }


def test_it_is_replayed(lived: Lived) -> None:
    """The training rows hold it as of each request, from the events strictly before: nested loops say the same."""
    history = read_history(lived.log, GROWN)
    found = rows(history.events, history.profiles, GROWN, history.contexts)
    column = found.features[:, GROWN.feature_names.index("ctr_3h")].tolist()
    expected = [looped(lived.sent, item_id, as_of_ms) for item_id, as_of_ms in zip(found.item_ids, found.as_of_ms.tolist(), strict=True)]

    assert (column, len(column)) == (expected, 1_800)


def looped(sent: list[Event], item_id: str, as_of_ms: int) -> float:
    """The feature of an item from the events before a moment."""
    oldest = as_of_ms // HOURS_3.hop_ms - 12
    seen = [event for event in sent if event.item_id == item_id and event.ts_ms < as_of_ms and event.ts_ms // HOURS_3.hop_ms > oldest]
    clicks = sum(isinstance(event, Click) for event in seen)
    return float(np.float32((clicks + 1) / (len(seen) - clicks + 20)))


def test_the_others_are_untouched(lived: Lived) -> None:
    """Without the new column, the rows are those of the default registry, byte for byte."""
    history = read_history(lived.log, GROWN)
    grown, before = (rows(history.events, history.profiles, registry, {}).features for registry in (GROWN, REGISTRY))
    place = GROWN.feature_names.index("ctr_3h")

    assert np.delete(grown, place, axis=1).tobytes() == before.tobytes()
