"""An ingest worker that kills or freezes itself at a named step, when its standard input says so.

It is streams.app.run, unchanged: steps are put around the product's own seams (the store's calls, the worker's methods, Faust's
consumer and app) from outside. Each line of standard input is an order, JSON {step, nth, signal}; each line of standard output is
a note, JSON: {killed}, {frozen}, {delivered}, {stale, accepted}.
"""

import asyncio
import functools
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from online_store.ingest import Ingest
from online_store.keys import Generation
from online_store.redis import RedisStore
from online_store.store import Step
from schemas.features import REGISTRY
from schemas.topics import Batch
from streams import dead_letters
from streams.app import IngestSettings, run
from streams.transport import App, BatchConsumer
from streams.worker import Worker

#: Where a worker may be told to die: around each shard's store call, between the store and the commit, in assignment, seek and shutdown.
STEPS = (
    "before the store",
    "between shards",
    "after the store",
    "after dead letters",
    "before settling",
    "before commit",
    "after commit",
    "in assignment",
    "after assignment",
    "in the seek",
    "after the seek",
    "in shutdown",
)


@dataclass(slots=True)
class Order:
    """Send ourselves a signal when a step is reached for the nth time."""

    step: str = ""
    nth: int = 1
    signal: int = signal.SIGKILL


order = Order()


def note(**said: object) -> None:
    """Tell the harness, before anything else may happen."""
    os.write(1, json.dumps(said).encode() + b"\n")


def reach(step: str) -> bool:
    """Obey the order if it is for this step. Returns whether we were frozen, and go on as if nothing had been."""
    if not step or order.step != step:
        return False
    order.nth -= 1
    if order.nth > 0:
        return False
    frozen = order.signal == signal.SIGSTOP
    note(**{"frozen" if frozen else "killed": step})
    order.step = ""
    os.kill(os.getpid(), order.signal)
    return frozen


def put_around(owner: object, name: str, before: str = "", after: str = "") -> None:
    """Put steps before and after an asynchronous function of the product."""
    call: Callable[..., Awaitable[Any]] = getattr(owner, name)

    @functools.wraps(call)
    async def around(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  # whatever the product's function takes
        reach(before)
        answer = await call(*args, **kwargs)
        reach(after)
        return answer

    setattr(owner, name, around)


class ChaosStore(RedisStore):
    """The store, with steps around each shard's call; a worker that wakes up in one says whether its stale write was taken."""

    async def apply(self, generation: Generation, steps: Sequence[Step]) -> list[list[int]]:
        """As RedisStore.apply; shard by shard if the order is for a place between them."""
        frozen = reach("before the store")
        if order.step == "between shards":
            answers = []
            for step in steps:
                answers += await super().apply(generation, [step])
                frozen = reach("between shards") or frozen
        elif frozen:
            answers = await self._apply_stale(generation, steps)
        else:
            answers = await super().apply(generation, steps)
        reach("after the store")
        return answers

    async def _apply_stale(self, generation: Generation, steps: Sequence[Step]) -> list[list[int]]:
        before = await self._standing(generation, steps)
        answers = await super().apply(generation, steps)
        after = await self._standing(generation, steps)
        stale = before != np.array([move.expected for step in steps for move in step.moves])
        note(stale=int(stale.sum()), accepted=int((after < before).sum()))
        return answers

    async def _standing(self, generation: Generation, steps: Sequence[Step]) -> NDArray[np.int64]:
        """Where the guards that steps move stand, int64 [moves]."""
        moves = [(move.source, step.shard) for step in steps for move in step.moves]
        sources = list(dict.fromkeys(source for source, _ in moves))
        found = await self.guards(generation, sources)
        return np.array([found[sources.index(source), shard] for source, shard in moves], np.int64)


def take_orders() -> None:
    """Read orders until standard input closes."""
    global order  # noqa: PLW0603  # one process, one order
    for line in sys.stdin:
        order = Order(**json.loads(line))


def note_deliveries() -> None:
    """Say of every batch how many records it held: what was delivered again is found by adding up."""
    decode = Ingest.decode

    def counted(ingest: Ingest, batch: Batch) -> Any:  # noqa: ANN401  # the product's own
        note(delivered=len(batch.records))
        return decode(ingest, batch)

    setattr(Ingest, "decode", counted)  # noqa: B010  # mypy refuses to assign a method


def put_steps() -> None:
    """Put every step around its seam."""
    put_around(dead_letters, "send", after="after dead letters")
    put_around(Ingest, "settle", before="before settling")
    put_around(BatchConsumer, "force_commit", before="before commit", after="after commit")
    put_around(Worker, "assign", before="in assignment", after="after assignment")
    put_around(BatchConsumer, "perform_seek", before="in the seek", after="after the seek")
    put_around(App, "on_stop", before="in shutdown")
    note_deliveries()


async def main(settings: IngestSettings, store_url: str) -> int:
    """Ingest until told to stop."""
    return await run(settings, ChaosStore(store_url, REGISTRY), REGISTRY)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    threading.Thread(target=take_orders, daemon=True).start()
    put_steps()
    sys.exit(asyncio.run(main(IngestSettings(**json.loads(sys.argv[1])), sys.argv[2])))
