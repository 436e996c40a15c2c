"""What became of each request: one answer where it is good, one dead letter with its bytes and its reason where it is not."""

from collections import Counter
from collections.abc import Mapping, Sequence

from ranker.fronts.records import CORRELATION_ID, REPLY_PARTITION, REPLY_TOPIC, TRACE, decode_request
from schemas import codec
from schemas.errors import DecodeError
from schemas.records import DeadLetter, RankRequest, RankResponse, Reason
from schemas.topics import DEAD_LETTERS, RANK_REQUESTS, RANK_RESPONSES, StoredRecord
from tests.fuzz.requests import DEEP, REPLY_PARTITIONS, Request, number_of

#: Where a request was put: partition and offset.
Place = tuple[int, int]


class Verdict:
    """Looks at outcomes as they come. wrong: a sentence for each that should not be."""

    def __init__(
        self, asked: Mapping[int, Request], places: Mapping[int, Place], prefix: str, replies: str, schema_ids: codec.SchemaIds
    ) -> None:
        """asked: every request by its number; places: where Kafka put it, filled while requests are sent. replies: the allowed topic."""
        self.outcomes: Counter[int] = Counter()
        self.responses = self.dead_letters = 0
        self.reasons: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._asked, self._places, self._schema_ids = asked, places, schema_ids
        self._prefix, self._replies = prefix, replies

    def take(self, record: StoredRecord) -> None:
        """One record of rank-responses, of the replies or of dead-letters."""
        number = number_of(record.timestamp)
        if number not in self._asked:
            self.wrong.append(f"{record.topic} {record.partition}/{record.offset} answers nobody: its timestamp is {record.timestamp}")
            return
        self.outcomes[number] += 1
        is_letter = record.topic == self._prefix + DEAD_LETTERS.name
        self.dead_letters += is_letter
        self.responses += not is_letter
        asked = self._asked[number].stored(self._prefix + RANK_REQUESTS.name, *self._places[number])
        faults = self._letter(record, asked) if is_letter else self._response(record, asked)
        self.wrong += [f"request {number} ({', '.join(self._asked[number].story)}): {fault}" for fault in faults]

    def unanswered(self) -> list[int]:
        """Requests of which nothing became."""
        return [number for number in self._asked if not self.outcomes[number]]

    def repeated(self) -> list[int]:
        """Requests of which more than one thing became."""
        return [number for number, count in self.outcomes.items() if count > 1]

    def _decoded(self, asked: StoredRecord) -> RankRequest | DecodeError:
        try:
            return decode_request(asked, self._schema_ids)
        except DecodeError as error:
            return error

    def _letter(self, record: StoredRecord, asked: StoredRecord) -> Sequence[str]:
        letter = codec.decode(DEAD_LETTERS, record.value)
        assert isinstance(letter, DeadLetter)
        self.reasons[letter.reason] += 1
        expected = self._decoded(asked)
        reason = expected.reason if isinstance(expected, DecodeError) else "none: it is good"
        is_deep = DEEP in self._asked[number_of(record.timestamp)].story
        held = {
            "topic": (letter.topic, asked.topic),
            "partition": (letter.partition, asked.partition),
            "offset": (letter.offset, asked.offset),
            "value": (letter.value, asked.value),
            "key": ((letter.key, record.key), (asked.key, asked.key)),
            "reason": (letter.reason, letter.reason if is_deep else reason),
            "a reason of ours": (letter.reason in list(Reason), True),
            "timestamp and headers": (codec.letter_origin(record), (asked.timestamp, list(asked.headers))),
        }
        return [f"its letter's {name} is {str(is_)[:200]}, not {str(due)[:200]}" for name, (is_, due) in held.items() if is_ != due]

    def _response(self, record: StoredRecord, asked: StoredRecord) -> Sequence[str]:
        response = codec.decode(RANK_RESPONSES, record.value)
        assert isinstance(response, RankResponse)
        expected = self._decoded(asked)
        if isinstance(expected, DecodeError):
            return [f"it was answered, and is {expected}"]
        headers = dict(asked.headers)
        is_elsewhere = headers.get(REPLY_TOPIC) == self._replies.encode()
        wanted = headers.get(REPLY_PARTITION, b"") if is_elsewhere else b""
        partition = int.from_bytes(wanted) if len(wanted) == 4 and int.from_bytes(wanted) < REPLY_PARTITIONS else record.partition
        held = {
            "request": ((response.tenant, response.request_id), (expected.tenant, expected.request_id)),
            "topic": (record.topic, self._replies if is_elsewhere else self._prefix + RANK_RESPONSES.name),
            "partition": (record.partition, partition),
            "key": (record.key, expected.user_id.encode()),
            "headers": (record.headers, tuple((name, headers[name]) for name in (CORRELATION_ID, TRACE) if name in headers)),
        }
        return [f"its answer's {name} is {str(is_)[:200]}, not {str(due)[:200]}" for name, (is_, due) in held.items() if is_ != due]
