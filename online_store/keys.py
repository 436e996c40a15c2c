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
from collections.abc import Iterator, Sequence
from typing import NamedTuple, overload

import msgspec
import numba
import numpy as np
import xxhash
from numpy.typing import NDArray

from schemas.aggregates import ENTITY_ID
from schemas.columnar.words import Buffer, xxh32

Ints = NDArray[np.int64]

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


class Names(NamedTuple):
    """n entities by name, tenant:id each. text: a zero byte and a name, n times; starts: int64 [n + 1], where each begins, and one more."""

    text: Buffer
    starts: Ints

    def of(self, rows: Ints) -> list[bytes]:
        """Some of them."""
        ends = self.starts[rows + 1] - 1
        return [self.text[begin:end].tobytes() for begin, end in zip(self.starts[rows].tolist(), ends.tolist(), strict=True)]


class Keys(Sequence[bytes]):
    """n keys in one buffer: most are sent as they stand there, and are never an object each."""

    def __init__(self, text: Buffer, starts: Ints) -> None:
        """text: all keys. starts: int64 [n + 1], where each begins."""
        self.text = text
        self.starts = starts

    def __len__(self) -> int:
        """How many there are."""
        return len(self.starts) - 1

    def parts(self, size: int) -> Iterator["Keys"]:
        """The same keys in their order, so many at most in each."""
        for begin in range(0, len(self), size):
            starts = self.starts[begin : begin + size + 1]
            yield Keys(self.text[starts[0] : starts[-1]], starts - starts[0])

    @overload
    def __getitem__(self, place: int) -> bytes: ...
    @overload
    def __getitem__(self, place: slice) -> list[bytes]: ...
    def __getitem__(self, place: int | slice) -> bytes | list[bytes]:
        """One of them, or several."""
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self.text[self.starts[place] : self.starts[place + 1]].tobytes()


def shard_of(tenant: str, entity_id: str, shards: int) -> int:
    """Where an entity's record lives; stable for ever: xxHash32 of "tenant:id"."""
    return xxhash.xxh32_intdigest(f"{tenant}:{entity_id}".encode()) & (shards - 1)


def record_head(generation: Generation, kind: str, shard: int) -> bytes:
    """What the keys of one kind in one shard begin with: "tenant:id" follows."""
    return f"{kind}:features:{{{generation.name}.{shard}}}:".encode()


def record_key(generation: Generation, entity: Entity) -> bytes:
    """The key of one record."""
    head = record_head(generation, entity.kind, shard_of(entity.tenant, entity.id, generation.shards))
    return head + f"{entity.tenant}:{entity.id}".encode()


def keys_of(generation: Generation, named: Sequence[tuple[str, Names, Ints]]) -> Keys:
    """The keys of records of several kinds, in their order. named: kind, names, and which of the names, int64 [n]."""
    parts = [(_heads(generation, kind), names.text, names.starts, of) for kind, names, of in named]
    count = sum(len(of) for *_, of in parts)
    starts = np.zeros(count + 1, np.int64)
    keys = np.empty(sum(len(text) + len(of) * heads.shape[1] for heads, text, _, of in parts), np.uint8)
    done = 0
    for heads, text, names, of in parts:
        _spell(text, names, of, heads, keys, starts[done : done + len(of) + 1])
        done += len(of)
    return Keys(keys, starts)


@numba.njit(cache=True, nogil=True)
def _spell(text: Buffer, names: Ints, of: Ints, heads: Buffer, keys: Buffer, starts: Ints) -> None:
    """Put keys one behind the other, the first of them at starts[0], and fill the other starts.

    heads: uint8 [shards, h], how many bytes count of each, and those.
    """
    at = starts[0]
    for row in range(len(of)):
        begin, end = names[of[row]], names[of[row] + 1] - 1
        shard = np.int64(xxh32(text[begin:end], end - begin)) & (len(heads) - 1)
        for place in range(1, heads[shard, 0] + 1):
            keys[at] = heads[shard, place]
            at += 1
        for place in range(begin, end):
            keys[at] = text[place]
            at += 1
        starts[row + 1] = at


@functools.lru_cache(maxsize=64)
def _heads(generation: Generation, kind: str) -> Buffer:
    """record_head of each shard as _spell takes it: two hundred keys a request begin with them."""
    heads = [record_head(generation, kind, shard) for shard in range(generation.shards)]
    width = 1 + max(map(len, heads))
    return np.array([[len(head), *head, *bytes(width - 1 - len(head))] for head in heads], np.uint8)


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
