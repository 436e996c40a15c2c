"""How the vectors of the same entities differ in two generations, feature by feature."""

import heapq
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from online_store.keys import entity_of
from schemas.features import Feature, Registry

Floats = NDArray[np.float32]
#: Entities that a report names of each feature, those that are furthest off. More would not tell more.
WORST_COUNT = 10


class Shared(NamedTuple):
    """A feature that both registries have by that name. Where they define it differently nobody expects the same of both."""

    first: Feature
    second: Feature

    @property
    def is_same(self) -> bool:
        """Whether both define it alike."""
        return self.first == self.second


class Worst(NamedTuple):
    """One entity that differs. difference: relative, infinite where only one of them has the feature."""

    difference: float
    key: bytes
    first: float
    second: float


def shared_of(first: Registry, second: Registry, kind: str) -> list[Shared]:
    """The features of a kind that both have by name, as the first orders them."""
    there = {feature.name: feature for feature in second.features if feature.kind == kind}
    return [Shared(one, there[one.name]) for one in first.features if one.kind == kind and one.name in there]


def differences(first: Floats, second: Floats) -> NDArray[np.float64]:
    """How far values are apart, as a share of the larger: 0 where equal or both missing, infinite where one is."""
    size = np.fmax(np.abs(first), np.abs(second)).astype(np.float64)
    apart = np.abs(first.astype(np.float64) - second)
    found = np.divide(apart, size, out=np.zeros_like(size), where=size > 0)
    found[np.isnan(first) != np.isnan(second)] = np.inf
    return np.nan_to_num(found, nan=0.0, posinf=np.inf)


class Tally:
    """What was found of the features of one kind."""

    def __init__(self, shared: Sequence[Shared], tolerance: float) -> None:
        """Nothing was compared yet. tolerance: the relative difference up to which values are taken for the same."""
        self.shared = shared
        self.tolerance = tolerance
        self.is_same = np.array([one.is_same for one in shared], np.bool_)
        self.compared, self.mismatch, self.missing, self.extra = np.zeros((4, len(shared)), np.int64)
        self.sum, self.worst = np.zeros((2, len(shared)))
        self._worst: list[list[Worst]] = [[] for _ in shared]

    def add(self, keys: Sequence[bytes], first: Floats, second: Floats, apart: NDArray[np.float64]) -> None:
        """Count entities. keys: of their records; first, second: float32 [n, features]; apart: their `differences`, 0 where explained."""
        here, there = ~np.isnan(first), ~np.isnan(second)
        one_sided = np.isinf(apart)
        self.compared += (here & there).sum(0)
        self.missing += (one_sided & here).sum(0)
        self.extra += (one_sided & there).sum(0)
        self.mismatch += (~one_sided & (apart > self.tolerance)).sum(0)
        finite = np.where(one_sided, 0.0, apart)
        self.sum += finite.sum(0)
        self.worst = np.maximum(self.worst, finite.max(0, initial=0.0))
        for place in np.flatnonzero((apart > self.tolerance).any(0)).tolist():
            self._keep(place, keys, first[:, place], second[:, place], apart[:, place])

    def _keep(self, place: int, keys: Sequence[bytes], first: Floats, second: Floats, apart: NDArray[np.float64]) -> None:
        rows = np.argsort(-apart, kind="stable")[:WORST_COUNT]
        found = [Worst(float(apart[row]), keys[row], float(first[row]), float(second[row])) for row in rows if apart[row] > self.tolerance]
        self._worst[place] = heapq.nlargest(WORST_COUNT, self._worst[place] + found, key=lambda one: one.difference)

    @property
    def is_within(self) -> bool:
        """Whether every feature that both define alike is the same everywhere."""
        return not (self.mismatch + self.missing + self.extra)[self.is_same].any()

    def lines(self) -> list[dict[str, Any]]:
        """One line a feature, ready for JSON."""
        return [self._line(place, one) for place, one in enumerate(self.shared)]

    def _line(self, place: int, one: Shared) -> dict[str, Any]:
        compared = int(self.compared[place])
        return {
            "name": one.first.name,
            "kind": one.first.kind,
            "same_definition": one.is_same,
            "compared": compared,
            "mismatch": int(self.mismatch[place]),
            "missing": int(self.missing[place]),
            "extra": int(self.extra[place]),
            "difference_worst": float(self.worst[place]),
            "difference_mean": float(self.sum[place]) / compared if compared else 0.0,
            "worst": [_told(worst) for worst in self._worst[place]],
        }


def _told(worst: Worst) -> dict[str, Any]:
    tenant, _, entity_id = entity_of(worst.key)
    first, second = (None if np.isnan(value) else value for value in (worst.first, worst.second))
    return {"tenant": tenant, "id": entity_id, "first": first, "second": second}
