"""One run from its seed to its verdict."""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

from schemas.codec import decode
from schemas.errors import GenerationError, MillstreamError, StoreAwayError
from schemas.records import DeadLetter
from schemas.topics import DEAD_LETTERS, Source
from tests.oracle import Oracle
from tests.property.test_exactness import moments, oracle_of
from tests.simulation import faults, feed
from tests.simulation.clock import run_virtual
from tests.simulation.group import Group
from tests.simulation.process import Broker, Process
from tests.simulation.store import Replicas
from tests.verify import compare
from tests.worlds import SOURCE_TOPICS, Log

#: Until then records are written and faults happen (virtual seconds).
SCRIPT_S = 12.0
#: From the last fault on, until then every partition must be read to its end (virtual seconds).
DRAIN_S_MAX = 30.0
#: How often the run looks whether it is drained and whether a loss is healed (virtual seconds).
LOOK_S = 0.5
#: How often producers write.
PARTS_COUNT = 6
#: At how many moments every window is compared.
MOMENTS_COUNT = 4


class NotDrainedError(MillstreamError):
    """A partition stood still though nothing was in its way any more."""


@dataclass(slots=True)
class Outcome:
    """What a run did, and what it found wrong: nothing, or sentences. heal_s_max: virtual seconds from lost writes to their return.

    kills: by the step at which a process was killed. exits: processes that gave up because the store was away for too long, or had lost
    their generation.
    """

    seed: int
    faults: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    exits: int = 0
    events: int = 0
    entities_compared: int = 0
    entities_wrong: int = 0
    duplicates_delivered: int = 0
    dead_letters: int = 0
    repeats: int = 0
    stale_writes_refused: int = 0
    stale_writes_accepted: int = 0
    heal_s_max: float = 0.0
    wrong: list[str] = field(default_factory=list)
    story: list[str] = field(default_factory=list)


def run(seed: int) -> Outcome:
    """One run. Nothing but the seed and the code decides what happens in it."""
    outcome = Outcome(seed)
    try:
        run_virtual(_run(random.Random(seed), outcome))
    except (MillstreamError, AssertionError) as error:
        outcome.wrong.append(f"the run broke off: {type(error).__name__}: {error}")
    return outcome


async def _run(pick: random.Random, outcome: Outcome) -> None:
    world = _world(pick)
    lives = asyncio.create_task(world.group.run())
    watch = asyncio.create_task(_watch(world, outcome))
    for _ in range(3):
        world.group.start()
    await _play(world, outcome)
    _heal(world)
    await _drained(world)
    lives.cancel()
    watch.cancel()
    await _judge(world, outcome)


def _world(pick: random.Random) -> faults.World:
    loop = asyncio.get_running_loop()
    log = Log(gap=pick.choice((0, 0, 0, 1)))
    made = feed.drawn(pick, log)
    broker = Broker(log)
    replicas = Replicas(pick, pick.choice((1, 4, 4, 16)), loop.time)
    sources = [Source(topic, partition) for topic in SOURCE_TOPICS for partition in range(made.partitions)]
    group = Group(pick, sources, lambda number: Process(number, pick, broker, replicas, made.repeat_offsets), 3)
    return faults.World(pick, broker, replicas, group, made)


