"""Runs a demo: starts everything, shows it, stops everything, and returns the figures."""

import sys
import time
from pathlib import Path

from compose.demo.parts import Parts
from compose.demo.view import View
from schemas.errors import SettingsError

#: The source tree, whose tests hold the oracle: an installed package does not.
ROOT = Path(__file__).parents[2]


def run(state_dir: Path, *, data: Path | None, seed: int, live: bool) -> dict[str, object]:
    """One demo: of recorded data if a folder is given, else of the simulated feed. exit_code 1 if a record is wrong."""
    _find_oracle()
    from compose.demo import recorded, simulated  # noqa: PLC0415  # these need the oracle, the other verbs must not

    started_s = time.monotonic()
    features = "replay.kuairand:REGISTRY" if data else "schemas.features:REGISTRY"
    with View(live=live) as view:
        view.show("starting Kafka and the store", 0.0)
        with Parts(state_dir / "demo", features) as parts:
            figures = recorded.run(parts, view, data) if data else simulated.run(parts, view, seed)
    return {**figures, "seconds": round(time.monotonic() - started_s, 1), "exit_code": int(bool(figures["entities_wrong"]))}


def _find_oracle() -> None:
    """Let `tests` be imported. Raises SettingsError outside a source tree."""
    if not (ROOT / "tests" / "oracle.py").is_file():
        raise SettingsError(f"the demo checks every record against tests/oracle.py, and {ROOT} has none. Run it from a source tree.")
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
