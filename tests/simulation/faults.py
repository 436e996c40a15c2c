"""What goes wrong in a run, and when: drawn from its seed, nothing else."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from online_store.ingest import Ingest
from online_store.keys import Generation, Pointer
from schemas.errors import StoreAwayError
from schemas.features import REGISTRY
from schemas.topics import Source
from tests.simulation.feed import Feed
from tests.simulation.group import Group
from tests.simulation.process import MISHAPS, ROWS_MAX, Broker, Process
from tests.simulation.store import Connection, Replicas
from tests.worlds import SCHEMA_IDS

#: Steps at which a process is killed, as Process.passed names them.
KILL_STEPS = (
    "before a shard",
    "after a shard",
    "after apply",
    "before take",
    "after take",
    "in assignment",
    "in seek",
    "begin",
    "guards",
    "after guards",
    "before a dead letter",
    "after a dead letter",
)
#: Longer than STORE_PATIENCE_S of streams/worker.py: the workers give up and are started again.
AWAY_S_MAX = 75.0


@dataclass(slots=True)
class Loss:
    """Acknowledged writes that the store lost: when, and where every guard stood before."""

    at_s: float
    stood: dict[Source, int]


@dataclass(slots=True)
class World:
    """All that faults act upon, and what they did. done: each fault that happened, by its name."""

    pick: random.Random
    broker: Broker
    replicas: Replicas
    group: Group
    feed: Feed
    done: list[str] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)

    async def kill_at_a_step(self) -> None:
        """Kill -9 at a named step, the next time or a few times after that."""
        if victim := self._running():
            step = self.pick.choice(KILL_STEPS)
            victim.armed = (step, self.pick.randrange(4))
            if step in ("in assignment", "in seek", "begin", "guards", "after guards"):
                self.group.rebalance()

    async def kill(self) -> None:
        """Kill -9 wherever it is."""
        if victim := self._running():
            victim.kill()

    async def stop(self) -> None:
        """SIGSTOP for longer than the session time-out or not, then SIGCONT."""
        if victim := self._running():
            victim.stop()
            asyncio.get_running_loop().call_later(self.pick.uniform(0.2, 8.0), victim.go_on)

    async def leave(self) -> None:
        """An orderly stop, now and then killed in it."""
        if victim := self._running():
            if self.pick.random() < 0.3:
                victim.armed = ("in shutdown", 0)
            victim.spawn(victim.leave())

    async def join(self) -> None:
        """One process more."""
        if len(self.group.living()) < 5:
            self.group.start()

    async def rebalance(self) -> None:
        """Partitions move for no reason."""
        self.group.rebalance()

    async def disturb_delivery(self) -> None:
        """The next batches are lost between fetch and take, come twice, or in another order."""
        self.broker.mishaps.extend(self.pick.choices((*MISHAPS, ""), k=self.pick.randint(1, 8)))

    async def lose_writes(self) -> None:
        """A replica takes over without the last acknowledged writes, of every node or of one."""
        await self._note_loss()
        shards = None if self.pick.random() < 0.5 else [shard for shard in range(self.replicas.shards_count) if self.pick.random() < 0.5]
        self.replicas.lose(shards)
        self._maybe_rebalance()

    async def empty(self) -> None:
        """FLUSHALL."""
        await self._note_loss()
        await self.replicas.clear()
        self._maybe_rebalance()

    async def take_store_away(self) -> None:
        """One node or both do not answer for a while, now and then for longer than a worker's patience."""
        until_s = asyncio.get_running_loop().time() + self.pick.choice((0.3, 0.3, 2.0, 2.0, 2.0, 10.0, AWAY_S_MAX))
        for node in self.pick.choice(((0,), (1,), (0, 1))):
            self.replicas.away_until_s[node] = until_s

    async def refuse(self) -> None:
        """Calls fail before they were applied."""
        self.replicas.refused += self.pick.randint(1, 5)

    async def lose_answers(self) -> None:
        """Calls fail after they were applied."""
        self.replicas.unanswered += self.pick.randint(1, 5)

    async def garble(self) -> None:
        """Calls arrive incomplete."""
        self.replicas.garbled += self.pick.randint(1, 5)

    async def burst_of_poison(self) -> None:
        """Many bad records in a row."""
        self.feed.write_poison(self.pick.randint(5, 20))

    async def range_twice(self) -> None:
        """A producer sends its last records again."""
        self.feed.write_twice(self.pick.randint(1, 20))

    async def move_pointer(self) -> None:
        """A cutover or its rollback: the other generation is filled, wholly or in part, and becomes current."""
        pointer = await self.replicas.primary.pointer()
        other = next(one for one in self.replicas.generations() if pointer is None or one != pointer.generation)
        await self.fill(other, self.pick.choice((0.0, 0.5, 1.0)))
        pointer = await self.replicas.primary.pointer()
        wanted = Pointer(other.number, other.feature_version, other.shards)
        if other in await self.replicas.primary.generations():
            await self.replicas.primary.point(pointer, wanted)

    async def fill(self, generation: Generation, share: float) -> None:
        """Take a generation so far in every source, beside the workers; where the store is away it gets no further."""
        store = Connection(self.replicas, _unhindered)
        ingest = Ingest(store, REGISTRY, SCHEMA_IDS, self.feed.repeat_offsets, target=generation)
        with contextlib.suppress(StoreAwayError):
            await store.register(generation, self.replicas.generations()[generation])
            log = self.broker.log
            for source, position in (await ingest.positions(log.sources)).items():
                while position < share * log.end(source) and (batch := log.fetch(source, position, ROWS_MAX)) is not None:
                    position = max((await ingest.apply([ingest.decode(batch)]))[source], batch.following)  # noqa: PLW2901  # how far it has come
                await ingest.settle([source])

    def _running(self) -> Process | None:
        found = [process for process in self.group.living() if not process.stopped]
        return self.pick.choice(found) if found else None

    def _maybe_rebalance(self) -> None:
        """What takes the store down may move partitions in the same moment."""
        if self.pick.random() < 0.3:
            self.group.rebalance()

    async def _note_loss(self) -> None:
        stood = await self.replicas.lowest(self.group.sources)
        self.losses.append(Loss(asyncio.get_running_loop().time(), stood))


async def _unhindered(_: str) -> None:
    """Nobody kills who keeps a generation up to date."""


#: Every fault there is, by name.
FAULTS: dict[str, Callable[[World], Awaitable[None]]] = {
    "kill at a step": World.kill_at_a_step,
    "kill": World.kill,
    "stop": World.stop,
    "leave": World.leave,
    "join": World.join,
    "rebalance": World.rebalance,
    "disturb delivery": World.disturb_delivery,
    "lose writes": World.lose_writes,
    "empty": World.empty,
    "take store away": World.take_store_away,
    "refuse": World.refuse,
    "lose answers": World.lose_answers,
    "garble": World.garble,
    "burst of poison": World.burst_of_poison,
    "range twice": World.range_twice,
    "move the pointer": World.move_pointer,
}


def script(pick: random.Random, duration_s: float) -> list[tuple[float, str]]:
    """Moments and faults of one run: of some sorts only, so that some runs are full of one sort and free of another."""
    names = pick.sample(sorted(FAULTS), pick.randint(1, len(FAULTS)))
    if pick.random() < 0.5:
        names += ["kill at a step"] * len(names)
    return sorted((pick.uniform(0.0, duration_s), pick.choice(names)) for _ in range(pick.randint(0, 12)))
