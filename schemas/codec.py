"""One record to bytes and back, in the three wire forms that producers may mix on a topic.

    C3 01 <fingerprint 8>  body    Avro single-object encoding, writer's schema by CRC-64-AVRO
    00 <schema id 4>       body    Confluent framing; newer clients put the id into the header __value_schema_id instead
    {                              JSON, the record's fields; "type" names the record where a topic carries more than one

`decode` is the definition; schemas/columns.py is the fast way to the same answer for many records at once.
"""

import io
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple
from uuid import UUID

import fastavro
import msgspec

from schemas import avro
from schemas.errors import DecodeError
from schemas.records import (
    CANDIDATES_COUNT_MAX,
    CLOCK_SKEW_MS_MAX,
    ID_BYTES_MAX,
    LETTER_BYTES_MAX,
    TS_MS_MAX,
    VALUE_BYTES_MAX,
    Content,
    DeadLetter,
    RankRequest,
    Reason,
    Record,
    User,
)
from schemas.topics import DEAD_LETTERS, BadRecord, Headers, LogRecord, Topic

SINGLE_OBJECT = b"\xc3\x01"
CONFLUENT = b"\x00"
SCHEMA_ID_HEADER = "__value_schema_id"
#: Ids whose absence has a reason code of its own.
ID_FIELDS = ("request_id", "user_id", "item_id")
#: Everything that becomes part of a key in the store.
KEY_FIELDS = (*ID_FIELDS, "model_version", "tenant")

#: What reads each record from JSON. One without a "type" is the first of its topic's records, and any that fits another fits the first.
_JSON = {record: msgspec.json.Decoder(record) for record in avro.RECORDS.values()}

#: Schemas of a registry by id (or by GUID, as the header carries it): a mapping that may fetch what it is asked for.
SchemaIds = Mapping[int | UUID, avro.Schema]


class Framed(NamedTuple):
    """A value taken apart. schema: the writer's, None for JSON."""

    schema: avro.Schema | None
    body: bytes


def encode(record: Record) -> bytes:
    """Avro single-object encoding under the newest schema."""
    schema = avro.NEWEST[type(record).__name__]
    out = io.BytesIO()
    out.write(SINGLE_OBJECT + schema.fingerprint)
    fastavro.schemaless_writer(out, schema.parsed, msgspec.to_builtins(record, builtin_types=(bytes,)))
    return out.getvalue()


def encode_json(record: Record) -> bytes:
    """JSON with the record's name as "type"."""
    return msgspec.json.encode(record)


def encode_confluent(record: Record, schema_id: int) -> bytes:
    """Confluent framing of the same body as `encode`; schema_id is the registry's for our newest schema."""
    return CONFLUENT + struct.pack(">I", schema_id) + encode(record)[len(SINGLE_OBJECT) + 8 :]


def frame(value: bytes | None, headers: Headers, schema_ids: SchemaIds, bytes_max: int = VALUE_BYTES_MAX) -> Framed:
    """Take a value apart by its first bytes. Raises DecodeError MALFORMED, OVERSIZE or UNKNOWN_SCHEMA."""
    if not value:
        raise DecodeError(Reason.MALFORMED, "the value is empty")
    if len(value) > bytes_max:
        raise DecodeError(Reason.OVERSIZE, f"{len(value)} bytes, at most {bytes_max}")
    for name, header in headers:
        if name == SCHEMA_ID_HEADER:
            return Framed(_registered(_header_id(header), schema_ids), value)
    if value.startswith(SINGLE_OBJECT):
        return Framed(_known(value[2:10]), value[10:])
    if value.startswith(CONFLUENT) and len(value) > 5:
        return Framed(_registered(int.from_bytes(value[1:5]), schema_ids), value[5:])
    if value.startswith(b"{"):
        return Framed(None, value)
    raise DecodeError(Reason.MALFORMED, f"starts with {value[:2].hex()}: neither c301, 00 nor an opening brace")


