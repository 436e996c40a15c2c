"""`make soak-switch`: rebuild, cutover and rollback under live traffic, once for each sort of change of the registry.

Real servers, real `millstream` processes. The last line is JSON. Exit code 1: a request failed or fell back, an entity of either
generation is not what the oracle says, or a dead letter is wrong.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.machine import described
from benchmarks.results import FOLDER, Result, console
from benchmarks.stack import running
from benchmarks.switch.change import Pace, once
from benchmarks.switch.registries import CHANGES
from benchmarks.switch.world import World

RESULTS = FOLDER / "switch.json"
NOTES = (
    "Live events and requests are open loops in real time; late: answered more than 80 ms after it was due.",
    "rebuild_seconds: from the command to a lag that a cutover takes (1,000 records), imports included.",
    "follow_seconds: from the pointer's move to the log line of who went over; stall: nothing applied to what was current.",
    "All processes, both servers and the load share the machine's cores: none is pinned.",
)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """What the command line says."""
    flags = argparse.ArgumentParser(prog="make soak-switch", description="Rebuild, cutover and rollback under live traffic.")
    flags.add_argument("--events-per-s", type=int, default=5_000, help="of the live feed (default: %(default)s)")
    flags.add_argument("--requests-per-s", type=int, default=100, help="half by Kafka, half by HTTP (default: %(default)s)")
    flags.add_argument("--history", type=int, default=400_000, help="events before the first live one (default: %(default)s)")
    flags.add_argument("--calm", type=float, default=15.0, metavar="SECONDS", help="of traffic between two steps (default: %(default)s)")
    flags.add_argument("--users", type=int, default=50_000)
    flags.add_argument("--items", type=int, default=100_000)
    flags.add_argument("--only", choices=CHANGES, action="append", help="a change; may be given more than once (default: all)")
    flags.add_argument("--seed", type=int, default=1, help="of feed and requests")
    flags.add_argument("--save", action="store_true", help=f"write the result to {RESULTS.name} as well")
    flags.add_argument("--json", action="store_true", help="say nothing but the last line")
    return flags.parse_args(argv)


def totals(changes: Sequence[Result]) -> dict[str, Any]:
    """Of all changes together."""
    names = ("events", "requests", "failed", "degraded", "late", "entities_compared", "entities_wrong", "letters_wrong")
    return {name: sum(change[name] for change in changes) for name in names}


def main(argv: Sequence[str] | None = None) -> int:
    """Every change that was asked for; 1 if anything was felt, or is wrong."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    asked = arguments(argv)
    console.quiet = asked.json
    pace = Pace(asked.events_per_s, asked.requests_per_s, asked.calm, asked.history)
    begun_s, changes = time.monotonic(), []
    with running(os.sched_getaffinity(0)) as stack:
        for change in asked.only or CHANGES:
            world = World(stack, change, users=asked.users, items=asked.items, seed=asked.seed)
            found, verdict = once(world, pace)
            changes.append({"change": change, **found})
            console.print(json.dumps(changes[-1]), highlight=False)
            for fault in verdict.wrong[:10]:
                console.print(fault, highlight=False)
    said = {
        "benchmark": "switch",
        "machine": described(),
        "arguments": {name: value for name, value in vars(asked).items() if name not in ("json", "save")},
        "notes": NOTES,
        **totals(changes),
        "seconds": round(time.monotonic() - begun_s, 1),
        "changes": changes,
    }
    if asked.save:
        FOLDER.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(said, indent=2) + "\n")
    sys.stdout.write(json.dumps(said) + "\n")
    return int(any(said[name] for name in ("failed", "degraded", "entities_wrong", "letters_wrong")))


if __name__ == "__main__":
    sys.exit(main())
