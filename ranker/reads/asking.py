"""Records of the store for who can wait for so long and no longer; what comes later is not lost.

From the answer on a socket to who waits for it there are two turns of the event loop. Each turn more is as long as all that is done in it,
which beside hundreds of requests is more than a store takes.
"""

import asyncio
import random
from collections.abc import Callable, Sequence

from online_store.store import OnlineStore
from ranker.reads.breaker import PAUSE_S_MAX
from schemas.errors import StoreAwayError, StoreError

#: A read that lost its connection is tried once more, after up to this (milliseconds): a restart closed it, and the next may hold.
RETRY_MS_MAX = 3
#: How long past its time a call may go on for nobody (seconds), a read for the near cache alone: as long as a store is left alone at most,
#: so that few do at once. Without it a store that is slow would be asked for the same again, and nothing of it would ever be near.
LATE_S = PAUSE_S_MAX
#: How long a read whose time is over is looked at once more (seconds): where this process stood still, its answer may be here, untaken.
LOOK_AGAIN_S = 0.002

Values = list[bytes | None]


async def ask(store: OnlineStore, keys: Sequence[bytes], wait_s: float, late: Callable[[Values], None]) -> Values:
    """What stands under keys. late: takes it where it comes past its time.

    Raises TimeoutError past that time, StoreError where the store does not answer.
    """
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[Values] = loop.create_future()
    asking = loop.create_task(_answer(store, keys, answered, late))
    timer = loop.call_later(wait_s, loop.call_later, LOOK_AGAIN_S, _give_up, answered)
    try:
        return await answered
    finally:
        timer.cancel()
        if not asking.done():
            # Nobody waits for it from here on.
            loop.call_later(LATE_S, asking.cancel)
        # A failure refers to this frame: named here it would be a cycle, with all keys in it.
        del answered, asking


async def _answer(store: OnlineStore, keys: Sequence[bytes], answered: asyncio.Future[Values], late: Callable[[Values], None]) -> None:
    """Tell who waits; where nobody does any more, `late`."""
    try:
        found = await _values(store, keys)
    except StoreError as error:
        if not answered.done():
            answered.set_exception(error)
    else:
        if not answered.done():
            answered.set_result(found)
        else:
            late(found)
    finally:
        # As in `ask`.
        del answered


async def _values(store: OnlineStore, keys: Sequence[bytes]) -> Values:
    """What stands under keys, asked once more where the connection was lost at once."""
    try:
        return await store.read(keys)
    except StoreAwayError:
        await asyncio.sleep(random.uniform(0, RETRY_MS_MAX) / 1000)  # noqa: S311  # spreads load, keeps no secret
        return await store.read(keys)


def _give_up(answered: asyncio.Future[Values]) -> None:
    if not answered.done():
        answered.set_exception(TimeoutError())
