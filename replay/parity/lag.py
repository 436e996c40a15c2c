"""Whether a difference between two generations is lag: one of them has applied events that the other has not yet.

The second is read between two readings of the first, and guards are waited for, so that

    what the first had applied when it was read  <=  what the second had  <=  what the first had when it was read again

Counters only grow with what was applied, and a static field has a value of before or of after: what the second says must lie between what
the first says before and after. Where it does, the difference is lag; where it does not, no event that is under way explains it.
"""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from replay.parity.side import Ints, Reader, Said
from replay.parity.tally import Floats, differences
from schemas.topics import Source

#: How long one generation is waited for until it has applied what the other had (seconds). A follower is behind by less than one; longer
#: only puts off saying that it does not follow.
PATIENCE_S = 10.0
#: How often it is asked meanwhile (seconds): guards of shards that nothing happens in follow four times a second.
POLL_S = 0.1

Bools = NDArray[np.bool_]


class Look(NamedTuple):
    """A second look at n entities. apart: float64 [n, features], 0 where lag explains it.

    settled: bool [n], False where a generation did not get to where the other was. missing, extra: bool [n], who has no record in the
    second, in the first, and no lag explains that.
    """

    first: Said
    second: Said
    apart: NDArray[np.float64]
    settled: Bools
    missing: Bools
    extra: Bools


async def look_again(first: Reader, second: Reader, keys: Sequence[bytes], sources: Sequence[Source]) -> Look:
    """Read entities from both. keys: of their records in the first. sources: all that both are made from."""
    there = [second.key(key) for key in keys]
    shards, shards_there = first.shards(keys), second.shards(keys)
    before = await first.read(keys)
    settled = await _reached(second, sources, shards_there, await first.guards(sources, shards))
    found = await second.read(there)
    settled &= await _reached(first, sources, shards, await second.guards(sources, shards_there))
    after = await first.read(keys)
    apart = differences(after.values, found.values)
    apart[explained(first, second, before, found, after)] = 0.0
    return Look(
        after,
        found,
        apart,
        settled,
        before.present & after.present & ~found.present,
        ~before.present & ~after.present & found.present,
    )


async def _reached(side: Reader, sources: Sequence[Source], shards: Ints, wanted: Ints) -> Bools:
    """Wait until a generation has applied what is wanted, int64 [sources, n]; of whom it has, bool [n]."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + PATIENCE_S
    while True:
        reached: Bools = np.all(await side.guards(sources, shards) >= wanted, axis=0)
        if reached.all() or loop.time() > until_s:
            return reached
        await asyncio.sleep(POLL_S)


def explained(first: Reader, second: Reader, before: Said, found: Said, after: Said) -> Bools:
    """Which features of whom lie between what the first said before and after, bool [n, features]."""
    found_so = _between(before.values, found.values, after.values)
    consents = [said.tiles.is_personalized for said in (before, found, after)]
    has_consent = (consents[1] == consents[0]) | (consents[1] == consents[2])
    for place, (ours, theirs) in enumerate(zip(first.features, second.features, strict=True)):
        if ours.window and theirs.window and ours == theirs:
            counts = (first.counts(before, ours.window), second.counts(found, theirs.window), first.counts(after, ours.window))
            found_so[:, place] |= _between(*counts).all(axis=1) & has_consent
    return found_so


def _between(low: Floats | Ints, found: Floats | Ints, high: Floats | Ints) -> Bools:
    """Where a value is as before, as after, or between them; anything, where there was nothing before, or after."""
    within: Bools = (np.minimum(low, high) <= found) & (found <= np.maximum(low, high))
    nothing = np.isnan(low), np.isnan(high)
    found_so: Bools = within | (nothing[0] != nothing[1]) | (nothing[0] & nothing[1] & np.isnan(found))
    return found_so
