"""Replay as an operator runs it: `millstream replay ACTION`, a module for each group of actions.

Here are the arguments of those that need more memory than a worker has to spare: they are imported when they run. Polars alone is 24 MB,
and `millstream ingest` reads the arguments of every verb.
"""

from pathlib import Path
from typing import Any

from schemas.windows import ATTRIBUTION_MS

Arguments = tuple[tuple[str, dict[str, Any]], ...]

SOURCE: tuple[str, dict[str, Any]] = (
    "--source",
    {"default": "auto", "choices": ["auto", "lake", "kafka"], "help": "auto: the lake if there is one, then Kafka"},
)
PARITY: Arguments = (
    ("first", {"help": "the generation that is known to be right, for one g3"}),
    ("second", {"help": "the one to compare with it"}),
    ("--sample", {"type": float, "default": 1.0, "help": "share of the entities, the same ones in both"}),
    ("--tolerance", {"type": float, "default": 0.0, "help": "relative difference that is taken for none"}),
    (
        "--against-log",
        {"type": int, "default": 0, "metavar": "COUNT", "help": "recompute so many users and items from the log, too"},
    ),
    SOURCE,
    ("--as-of-ms", {"type": int, "help": "event time in milliseconds UTC; now if absent"}),
)
ROWS: Arguments = (
    ("file", {"type": Path, "help": "the Parquet file to write"}),
    (
        "--vectors",
        {"choices": ["telemetry", "recomputed"], "default": "telemetry", "help": "as served, or as this registry would have"},
    ),
    ("--attribution-ms", {"type": int, "default": ATTRIBUTION_MS, "help": "how long after its request an act is a label"}),
    SOURCE,
)

#: Requests that are drawn: with 100 items each, a formula that is wrong for one item in 10,000 is found. More take longer, half a minute a
#: thousand.
REQUESTS_COUNT = 1_000
VERIFY: Arguments = (
    ("--requests", {"type": int, "default": REQUESTS_COUNT, "help": "how many served requests are drawn"}),
    SOURCE,
)
