"""What producers write into the log: honest events, and everything that an ingest must survive without counting it wrong."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from schemas.records import CLOCK_SKEW_MS_MAX
from schemas.topics import Source, StoredRecord
from schemas.windows import DAY_MS, HOUR_MS, LATENESS_MS, MINUTE_MS
from tests.worlds import NOW_MS, SOURCE_TOPICS, Log, click, content, dwell, impression, raw, user

USERS = ("u1", "u2", "u3", "ü:4", "u5")
ITEMS = ("i1", "i2", "i3", "i4")
MODELS = (None, "m1", "m2")
TENANTS = ("", "", "", "acme")
#: Bytes that are no record of any topic.
POISON = (b"", b"noise", b"{}", b'{"user_id": 7}', b"\xc3\x01" + bytes(12), b"\0\0\0\0\x01abc", b"\xff" * 40)
#: How far event time moves from one record to the next: within a tile, over tiles, over every ring.
STEPS_MS = ((0, 1_000), (0, 30_000), (0, 10 * MINUTE_MS), (0, HOUR_MS, DAY_MS))
#: How far back repeats are looked for: nowhere, within a batch, over a few of them, over every log there is here.
REPEAT_OFFSETS = (0, 2, 8, 16, 64, 1_024)
#: How the producers of a run write: all alike, or as they please.
WIRES = (("avro",), ("avro",), ("json",), ("avro", "avro", "json", "confluent", "header"))


@dataclass(slots=True)
class Feed:
    """Producers, as one seed makes them.

    partitions: of each topic. poison_share, ahead_share, profile_share, repeat_share: of records. steps_ms: one of STEPS_MS.
    repeat_offsets: how far back an event that is sent again does not count. wires: as tests.worlds.WIRES.
    """

    pick: random.Random
    log: Log
    partitions: int
    poison_share: float
    ahead_share: float
    profile_share: float
    repeat_share: float
    steps_ms: tuple[int, ...]
    repeat_offsets: int
    wires: tuple[str, ...]
    now_ms: int = NOW_MS
    #: Requests so far, and the records of the last few of them, which a producer may send again.
    requests: int = 0
    sent: list[tuple[Any, int, int, str]] = field(default_factory=list)

    def write(self, count: int) -> None:
        """Append so many records."""
        for _ in range(count):
            self.now_ms += self.pick.choice(self.steps_ms)
            self._write_one()

    def write_poison(self, count: int) -> None:
        """A burst of what is no record, into one partition."""
        topic, partition = self.pick.choice(SOURCE_TOPICS), self._partition()
        for _ in range(count):
            self._append_poison(topic, partition)

    def write_behind(self, sources: Iterable[Source]) -> None:
        """One record more for some partitions: only then can a worker see that the batch before it never came."""
        for source in sorted(sources):
            self._append_poison(source.topic, source.partition)

    def write_twice(self, count: int) -> None:
        """The last records of one partition again, as a producer without idempotence does: each stands in the log twice."""
        if not self.log.sources:
            return
        held = self.log.partitions[self.pick.choice(self.log.sources)]
        for record in held[-count:]:
            self.log.append(record)

    def _write_one(self) -> None:
        chance = self.pick.random()
        kinds: list[tuple[float, Callable[[], object]]] = [
            (self.poison_share, lambda: self._append_poison(self.pick.choice(SOURCE_TOPICS), self._partition())),
            (self.ahead_share, lambda: self._event(self.now_ms + DAY_MS, self.now_ms)),
            (self.profile_share, self._profile),
            (self.repeat_share, self._again),
        ]
        for share, write in kinds:
            if chance < share:
                write()
                return
            chance -= share
        self._event(self._event_ms(), self.now_ms)

    def _event_ms(self) -> int:
        """When something happened: mostly just now, up to the allowed lateness ago, up to the allowed skew ahead."""
        late_ms = self.pick.choice((0, 0, 1_000, self.pick.randint(0, LATENESS_MS), LATENESS_MS, -CLOCK_SKEW_MS_MAX))
        return self.now_ms - late_ms

    def _event(self, ts_ms: int, timestamp: int) -> None:
        pick = self.pick
        self.requests += 1
        named: dict[str, Any] = {
            "user_id": pick.choice(USERS),
            "item_id": pick.choice(ITEMS),
            "ts_ms": ts_ms,
            "request_id": f"r{self.requests}",
            "model_version": pick.choice(MODELS),
            "tenant": pick.choice(TENANTS),
        }
        chance = pick.random()
        if chance < 0.6:
            record: Any = impression(**named)
        elif chance < 0.85:
            record = click(**named, dwell_ms=pick.choice((None, 0, pick.randint(1, 10**6))))
        else:
            record = dwell(**named, dwell_ms=pick.randint(-1 if chance < 0.86 else 0, 10**7))
        self._send(record, self._partition(), timestamp, pick.choice(self.wires))

    def _send(self, record: Any, partition: int, timestamp: int, wire: str) -> None:  # noqa: ANN401  # any event
        self.log.add(record, partition, timestamp, wire)
        self.sent.append((record, partition, timestamp, wire))

    def _again(self) -> None:
        """An event sent before: by the same producer to the same partition, or by another one to any."""
        if self.sent:
            record, partition, timestamp, wire = self.pick.choice(self.sent[-self.pick.choice((3, 30, 300)) :])
            self._send(record, partition if self.pick.random() < 0.8 else self._partition(), timestamp, wire)

    def _profile(self) -> None:
        pick, ts_ms, partition = self.pick, self._event_ms(), self._partition()
        item_id, user_id, tenant = pick.choice(ITEMS), pick.choice(USERS), pick.choice(TENANTS)
        chance, wire = pick.random(), pick.choice(self.wires)
        if chance < 0.4:
            said = {"author_id": pick.choice("xyz"), "topic_tags": pick.sample("abcdef", 2), "quality_score": pick.random()}
            self.log.add(content(item_id, ts_ms, tenant=tenant, **said), partition, self.now_ms, wire)
        elif chance < 0.8:
            self.log.add(
                user(user_id, ts_ms, created_at_ms=NOW_MS - DAY_MS, tenant=tenant), partition, self.now_ms, pick.choice(self.wires)
            )
        elif chance < 0.9:
            self.log.forget("content", item_id.encode(), self.now_ms, partition)
        else:
            self.log.forget("users", pick.choice((user_id.encode(), b"", b"\xff")), self.now_ms, partition)

    def _append_poison(self, topic: str, partition: int) -> StoredRecord:
        return self.log.append(raw(self.pick.choice(POISON), topic)._replace(partition=partition, timestamp=self.now_ms))

    def _partition(self) -> int:
        return self.pick.randrange(self.partitions)


def drawn(pick: random.Random, log: Log) -> Feed:
    """The producers of one run."""
    return Feed(
        pick,
        log,
        partitions=pick.choice((1, 2, 2, 2, 3)),
        poison_share=pick.choice((0.0, 0.02, 0.1)),
        ahead_share=pick.choice((0.0, 0.05)),
        profile_share=pick.choice((0.0, 0.1, 0.3)),
        repeat_share=pick.choice((0.0, 0.05, 0.2)),
        steps_ms=pick.choice(STEPS_MS),
        repeat_offsets=pick.choice(REPEAT_OFFSETS),
        wires=pick.choice(WIRES),
    )
