"""What a store of several servers does when slots move, a node is gone or a replica takes over; test_store.py has what all stores do."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random

import pytest

from online_store.deltas import NOTHING, Deltas
from online_store.keys import guard_key
from online_store.memory import MemoryStore
from online_store.redis import RedisStore
from online_store.servers.routing import slot_of
from online_store.store import OnlineStore, Step
from schemas.errors import SettingsError, StoreAwayError
from schemas.features import REGISTRY
from tests import servers
from tests.contract.test_store import GENERATION, SOURCE, apply, counted, guard, impressions, step
from tests.services import free_port
from tests.workers import wait_until
from tests.worlds import dump

SHARDS = range(8)
SLOTS = {shard: slot_of(guard_key(GENERATION, shard)) for shard in SHARDS}


@pytest.fixture
async def cluster_store(store_cluster: servers.Cluster) -> AsyncIterator[RedisStore]:
    """The empty store of a cluster."""
    store_cluster.empty()
    made = RedisStore(store_cluster.url, REGISTRY)
    await made.begin(GENERATION)
    yield made
    await made.close()


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[servers.Cluster]:
    """A cluster whose nodes the test may kill."""
    with servers.cluster(tmp_path) as cluster:
        yield cluster


def other(cluster: servers.Cluster, slot: int) -> servers.StoreServer:
    """A node that does not hold this slot."""
    return next(node for node in cluster.nodes if node is not cluster.owner(slot))


def batch(random: Random, number: int) -> list[Step]:
    """Some impressions for every shard: of items that stand and of new ones."""
    deltas: dict[int, Deltas] = {
        shard: impressions(*{f"i{random.randrange(10 + number * 5)}" for _ in range(5)}, shard=shard) for shard in SHARDS
    }
    return [step(shard, number * 10, found, number * 10 + 10) for shard, found in deltas.items()]


def moved_from(expected: int, found: Step) -> Step:
    """The same step, ten offsets on from a guard that stands here."""
    return step(found.shard, expected, found.deltas, expected + 10)


async def applied(store: OnlineStore, steps: list[Step]) -> list[list[int]]:
    """Apply steps as a worker does: again while the store is away."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await store.apply(GENERATION, steps)
            except StoreAwayError:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(("key", "slot"), [(b"foo", 12182), (b"{user1000}.following", 3443), (b"foo{}{bar}", 8363), (b"123456789", 12739)])
def test_a_key_has_the_slot_that_the_cluster_gives_it(store_cluster: servers.Cluster, key: bytes, slot: int) -> None:
    """By its hash tag, if it has one that is not empty."""
    assert (slot_of(key), store_cluster.nodes[0].ask("CLUSTER", "KEYSLOT", key.decode())) == (slot, slot)


async def test_shards_spread_over_the_nodes(store_cluster: servers.Cluster, cluster_store: RedisStore) -> None:
    """Each holds some of them."""
    await applied(cluster_store, batch(Random(1), 0))

    assert [node.ask("DBSIZE") > 0 for node in store_cluster.nodes] == [True, True, True]


@pytest.mark.parametrize("seed", range(2))
async def test_slots_that_move_while_batches_are_applied_lose_and_double_nothing(
    store_cluster: servers.Cluster, cluster_store: RedisStore, seed: int
) -> None:
    """Every shard's slot moves to another node, key by key, while twenty batches go in: the bytes are those of the memory store."""
    random, memory = Random(seed), MemoryStore(REGISTRY)
    await memory.begin(GENERATION)
    batches = [batch(random, number) for number in range(20)]

    async def move() -> None:
        for slot in SLOTS.values():
            await asyncio.to_thread(moved, store_cluster, slot, random.randrange(1, 4))

    async with asyncio.TaskGroup() as both:
        both.create_task(move())
        for steps in batches:
            await applied(cluster_store, steps)
            await asyncio.sleep(0.005)
    for steps in batches:
        await memory.apply(GENERATION, steps)

    assert await dump(cluster_store) == await dump(memory)


def moved(cluster: servers.Cluster, slot: int, keys_count: int) -> None:
    """Move a slot, so many keys at a time."""
    to = other(cluster, slot)
    cluster.begin_move(slot, to)
    while cluster.move_keys(slot, to, keys_count):
        pass
    cluster.end_move(slot, to)


async def test_what_is_on_the_new_node_already_is_found_there(store_cluster: servers.Cluster, cluster_store: RedisStore) -> None:
    """ASK is followed, by reads and by the script, which the new node does not know yet."""
    slot = SLOTS[1]
    to = other(store_cluster, slot)
    await apply(cluster_store, impressions("a", "b"))
    to.ask("SCRIPT", "FLUSH")
    store_cluster.begin_move(slot, to)
    store_cluster.move_keys(slot, to, 100)

    found = [await counted(cluster_store, "a"), await apply(cluster_store, NOTHING, 10, 20), await guard(cluster_store)]

    store_cluster.end_move(slot, to)
    assert (found, to.ask("CLUSTER", "COUNTKEYSINSLOT", slot)) == ([1, 20, 20], 3)


