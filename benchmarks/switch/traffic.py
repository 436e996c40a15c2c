"""What became of the rank requests, by what was going on when each was due."""

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.rank.generator import Verdict
from benchmarks.rank.latency import quantiles
from benchmarks.results import Result
from benchmarks.switch.world import World
from ranker.budgets import BUDGETS


@dataclass(slots=True)
class Phases:
    """When each phase began, in order (time.perf_counter())."""

    begun: list[tuple[str, float]] = field(default_factory=list)

    def begin(self, name: str) -> None:
        """From now on."""
        self.begun.append((name, time.perf_counter()))


def summary(world: World, phases: Phases) -> Result:
    """Of all requests, and of each phase's. late: answered later than its deadline, counted from when it was due."""
    with np.load(world.outcome_file) as file:
        due_s, answered_s, verdict, maker = (file[name] for name in ("due_s", "answered_s", "verdict", "maker"))
    names = [name for name, _ in phases.begun]
    phase = np.searchsorted([at_s for _, at_s in phases.begun], due_s, side="right") - 1
    by_phase = {name: _counted(due_s, answered_s, verdict, phase == place) for place, name in enumerate(names)}
    used = sorted(set(maker.tolist()) - {""})
    return {**_counted(due_s, answered_s, verdict, phase >= -1), "answers_made_by": used, "requests_by_phase": by_phase}


def _counted(
    due_s: NDArray[np.float64], answered_s: NDArray[np.float64], verdict: NDArray[np.int8], here: NDArray[np.bool_]
) -> dict[str, Any]:
    latency_s = (answered_s - due_s)[here]
    return {
        "requests": int(here.sum()),
        "failed": int((verdict[here] == Verdict.ERROR).sum()),
        "degraded": int((verdict[here] == Verdict.DEGRADED).sum()),
        "late": int((latency_s > BUDGETS.total_ms / 1000).sum()),
        **quantiles(latency_s[~np.isnan(latency_s)]),
    }
