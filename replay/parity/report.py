"""What a comparison of two generations found: a file for programs, `g3-g4.json`, and a page for people beside it, `g3-g4.html`."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from replay.parity.compare import Comparison, Question
from replay.parity.page import page
from replay.parity.side import Side
from replay.parity.tally import Tally
from schemas.errors import SettingsError

Report = dict[str, Any]


def report(
    first: Side, second: Side, question: Question, made_at_ms: int, found: Sequence[Comparison], logged: Sequence[Tally] = ()
) -> Report:
    """What was found, ready for JSON. made_at_ms: when the comparison ended. logged: what a sample of the second was against the log."""
    shared = {one.first.name for comparison in found for one in comparison.tally.shared}
    only = [sorted({feature.name for feature in side.registry.features} - shared) for side in (first, second)]
    return {
        "first": first.generation.name,
        "second": second.generation.name,
        "passed": all(one.is_within for one in found) and all(tally.is_within for tally in logged),
        "as_of_ms": question.as_of_ms,
        "made_at_ms": made_at_ms,
        "tolerance": question.tolerance,
        "sample": question.sample,
        "entities": [asdict(comparison.entities) for comparison in found],
        "features": [line for comparison in found for line in comparison.tally.lines()],
        "against_log": [line for tally in logged for line in tally.lines()],
        "only_in_first": only[0],
        "only_in_second": only[1],
    }


def save(folder: Path, said: Report) -> Path:
    """Write both files; returns the JSON's. Raises SettingsError where that is not possible."""
    file = folder / f"{said['first']}-{said['second']}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in ((file, json.dumps(said, indent=1)), (file.with_suffix(".html"), page(said))):
            path.with_suffix(".part").write_text(text)
            path.with_suffix(".part").replace(path)
    except OSError as error:
        raise SettingsError(f"{file} cannot be written: {error}. Set state_dir to a folder that we may write to.") from error
    return file
