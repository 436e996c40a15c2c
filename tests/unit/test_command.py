"""`millstream` as a process."""

import os
import subprocess
import sys

import pytest

from compose.processes import NICENESS
from compose.verbs import VERBS

#: Runs the command in an interpreter of its own, for a process cannot take back how far it gives way.
RUN = """
import os, sys
from compose.processes import command
try:
    command()
except SystemExit:
    print("niceness", os.nice(0) - int(os.environ["BEFORE"]), "imported", "compose.cli" in sys.modules)
"""


@pytest.mark.parametrize(("words", "niceness"), [(["serve"], 0), (["ingest"], 5), (["replay", "rebuild"], 10), ([], 0)])
def test_a_verb_gives_way_as_far_as_it_may(words: list[str], niceness: int) -> None:
    """Requests have a deadline; live events come before the past."""
    environment = os.environ | {"BEFORE": str(os.nice(0))}
    command = [sys.executable, "-c", RUN, *words, "--help"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)  # noqa: S603  # ours

    assert said.stdout.splitlines()[-1] == f"niceness {niceness} imported True"


def test_what_gives_way_is_a_verb() -> None:
    """Or a family of verbs."""
    assert set(NICENESS) <= {name.split()[0] for name in VERBS}
