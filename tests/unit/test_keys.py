"""The names of everything in the store."""

import numpy as np
import pytest

from online_store.keys import Entity, Generation, answer_key, entity_key, entity_of, guard_key, is_record, keys_of, record_key, shard_of
from online_store.servers.node import pack, pack_keys
from ranker.reads.near import names_of

GENERATION = Generation(3, "f" * 16)


def test_a_record_and_the_guard_of_its_shard_share_a_hash_tag() -> None:
    """What stands between the braces decides the cluster slot: one script may touch both."""
    key = record_key(GENERATION, Entity("", "user", "u1")).decode()
    guard = guard_key(GENERATION, shard_of("", "u1", GENERATION.shards)).decode()

    assert key[key.index("{") : key.index("}")] == guard[guard.index("{") : guard.index("}")]


@pytest.mark.parametrize("entity_id", ["u1", "a:b::c", "ключ", "{g3.1}", " ", "\0", "x:features:{g3.1}:y"])
@pytest.mark.parametrize("tenant", ["", "acme", "{t}"])
def test_a_key_names_its_entity(tenant: str, entity_id: str) -> None:
    """entity_of undoes record_key, whatever an id holds."""
    entity = Entity(tenant, "item", entity_id)

    assert entity_of(record_key(GENERATION, entity)) == entity


def test_keys_that_are_made_at_once_are_those_that_are_made_alone() -> None:
    """Of users and of some of the items, of every length that an id may have, and as a command too."""
    ids = ["x" * length for length in range(1, 129)] + ["ключ", "\0", "{g3.1}"]
    places = np.arange(0, len(ids), 3)
    keys = keys_of(GENERATION, [("user", names_of([("t", ["u1"])]), np.arange(1)), ("item", names_of([("", ids)]), places)])
    alone = [record_key(GENERATION, Entity("t", "user", "u1")), *(record_key(GENERATION, Entity("", "item", one)) for one in ids[::3])]

    assert (list(keys), keys[1:3], pack_keys(b"MGET", keys)) == (alone, alone[1:3], pack(b"MGET", *alone))


@pytest.mark.parametrize("other", [Entity("", "item", "a:b"), Entity("", "item", "acme:a:b"), Entity("acme", "user", "a:b")])
def test_a_key_in_a_snapshot_is_its_entitys_alone(other: Entity) -> None:
    """No other tenant, kind or id spells the same; a tenant holds no colon."""
    assert entity_key(Entity("acme", "item", "a:b")) != entity_key(other)


def test_shards_are_spread_evenly() -> None:
    """64,000 ids over 64 shards: none holds less than 0.8 or more than 1.2 of its share."""
    counts = [0] * 64
    for number in range(64_000):
        counts[shard_of("", f"user-{number}", 64)] += 1

    assert (min(counts) > 800, max(counts) < 1_200) == (True, True)


def test_the_tenant_has_a_part_in_the_shard() -> None:
    """The same id of 32 tenants does not heat one shard."""
    shards = {shard_of(f"tenant-{number}", "u1", 64) for number in range(32)}

    assert len(shards) > 16


@pytest.mark.parametrize(
    "key",
    [
        b"guard:{g3.1}",
        answer_key("", "x:features:{g3.1}:y"),
        record_key(Generation(4, ""), Entity("", "item", "x:features:{g3.1}:y")),
        record_key(Generation(31, ""), Entity("", "item", "i")),
    ],
)
def test_a_key_that_only_looks_like_a_record_of_the_generation_is_none(key: bytes) -> None:
    """Guards, answers and other generations are not records of this one, whatever text an id or a request brought."""
    assert not is_record(key, GENERATION)


def test_a_record_of_the_generation_is_one() -> None:
    """Whatever its id holds."""
    assert is_record(record_key(GENERATION, Entity("t", "user", "a:b")), GENERATION)
