"""After the log has drained: whether every record is what the oracle says, and every bad one a dead letter with its bytes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from online_store.redis import RedisStore
from schemas import codec
from schemas.features import REGISTRY, Registry
from schemas.records import LETTERS_MARKED, DeadLetter
from schemas.topics import DEAD_LETTERS, StoredRecord
from schemas.windows import HOUR_MS, LATENESS_MS
from tests.oracle import Oracle, Windows
from tests.verify import compare
from tests.workers import GENERATION, SOURCE_NAMES, log_records


@dataclass(frozen=True, slots=True)
class Verdict:
    """Counts of one run; wrong: a sentence an entity, letters_wrong: bad records without a letter of their bytes, and letters too many."""

    events: int
    bad: int
    entities_compared: int
    moments: int
    wrong: list[str]
    letters_wrong: int
    letters_repeated: int
    produced_twice: int


def windows_of(registry: Registry) -> Windows:
    """The registry's windows, as the oracle wants them."""
    return {kind: {window.name: (window.span_ms, window.hop_ms) for window in registry.windows(kind)} for kind in registry.kinds}


def logged(kafka_bootstrap: str, prefix: str, names: Sequence[str]) -> list[StoredRecord]:
    """Everything that topics hold."""
    return [record for name in names for record in log_records(kafka_bootstrap, prefix + name)]


async def judge(kafka_bootstrap: str, prefix: str, store_url: str) -> Verdict:
    """Compare every entity at several moments, and every dead letter with its record."""
    log = logged(kafka_bootstrap, prefix, SOURCE_NAMES)
    oracle = Oracle(log, windows_of(REGISTRY), prefix)
    newest_ms = oracle.newest_ms()
    moments = [newest_ms, newest_ms - LATENESS_MS // 2, newest_ms + 7, newest_ms + HOUR_MS, newest_ms + 26 * HOUR_MS]
    store = RedisStore(store_url, REGISTRY)
    wrong = await compare(store, REGISTRY, GENERATION, oracle, moments)
    await store.close()
    letters = Counter(_letters(kafka_bootstrap, prefix))
    expected = {_place(record, prefix) for record in log if (record.topic.removeprefix(prefix), *record[1:3]) in oracle.bad}
    repeats = Counter((record.topic, record.partition, record.key, record.value) for record in log)
    return Verdict(
        events=len(log),
        bad=len(oracle.bad),
        entities_compared=len(oracle.entities),
        moments=len(moments),
        wrong=wrong,
        letters_wrong=len(expected ^ letters.keys()),
        letters_repeated=letters.total() - len(letters),
        produced_twice=repeats.total() - len(repeats),
    )


#: topic, partition, offset, key, value
Letter = tuple[str, int, int, bytes | None, bytes | None]


def _place(record: StoredRecord, prefix: str) -> Letter:
    return record.topic.removeprefix(prefix), record.partition, record.offset, record.key, record.value


def _letters(kafka_bootstrap: str, prefix: str) -> list[Letter]:
    found: list[Letter] = []
    for record in logged(kafka_bootstrap, prefix, [DEAD_LETTERS.name]):
        letter = codec.decode(DEAD_LETTERS, record.value)
        assert isinstance(letter, DeadLetter)
        if letter.reason not in LETTERS_MARKED:
            found.append((letter.topic.removeprefix(prefix), letter.partition, letter.offset, letter.key, letter.value))
    return found
