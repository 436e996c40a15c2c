"""Plays runs by their seeds: `python -m tests.simulation --seed N`, or `--seeds FROM:TO --json`. Exit code 0 all right, 1 found a fault."""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from tests.simulation.run import Outcome, run

#: How many sentences of a run are shown; `--seed` shows them all.
SHOWN = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Play, print what is wrong and how to see it again, and a summary as the last line."""
    asked = _parser().parse_args(arguments)
    begun_s = time.monotonic()
    outcomes = []
    for seed in asked.seeds:
        outcome = run(seed)
        outcomes.append(outcome)
        if outcome.wrong:
            sys.stderr.write(failure(outcome, None if len(asked.seeds) == 1 else SHOWN) + "\n")
    told = {**summary(outcomes), "seconds": round(time.monotonic() - begun_s, 1)}
    lines = [json.dumps(told)] if asked.json else [f"{name:24} {value}" for name, value in told.items()]
    sys.stdout.write("\n".join(lines) + "\n")
    return int(any(outcome.wrong for outcome in outcomes))


def failure(outcome: Outcome, shown: int | None = SHOWN) -> str:
    """What a run found wrong, what happened in it, and the command that replays it."""
    lines = [f"seed {outcome.seed}: {len(outcome.wrong)} wrong", *(f"  {sentence}" for sentence in outcome.wrong[:shown])]
    return "\n".join([*lines, *(f"  {moment}" for moment in outcome.story), f"  replay: python -m tests.simulation --seed {outcome.seed}"])


def summary(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """All runs together. seconds are those of a run's own time, which is virtual."""
    played = list(outcomes)
    by_kind: Counter[str] = sum((outcome.faults for outcome in played), Counter())
    return {
        "runs": len(played),
        "runs_wrong": sum(bool(outcome.wrong) for outcome in played),
        "faults": by_kind.total(),
        "faults_by_kind": dict(by_kind.most_common()),
        "kills_by_step": dict(sum((outcome.kills for outcome in played), Counter[str]()).most_common()),
        **{
            name: sum(getattr(outcome, name) for outcome in played)
            for name in (
                "exits",
                "events",
                "repeats",
                "dead_letters",
                "entities_compared",
                "entities_wrong",
                "duplicates_delivered",
                "stale_writes_refused",
                "stale_writes_accepted",
            )
        },
        "heal_seconds_max": round(max((outcome.heal_s_max for outcome in played), default=0.0), 1),
        "seeds": f"{played[0].seed}:{played[-1].seed + 1}" if played else "",
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seed", dest="seeds", type=lambda text: [int(text)], metavar="N", help="one run")
    which.add_argument("--seeds", type=_range, metavar="FROM:TO", help="runs FROM to TO - 1")
    parser.add_argument("--json", action="store_true", help="the summary as one line of JSON")
    return parser


def _range(text: str) -> range:
    begin, _, end = text.partition(":")
    return range(int(begin), int(end))


if __name__ == "__main__":
    sys.exit(main())
