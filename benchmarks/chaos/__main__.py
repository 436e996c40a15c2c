"""`make chaos-ingest`: real workers, a real Kafka and a real store, faults by a seed, and the oracle's verdict.

The last line is JSON. Exit code 1: an entity is wrong, a dead letter is, a guard went back, or a partition stood still for too long.
"""

import argparse
import json
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import active_children, get_context
from typing import Any

from benchmarks.chaos.faults import PLANS, Plan
from benchmarks.chaos.runs import STALL_S_MAX, Report, Scale, play_plan
from benchmarks.machine import described
from benchmarks.results import FOLDER

RESULTS = FOLDER / "chaos-ingest.json"


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="make chaos-ingest", description="Faults by a seed; counts against the oracle.")
    parser.add_argument("--seed", type=int, default=1, help="replays the choice of faults and the feed (default 1)")
    parser.add_argument("--scale", choices=["small", "full"], default="small", help="small: minutes; full: what the claims are about")
    parser.add_argument("--only", choices=PLANS, action="append", help="this run alone; may be given again")
    parser.add_argument("--count", type=int, help="how many faults a run injects, in place of the scale's")
    parser.add_argument("--events-per-s", type=int, default=500, help="the feed's pace (default 500)")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, each with servers of its own (default 1)")
    parser.add_argument("--save", action="store_true", help=f"write the result, with machine and versions, to {RESULTS.name}")
    parser.add_argument("--json", action="store_true", help="say nothing but the last line")
    return parser.parse_args()


def summary(reports: list[Report], seed: int) -> dict[str, Any]:
    """All runs in one object."""
    return {
        "runs": len(reports),
        "faults": sum(sum(report.faults.values()) for report in reports),
        "events": sum(report.verdict.events for report in reports),
        "entities_compared": sum(report.verdict.entities_compared for report in reports),
        "entities_wrong": sum(len(report.verdict.wrong) for report in reports),
        "moments": min(report.verdict.moments for report in reports),
        "duplicates_delivered": sum(report.delivered - report.verdict.events for report in reports),
        "duplicates_produced": sum(report.verdict.produced_twice for report in reports),
        "bad_records": sum(report.verdict.bad for report in reports),
        "dead_letters_wrong": sum(report.verdict.letters_wrong for report in reports),
        "dead_letters_repeated": sum(report.verdict.letters_repeated for report in reports),
        "refused_by_broker": sum(report.refused for report in reports),
        "kills_at_steps": sum(count for report in reports for step, count in report.kills.items() if step != "random"),
        "kills_at_random": sum(report.kills.get("random", 0) for report in reports),
        "zombies": sum(report.faults.get("zombie", 0) for report in reports),
        "stale_writes_offered": sum(report.stale_offered for report in reports),
        "stale_writes_accepted": sum(report.stale_accepted for report in reports),
        "guards_gone_back": sum(report.guards_gone_back for report in reports),
        "writes_lost": sum(report.writes_lost for report in reports),
        "heal_seconds_max": max((heal for report in reports for heal in report.heals_s), default=None),
        "stall_seconds_max": max(report.stall_s_max for report in reports),
        "workers_exited": sum(len(report.exits) for report in reports),
        "seeds": [seed],
        "by_run": [report.as_json() for report in reports],
    }


def played(asked: argparse.Namespace) -> list[Report]:
    """Every run that was asked for, so many side by side, each in a process of its own."""
    names = asked.only or list(PLANS)
    with ProcessPoolExecutor(asked.jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        under_way = [pool.submit(play_plan, name, asked.seed, _scale(asked, PLANS[name])) for name in names]
        try:
            for report in as_completed(under_way):
                if not asked.json:
                    sys.stderr.write(json.dumps(report.result().as_json()) + "\n")
        except KeyboardInterrupt:
            for one in under_way:
                one.cancel()
            for process in active_children():
                process.terminate()
            raise
        return [report.result() for report in under_way]


def _scale(asked: argparse.Namespace, plan: Plan) -> Scale:
    return Scale(asked.count or getattr(plan, asked.scale), asked.events_per_s, speed=300 if asked.scale == "small" else 60)


def main() -> int:
    """Play every run that was asked for; 1 if anything is wrong."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    asked = arguments()
    begun_s = time.monotonic()
    reports = played(asked)
    found = summary(reports, asked.seed) | {"seconds": round(time.monotonic() - begun_s, 1)}
    if asked.save:
        FOLDER.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({**found, "scale": asked.scale, "jobs": asked.jobs, "machine": described()}, indent=1) + "\n")
    for report in filter(Report.is_wrong, reports):
        for fault in report.verdict.wrong[:10]:
            sys.stderr.write(f"{report.name}: {fault}\n")
        again = f'make chaos-ingest ARGS="--seed {asked.seed} --scale {asked.scale} --only {report.name}"'
        sys.stderr.write(f"{report.name} is wrong, or stood still for over {STALL_S_MAX} s: {again}\nIts workers' logs: {report.logs}\n")
    sys.stdout.write(json.dumps(found) + "\n")
    return int(any(report.is_wrong() for report in reports))


if __name__ == "__main__":
    sys.exit(main())
