"""`make fuzz-http`: requests made from the served OpenAPI document, good and bad, to a front end that really runs.

Schemathesis draws them, sends them and says what is wrong, with a line of curl that sends it again. Exit code 1: an answer is not as the
document says, or a 5xx. Twice: before a store with a past, and before one that holds nothing yet.
"""

import argparse
import asyncio
import os
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ranker.fronts.http import HttpFront
from schemas.features import REGISTRY
from tests.fronts import HOST, listening
from tests.rankers import Failing, fill, on, trained
from tests.workers import PATIENCE_S, REPOSITORY

#: What every answer must be, whatever was asked.
CHECKS = (
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
    "what_fits_is_ranked",
)
#: Before a store with a past there is no 5xx at all; before one without, there is one where nothing else could answer.
SERVER_ERRORS = {True: "not_a_server_error", False: "only_the_store_is_missed"}


def run(folder: Path, examples_count: int, seed: int, *, store_is_filled: bool) -> tuple[int, str]:
    """Exit code and report of Schemathesis. examples_count: requests drawn for each operation, besides those at the bounds."""
    with serving(folder, store_is_filled=store_is_filled) as port:
        checks = ",".join((*CHECKS, SERVER_ERRORS[store_is_filled]))
        command = [sys.executable, "-m", "schemathesis.cli", "--no-color", "run", f"http://{HOST}:{port}/openapi.json", "--checks", checks]
        command += ["--phases", "examples,coverage,fuzzing", "--max-examples", str(examples_count), "--seed", str(seed)]
        environment = {**os.environ, "SCHEMATHESIS_HOOKS": "tests.fuzz.checks", "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)  # noqa: S603  # our own line
    return done.returncode, done.stdout + done.stderr


@contextmanager
def serving(folder: Path, *, store_is_filled: bool) -> Iterator[int]:
    """The port of a front end that runs beside us."""
    ports: list[int] = []
    is_up, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        store = Failing()
        if store_is_filled:
            await fill(store)
        front = HttpFront(await on(store, trained(folder)), store, REGISTRY, lambda *_: None)
        async with listening(front) as (port, _):
            ports.append(port)
            is_up.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert is_up.wait(PATIENCE_S), "the front end did not start"
        yield ports[0]
    finally:
        stop.set()
        thread.join()


def main() -> int:
    """Play both; 1 if anything is wrong."""
    parser = argparse.ArgumentParser(prog="make fuzz-http", description=__doc__)
    parser.add_argument("--examples", type=int, default=2_000, help="requests drawn for each operation (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="replays a run; drawn and said if none is given")
    asked = parser.parse_args()
    codes = []
    for store_is_filled in (True, False):
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            code, report = run(Path(folder), asked.examples, asked.seed, store_is_filled=store_is_filled)
        sys.stdout.write(report)
        codes.append(code)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
