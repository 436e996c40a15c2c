"""Dead letters sent again to where they came from, once what made them bad is repaired.

A letter is named by the place of its record: (topic, partition, offset). Before letters are sent, marks that say so are put beside them
into dead-letters, and when Kafka has them, marks that say that: whoever redrives later passes over what is marked, so no record is sent
twice, whichever letters were chosen before, and however often a worker wrote the same letter. A redrive that is killed leaves marks
without their second half: those letters are told as unsure, never sent blindly.

A record goes to its own partition with its own key, headers and Kafka timestamp. What was dead for a time ahead of its Kafka timestamp
is therefore dead again, today as then, unless a repair mends its time.
"""

import importlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Producer

from replay.log import KAFKA_S, QUIET, KafkaLog
from schemas import codec
from schemas.errors import LogError, SettingsError
from schemas.records import LETTERS_MARKED, DeadLetter
from schemas.topics import DEAD_LETTERS, SOURCES, LogRecord

#: What marks a letter in place of a reason: about to be sent, sent.
SENDING, SENT = LETTERS_MARKED
#: Letters sent between two looks at what Kafka took. A redrive that is killed leaves at most so many unsure.
CHUNK_LETTERS = 500
#: The longest record that is sent (bytes): above what a broker takes by default, so that the broker and nobody else decides.
RECORD_BYTES_MAX = 2 * 2**20

#: Mends the bytes of a value; None where they cannot be mended.
Repair = Callable[[bytes], bytes | None]
Name = tuple[str, int, int]


class Letter(NamedTuple):
    """A dead letter and the record of dead-letters that holds it."""

    letter: DeadLetter
    record: LogRecord

    @property
    def name(self) -> Name:
        """Where its record stood."""
        return self.letter.topic, self.letter.partition, self.letter.offset


@dataclass(frozen=True, slots=True)
class Choice:
    """Which letters. reason, topic (without prefix): empty is any. from_offset: of each partition of dead-letters."""

    reason: str = ""
    topic: str = ""
    from_offset: int = 0
    repair: Repair | None = None


@dataclass(slots=True)
class Redriven:
    """What came of it. read: letters looked at; skipped: not chosen, redriven before, beyond repair; unsure: of a killed run."""

    read: int = 0
    redriven: int = 0
    skipped: int = 0
    unsure: list[str] = field(default_factory=list)


def redrive(log: KafkaLog, sender: "Sender", choice: Choice, shown: Callable[[int], None]) -> Redriven:
    """Send chosen letters again, each once. shown: told how many letters were read. Raises LogError where Kafka does not take one."""
    marks = [(letter.letter.reason, letter.name) for letter in letters(log, marks=True)]
    marked, sent = ({name for reason, name in marks if reason == wanted} for wanted in LETTERS_MARKED)
    told = Redriven(unsure=[f"{topic}/{partition}/{offset}" for topic, partition, offset in sorted(marked - sent)])
    todo = _chosen(letters(log), choice, sender.topic_prefix, marked, told, shown)
    while chunk := list(itertools.islice(todo, CHUNK_LETTERS)):
        sender.mark([letter for letter, _ in chunk], SENDING)
        sender.send(chunk)
        sender.mark([letter for letter, _ in chunk], SENT)
        told.redriven += len(chunk)
    told.skipped = told.read - told.redriven
    return told


def letters(log: KafkaLog, *, marks: bool = False) -> Iterator[Letter]:
    """Every dead letter, or every mark instead."""
    for batch in log.read(DEAD_LETTERS):
        for record in batch.records:
            letter = codec.decode(DEAD_LETTERS, record.value)
            assert isinstance(letter, DeadLetter), letter
            if (letter.reason in LETTERS_MARKED) == marks:
                yield Letter(letter, record)


def repair_of(name: str) -> Repair | None:
    """The function that "module:function" names; None for nothing. Raises SettingsError."""
    if not name:
        return None
    module, _, function = name.partition(":")
    try:
        found: Repair = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(f"--repair is {name!r}: it takes module:function, bytes to bytes or None ({error}).") from error
    return found


def _chosen(
    found: Iterable[Letter], choice: Choice, prefix: str, marked: set[Name], told: Redriven, shown: Callable[[int], None]
) -> Iterator[tuple[Letter, bytes | None]]:
    """The letters to send, each with its value, repaired. Adds to told.read, and to marked what it yields."""
    topics = {prefix + topic.name for topic in SOURCES if choice.topic in {"", topic.name}}
    for letter in found:
        told.read += 1
        shown(told.read)
        wanted = letter.letter.topic in topics and choice.reason in {"", letter.letter.reason}
        if not wanted or letter.record.offset < choice.from_offset or letter.name in marked:
            continue
        value = letter.letter.value
        if choice.repair is not None:
            value = None if value is None else choice.repair(value)
            if value is None:
                continue
        marked.add(letter.name)
        yield letter, value


class Sender:
    """A producer of letters' records and of marks. Raises LogError where Kafka does not take all."""

    def __init__(self, bootstrap: str, topic_prefix: str = "", security: Mapping[str, str] | None = None) -> None:
        """bootstrap: host:port of the brokers. security: as replay.log.Publisher's."""
        self.topic_prefix = topic_prefix
        self._failures: list[KafkaError] = []
        self._producer = Producer(
            {
                **QUIET,
                "bootstrap.servers": bootstrap,
                **(security or {}),
                "enable.idempotence": True,
                "compression.type": "lz4",
                "message.max.bytes": RECORD_BYTES_MAX,
                "message.timeout.ms": int(KAFKA_S * 1000),
            }
        )

    def send(self, chunk: Iterable[tuple[Letter, bytes | None]]) -> None:
        """Send records again, to their own partitions, as they were but for a repaired value."""
        for (letter, record), value in chunk:
            timestamp_ms, headers = codec.letter_origin(record)
            self._produce(letter.topic, value, letter.key, letter.partition, {"timestamp": timestamp_ms, "headers": headers})
        self._flush()

    def mark(self, chunk: Iterable[Letter], mark: str) -> None:
        """Put a mark for each letter into the partition that it stands in."""
        for letter, record in chunk:
            place = f"{record.topic}/{record.partition}/{record.offset}"
            value = DeadLetter(topic=letter.topic, partition=letter.partition, offset=letter.offset, reason=mark, detail=place, value=None)
            self._produce(self.topic_prefix + DEAD_LETTERS.name, codec.encode(value), letter.key, record.partition, {})
        self._flush()

    def _produce(self, topic: str, value: bytes | None, key: bytes | None, partition: int, rest: dict[str, Any]) -> None:
        try:
            self._producer.produce(topic, value, key, partition, on_delivery=self._taken, **rest)
        except (KafkaException, BufferError) as error:
            message = f"{topic}/{partition} takes no record of {len(value or b'')} bytes: {error}. Mend that, redrive, look into `unsure`."
            raise LogError(message) from error
        self._producer.poll(0)

    def _taken(self, error: KafkaError | None, _: object) -> None:
        if error is not None:
            self._failures.append(error)

    def _flush(self) -> None:
        left = self._producer.flush(2 * KAFKA_S)
        if self._failures or left:
            first = self._failures[0].str() if self._failures else "no answer"
            raise LogError(
                f"Kafka did not take {len(self._failures) + left} of the letters' records, the first because: {first}. They are marked as "
                "under way: redrive again, and look into `unsure` for what may not have arrived."
            )
