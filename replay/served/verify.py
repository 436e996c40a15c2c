"""Whether what was served is what the log says: logged vectors against recomputed ones, bit for bit.

Telemetry says in `store_offsets` what every record had when the slate was read, at the least: all that stands before those offsets. What
stands behind them may have been there, too, up to what was in the log when the request was answered. So a logged vector is

    equal      to what stands before the offsets: no bit differs
    lag        what some position of the log behind them gives, or, of an item, a moment up to NEAR_MS away, for it was near
    skew       neither: the ranker computed something else than this registry does
    undecided  not found, but there were more positions than were tried
"""

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from replay import past
from replay.log import ReadableLog
from replay.past import Past, names_of, vectors
from replay.served.slates import decoded
from schemas.aggregates import ITEM, USER
from schemas.columnar.repeats import REPEAT_OFFSETS
from schemas.features import Registry
from schemas.records import Degraded, RankTelemetry
from schemas.topics import RANK_TELEMETRY, source_of

#: How old an entry of the ranker's near cache may be (milliseconds): ranker/reads/near.py has the same number, and a test holds them equal.
NEAR_MS = 500
#: An event that entered the log so long after a request (milliseconds) was not in its vectors: deadlines are shorter, and machines' clocks
#: are no further apart. Shorter calls lag of a slow clock skew; longer tries more positions.
ANSWERED_MS = 10_000
#: Positions of the log that are tried for one record. More than that were under way at once only in a store that was far behind.
POSITIONS_MAX = 2_000
#: Differences of each feature that are shown.
SHOWN_COUNT = 10

VERDICTS = ("equal", "lag", "skew", "undecided")
Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class Told(NamedTuple):
    """A request's telemetry, and the Kafka timestamp of its record."""

    telemetry: RankTelemetry
    timestamp: int


@dataclass
class Verdicts:
    """How many vectors were found how, by feature, and examples of skew."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    shown: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, name: str, verdict: str, example: dict[str, Any]) -> None:
        """Count one value."""
        self.counts.setdefault(name, Counter())[verdict] += 1
        if verdict == "skew" and len(self.shown.setdefault(name, [])) < SHOWN_COUNT:
            self.shown[name].append(example)


def sample(log: ReadableLog, registry: Registry, count: int) -> tuple[list[Told], dict[str, int]]:
    """So many requests of a log, drawn by hash, and how many could not be drawn because of what."""
    left_out: Counter[str] = Counter()
    drawn: list[tuple[int, int, Told]] = []
    number = itertools.count()
    for batch in log.read(RANK_TELEMETRY):
        for record in batch.records:
            found = decoded(record.value)
            if found is None:
                continue
            if why := _unfit(found, registry):
                left_out[why] += 1
                continue
            key = -int(names_of([found.tenant], [found.request_id])[0])
            heapq.heappush(drawn, (key, next(number), Told(found, record.timestamp)))
            if len(drawn) > count:
                heapq.heappop(drawn)
    return [told for _, _, told in drawn], dict(left_out)


def _unfit(found: RankTelemetry, registry: Registry) -> str:
    """Why telemetry proves nothing; empty where it does."""
    if found.feature_version != registry.fingerprint:
        return "another_registry"
    if found.degraded != Degraded.NONE or not all(item.vector for item in found.items):
        return "degraded"
    return "" if found.store_offsets else "no_offsets"


def verify(
    log: ReadableLog, registry: Registry, told: Sequence[Told], shown: Callable[[int], None], repeat_offsets: int = REPEAT_OFFSETS
) -> Verdicts:
    """Hold the vectors of requests against the log. shown: told how many more requests were done."""
    wanted = {
        USER: {(one.telemetry.tenant, one.telemetry.user_id) for one in told},
        ITEM: {(one.telemetry.tenant, item.item_id) for one in told for item in one.telemetry.items},
    }
    pasts = past.read(log, registry, wanted, repeat_offsets)
    verdicts = Verdicts()
    for one in told:
        for kind, entity_id, vector in _records(one.telemetry):
            _judge(registry, pasts[kind], one, entity_id, np.frombuffer(vector, "<f4"), verdicts)
        shown(1)
    return verdicts


def _records(found: RankTelemetry) -> Iterator[tuple[str, str, bytes]]:
    """What was read for a request: its user once, its items."""
    if found.items:
        yield USER, found.user_id, found.items[0].vector
    for item in found.items:
        yield ITEM, item.item_id, item.vector


def _judge(registry: Registry, known: Past, told: Told, entity_id: str, vector: Floats, verdicts: Verdicts) -> None:
    """One record's part of a vector."""
    found, places = told.telemetry, registry.places[known.kind]
    name, logged = (found.tenant, entity_id), vector[places]
    low = _limits(known, found)
    here = _said(registry, known, name, low[None], found.ts_ms)
    equal = _same(here[0], logged)
    matched, is_whole = equal, True
    if not equal.all():
        limits, is_whole = _positions(known, name, low, told.timestamp + ANSWERED_MS)
        tried = _matched(registry, known, name, limits, found.ts_ms, logged)
        matched = tried[tried.sum(axis=1).argmax()]
    for column, place in enumerate(places):
        verdict = "equal" if equal[column] and matched[column] else "lag" if matched[column] else "skew" if is_whole else "undecided"
        example: dict[str, Any] = {"request_id": found.request_id, "tenant": found.tenant, "id": entity_id}
        example |= {"logged": _number(logged[column]), "recomputed": _number(here[0, column])}
        verdicts.add(registry.feature_names[place], verdict, example)


