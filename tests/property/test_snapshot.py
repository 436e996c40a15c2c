"""A snapshot is a dictionary on disk."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from online_store.keys import Entity, entity_key
from online_store.snapshot import file as snapshots
from online_store.snapshot.file import Made, hashes_of
from schemas.features import REGISTRY

IDS = st.text(max_size=4).filter(lambda text: text.isprintable())
ENTITIES = st.builds(Entity, st.sampled_from(["", "acme"]), st.just("item"), IDS)
RECORDS = st.dictionaries(ENTITIES, st.binary(max_size=40), max_size=12)
#: How many hashes there are: with one or three of them nearly all keys collide.
HASHES = st.sampled_from([1, 3, 2**64])


def hashes_out_of(count: int) -> Callable[[Sequence[bytes]], NDArray[np.uint64]]:
    """hashes_of, with so few hashes that keys collide."""
    return lambda keys: hashes_of(keys) % np.uint64(count) if count < 2**64 else hashes_of(keys)


def written(folder: Path, records: dict[Entity, bytes], batch_count: int) -> snapshots.Snapshot:
    """A snapshot of these records, in batches of so many."""
    keys = {entity_key(entity): record for entity, record in records.items()}
    order = np.argsort(snapshots.hashes_of(list(keys)))
    rows = [list(keys.items())[place] for place in order.tolist()]
    with snapshots.writing(folder / "items.arrow", Made("g1", REGISTRY.fingerprint, 0)) as write:
        for at in range(0, len(rows), batch_count):
            write(*map(list, zip(*rows[at : at + batch_count], strict=True)))
    return snapshots.load(folder / "items.arrow", REGISTRY)


@given(RECORDS, st.lists(ENTITIES, max_size=6), HASHES, st.integers(1, 5))
def test_a_look_up_is_that_of_a_dictionary(records: dict[Entity, bytes], others: list[Entity], hashes: int, batch_count: int) -> None:
    """Of what is there and what is not, asked twice over, with few hashes or many, in one batch or more."""
    asked = [*records, *others, *records]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshots, "hashes_of", hashes_out_of(hashes))
        found = written(Path(folder), records, batch_count).look_up(asked)

    assert found == [records.get(entity) for entity in asked]
