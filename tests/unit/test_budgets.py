"""Budgets are refused as a whole, every fault named, and shrink with a request's own deadline."""

import pytest

from ranker.budgets import BUDGETS, Budgets
from schemas.errors import SettingsError


def test_all_faults_are_named_at_once() -> None:
    """What is not over 0, and stages that together take more than there is."""
    with pytest.raises(SettingsError) as refused:
        Budgets(store_ms=0, backfill_ms=-3, score_ms=90)

    parts = ["store is 0 ms", "backfill is -3 ms", "store 0 + backfill -3 + score 90 + rules 15 is 102 ms, over the total of 80"]
    assert [part for part in parts if part not in str(refused.value)] == []


def test_stages_may_take_all_there_is() -> None:
    """But no millisecond more."""
    assert Budgets(store_ms=35).total_ms == 80
    with pytest.raises(SettingsError, match="is 81 ms, over the total of 80"):
        Budgets(store_ms=36)


@pytest.mark.parametrize(("deadline_ms", "reserve_s"), [(80, 0.015), (5_000, 0.015), (40, 0.0075), (16, 0.003)])
def test_a_short_deadline_leaves_a_shorter_way_back(deadline_ms: int, reserve_s: float) -> None:
    """Or a request in a hurry would fall back before it was read for."""
    assert BUDGETS.reserve_s(deadline_ms) == pytest.approx(reserve_s)
