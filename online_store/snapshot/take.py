"""Takes a snapshot of a store that goes on working: its items' keys first, then their records in the order of the file."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from online_store.keys import entity_key, entity_of
from online_store.snapshot.file import Made, hashes_of, writing
from online_store.store import OnlineStore
from schemas.aggregates import ITEM
from schemas.errors import GenerationError
from schemas.features import Registry

#: Keys that one call reads: 0.7 ms of the store's one thread, which rank requests wait for; fewer cost more round trips.
READ_COUNT = 500
#: Records of a batch of the file, which is held in memory (some 30 MB) until it is written. A look-up takes from each batch by itself.
BATCH_COUNT = 65_536


async def take(store: OnlineStore, registry: Registry, file: Path, made_at_ms: int, shown: Callable[[int, int], None]) -> int:
    """Write the current generation's items to a file and return how many; what expires meanwhile is left out.

    shown: told how many of how many keys were read. Raises StoreError, GenerationError without a generation of our registry, and
    SettingsError for a file that cannot be written.
    """
    generation = await store.current()
    if generation is None or generation.feature_version != registry.fingerprint:
        raise GenerationError(f"the current generation is {generation}: none of registry {registry.fingerprint}. Fill the store first.")
    keys = [key async for key in store.records(generation, ITEM)]
    order = np.argsort(hashes_of(entity_key(entity_of(key)) for key in keys))
    count = 0
    with writing(file, Made(generation.name, generation.feature_version, made_at_ms)) as write:
        for at in range(0, len(keys), BATCH_COUNT):
            batch = [keys[place] for place in order[at : at + BATCH_COUNT].tolist()]
            records = await _read(store, batch)
            write([entity_key(entity_of(key)) for key in records], list(records.values()))
            count += len(records)
            shown(at + len(batch), len(keys))
    return count


async def _read(store: OnlineStore, keys: Sequence[bytes]) -> dict[bytes, bytes]:
    """The records that are still there, by key, in the order of keys."""
    found: dict[bytes, bytes] = {}
    for at in range(0, len(keys), READ_COUNT):
        page = keys[at : at + READ_COUNT]
        found |= {key: record for key, record in zip(page, await store.read(page), strict=True) if record is not None}
    return found