def decode(topic: Topic, value: bytes | None, headers: Headers = (), schema_ids: SchemaIds | None = None) -> Record:
    """One record of a topic. Raises DecodeError with the reason code of its dead letter."""
    framed = frame(value, headers, {} if schema_ids is None else schema_ids, LETTER_BYTES_MAX if topic is DEAD_LETTERS else VALUE_BYTES_MAX)
    return from_json(topic, framed.body) if framed.schema is None else from_avro(topic, framed.schema, framed.body)


def from_avro(topic: Topic, schema: avro.Schema, body: bytes) -> Record:
    """One Avro body under its writer's schema. Raises DecodeError."""
    record = avro.RECORDS.get(schema.name)
    if record not in topic.records:
        raise DecodeError(Reason.UNKNOWN_SCHEMA, f"{schema.name} is not a record of topic {topic.name}")
    reader = avro.NEWEST[schema.name]
    stream = io.BytesIO(body)
    try:
        fields = fastavro.schemaless_reader(stream, schema.parsed, None if reader is schema else reader.parsed)
    except (EOFError, ValueError, LookupError, TypeError, struct.error, OverflowError, MemoryError) as error:
        raise DecodeError(Reason.MALFORMED, f"not a body of {schema.name} v{schema.version}: {error!r}") from error
    except fastavro.read.SchemaResolutionError as error:
        raise DecodeError(Reason.UNKNOWN_SCHEMA, f"{schema.name} as registered does not fit ours: {error}") from error
    if left := len(body) - stream.tell():
        raise DecodeError(Reason.MALFORMED, f"{left} bytes after the end of {schema.name} v{schema.version}")
    return _convert(record, fields)


def from_json(topic: Topic, body: bytes) -> Record:
    """One JSON object. Raises DecodeError."""
    for record in topic.records:
        try:
            return _JSON[record].decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
    return _from_odd_json(topic, body)


def _from_odd_json(topic: Topic, body: bytes) -> Record:
    """What is wrong with an object that is none of the topic's records as it stands, or the record that it is all the same."""
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(Reason.MALFORMED, f"not JSON: {error}") from error
    names = {record.__name__: record for record in topic.records}
    record = names.get(str(fields.get("type", topic.records[0].__name__)))
    if record is None:
        raise DecodeError(Reason.UNKNOWN_SCHEMA, f"type {fields['type']!r} on topic {topic.name}: one of {[*names]}")
    return _convert(record, fields)


def check(record: Content | User | RankRequest, timestamp_ms: int) -> None:
    """What no schema can say: lengths, a time that can be, near its record's Kafka timestamp. Raises DecodeError.

    schemas.columns says the same of events, many at once.
    """
    for name in KEY_FIELDS:
        if len((getattr(record, name, None) or "").encode()) > ID_BYTES_MAX:
            raise DecodeError(Reason.OVERSIZE, f"{name} is longer than {ID_BYTES_MAX} bytes")
    if ":" in record.tenant:
        raise DecodeError(Reason.MALFORMED, f"tenant {record.tenant!r} has a colon, which parts keys")
    if not 0 < record.ts_ms <= TS_MS_MAX:
        raise DecodeError(Reason.OUT_OF_RANGE, f"ts_ms {record.ts_ms} is not a time since 1970 in milliseconds")
    if record.ts_ms - timestamp_ms > CLOCK_SKEW_MS_MAX:
        raise DecodeError(Reason.FUTURE_DATED, f"ts_ms {record.ts_ms} is ahead of its record's timestamp {timestamp_ms}")


