"""Records that the caller merges are the ones that the store would have made, byte for byte."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from online_store.bulk.merging import merged
from online_store.deltas import Deltas
from online_store.record import merge
from schemas.errors import StoreError
from tests.contract.test_store import LAYOUTS, impressions, random_deltas

KINDS = list(LAYOUTS.values())


@given(seed=st.integers(0, 2**32), batches=st.integers(1, 6))
def test_many_records_are_merged_as_one_is(seed: int, batches: int) -> None:
    """Late and early rows, content of several ages and tombstones, onto what stood before: `merge` says of one what this does to all."""
    random, standing = Random(seed), dict[bytes, bytes]()
    for _ in range(batches):
        deltas = random_deltas(random, 20)
        raws = [standing.get(key) for key in deltas.keys]
        found = merged(KINDS, deltas, raws)
        for place, kind in enumerate(deltas.kinds):
            sections = [section for number, section in deltas.sections if number == place]
            standing[deltas.keys[place]] = merge(KINDS[kind], raws[place], deltas.rows[deltas.rows["key"] == place], sections)
        assert found == [standing[key] for key in deltas.keys]


@pytest.mark.parametrize("raw", [b"", b"\1short", b"\1" + KINDS[0].blank[1:], KINDS[0].blank + b"\0", KINDS[0].blank[:-1]])
def test_bytes_that_are_no_record_are_told(raw: bytes) -> None:
    """Of all records of a call one is of another registry or version."""
    deltas = impressions("a", "b")
    both = Deltas(deltas.keys, bytes([0, 0]), deltas.rows, [])

    with pytest.raises(StoreError, match="written for another registry"):
        merged(KINDS, both, [None, raw])
