"""Places of a slate, as tests say them, and as they are encoded."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from ranker.encode import Items, Places, items
from ranker.reads.near import names_of
from ranker.slate.rules import Touch
from ranker.slate.slate import Slated


class Place(NamedTuple):
    """One place: touched as ranker.slate.rules.Touch, vector of as many numbers as the others'."""

    item_id: str
    score: float
    touched: int
    vector: tuple[float, ...]
    propensity: float


def batches(width_max: int = 50) -> st.SearchStrategy[list[list[Place]]]:
    """Slates of a batch, with any ids, scores and reasons; their vectors have up to so many numbers."""
    singles, doubles = st.floats(width=32, allow_nan=False), st.floats(allow_nan=False)
    touched = st.just(0) | st.integers(0, 2 ** len(Touch) - 1)

    def of(width: int) -> st.SearchStrategy[list[list[Place]]]:
        one = st.builds(Place, st.text(max_size=90), singles, touched, st.tuples(*[singles] * width), doubles)
        return st.lists(st.lists(one, max_size=5), min_size=1, max_size=3)

    return st.integers(0, width_max).flatmap(of)


def encoded(tenant: str, *slates: Sequence[Place]) -> list[Items]:
    """The slates of one batch, each of another tenant; a candidate of each has no place, and stands before those that have one."""
    tenants = [tenant + number * "t" for number in range(len(slates))]
    candidates = [["out", *(place.item_id for place in slate)] for slate in slates]
    places = [place for slate in slates for place in slate]
    ends = np.cumsum([len(ids) for ids in candidates])
    rows = np.concatenate([np.arange(end - len(slate), end) for end, slate in zip(ends, slates, strict=True)])
    counts, touched = np.array([len(slate) for slate in slates]), np.array([place.touched for place in places], np.int64)
    slated = Slated(rows, counts, touched, np.array([place.propensity for place in places], np.float64))
    scores = np.array([place.score for place in places], np.float32)
    vectors = np.array([place.vector for place in places], np.float32).reshape(len(places), len(places[0].vector) if places else 0)
    names, flat = names_of(list(zip(tenants, candidates, strict=True))), [item_id for ids in candidates for item_id in ids]
    return items(Places(flat, slated, scores), names, tenants, vectors)