def check_request(request: RankRequest) -> None:
    """What no schema can say of a request. Raises DecodeError with the field at fault."""
    count = len(request.candidate_item_ids)
    if not 0 < count <= CANDIDATES_COUNT_MAX:
        raise DecodeError(Reason.OUT_OF_RANGE, f"candidate_item_ids has {count} entries, 1 to {CANDIDATES_COUNT_MAX} are ranked")
    if request.k < 1 or (request.deadline_ms is not None and request.deadline_ms < 1):
        raise DecodeError(Reason.OUT_OF_RANGE, f"k is {request.k} and deadline_ms {request.deadline_ms}: both count from 1")
    if not all(request.candidate_item_ids):
        raise DecodeError(Reason.MISSING_ID, "candidate_item_ids has an empty id")
    longest = max(map(len, request.candidate_item_ids))
    # A character has four bytes at most: nearly all requests are done here.
    if 4 * longest > ID_BYTES_MAX and max(len(item_id.encode()) for item_id in request.candidate_item_ids) > ID_BYTES_MAX:
        raise DecodeError(Reason.OVERSIZE, f"candidate_item_ids has an id longer than {ID_BYTES_MAX} bytes")


#: A dead letter's detail is cut there (characters). It may quote its record, which stands beside it: longer, it could make a letter that
#: Kafka does not take.
DETAIL_LENGTH_MAX = 1_000
#: What stands before the names of a dead letter's headers: Kafka Connect's.
LETTER_HEADERS = "__connect.errors."
#: Behind it, the Kafka timestamp of the record, and what stands before the names of the record's own headers. These two are ours.
LETTER_TIMESTAMP = f"{LETTER_HEADERS}timestamp"
LETTER_ORIGINAL = f"{LETTER_HEADERS}header."


def dead_letter(bad: BadRecord) -> tuple[bytes, list[tuple[str, bytes]]]:
    """Value and headers of a dead letter; the headers are named as Kafka Connect names them, so that its tools show them."""
    record, detail = bad.record, bad.detail[:DETAIL_LENGTH_MAX]
    letter = DeadLetter(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        reason=bad.reason,
        detail=detail,
        value=record.value,
        key=record.key,
    )
    named = {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "exception.class.name": bad.reason,
        "exception.message": detail,
        "timestamp": record.timestamp,
    }
    original = [(LETTER_ORIGINAL + name, value) for name, value in record.headers]
    return encode(letter), [*((LETTER_HEADERS + name, str(value).encode()) for name, value in named.items()), *original]


def letter_origin(record: LogRecord) -> tuple[int, list[tuple[str, bytes]]]:
    """The Kafka timestamp (ms UTC) and the headers that a dead letter's record had; of a letter that does not say, its own and none."""
    timestamp = next((int(value) for name, value in record.headers if name == LETTER_TIMESTAMP), record.timestamp)
    return timestamp, [(name[len(LETTER_ORIGINAL) :], value) for name, value in record.headers if name.startswith(LETTER_ORIGINAL)]


def _convert(record: type[Record], fields: Any) -> Record:  # noqa: ANN401  # whatever the bytes held
    missing = [name for name in ID_FIELDS if name in record.__struct_fields__ and not fields.get(name)]
    if missing:
        raise DecodeError(Reason.MISSING_ID, f"{', '.join(missing)} absent or empty")
    try:
        return msgspec.convert(fields, record)
    except msgspec.ValidationError as error:
        raise DecodeError(Reason.WRONG_TYPE, str(error)) from error


def _known(fingerprint: bytes) -> avro.Schema:
    try:
        return avro.BY_FINGERPRINT[fingerprint]
    except KeyError as error:
        raise DecodeError(Reason.UNKNOWN_SCHEMA, f"fingerprint {fingerprint.hex()}") from error


def _registered(schema_id: int | UUID, schema_ids: SchemaIds) -> avro.Schema:
    try:
        return schema_ids[schema_id]
    except KeyError as error:
        raise DecodeError(Reason.UNKNOWN_SCHEMA, f"schema id {schema_id} (is a registry configured?)") from error


def _header_id(header: bytes | None) -> int | UUID:
    header = header or b""
    if len(header) == 17 and header[0] == 1:
        return UUID(bytes=header[1:])
    if len(header) == 5 and header[0] == 0:
        return int.from_bytes(header[1:])
    raise DecodeError(Reason.MALFORMED, f"header {SCHEMA_ID_HEADER} is {header.hex()}: neither 00 + 4 nor 01 + 16 bytes")
