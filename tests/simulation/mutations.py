"""Proves that the simulation can fail: takes a rule out of a copy of the product and demands that the runs, or a contract test, go red.

`python -m tests.simulation.mutations` tries them all. Rules of the script on the server are tried on a real one.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import MillstreamError

ROOT = Path(__file__).parents[2]
#: Not copied: nothing in them is read, and some are large.
LEFT_OUT = shutil.ignore_patterns(".*", "build", "*.egg-info", "node_modules")
#: Runs of one mutant: each of the rules is missed by some of them.
SEEDS = "0:200"
#: pytest's, for "tests were run and some failed".
TESTS_FAILED = 1
#: A mutant that takes longer hangs (seconds).
TIMEOUT_S = 600.0


class MutationError(MillstreamError):
    """A rule is not where it was, or what should prove it does not run."""


@dataclass(frozen=True, slots=True)
class Edit:
    """One place of the product. old stands there exactly once."""

    path: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutation:
    """A rule taken out. contract: the tests of tests/contract/test_store.py that must see it, as pytest's -k; empty: runs must."""

    name: str
    edits: tuple[Edit, ...]
    contract: str = ""


INGEST, WORKER = "online_store/ingest.py", "streams/worker.py"
DECODED, PROGRESS = "online_store/sources/decoded.py", "online_store/sources/progress.py"
MEMORY, SCRIPT = "online_store/memory.py", "online_store/lua/apply.lua"
MERGE = "self._values.update(self._merged(step.deltas))"
MOVE = "guards.update({str(move.source): move.following for move in step.moves})"
#: Seen by few runs, so that every test run can afford to try them.
EVIDENT_COUNT = 3
SCRIPT_GUARD = "if not is_expected then return standing end\n"
#: On one real server is enough.
ON_A_SERVER = " and not memory and not cluster and not sentinel and not 7.0"

MUTATIONS = (
    Mutation(
        "the memory store does not compare the guard",
        (Edit(MEMORY, "if standing != [move.expected for move in step.moves]:", "if standing is None:"),),
    ),
    Mutation(
        "a batch behind a gap is taken",
        (
            Edit(WORKER, "if position == batch.start:", "if position is not None:"),
            Edit(
                DECODED,
                "if not batch.start <= start < batch.following:",
                "start = max(start, batch.start)\n    if start >= batch.following:",
            ),
            Edit(INGEST, "batch.start <= self._readings", "self._readings"),
            Edit(INGEST, "decoded.start == reading.position", "decoded.start >= reading.position"),
        ),
    ),
    Mutation(
        "the memory store moves the guard before it has checked its input",
        (
            Edit(
                MEMORY,
                f"        {MERGE}\n        {MOVE}\n",
                f"        {MOVE}\n        {MERGE}\n",
            ),
        ),
    ),
    Mutation(
        "lost writes are not noticed",
        (
            Edit(INGEST, " if guards == [move.following for move in step.moves]]", "]"),
            Edit(INGEST, "if (guards < self._readings[source].guards).any()]", "if guards is None]"),
        ),
    ),
    Mutation(
        "a batch that was under way when its source was assigned anew is taken for what follows",
        (
            Edit(INGEST, "decoded.reading is reading and decoded.start == reading.position", "reading is not None"),
            Edit(INGEST, "self._readings[source] is not reading for", "reading is None for"),
        ),
    ),
    Mutation(
        "events before the guards are not read again to know their repeats",
        (Edit(PROGRESS, "start = max(lowest - reach, 0)", "start = lowest"),),
    ),
    Mutation(
        "the script does not compare the guard",
        (Edit(SCRIPT, SCRIPT_GUARD, ""),),
        "wrong_guard_changes_nothing" + ON_A_SERVER,
    ),
    Mutation(
        "the script moves the guard before it has checked its input",
        (Edit(SCRIPT, SCRIPT_GUARD, SCRIPT_GUARD + "call('HSET', KEYS[1], unpack_all(guards))\n"),),
        "do_not_fit_change_nothing" + ON_A_SERVER,
    ),
)


def is_seen(mutation: Mutation, seeds: str = SEEDS) -> bool:
    """Whether the tests go red with a rule taken out. Raises MutationError where it was not found, or where nothing was proved."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "tree"
        shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
        for edit in mutation.edits:
            _mutate(copy, mutation.name, edit)
        return _contract_is_red(copy, mutation.contract) if mutation.contract else _runs_are_red(copy, seeds)


def _mutate(copy: Path, name: str, edit: Edit) -> None:
    path = copy / edit.path
    text = path.read_text()
    if text.count(edit.old) != 1:
        raise MutationError(
            f"mutation {name!r}: {edit.path} holds {text.count(edit.old)} times {edit.old!r}, not once. The rule was rewritten: say "
            "in tests/simulation/mutations.py how it is taken out now."
        )
    path.write_text(text.replace(edit.old, edit.new))


def _runs_are_red(copy: Path, seeds: str) -> bool:
    done = _run(copy, ["-m", "tests.simulation", "--seeds", seeds, "--json"])
    try:
        told = json.loads(done.stdout.splitlines()[-1])
    except (LookupError, ValueError) as error:
        raise MutationError(f"the runs of a mutant broke off with {done.returncode}: {done.stderr[-2_000:]}") from error
    return bool(told["runs_wrong"])


def _contract_is_red(copy: Path, chosen: str) -> bool:
    done = _run(copy, ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/contract/test_store.py", "-k", chosen])
    if done.returncode not in (0, TESTS_FAILED):
        raise MutationError(f"-k {chosen!r} of tests/contract/test_store.py ended with {done.returncode}: {done.stdout[-2_000:]}")
    return done.returncode == TESTS_FAILED and " failed" in done.stdout and " error" not in done.stdout.splitlines()[-1]


def _run(copy: Path, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    command = [sys.executable, *arguments]
    return subprocess.run(  # noqa: S603  # our own modules
        command, cwd=copy, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


def main() -> int:
    """Try every mutation. Exit code 0 if all were seen, 1 if one was not."""
    missed = 0
    for mutation in (Mutation("nothing is taken out", ()), *MUTATIONS):
        seen = is_seen(mutation)
        missed += seen != bool(mutation.edits)
        sys.stdout.write(f"{'red' if seen else 'green':6} {mutation.name}\n")
        sys.stdout.flush()
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