def _limits(known: Past, found: RankTelemetry) -> Ints:
    """What every record had, as offsets by source, int64 [sources]; of a source that is not named, nothing."""
    named = {source_of(name): offset for name, offset in found.store_offsets.items()}
    return np.array([named.get(source, 0) for source in known.sources], np.int64)


def _positions(known: Past, name: tuple[str, str], low: Ints, until_ms: int) -> tuple[Ints, bool]:
    """Positions of the log where the record may have been, int64 [n, sources], the lowest first, and whether these are all."""
    pending = known.pending(name, low, until_ms)
    steps = [[int(low[source]), *(offset + 1 for offset in offsets)] for source, offsets in pending.items()]
    found = list(itertools.islice(itertools.product(*steps), POSITIONS_MAX + 1))
    limits = np.repeat(low[None], min(len(found), POSITIONS_MAX), axis=0)
    limits[:, list(pending)] = np.array(found[:POSITIONS_MAX], np.int64).reshape(len(limits), len(pending))
    return limits, len(found) <= POSITIONS_MAX


def _matched(registry: Registry, known: Past, name: tuple[str, str], limits: Ints, ts_ms: int, logged: Floats) -> NDArray[np.bool_]:
    """Which features are as logged at which position, bool [n, features]; of an item, also at a moment that was near."""
    here = _said(registry, known, name, limits, ts_ms)
    if known.kind == USER:
        return _same(here, logged)
    around = [here, *(_said(registry, known, name, limits, ts_ms + off_ms) for off_ms in (-NEAR_MS, NEAR_MS))]
    least, most = np.fmin.reduce(around), np.fmax.reduce(around)
    found: NDArray[np.bool_] = _same(here, logged) | ((least <= logged) & (logged <= most))
    return found


def _said(registry: Registry, known: Past, name: tuple[str, str], limits: Ints, as_of_ms: int) -> Floats:
    """An entity's features at positions of the log, float32 [n, features]."""
    moments = np.full(len(limits), as_of_ms, np.int64)
    features = [registry.ranking[place] for place in registry.places[known.kind]]
    return vectors(registry, features, known.tiles(name, limits, moments), moments)


def _same(found: Floats, logged: Floats) -> NDArray[np.bool_]:
    """Where values are the same; missing is the same as missing."""
    same: NDArray[np.bool_] = (found == logged) | (np.isnan(found) & np.isnan(logged))
    return same


def _number(value: np.float32) -> float | None:
    return None if np.isnan(value) else float(value)


def lines(verdicts: Verdicts) -> list[dict[str, Any]]:
    """One line a feature, ready for JSON."""
    return [
        {"name": name, **{verdict: counts[verdict] for verdict in VERDICTS}, "examples": verdicts.shown.get(name, [])}
        for name, counts in verdicts.counts.items()
    ]
