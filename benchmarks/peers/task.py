"""What every peer is told and must tell: which topics, how many events, and how long they took.

Times begin with the first event that an engine hands over, so starting up is free; processor time is that of the whole process.
"""

import io
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastavro
from fastavro.schema import fingerprint, to_parsing_canonical_form

SCHEMAS = Path(__file__).parents[2] / "schemas" / "avro"
#: Bytes before an Avro body: C3 01 and the fingerprint.
PREFIX_BYTES = 10
#: The rolling window that stateful peers keep of each item, and how often a new one begins (milliseconds).
SPAN_MS, HOP_MS = 3_600_000, 10_000


def _parsed(name: str) -> tuple[bytes, Any]:
    raw = json.loads((SCHEMAS / name).read_text())
    for one in raw["fields"]:
        if isinstance(one["type"], dict):
            one["type"].pop("logicalType", None)
    return bytes.fromhex(fingerprint(to_parsing_canonical_form(raw), "CRC-64-AVRO")), fastavro.parse_schema(raw)


BY_FINGERPRINT = dict(map(_parsed, ("impression.v1.avsc", "click.v1.avsc")))


def decode(value: bytes) -> dict[str, Any]:
    """One event's fields."""
    found: Any = fastavro.schemaless_reader(io.BytesIO(value[PREFIX_BYTES:]), BY_FINGERPRINT[value[2:PREFIX_BYTES]], None)
    return dict(found)


@dataclass(slots=True)
class Task:
    """events: how many there are, or how many of them to take. variant: which of a peer's programs to run. folder: for its state."""

    bootstrap: str
    topics: list[str]
    events: int
    variant: str
    folder: str
    seen: int = 0
    begun_s: float = field(default=0.0)
    begun_cpu_s: float = field(default=0.0)

    def begin(self) -> None:
        """The first event is there; later calls change nothing."""
        if not self.begun_s:
            self.begun_s, self.begun_cpu_s = time.perf_counter(), time.process_time()

    def saw(self, count: int = 1) -> bool:
        """Note events as processed. Returns whether those were the last."""
        self.begin()
        self.seen += count
        return self.seen >= self.events

    def tell(self, **more: Any) -> None:  # noqa: ANN401  # JSON
        """Print the result."""
        wall_s, cpu_s = time.perf_counter() - self.begun_s, time.process_time() - self.begun_cpu_s
        result = {
            "events": self.seen,
            "wall_s": round(wall_s, 3),
            "events_per_s": round(self.seen / wall_s),
            "events_per_cpu_s": round(self.seen / cpu_s),
            "rss_mb_max": _rss_mb_max(),
            **more,
        }
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()


def _rss_mb_max() -> float:
    """The most memory that this program held, MiB. What getrusage says begins with the memory of whoever started it."""
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return round(int(peak.split()[1]) / 1024, 1)


def told() -> Task:
    """The task on the command line."""
    return Task(**json.loads(sys.argv[1]))
