"""`python -m benchmarks.snapshot`: how long looking up items in a snapshot of a million takes, without a store."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from benchmarks import results
from online_store.keys import Entity, entity_key
from online_store.record import layouts
from online_store.snapshot.file import Made, hashes_of, load, writing
from online_store.snapshot.take import BATCH_COUNT
from schemas.aggregates import ITEM
from schemas.features import REGISTRY

#: What a request asks for at most.
CANDIDATES_COUNT = 200
#: Look-ups of a run: the 99th percentile is then the twentieth slowest.
LOOK_UPS_COUNT = 2_000
#: Look-ups before the first that counts: the file's pages are in memory then.
WARM_COUNT = 5_000
#: What an item of two weeks' traffic takes, bytes (benchmarks/results/memory.json).
RECORD_BYTES = 416
NOTES = (
    f"{CANDIDATES_COUNT} items drawn at random, all there, each look-up other ones; the file is in memory.",
    "cpu_ms: the processor's own time, which a neighbour on this machine does not lengthen.",
    "thread: handed to a thread and waited for, as the ranker does.",
)
COLUMNS = ("load_ms", "ms_p50", "ms_p99", "cpu_ms_p99", "thread_ms_p50", "thread_ms_p99")


def main(argv: Sequence[str] | None = None) -> int:
    """Write a file, look into it."""
    flags = results.parser(__doc__)
    flags.add_argument("--items", type=int, default=1_000_000, help="in the file (default: %(default)s)")
    arguments = flags.parse_args(argv)
    random = np.random.default_rng(arguments.seed)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "items.arrow"
        _write(file, arguments.items)
        title = f"{arguments.items:,} items"
        row = results.repeated(title, arguments.runs, lambda: _once(file, arguments.items, random), "ms_p99")
    results.publish("snapshot", arguments, {title: row}, NOTES, COLUMNS)
    return 0


def _write(file: Path, count: int) -> None:
    blank = layouts(REGISTRY)[ITEM].blank
    keys = [entity_key(entity) for entity in _items(range(count))]
    order = np.argsort(hashes_of(keys)).tolist()
    with writing(file, Made("g1", REGISTRY.fingerprint, 0)) as write:
        for at in range(0, count, BATCH_COUNT):
            batch = [keys[place] for place in order[at : at + BATCH_COUNT]]
            write(batch, [blank.ljust(RECORD_BYTES, b"\0")] * len(batch))


def _once(file: Path, count: int, random: np.random.Generator) -> results.Result:
    began_s = time.perf_counter()
    snapshot = load(file, REGISTRY)
    load_ms = (time.perf_counter() - began_s) * 1000
    for wanted in _drawn(count, random, WARM_COUNT):
        snapshot.look_up(wanted)
    with ThreadPoolExecutor(1) as thread:
        here_ms, cpu_ms = _timed(snapshot.look_up, _drawn(count, random))
        there_ms, _ = _timed(lambda wanted: thread.submit(snapshot.look_up, wanted).result(), _drawn(count, random))
    return {"load_ms": round(load_ms, 1), **_quantiles("", here_ms), **_quantiles("cpu_", cpu_ms), **_quantiles("thread_", there_ms)}


def _timed(look_up: Callable[[list[Entity]], list[bytes | None]], drawn: Iterator[list[Entity]]) -> NDArray[np.float64]:
    """How long each took, by the clock and by the processor: milliseconds [2, n]."""
    took_s: list[tuple[float, float]] = []
    for wanted in drawn:
        began_s = time.perf_counter(), time.thread_time()
        found = look_up(wanted)
        took_s.append((time.perf_counter() - began_s[0], time.thread_time() - began_s[1]))
        assert None not in found, "a look-up that finds nothing is cheaper"
    return np.array(took_s).T * 1000


def _drawn(count: int, random: np.random.Generator, times: int = LOOK_UPS_COUNT) -> Iterator[list[Entity]]:
    """Items at random, so many times."""
    for _ in range(times):
        yield _items(random.integers(0, count, CANDIDATES_COUNT).tolist())


def _items(numbers: Iterable[int]) -> list[Entity]:
    return [Entity("", ITEM, f"item-{number:09d}") for number in numbers]


def _quantiles(name: str, took_ms: NDArray[np.float64]) -> results.Result:
    return {f"{name}ms_p{of}": round(float(np.percentile(took_ms, of)), 3) for of in (50, 99)}


if __name__ == "__main__":
    sys.exit(main())