async def test_a_step_on_keys_of_two_nodes_waits_for_the_rest(store_cluster: servers.Cluster, cluster_store: RedisStore) -> None:
    """The store is away for that shard, says the error; the others are applied, and asked again it says so."""
    slot = SLOTS[1]
    to = other(store_cluster, slot)
    steps = batch(Random(1), 0)
    await applied(cluster_store, steps)
    store_cluster.begin_move(slot, to)
    store_cluster.move_keys(slot, to, 1)
    following = [moved_from(10, found) for found in steps]

    with pytest.raises(StoreAwayError, match="TRYAGAIN"):
        await cluster_store.apply(GENERATION, following)
    guards = (await cluster_store.guards(GENERATION, [SOURCE]))[0][: len(SHARDS)].tolist()
    store_cluster.move_keys(slot, to, 100)
    store_cluster.end_move(slot, to)

    assert (guards, await cluster_store.apply(GENERATION, following)) == ([20, 10, *[20] * 6], [[20]] * 8)


async def test_a_killed_node_stops_only_its_shards(own_cluster: servers.Cluster) -> None:
    """Steps of the others count though the call fails, again and again; nothing is applied twice."""
    store = RedisStore(own_cluster.url, REGISTRY, timeout_s=2.0)
    steps = batch(Random(1), 0)
    held = {shard: own_cluster.owner(slot) for shard, slot in SLOTS.items()}
    dead = own_cluster.nodes[0]
    await store.current()
    dead.kill()

    for _ in range(3):
        with pytest.raises(StoreAwayError):
            await store.apply(GENERATION, steps)

    alive = [found for found in steps if held[found.shard] is not dead]
    again = await store.apply(GENERATION, alive)
    ids = [found.deltas.keys[0].decode().rsplit(":", 1)[1] for found in alive]
    counts = [await counted(store, name, found.shard) for name, found in zip(ids, alive, strict=True)]
    await store.close()
    assert (0 < len(alive) < len(steps), again, set(counts)) == (True, [[10]] * len(alive), {1})


async def test_a_paused_node_holds_up_nobody_longer_than_its_time(own_cluster: servers.Cluster) -> None:
    """It accepts connections and says nothing: the call fails, the steps of the other nodes are applied."""
    store = RedisStore(own_cluster.url, REGISTRY, timeout_s=0.5)
    steps = batch(Random(1), 0)
    paused = own_cluster.nodes[0]
    alive = [found for found in steps if own_cluster.owner(SLOTS[found.shard]) is not paused]
    await store.current()
    paused.pause()

    with pytest.raises(StoreAwayError, match=f"{paused.address} did not answer within 0.5 s"):
        await store.apply(GENERATION, steps)

    again = await store.apply(GENERATION, [moved_from(99, found) for found in alive])
    paused.resume()
    await store.close()
    assert again == [[10]] * len(alive)


async def test_a_replica_that_takes_over_is_found(tmp_path: Path) -> None:
    """The primary is killed, the sentinel promotes the replica; what it lacks, its guards tell."""
    with servers.sentinel(tmp_path) as watched:
        store = RedisStore(watched.url, REGISTRY, timeout_s=2.0)
        await apply(store, impressions("a"))
        watched.primary.ask("WAIT", 1, 5_000)
        watched.primary.kill()

        told = await applied(store, [step(1, 10, impressions("a", "b"), 20)])

        assert (told, await guard(store), await counted(store, "a"), watched.replica.ask("ROLE")[0]) == ([[20]], 20, 2, b"master")
        await store.close()


async def test_a_primary_that_became_a_replica_is_left(tmp_path: Path) -> None:
    """An operator's failover: the old primary still runs, but takes no writes."""
    with servers.sentinel(tmp_path) as watched:
        store = RedisStore(watched.url, REGISTRY, timeout_s=2.0)
        await apply(store, impressions("a"))
        watched.primary.ask("WAIT", 1, 5_000)
        watched.sentinel.ask("SENTINEL", "FAILOVER", servers.SERVICE)
        await asyncio.to_thread(wait_until, lambda: watched.primary.ask("ROLE")[0] == b"slave")

        told = await applied(store, [step(1, 10, impressions("a"), 20)])

        await store.close()
        assert (told, guard_of(watched.replica)) == ([[20]], b"20")


def guard_of(server: servers.StoreServer) -> object:
    """What stands on one server, as another client sees it."""
    return server.ask("HGET", guard_key(GENERATION, 1), str(SOURCE))


async def test_a_cluster_that_nobody_answers_for_is_away() -> None:
    """Each address is named with what it said."""
    port = free_port()
    store = RedisStore(f"redis+cluster://127.0.0.1:{port}", REGISTRY, timeout_s=1.0)

    with pytest.raises(StoreAwayError, match=f"127.0.0.1:{port} says"):
        await store.current()


@pytest.mark.parametrize("name", ["redis", "rediss", "redis+cluster", "redis+sentinel"])
def test_a_password_is_never_shown(name: str) -> None:
    """Not in the message about a wrong URL either."""
    with pytest.raises(SettingsError) as caught:
        RedisStore(f"{name}://me:secret@host:port/x/y/z", REGISTRY)

    assert ("secret" in str(caught.value), f"{name}://***@host" in str(caught.value)) == (False, True)
