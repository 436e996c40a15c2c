"""Creates the topics with the settings that the platform rests on."""

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec  # type: ignore[attr-defined]  # its stubs do not export it

from schemas.errors import LogError, kafka_advice
from schemas.records import CLOCK_SKEW_MS_MAX
from schemas.topics import DEAD_LETTERS, TOPICS
from schemas.windows import DAY_MS

#: How long topics keep records (milliseconds): the longest window, and time to notice a fault and replay.
RETENTION_MS = 45 * DAY_MS
NEWEST: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]  # its stubs leave it untyped
#: How long a batch of dead letters may be (bytes). A letter is longer than its record, and that may be as long as the broker takes
#: it (1 MiB): with the same bound, such a record would stop its partition. A key stands in its letter twice; one of headers alone becomes
#: nine times as long, by the words before their names.
LETTERS_BYTES_MAX = 16 * 2**20
#: How long to wait for the broker (seconds).
ADMIN_S = 30.0


def create(
    bootstrap: str,
    prefix: str = "",
    partitions: int = 8,
    retention_ms: int = RETENTION_MS,
    security: Mapping[str, str] | None = None,
) -> list[str]:
    """Create the topics that are not there yet; returns their names. Raises LogError.

    retention_ms: -1 keeps for ever. security: TLS and SASL by librdkafka's names; none is plain text.
    """
    said: deque[KafkaError] = deque(maxlen=10)
    # What goes wrong is raised below: librdkafka need not say it on the terminal as well.
    client: dict[str, Any] = {"bootstrap.servers": bootstrap, "log_level": 0, "error_cb": said.append, **(security or {})}
    admin = AdminClient(client)
    config = {
        # A producer whose clock runs ahead is refused by the broker itself: its timestamps would let its events in.
        "message.timestamp.after.max.ms": str(CLOCK_SKEW_MS_MAX),
        "retention.ms": str(retention_ms),
    }
    own = {DEAD_LETTERS.name: {"max.message.bytes": str(LETTERS_BYTES_MAX)}}
    wanted = [NewTopic(prefix + name, partitions, -1, config=config | own.get(name, {})) for name in TOPICS]
    answers = admin.create_topics(wanted, request_timeout=ADMIN_S, operation_timeout=ADMIN_S)
    created = []
    for name, answer in answers.items():
        try:
            answer.result(ADMIN_S)
            created.append(name)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                admin.poll(0)
                message = f"topic {name} cannot be created at {bootstrap}: {error}. {kafka_advice(said)}"
                raise LogError(message) from error
    _wait_for_leaders(admin, created, partitions)
    return created


def _wait_for_leaders(admin: AdminClient, names: list[str], partitions: int) -> None:
    """Return when every partition of new topics answers: a created topic has no leaders yet. Raises LogError."""
    wanted = {TopicPartition(name, partition): NEWEST for name in names for partition in range(partitions)}
    until_s = time.monotonic() + ADMIN_S
    while wanted:
        answers = admin.list_offsets(wanted, request_timeout=ADMIN_S)
        wanted = {place: NEWEST for place, answer in answers.items() if answer.exception(ADMIN_S) is not None}
        if time.monotonic() > until_s:
            raise LogError(f"{len(wanted)} new partitions have no leader after {ADMIN_S} s. Look into Kafka's log.")