async def _play(world: faults.World, outcome: Outcome) -> None:
    """Write the log and let the faults happen, in the order of their moments."""
    pick, loop = world.pick, asyncio.get_running_loop()
    count = pick.choice((30, 100, 100, 200))
    parts = [(pick.uniform(0.0, SCRIPT_S), "") for _ in range(PARTS_COUNT)]
    for at_s, name in sorted(parts + faults.script(pick, SCRIPT_S)):
        await asyncio.sleep(max(at_s - loop.time(), 0))
        if name:
            outcome.story.append(f"{loop.time():.3f} s: {name}")
            outcome.faults[name] += 1
            await faults.FAULTS[name](world)
        else:
            world.feed.write(count // PARTS_COUNT)
    await asyncio.sleep(max(*world.replicas.away_until_s, loop.time()) - loop.time())


def _heal(world: faults.World) -> None:
    """Nothing is in the way from now on."""
    world.broker.calm = True
    world.broker.mishaps.clear()
    world.replicas.refused = world.replicas.unanswered = world.replicas.garbled = 0
    world.replicas.away_until_s = [0.0, 0.0]
    for process in world.group.living():
        process.armed = None
        process.go_on()
    world.feed.write_behind(world.broker.lost)


async def _watch(world: faults.World, outcome: Outcome) -> None:
    """How long lost writes are missing."""
    while True:
        await asyncio.sleep(LOOK_S)
        if world.losses:
            stands = await world.replicas.lowest(world.group.sources)
            healed = [loss for loss in world.losses if all(stands[source] >= offset for source, offset in loss.stood.items())]
            world.losses = [loss for loss in world.losses if loss not in healed]
            outcome.heal_s_max = max([outcome.heal_s_max, *(asyncio.get_running_loop().time() - loss.at_s for loss in healed)])


async def _drained(world: faults.World) -> None:
    """Wait until the store has the whole log, dead-letters all that is bad in it, and no zombie is left. Raises NotDrainedError."""
    ends = {source: world.broker.log.end(source) for source in world.broker.log.sources}
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + DRAIN_S_MAX
    while True:
        await asyncio.sleep(LOOK_S)
        stands, sent = await world.replicas.lowest(list(ends)), await world.replicas.sent(list(ends))
        stands = {source: min(offset, sent[source]) for source, offset in stands.items()}
        if not world.group.zombies() and not world.losses and all(stands[source] >= end for source, end in ends.items()):
            return
        if loop.time() > deadline_s:
            left = {str(source): (stands[source], end) for source, end in ends.items() if stands[source] < end}
            raise NotDrainedError(f"after {DRAIN_S_MAX} s without a fault, (lowest guard, end) are {left}; ended by {world.group.failures}")


async def _judge(world: faults.World, outcome: Outcome) -> None:
    """Compare everything with what the log says."""
    oracle = oracle_of(world.broker.log, repeat_offsets=world.feed.repeat_offsets)
    as_of_ms, store = world.pick.sample(moments(oracle), MOMENTS_COUNT), world.replicas.primary
    assert await store.current() is not None
    differences = []
    for generation, registry in (await store.generations()).items():
        # One that is not current stands where it was left: what is missing is added, and what is wrong stays wrong.
        await world.fill(generation, 1.0)
        differences += [f"{generation.name}: {fault}" for fault in await compare(store, registry, generation, oracle, as_of_ms)]
    outcome.kills = world.broker.kills
    outcome.exits = len(world.group.failures)
    outcome.events = sum(map(len, world.broker.log.partitions.values()))
    outcome.entities_compared = len(oracle.entities)
    outcome.entities_wrong = len(differences)
    outcome.dead_letters = len(oracle.bad)
    outcome.repeats = len(oracle.repeats)
    outcome.duplicates_delivered = world.broker.duplicates_delivered
    outcome.stale_writes_refused = world.replicas.stale_refused
    outcome.stale_writes_accepted = world.replicas.stale_accepted
    outcome.wrong += differences + wrong_letters(world.broker, oracle)
    outcome.wrong += [
        f"a process ended by {error!r}" for error in world.group.failures if not isinstance(error, StoreAwayError | GenerationError)
    ]
    if world.replicas.stale_accepted:
        outcome.wrong.append(f"{world.replicas.stale_accepted} writes with an old guard were accepted")


def wrong_letters(broker: Broker, oracle: Oracle) -> list[str]:
    """In = applied + dead letters, bytes identical: what is missing, too much or changed. A letter sent again is the same letter."""
    records = {(record.topic, record.partition, record.offset): record for record in broker.log}
    missing, found = set(oracle.bad), []
    for letter in broker.letters:
        said = decode(DEAD_LETTERS, letter.value)
        assert isinstance(said, DeadLetter)
        place = (said.topic, said.partition, said.offset)
        if place not in oracle.bad:
            found.append(f"{place} is in dead-letters and is a good record")
        elif (letter.key, said.key, said.value) != (records[place].key, records[place].key, records[place].value):
            found.append(f"the letter of {place} has other bytes than its record")
        else:
            missing.discard(place)
    return found + [f"{place} is not in dead-letters" for place in sorted(missing)]
