"""Rank requests and what strangers make of them. A seed and a number are one request, to the last byte.

What tells a request from all others is its Kafka timestamp: it is no part of what is changed, and the worker gives it to whatever comes
out.
"""

import io
import json
import string
from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Any, NamedTuple

import fastavro
import msgspec

from ranker.fronts.records import CORRELATION_ID, REPLY_PARTITION, REPLY_TOPIC, TRACE
from schemas import avro, codec
from schemas.records import CANDIDATES_COUNT_MAX, CLOCK_SKEW_MS_MAX, ID_BYTES_MAX, VALUE_BYTES_MAX, RankRequest
from schemas.topics import StoredRecord
from tests.rankers import ITEMS
from tests.worlds import NOW_MS, SCHEMA_NUMBERS, WIRES, encoded, impression

PARTITIONS = 4
#: Partitions of the topic that requests may name for their answers.
REPLY_PARTITIONS = 3
#: The first request's time: the store's past is over. Each has a millisecond of its own, and old clocks theirs since 1970.
BEGIN_MS, OLD_BEGIN_MS = NOW_MS + 120_000, 1
#: One request in so many is as it should be; is as large as Kafka takes it; says a time long gone; has odd headers; an odd key.
GOOD_EVERY, LARGE_EVERY, OLD_EVERY, HEADERS_EVERY, KEY_EVERY = 5, 400, 20, 2, 4
#: What a broker takes in one message, less its frame (bytes).
LARGE_BYTES = 1_048_400
#: Headers of one record: of more than 100,000 librdkafka gives none, and a letter has some of its own.
HEADERS_COUNT_MAX = 99_000
#: How deep JSON may be depends on the stack of whoever reads it: what the worker finds too deep may be none of our records here.
DEEP = "a deep type"

Fields = dict[str, Any]
Headers = list[tuple[str, bytes | None]]


class Request(NamedTuple):
    """What is sent. timestamp: Kafka's, milliseconds, nobody else's; story: what was done to it."""

    key: bytes | None
    value: bytes | None
    timestamp: int
    headers: Headers
    story: list[str]

    def stored(self, topic: str, partition: int, offset: int) -> StoredRecord:
        """As the worker sees it."""
        return StoredRecord(topic, partition, offset, self.timestamp, self.key, self.value, tuple((n, v or b"") for n, v in self.headers))


def request(seed: int, number: int, replies: str, *, is_good: bool = False) -> Request:
    """The request of this number. replies: the topic that is allowed for answers; is_good: leave it as it should be."""
    random = Random(f"{seed}/{number}")
    is_old = not is_good and random.randrange(OLD_EVERY) == 0
    timestamp = (OLD_BEGIN_MS if is_old else BEGIN_MS) + number
    fields = good(random, number, timestamp)
    if is_good or random.randrange(GOOD_EVERY) == 0:
        plain, framing = encoded(msgspec.convert(fields | {"deadline_ms": 5_000}, RankRequest), random.choice(WIRES))
        return Request(fields["user_id"].encode(), plain, timestamp, [*framing], ["good"])
    story: list[str] = []
    value, headers = _value(random, fields, story)
    headers += _headers(random, replies, story)
    key = _key(random, fields, story)
    if random.randrange(LARGE_EVERY) == 0:
        key, value, headers = _large(random, fields, headers, story)
    return Request(key, value, timestamp, headers, story)


class Requests(Mapping[int, Request]):
    """Requests of a run by their numbers, made when they are looked at: all of them would take gigabytes.

    numbers: whether each is left as it should be.
    """

    def __init__(self, seed: int, numbers: Mapping[int, bool], replies: str) -> None:
        self._seed, self._numbers, self._replies = seed, numbers, replies

    def __getitem__(self, number: int) -> Request:
        return request(self._seed, number, self._replies, is_good=self._numbers[number])

    def __contains__(self, number: object) -> bool:
        return number in self._numbers

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)


def number_of(timestamp: int) -> int:
    """Which request has this Kafka timestamp."""
    return timestamp - (BEGIN_MS if timestamp >= BEGIN_MS else OLD_BEGIN_MS)


def good(random: Random, number: int, timestamp: int) -> Fields:
    """A request that is answered."""
    strangers = [f"s{random.randrange(1_000)}" for _ in range(random.choice((0, 1, 30, 150)))]
    return {
        "request_id": f"q{number}",
        "user_id": f"u{random.randrange(10)}",
        "candidate_item_ids": [*random.sample(ITEMS, random.randint(1, len(ITEMS))), *strangers],
        "k": random.choice((1, 10, CANDIDATES_COUNT_MAX)),
        "ts_ms": max(timestamp - random.randrange(60_000), 1),
        "deadline_ms": random.choice((None, 80, 5_000)),
        "context": random.choice(({}, {"surface": "home"})),
        "tenant": random.choice(("", "", "acme")),
    }


