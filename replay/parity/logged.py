"""A sample of one generation's entities against the log itself: recomputed from their own events, without a store, deltas or rings.

Guards are read before and after the records. What the log says at the one and at the other holds what the record may say; the log is read
last, so it has all that the generation had.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from online_store.keys import entity_key, entity_of
from online_store.store import OnlineStore
from replay import past
from replay.log import ReadableLog
from replay.parity.compare import Question
from replay.parity.lag import explained
from replay.parity.side import Ints, Reader, Said, Side
from replay.parity.tally import Tally, differences, shared_of
from replay.past import Past
from schemas.aggregates import ITEM, USER, Tiles
from schemas.topics import Source


@dataclass
class Drawn:
    """Entities of one kind with what a generation said of them, between two readings of its guards, int64 [sources, n]."""

    reader: Reader
    keys: list[bytes]
    said: Said
    before: Ints
    after: Ints


async def draw(store: OnlineStore, side: Side, question: Question, count: int) -> list[Drawn]:
    """So many users and items of a generation, those with the lowest hashes, as they are now."""
    found = []
    for kind in (USER, ITEM):
        if kind in side.registry.kinds:
            features = tuple(one.first for one in shared_of(side.registry, side.registry, kind))
            reader = Reader(store, side, kind, features, question.as_of_ms)
            keys = await _lowest(reader, count)
            before = await reader.guards(question.sources, reader.shards(keys))
            said = await reader.read(keys)
            found.append(Drawn(reader, keys, said, before, await reader.guards(question.sources, reader.shards(keys))))
    return found


async def _lowest(reader: Reader, count: int) -> list[bytes]:
    drawn: list[tuple[int, bytes]] = []
    async for key in reader.everybody():
        drawn.append((xxhash.xxh3_64_intdigest(entity_key(entity_of(key))), key))
        if len(drawn) > 10 * count:
            drawn = sorted(drawn)[:count]
    return [key for _, key in sorted(drawn)[:count]]


def against(log: ReadableLog, drawn: Sequence[Drawn], question: Question, repeat_offsets: int) -> list[Tally]:
    """How each kind differs from what the log says: the log's values are the first of each pair."""
    wanted = {one.reader.kind: {entity_of(key)[::2] for key in one.keys} for one in drawn}
    pasts = past.read(log, drawn[0].reader.side.registry, wanted, repeat_offsets)
    return [_tally(pasts[one.reader.kind], one, question) for one in drawn]


def _tally(known: Past, drawn: Drawn, question: Question) -> Tally:
    reader = drawn.reader
    low, high = (_logged(known, reader, drawn.keys, question.sources, guards) for guards in (drawn.before, drawn.after))
    apart = differences(high.values, drawn.said.values)
    apart[explained(reader, reader, low, drawn.said, high)] = 0.0
    tally = Tally(shared_of(reader.side.registry, reader.side.registry, reader.kind), question.tolerance)
    tally.add(drawn.keys, high.values, drawn.said.values, apart)
    return tally


def _logged(known: Past, reader: Reader, keys: Sequence[bytes], sources: Sequence[Source], guards: Ints) -> Said:
    """What the log says of entities up to guards, int64 [sources, n]."""
    places = [sources.index(source) for source in known.sources]
    moment = np.array([reader.as_of_ms], np.int64)
    tiles = [known.tiles(entity_of(key)[::2], guards[places, row][None], moment) for row, key in enumerate(keys)]
    return reader.said([None] * len(keys), _joined(tiles), np.ones(len(keys), np.bool_))


def _joined(tiles: Sequence[Tiles]) -> Tiles:
    """One entity after the other."""
    statics = {name: np.concatenate([one.statics[name] for one in tiles]) for name in tiles[0].statics}
    numbers = (np.concatenate([getattr(one, name) for one in tiles]) for name in ("counts", "last_active_ms", "known", "removed", "exact"))
    counts, *rest = numbers
    return Tiles(counts, statics, *rest)
