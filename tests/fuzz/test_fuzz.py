"""A short run of `make fuzz-rank`: nothing that a stranger sends ends the worker, gets lost, or keeps others from their answers."""

from pathlib import Path

import pytest

from tests.fuzz.requests import Requests
from tests.fuzz.run import numbers, play

SEED, COUNT = 1, 2_000


@pytest.mark.timeout(180)
def test_every_request_has_one_outcome(kafka_bootstrap: str, store_db: str, tmp_path: Path) -> None:
    """An answer or a dead letter with its bytes and its reason, and the process goes on to the last."""
    found = play(kafka_bootstrap, store_db, tmp_path, SEED, numbers(COUNT), lambda _: None)

    assert (found.wrong, found.unanswered, found.crashed) == ([], [], False), found.log[-4_000:]
    assert (found.responses + found.dead_letters, found.responses > 0, len(found.reasons)) == (COUNT, True, 7)


def test_a_seed_and_a_number_are_one_request() -> None:
    """To the last byte."""
    first, second = (Requests(SEED, numbers(300), "replies") for _ in range(2))

    assert [*first.values()] == [*second.values()]


def test_no_two_requests_share_a_timestamp() -> None:
    """It is what tells outcomes apart."""
    stamps = [asked.timestamp for asked in Requests(SEED, numbers(5_000), "replies").values()]

    assert len({*stamps}) == len(stamps)