def _noise(random: Random, length: int) -> bytes:
    return random.randbytes(length)


def _words(random: Random, length: int) -> str:
    """Letters of one to four bytes, some of which nobody should print."""
    return "".join(random.choice('aZ0 :{}"\\/\0\n\x7f\x85é\u202e日\ufffe😀') for _ in range(length))


def _at_the_bound(random: Random, ts_ms: int) -> int:
    """Five minutes off, by and large."""
    off_ms = random.choice((-1, 1)) * (CLOCK_SKEW_MS_MAX + random.randint(-60_000, 60_000))
    return max(min(ts_ms + off_ms, 2**63 - 1), -(2**63))


#: Changes of a field that every wire form can carry.
FIELDS: dict[str, Callable[[Random, Fields], Any]] = {
    "no candidates": lambda _, said: said.update(candidate_item_ids=[]),
    "a candidate too many": lambda _, said: said.update(candidate_item_ids=[f"c{n}" for n in range(CANDIDATES_COUNT_MAX + 1)]),
    "thousands of candidates": lambda _, said: said.update(candidate_item_ids=[f"c{n}" for n in range(5_000)]),
    "one candidate over and over": lambda _, said: said.update(candidate_item_ids=["i1"] * CANDIDATES_COUNT_MAX),
    "an empty candidate": lambda _, said: said["candidate_item_ids"].append(""),
    "a candidate too long": lambda _, said: said["candidate_item_ids"].append("i" * (ID_BYTES_MAX + 1)),
    "a candidate just too long in bytes": lambda _, said: said["candidate_item_ids"].append("é" * (ID_BYTES_MAX // 2) + "i"),
    "the longest candidates": lambda _, said: said.update(
        candidate_item_ids=[f"{n:0{ID_BYTES_MAX}}" for n in range(CANDIDATES_COUNT_MAX)], k=CANDIDATES_COUNT_MAX
    ),
    "strange letters": lambda random, said: said.update(user_id=_words(random, 20), request_id=said["request_id"] + _words(random, 20)),
    "strange candidates": lambda random, said: said.update(candidate_item_ids=[_words(random, 9) or "x" for _ in range(9)]),
    "a user too long": lambda random, said: said.update(user_id="u" * random.randint(ID_BYTES_MAX, 10_000)),
    "a request_id too long": lambda random, said: said.update(request_id="q" * random.randint(ID_BYTES_MAX, 10_000)),
    "a tenant too long": lambda random, said: said.update(tenant="t" * random.randint(ID_BYTES_MAX, 10_000)),
    "a tenant with a colon": lambda _, said: said.update(tenant="a:b"),
    "nobody": lambda _, said: said.update(user_id=""),
    "no request_id": lambda _, said: said.update(request_id=""),
    "an earlier request_id": lambda random, said: said.update(request_id=f"q{random.randrange(1_000)}"),
    "an odd k": lambda random, said: said.update(k=random.choice((0, -1, 201, 2**31 - 1, -(2**31)))),
    "an odd deadline": lambda random, said: said.update(deadline_ms=random.choice((0, -1, 1, 2, 11, 2**62, 2**63 - 1, -(2**63)))),
    "an odd time": lambda random, said: said.update(ts_ms=random.choice((0, -1, 1, 2**31, 2**62, 2**63 - 1, -(2**63)))),
    "a time at the bound": lambda random, said: said.update(ts_ms=_at_the_bound(random, said["ts_ms"])),
    "a large context": lambda random, said: said.update(
        context={f"c{n}": "v" * random.randrange(300) for n in range(random.randrange(600))}
    ),
    "a strange context": lambda random, said: said.update(context={_words(random, 5): _words(random, 30) for _ in range(5)}),
}

#: What stands in place of a field in JSON; text, for some of it no encoder makes.
ODD_JSON = (
    *(
        "null",
        "true",
        "0",
        "-1",
        "1.5",
        "1e3",
        "1e999",
        "-0",
        "01",
        "NaN",
        "9" * 30,
        "9" * 5_000,
        '""',
        '"x"',
        "[]",
        "{}",
        "[[[]]]",
        "[null]",
    ),
    *(
        '[7,"x"]',
        '{"a":1}',
        '{"a":null}',
        '"\\ud800"',
        '"\\udc00\\ud800"',
        '["\\ud800"]',
        "[" * 900 + "]" * 900,
        "[" * 20_000 + "]" * 20_000,
        "",
    ),
)


def _odd_json(random: Random, fields: Fields) -> tuple[bytes, str]:
    """A request as JSON, with something in it that does not belong there."""
    parts = {name: json.dumps(value) for name, value in fields.items()}
    name = random.choice((*parts, "type", "unknown"))
    match random.randrange(4):
        case 0:
            parts.pop(name, None)
            story = f"JSON without {name}"
        case 1:
            # The same name once more.
            parts[f'{name}":{parts.get(name, "1")},"{name}'] = random.choice(ODD_JSON)
            story = f"JSON with {name} twice"
        case 2:
            parts[name] = json.dumps(json.dumps(fields.get(name, "")))
            story = f"JSON with {name} as a text"
        case _:
            parts[name] = random.choice(ODD_JSON)
            story = f"JSON with an odd {name}"
    order = random.sample(list(parts), len(parts))
    return ("{" + ",".join(f'"{name}":{parts[name]}' for name in order) + "}").encode(), story


def _swapped_avro(random: Random, fields: Fields) -> bytes:
    """The fields one in place of another, under the schema that says otherwise."""
    schema = avro.NEWEST[RankRequest.__name__]
    order = random.sample(schema.raw["fields"], len(schema.raw["fields"]))
    out = io.BytesIO()
    out.write(codec.SINGLE_OBJECT + schema.fingerprint)
    fastavro.schemaless_writer(out, fastavro.parse_schema({**schema.raw, "fields": order}, _force=True), fields)
    return out.getvalue()


#: Changes of an encoded value.
BYTES: dict[str, Callable[[Random, bytes], bytes]] = {
    "bytes flipped": lambda random, value: _flipped(random, value, random.randint(1, 8)),
    "a bit flipped": lambda random, value: _flipped(random, value, 1),
    "cut": lambda random, value: value[: random.randrange(len(value))],
    "its head cut off": lambda random, value: value[random.randrange(len(value)) :],
    "lengthened": lambda random, value: value + _noise(random, random.choice((1, 2, 50, 3_000))),
    "noise put in": lambda random, value: _spliced(random, value, _noise(random, random.choice((1, 4, 60))), 0),
    "a piece taken out": lambda random, value: _spliced(random, value, b"", random.randint(1, 20)),
    "a piece twice": lambda random, value: _spliced(random, value, value[: random.randint(1, 60)], 0),
    "not UTF-8": lambda random, value: _spliced(random, value, random.choice((b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xf8\x88")), 2),
    "another frame": lambda random, value: (
        random.choice((b"\0", b"\xc3\x01", b"\xc3\x01" + _noise(random, 8), b"\0\0\0\0\7", b"{")) + value
    ),
    "another record's schema": lambda random, value: _other_schema(random, value),
}


def _flipped(random: Random, value: bytes, count: int) -> bytes:
    found = bytearray(value)
    for _ in range(count):
        found[random.randrange(len(found))] ^= 1 << random.randrange(8)
    return bytes(found)


def _spliced(random: Random, value: bytes, put: bytes, taken: int) -> bytes:
    """Some bytes in place of others, somewhere."""
    at = random.randrange(len(value))
    return value[:at] + put + value[at + taken :]


def _other_schema(random: Random, value: bytes) -> bytes:
    schema = random.choice(list(avro.NEWEST.values()))
    return codec.SINGLE_OBJECT + schema.fingerprint + value[10:]


#: What stands in place of a request.
WHOLE: dict[str, Callable[[Random], bytes | None]] = {
    "null": lambda _: None,
    "empty": lambda _: b"",
    "a byte": lambda random: _noise(random, 1),
    "noise": lambda random: _noise(random, random.randrange(500)),
    "a frame alone": lambda random: random.choice((b"{", b"\0", b"\xc3\x01", b"\0\0\0\0\1", codec.SINGLE_OBJECT + b"\7" * 8)),
    "a registered id that nobody has": lambda random: b"\0" + _noise(random, 1).rjust(4, b"\0") + _noise(random, 40),
    "an impression": lambda _: codec.encode(impression()),
    "JSON that is no object": lambda random: random.choice(
        (b"[]", b"null", b"7", b'"x"', b"{}", b"{}}", b"{]", b"\xef\xbb\xbf{}", b"{\0}")
    ),
    "JSON too deep": lambda random: b'{"type":' * random.choice((100, 990, 100_000)),
    DEEP: lambda random: b'{"type":%s}' % _nested(random.randrange(400, 1_000)),
}


def _nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def _value(random: Random, fields: Fields, story: list[str]) -> tuple[bytes | None, Headers]:
    """A value with some of it changed, and the headers that frame it."""
    if random.randrange(8) == 0:
        name = random.choice(list(WHOLE))
        story.append(name)
        return WHOLE[name](random), []
    for name in random.sample(list(FIELDS), random.choice((0, 0, 1, 1, 2))):
        FIELDS[name](random, fields)
        story.append(name)
    wire = random.choice((*WIRES, "odd JSON", "odd JSON", "odd JSON", "odd Avro"))
    headers: Headers = []
    if wire == "odd JSON":
        value, said = _odd_json(random, fields)
        story.append(said)
    elif wire == "odd Avro":
        value = _swapped_avro(random, fields)
        story.append("fields swapped")
    else:
        value, framing = encoded(RankRequest(**fields), wire)
        headers = [*framing]
        story.append(wire)
    for name in random.sample(list(BYTES), random.choice((0, 1, 1, 2))):
        if value:
            value = BYTES[name](random, value)
            story.append(name)
    return value, headers


def _headers(random: Random, replies: str, story: list[str]) -> Headers:
    """Where the answer should go, and whatever else clients put beside a record."""
    if random.randrange(HEADERS_EVERY):
        return []
    topics = (replies, replies, "rank-requests", "__consumer_offsets", "no/such topic", "", "\0", "t" * 300)
    partitions = (b"\0\0\0\1", b"\0\0\0\2", b"\0\0\0\3", b"\xff\xff\xff\xff", b"1", b"", b"\0" * 8, None)
    made: tuple[Callable[[], tuple[str, bytes | None]], ...] = (
        lambda: (REPLY_TOPIC, random.choice(topics).encode()),
        lambda: (REPLY_TOPIC, random.choice((None, b"\xff\xfe", _noise(random, 9)))),
        lambda: (REPLY_PARTITION, random.choice(partitions)),
        lambda: (CORRELATION_ID, random.choice((None, b"", _noise(random, 16), _noise(random, 5_000)))),
        lambda: (TRACE, random.choice((None, b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", b"\xff", _noise(random, 300)))),
        lambda: (codec.SCHEMA_ID_HEADER, random.choice((None, b"", b"\0\0\0\0\1", b"\1" + _noise(random, 16), _noise(random, 5)))),
        lambda: (_words(random, 6).replace("\0", ""), _noise(random, random.randrange(40))),
        lambda: ("", b""),
    )
    story.append("odd headers")
    return [random.choice(made)() for _ in range(random.choice((1, 2, 3, 60)))]


def _key(random: Random, fields: Fields, story: list[str]) -> bytes | None:
    if random.randrange(KEY_EVERY):
        return str(fields["user_id"]).encode()
    story.append("an odd key")
    return random.choice((None, b"", b"\xff\xfe", _noise(random, 30), b"k" * 9_000))


def _large(random: Random, fields: Fields, headers: Headers, story: list[str]) -> tuple[bytes | None, bytes | None, Headers]:
    """As much as Kafka takes, in one place of the record or another."""
    key, value = b"u1", codec.encode_json(RankRequest(**fields))
    left = LARGE_BYTES - len(value) - sum(len(name) + len(header or b"") + 10 for name, header in headers)
    place = random.choice(
        ("value", "just too long", "a word", "a word that is no UTF-8", "key", CORRELATION_ID, TRACE, "a header", "many headers")
    )
    story.append(f"large: {place}")
    match place:
        case "value":
            value = _noise(random, left)
        case "just too long":
            value = value[:-1] + b" " * (VALUE_BYTES_MAX - len(value) + random.randrange(2)) + b"}"
        case "a word" | "a word that is no UTF-8":
            word = b"\x7f" if place == "a word" else b"\xff"
            value = b'{"type":"%s"}' % bytes(random.choice((word[0], 0x41 + random.randrange(26))) for _ in range(VALUE_BYTES_MAX - 20))
        case "key":
            key = _noise(random, left)
        case "many headers":
            count = min(left // 10, HEADERS_COUNT_MAX - len(headers))
            headers = [*headers, *(("".join(random.choices(string.ascii_letters, k=6)), b"") for _ in range(count))]
        case _:
            headers = [*headers, (place, _noise(random, left))]
    return key, value, headers


assert RankRequest.__name__ in SCHEMA_NUMBERS, "the registry of tests knows every record"
