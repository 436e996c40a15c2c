"""Results of benchmarks: repeated runs to medians, tables for people, one JSON object for everything else."""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import described

FOLDER = Path(__file__).parent / "results"
#: Fewer runs have no spread worth the name.
RUNS_COUNT = 3

Result = dict[str, Any]

console = Console(stderr=True)


def parser(about: str) -> argparse.ArgumentParser:
    """The flags that every benchmark has."""
    flags = argparse.ArgumentParser(description=about)
    flags.add_argument("--runs", type=int, default=RUNS_COUNT, help="of each row (default: %(default)s)")
    flags.add_argument("--seed", type=int, default=1, help="of the feed")
    flags.add_argument("--json", action="store_true", help="print the JSON object only")
    flags.add_argument("--save", action="store_true", help=f"write it to {FOLDER.parent.name}/{FOLDER.name} as well")
    return flags


def repeated(title: str, runs_count: int, once: Callable[[], Result], shown: str) -> Result:
    """The summary of so many runs; says `shown` of each as it ends."""
    runs: list[Result] = []
    while len(runs) < runs_count:
        runs.append(once())
        console.print(f"{title} {len(runs)}/{runs_count}: {shown.replace('_', ' ')} {runs[-1][shown]:,}", highlight=False)
    return summary(runs)


def summary(runs: Sequence[Result]) -> Result:
    """Median, least and most of every number of several runs; what is no number, as the last run said it."""
    found: Result = {"runs": len(runs)}
    for name, value in runs[-1].items():
        numbers = [run[name] for run in runs]
        if isinstance(value, int | float):
            found[name] = {"median": statistics.median(numbers), "min": min(numbers), "max": max(numbers)}
        else:
            found[name] = value
    return found


def publish(
    name: str,
    arguments: argparse.Namespace,
    rows: dict[str, Result],
    notes: Sequence[str],
    columns: Sequence[str],
    **more: Any,  # noqa: ANN401  # JSON
) -> None:
    """Print a table for people and the JSON object as the last line of stdout; write it to a file if asked. columns: of the table."""
    result = {
        "benchmark": name,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": described(),
        "arguments": {key: value for key, value in vars(arguments).items() if key not in ("json", "save")},
        "notes": list(notes),
        **more,
        "rows": rows,
    }
    if not arguments.json:
        console.print(_table(name, rows, columns))
        for note in notes:
            console.print(f"- {note}", highlight=False)
    if arguments.save:
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    sys.stdout.write(json.dumps(result) + "\n")


def _table(name: str, rows: dict[str, Result], columns: Sequence[str]) -> Table:
    """Medians with their spread, a column a number."""
    table = Table("", *(column.replace("_", " ") for column in columns), title=name)
    for title, row in rows.items():
        table.add_row(title, *(_cell(row.get(column)) for column in columns))
    return table


def _cell(value: Any) -> str:  # noqa: ANN401  # JSON
    if not isinstance(value, dict):
        return "" if value is None else str(value)
    return f"{value['median']:,}\n[dim]{value['min']:,} - {value['max']:,}[/dim]"
