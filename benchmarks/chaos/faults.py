"""What is done to workers, store and broker, each kind of fault a function over the running parts."""

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from benchmarks.chaos.feed import Feed
from benchmarks.chaos.fleet import Fleet
from benchmarks.chaos.launcher import STEPS
from benchmarks.chaos.servers.cluster import ClusterStores
from benchmarks.chaos.servers.pair import Stores
from benchmarks.chaos.servers.proxy import Cut
from benchmarks.chaos.watch import Watch
from compose.stack.local import Server
from online_store.keys import guard_key
from online_store.servers.routing import slot_of
from streams.app import IngestSettings
from tests.workers import GENERATION, REPOSITORY, wait_until

#: Restarts, joins and leaves are so far apart (seconds).
APART_S = (3.0, 5.0)
#: Writes that a failover loses: offsets that the primary acknowledged and the replica never heard of.
LOST_ROWS = 10_000
#: A store answers so late (milliseconds), for so long each (seconds).
DELAYS_MS, DELAY_S = (50, 500, 5_000), 12.0
#: A store stands still so long (seconds).
PAUSE_S = 10.0
#: A slot stands on two nodes, and a killed node is away, for so long (seconds).
HALF_MOVED_S, NODE_AWAY_S = 1.0, 3.0
#: So long after a loss all guards must be back at the end of the log (seconds), or the harness stops waiting.
HEAL_S = 120.0


@dataclass(slots=True)
class World:
    """Everything that runs. settings: of the workers. done: how often each fault was injected."""

    fleet: Fleet
    stores: Stores | ClusterStores
    feed: Feed
    watch: Watch
    broker: Server
    start_broker: Callable[[], None]
    draw: random.Random
    settings: IngestSettings
    done: Counter[str] = field(default_factory=Counter)
    heals_s: list[float] = field(default_factory=list)
    writes_lost: int = 0

    @property
    def pair(self) -> Stores:
        """The store of a run that is to fail over, be emptied or be slow."""
        assert isinstance(self.stores, Stores), self.stores
        return self.stores

    @property
    def cluster(self) -> ClusterStores:
        """The store of a run whose slots are to move."""
        assert isinstance(self.stores, ClusterStores), self.stores
        return self.stores

    def rest(self) -> None:
        """As long as two faults lie apart."""
        self.fleet.rest(self.draw.uniform(*APART_S))

    def heal(self) -> None:
        """Wait until all is applied that the log holds now, and note how long that took."""
        self.heals_s.append(self.watch.await_ends(HEAL_S, self.fleet.tend))


def kills(world: World, count: int) -> None:
    """Kill -9, half at random moments and half at named steps; one worker joins or leaves now and then."""
    steps: list[str] = []
    while len(world.fleet.kills) < count or sum(kill != "random" for kill in world.fleet.kills) < count // 2:
        at_random = sum(kill == "random" for kill in world.fleet.kills)
        if at_random < len(world.fleet.kills) / 2:
            world.fleet.kill(world.draw)
        else:
            steps = steps or world.draw.sample(STEPS, len(STEPS))
            world.fleet.kill_at(steps.pop(), world.draw)
        world.done["kill -9"] = len(world.fleet.kills)
        world.rest()
        if world.draw.random() < 0.2:
            _join_or_leave(world)


def _join_or_leave(world: World) -> None:
    if len(world.fleet.members) > 3:
        world.fleet.leave()
        world.done["leave"] += 1
    else:
        world.fleet.join()
        world.done["join"] += 1
    world.rest()


def zombies(world: World, count: int) -> None:
    """SIGSTOP for longer than the session, half of them with a batch in hand, then SIGCONT."""
    for number in range(count):
        world.fleet.freeze(world.settings.session_timeout_s + world.draw.uniform(1.5, 3.0), world.draw, at_step=number % 2 == 0)
        world.done["zombie"] += 1
        world.rest()


def failovers(world: World, count: int) -> None:
    """Replication cut, writes acknowledged and lost, primary killed, replica promoted; the feed goes on meanwhile."""
    for _ in range(count):
        world.pair.cut_replication()
        heard = world.watch.applied
        world.feed.burst(2 * LOST_ROWS)
        wait_until(lambda heard=heard: world.watch.applied >= heard + LOST_ROWS, timeout_s=60)  # type: ignore[misc]  # a bound default
        with world.watch.losing():
            world.writes_lost += world.pair.fail_over()
        world.done["failover"] += 1
        world.heal()
        world.pair.rejoin()
        world.rest()


