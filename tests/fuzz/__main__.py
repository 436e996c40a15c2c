"""`make fuzz-rank`: mutated rank requests through a real broker to a real serving process, by a seed. The last line is JSON.

Exit code 1: the process ended, a request was not answered, or an outcome is not what it should be; how to see it again is said.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from tests.fuzz.run import Report, numbers, play
from tests.services import local_services

#: How many faults of a run are shown.
SHOWN = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Play a run; 1 if anything is wrong."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    asked = _parser().parse_args(arguments)
    sys.stderr.write(f"seed {asked.seed}\n")
    wanted = numbers(asked.requests)
    if asked.only is not None:
        wanted = {number: is_good for number, is_good in wanted.items() if is_good or number == asked.only}
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name, local_services(Path(name) / "stack") as services, _progress() as progress:
        task = progress.add_task("requests", total=len(wanted))

        def tell(count: int) -> None:
            progress.update(task, completed=count)

        found = play(services.kafka_bootstrap, services.store_url, Path(name), asked.seed, wanted, tell)
    sys.stderr.write(failure(found, asked.requests))
    sys.stdout.write(json.dumps(summary(found)) + "\n")
    return int(found.is_wrong())


def _progress() -> Progress:
    return Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)


def failure(found: Report, count: int) -> str:
    """What is wrong, and the command that plays it again; nothing where nothing is."""
    if not found.is_wrong():
        return ""
    lines = [*found.wrong[:SHOWN], *(f"request {number} was not answered" for number in found.unanswered[:SHOWN])]
    lines += [f"the process ended:\n{found.log[-4_000:]}"] if found.crashed else []
    again = f'make fuzz-rank ARGS="--seed {found.seed} --requests {count} --only NUMBER"'
    return "\n".join([*lines, f"one request, and the good ones behind it, again: {again}", ""])


def summary(found: Report) -> dict[str, object]:
    """A run in one object."""
    return {
        "requests": found.requests,
        "responses": found.responses,
        "dead_letters": found.dead_letters,
        "unanswered": len(found.unanswered),
        "crashed": found.crashed,
        "wrong": len(found.wrong),
        "dead_letters_by_reason": found.reasons,
        "seed": found.seed,
        "seconds": found.seconds,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make fuzz-rank", description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="replays a run; drawn and said if none is given")
    parser.add_argument("--only", type=int, help="this request alone, and the good ones at the end")
    return parser


if __name__ == "__main__":
    sys.exit(main())
