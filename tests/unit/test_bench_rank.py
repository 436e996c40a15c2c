"""The rank benchmark's own parts: what it asks, when it asks, and what it makes of the answers."""

from collections import deque
from collections.abc import Sequence

import numpy as np
import pytest

from benchmarks.rank import schedule
from benchmarks.rank.__main__ import compared_with_peers
from benchmarks.rank.faults import as_before_ms
from benchmarks.rank.generator import Client, Said, Verdict, drive, judged
from benchmarks.rank.latency import quantiles
from benchmarks.rank.registries import ITEMS_COLUMNS, THIRTY_TWO
from benchmarks.rank.requests import draw
from benchmarks.rank.serving import Samples
from benchmarks.rank.world import labels
from schemas.records import RankRequest


class Server(Client):
    """Answers each request at once with what it was told, or never, as its number says."""

    def __init__(self, never: Sequence[int] = ()) -> None:
        self.sent: list[int] = []
        self.most_under_way = 0
        self._never = never
        self._due: deque[int] = deque()

    async def open(self) -> None:
        """Nothing to connect to."""

    def encode(self, request: RankRequest) -> bytes:
        """Not looked at."""
        return request.request_id.encode()

    def send(self, number: int, body: bytes) -> None:
        """Note it, and have its answer ready unless it never gets one."""
        self.sent.append(number)
        if number not in self._never:
            self._due.append(number)
        self.most_under_way = max(self.most_under_way, len(self._due))
        assert body

    async def answers(self) -> list[tuple[int, float, bytes | None]]:
        """One at a time, in order."""
        return [(self._due.popleft(), 0.0, b"x")] if self._due else []

    def decode(self, body: bytes) -> Said:
        """Written "items/degraded"."""
        items, degraded = body.decode().split("/")
        return Said(items.split(), degraded)

    async def close(self) -> None:
        """Nothing to let go."""


def request(k: int = 2) -> RankRequest:
    return RankRequest(request_id="r", user_id="u", candidate_item_ids=["a", "b", "c"], k=k, ts_ms=1)


async def verdict(*bodies: bytes | None) -> list[int]:
    outcome = await drive(Server(), schedule.closed(1, 60, len(bodies)), [b"first"] + [b"x"] * len(bodies))
    outcome.bodies = list(bodies)
    found: list[int] = judged(Server(), [request()] * len(bodies), outcome).tolist()
    return found


def test_the_registry_has_32_columns() -> None:
    """Those of items come first: peers keep the two apart."""
    kinds = [feature.kind for feature in THIRTY_TWO.ranking]

    assert (len(kinds), kinds[:ITEMS_COLUMNS], set(kinds[ITEMS_COLUMNS:])) == (32, ["item"] * 20, {"user"})


def test_no_candidate_is_asked_twice_in_a_request() -> None:
    """Though popular items are drawn again and again."""
    drawn = draw(1, 50, 300, 1_000, 1_000)

    assert {len(set(row)) for row in drawn.items.tolist()} == {300}


def test_requests_differ_from_one_another() -> None:
    """In their candidates and their ids; two draws of one seed are equal."""
    first, again = (list(draw(3, 40, 25, 1_000, 1_000).records(10, 7)) for _ in range(2))

    assert (len({tuple(one.candidate_item_ids) for one in first}), len({one.request_id for one in first}), first == again) == (40, 40, True)


def test_popular_items_are_asked_for_more_often() -> None:
    """The first item stands in most requests of 200, one of the last in few."""
    items = draw(1, 300, 200, 1_000, 100_000).items

    assert ((items == 0).any(axis=1).mean() > 0.95, (items >= 50_000).mean() < 0.2) == (True, True)


def test_an_open_loop_sends_what_is_due_whatever_was_answered() -> None:
    """Its count follows the clock, not the answers, and a late request was due earlier than it was sent."""
    loop = schedule.poisson(100, 10, seed=1)

    assert loop.wanted(5, 0) == pytest.approx(500, rel=0.2)
    assert loop.intended_s(0, 5) == loop.due_s[0]


async def test_a_closed_loop_keeps_its_bound() -> None:
    """Never more under way, and all are sent."""
    server = Server()
    outcome = await drive(server, schedule.closed(4, 60, 20), [b"x"] * 21)

    assert (server.most_under_way, outcome.answered, sorted(server.sent)) == (4, 20, list(range(20)))


async def test_a_request_that_nothing_answers_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop ends without it, and it is counted."""
    monkeypatch.setattr("benchmarks.rank.generator.DRAIN_S", 0.01)
    outcome = await drive(Server(never=[3]), schedule.closed(4, 60, 5), [b"x"] * 6)

    assert np.flatnonzero(np.isnan(outcome.answered_s)).tolist() == [3]


async def test_answers_are_looked_into() -> None:
    """Too few items, one that was not asked for, one twice, or none at all is an error; a fallback is degraded."""
    found = await verdict(b"a c/NONE", b"a/NONE", b"a z/NONE", b"a a/NONE", None, b"a b/POPULARITY")

    assert found == [Verdict.FULL, *[Verdict.ERROR] * 4, Verdict.DEGRADED]


def test_quantiles_are_those_of_the_latencies() -> None:
    """To three digits, in milliseconds."""
    found = quantiles(np.arange(1, 1_001) / 1_000)

    assert [found[f"latency_ms_{name}"] for name in ("p50", "p90", "p99", "p999", "max")] == pytest.approx(
        [500, 900, 990, 999, 1000], rel=2e-3
    )


def test_processor_time_between_two_samples_is_interpolated() -> None:
    """Each process by itself."""
    samples = Samples([0.0, 1.0, 2.0], [(0, 0, 0), (1, 0.5, 0), (3, 0.5, 1)])

    assert samples.between(0.5, 1.5) == pytest.approx([1.5, 0.25, 0.5])


def test_labels_are_a_fifth() -> None:
    """Whatever the columns hold, missing values among them."""
    features = np.random.default_rng(1).random((1_000, 5)).astype(np.float32)
    features[:, 3] = np.nan

    assert labels(features, seed=1).mean() == pytest.approx(0.2, abs=0.01)


def test_peers_are_compared_by_requests_a_core_second() -> None:
    """Of our rows only those that the peers' question was asked of."""
    rows = {
        "peer": {"client_cpu_ms": {"median": 10.0}},
        "kafka, 200 candidates, 50%": {"ranker_cpu_ms": {"median": 0.5}},
        "kafka, 200 candidates, 50%, no feed": {"ranker_cpu_ms": {"median": 0.4}},
        "kafka, 25 candidates, 50%": {"ranker_cpu_ms": {"median": 0.1}},
    }

    found = compared_with_peers(rows)

    assert found == {"kafka, 200 candidates, 50%": {"peer": 20.0}, "kafka, 200 candidates, 50%, no feed": {"peer": 25.0}}


@pytest.mark.parametrize(("worse_until_s", "expected_ms"), [(10.0, 0.0), (10.2, 500.0), (12.6, 3_000.0)])
def test_after_an_outage_it_is_as_before_when_no_more_fall_back(worse_until_s: float, expected_ms: float) -> None:
    """Though a tenth fell back before it, and does ever after; the store was gone from 5 s to 10 s, and all fell back until later."""
    due_s = np.arange(0.0, 20.0, 0.01)
    always = np.arange(len(due_s)) % 10 == 0

    assert as_before_ms(due_s, always | ((due_s >= 5.0) & (due_s < worse_until_s)), 5.0, 10.0) == expected_ms