def emptied(world: World, count: int) -> None:
    """FLUSHALL, and a store that is killed and comes back with nothing, by turns."""
    for number in range(count):
        with world.watch.losing():
            (world.pair.restart_empty if number % 2 else world.pair.flush)()
        world.done["restart empty" if number % 2 else "FLUSHALL"] += 1
        world.heal()
        world.rest()


def slowness(world: World, count: int) -> None:
    """A store that answers late, stands still, or whose connections end in the middle of a script."""
    for _ in range(count):
        for delay_ms in DELAYS_MS:
            world.pair.front.delay_ms = delay_ms
            world.fleet.rest(DELAY_S)
            world.pair.front.delay_ms = 0
            world.done[f"store {delay_ms} ms late"] += 1
            world.rest()
        world.pair.primary.pause(PAUSE_S)
        world.done["store paused"] += 1
        world.rest()
        for part in get_args(Cut) * 5:
            before = world.pair.front.cuts
            world.pair.front.cut_script(part)
            wait_until(lambda before=before: world.pair.front.cuts > before)  # type: ignore[misc]  # a bound default
            world.done[f"script's {part} cut"] += 1
        world.rest()


def broker_kills(world: World, count: int) -> None:
    """The broker killed and started again on what it had written."""
    for _ in range(count):
        process = world.broker.process()
        assert process is not None, "the broker does not run"
        os.kill(process[0], signal.SIGKILL)
        wait_until(lambda: world.broker.process() is None)
        world.start_broker()
        world.done["broker killed"] += 1
        world.fleet.rest(10.0)


def moves_and_losses(world: World, count: int) -> None:
    """A shard's slot moved to another node, a node killed that comes back empty, a worker killed: by turns."""
    for _ in range(count):
        slot = slot_of(guard_key(GENERATION, world.draw.randrange(GENERATION.shards)))
        world.cluster.move_slot(slot, world.draw, lambda: world.fleet.rest(HALF_MOVED_S))
        world.done["slot moved"] += 1
        world.rest()
        with world.watch.losing():
            world.cluster.lose_node(world.draw, lambda: world.fleet.rest(NODE_AWAY_S))
        world.done["node killed"] += 1
        world.heal()
        world.fleet.kill(world.draw)
        world.done["kill -9"] += 1
        world.rest()


def redriven(world: World, count: int) -> None:
    """Workers killed while poison comes; the log drained, dead letters repaired and sent again, and a worker killed over them."""
    kills(world, count)
    world.feed.stop()
    world.watch.await_ends(HEAL_S, world.fleet.tend)
    places = ["--kafka-bootstrap", world.settings.kafka_bootstrap, "--topic-prefix", world.settings.topic_prefix]
    verb = [
        sys.executable,
        "-m",
        "compose.processes",
        "dead-letters",
        "redrive",
        "--json",
        *places,
        "--repair",
        "benchmarks.chaos.feed:repaired",
    ]
    done = subprocess.run(verb, check=True, capture_output=True, cwd=REPOSITORY)  # noqa: S603  # our own command
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["redriven"] > 0, found
    assert not found["unsure"], found
    world.done["redrive"] += 1
    world.fleet.kill(world.draw)


@dataclass(frozen=True, slots=True)
class Plan:
    """One run. small, full: how many of the fault at each scale; stores: what it makes in its folder to store in."""

    inject: Callable[[World, int], None]
    small: int
    full: int
    stores: Callable[[Path], Stores | ClusterStores] = Stores


PLANS = {
    "kills": Plan(kills, 10, 200),
    "zombies": Plan(zombies, 3, 50),
    "failovers": Plan(failovers, 1, 20),
    "emptied": Plan(emptied, 2, 12),
    "slowness": Plan(slowness, 1, 4),
    "broker": Plan(broker_kills, 1, 5),
    "redrive": Plan(redriven, 2, 6),
    "cluster": Plan(moves_and_losses, 1, 10, ClusterStores),
}
