"""Many events, a column a field: numbers as they are, words as spans of one buffer.

What ingest does to a batch it does to these columns, in compiled loops; table.py has the same as a table.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.columnar.words import Buffer
from schemas.records import Click, Dwell, Impression

#: The records that are events; `Events.record` says which by its place here.
RECORDS = (Impression.__name__, Click.__name__, Dwell.__name__)
#: The fields that updates are made of, and where an item was shown; a record that lacks one has NONE, or a word of length -1.
NUMBERS = ("ts_ms", "dwell_ms", "position")
WORDS = ("request_id", "user_id", "item_id", "model_version", "tenant")
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Events:
    """n events, in no particular order. Columns lie in the order of C and text is read only: for others, loops would be compiled anew.

    record: uint8 [n], a place in RECORDS. row: int64 [n], where it stood in the batch. numbers: int64 [NUMBERS, n]. text: the words' bytes.
    words: int64 [WORDS, n, 2], start in text and length. offset, timestamp: int64 [n], what the log says of it.
    """

    record: NDArray[np.uint8]
    row: Ints
    numbers: Ints
    text: Buffer
    words: Ints
    offset: Ints
    timestamp: Ints

    def __len__(self) -> int:
        return len(self.record)

    def number(self, name: str) -> Ints:
        """One numeric field, int64 [n]."""
        found: Ints = self.numbers[NUMBERS.index(name)]
        return found

    def word(self, name: str) -> Ints:
        """One field of words, int64 [n, 2]: start and length."""
        found: Ints = self.words[WORDS.index(name)]
        return found

    def where(self, wanted: NDArray[np.bool_]) -> "Events":
        """Some of the events. wanted: bool [n]."""
        if wanted.all():
            return self
        return Events(
            self.record[wanted],
            self.row[wanted],
            np.compress(wanted, self.numbers, axis=1),
            self.text,
            np.compress(wanted, self.words, axis=1),
            self.offset[wanted],
            self.timestamp[wanted],
        )


def pack(values: Sequence[str | None]) -> tuple[bytes, Ints]:
    """Python strings as one buffer and their spans in it, int64 [n, 2]."""
    raws = [None if value is None else value.encode() for value in values]
    lengths = np.array([-1 if raw is None else len(raw) for raw in raws], np.int64)
    ends = np.cumsum(np.maximum(lengths, 0))
    return b"".join(raw for raw in raws if raw), np.stack([ends - np.maximum(lengths, 0), lengths], axis=1)


def concat(parts: Sequence[Events]) -> Events:
    """All events of several parts."""
    if len(parts) == 1:
        return parts[0]
    starts = np.cumsum([0, *(len(part.text) for part in parts)])
    shifted = [part.words + np.array([start, 0]) for part, start in zip(parts, starts, strict=False)]
    text = np.concatenate([part.text for part in parts])
    text.setflags(write=False)
    return Events(
        np.concatenate([part.record for part in parts]),
        np.concatenate([part.row for part in parts]),
        np.concatenate([part.numbers for part in parts], axis=1),
        text,
        np.concatenate(shifted, axis=1),
        np.concatenate([part.offset for part in parts]),
        np.concatenate([part.timestamp for part in parts]),
    )
