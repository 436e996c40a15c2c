"""Runs a demo: starts everything, shows it, stops everything, and returns the figures."""

import time
from pathlib import Path

from compose.demo import recorded, simulated
from compose.demo.parts import Parts
from compose.demo.view import View


def run(state_dir: Path, *, data: Path | None, seed: int, live: bool) -> dict[str, object]:
    """One demo: of recorded data if a folder is given, else of the simulated feed. exit_code 1 if a record is wrong."""
    started_s = time.monotonic()
    features = "replay.kuairand:REGISTRY" if data else "schemas.features:REGISTRY"
    with View(live=live) as view:
        view.show("starting Kafka and the store", 0.0)
        with Parts(state_dir / "demo", features) as parts:
            figures = recorded.run(parts, view, data) if data else simulated.run(parts, view, seed)
    return {**figures, "seconds": round(time.monotonic() - started_s, 1), "exit_code": int(bool(figures["entities_wrong"]))}
