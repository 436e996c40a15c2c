"""The names of everything in the store; nothing else spells them.

    user:features:{g3.17}:<tenant>:<id>   record of a user in generation 3, shard 17 (item:, model: likewise)
    guard:{g3.17}                         hash: source -> next offset to apply
    guard:{g0.0}                          hash: source -> the offset up to which dead letters were sent, whatever generation is read
    millstream:current                    the generation that is read, as JSON of a Pointer
    millstream:generations                hash: g3 -> that generation with its registry, as JSON of store.Registered
    answer:<tenant>:<request_id>          a rank response, kept so that a repeated request gets the same bytes

and of a record in a snapshot, the same in every generation: user:<tenant>:<id>.

The braces are a hash tag: records and guards of one shard live in one cluster slot.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import xxhash

from schemas.aggregates import ENTITY_ID

#: Shards of a new generation. More spread a cluster's load finer and cost a script call each a batch.
SHARDS_COUNT = 64
CURRENT = b"millstream:current"
GENERATIONS = b"millstream:generations"
#: Stands for every kind of record, as in a glob.
ANY = "*"


class Generation(msgspec.Struct, frozen=True):
    """A complete, independent copy of all records. shards: a power of two; feature_version: the registry it is made for."""

    number: int
    feature_version: str
    shards: int = SHARDS_COUNT

    @property
    def name(self) -> str:
        """How responses and keys call it."""
        return f"g{self.number}"


#: No generation: its one shard has the guards of what was sent to dead-letters.
LETTERS = Generation(0, "", 1)


class Pointer(Generation, frozen=True):
    """The generation that is read, and what a rollback goes back to.

    model_version: by which rankers rank; empty is the newest that fits. previous: what it pointed to before, itself without one.
    """

    model_version: str = ""
    previous: "Pointer | None" = None

    @property
    def generation(self) -> Generation:
        """The generation alone."""
        return Generation(self.number, self.feature_version, self.shards)


class Entity(NamedTuple):
    """Whose record: the tenant is empty where there is one."""

    tenant: str
    kind: str
    id: str


def shard_of(tenant: str, entity_id: str, shards: int) -> int:
    """Where an entity's record lives; stable for ever: xxHash32 of "tenant:id"."""
    return xxhash.xxh32_intdigest(f"{tenant}:{entity_id}".encode()) & (shards - 1)


def record_head(generation: Generation, kind: str, shard: int) -> bytes:
    """What the keys of one kind in one shard begin with: "tenant:id" follows."""
    return f"{kind}:features:{{{generation.name}.{shard}}}:".encode()


def record_key(generation: Generation, entity: Entity) -> bytes:
    """The key of one record."""
    return record_keys(generation, entity.kind, [f"{entity.tenant}:{entity.id}".encode()])[0]


def record_keys(generation: Generation, kind: str, names: Sequence[bytes]) -> list[bytes]:
    """The keys of records of one kind. names: "tenant:id" of each."""
    heads, mask, hashed = _heads(generation, kind), generation.shards - 1, xxhash.xxh32_intdigest
    return [heads[hashed(name) & mask] + name for name in names]


@functools.lru_cache(maxsize=64)
def _heads(generation: Generation, kind: str) -> tuple[bytes, ...]:
    """record_head of each shard: two hundred keys a request begin with them."""
    return tuple(record_head(generation, kind, shard) for shard in range(generation.shards))


def entity_of(key: bytes) -> Entity:
    """Whose record a key is: the inverse of record_key."""
    kind, _, _, tenant, entity_id = key.decode().split(":", 4)
    return Entity(tenant, kind, entity_id)


def entity_named(kind: str, name: bytes) -> Entity:
    """Who is meant by "tenant:id"."""
    tenant, _, entity_id = name.decode().partition(":")
    return Entity(tenant, kind, entity_id)


def entity_key(entity: Entity) -> bytes:
    """The key of one record in a snapshot."""
    return f"{entity.kind}:{entity.tenant}:{entity.id}".encode()


def record_pattern(generation: Generation, kind: str = ANY) -> bytes:
    """A glob that all records of a generation match, or those of one kind; what else matches, `is_record` tells."""
    return f"{kind}:features:{{{generation.name}.*}}:*".encode()


def is_record(key: bytes, generation: Generation, kind: str = ANY) -> bool:
    """Whether a key is that of a record of a generation: an id or a request_id may hold what looks like one."""
    found, _, rest = key.decode().partition(":")
    return found in ENTITY_ID and kind in {found, ANY} and rest.startswith(f"features:{{{generation.name}.")


def guard_key(generation: Generation, shard: int) -> bytes:
    """The key of one shard's guards."""
    return f"guard:{{{generation.name}.{shard}}}".encode()


def answer_key(tenant: str, request_id: str) -> bytes:
    """The key of one kept response."""
    return f"answer:{tenant}:{request_id}".encode()
