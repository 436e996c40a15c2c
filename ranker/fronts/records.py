"""What Kafka hands over becomes a request that can be answered: the names of its headers, and what is refused."""

from collections.abc import Mapping

from ranker.fronts.quick import avro as quick
from schemas import codec
from schemas.errors import DecodeError
from schemas.records import CLOCK_SKEW_MS_MAX, RankRequest, Reason
from schemas.topics import RANK_REQUESTS, UNREADABLE, StoredRecord

REPLY_TOPIC, REPLY_PARTITION, CORRELATION_ID, TRACE = "kafka_replyTopic", "kafka_replyPartition", "kafka_correlationId", "traceparent"
#: A correlation id or a trace longer than this (bytes) is dead-lettered. Carried on, it could make an answer longer than Kafka takes, and
#: one request would stop every worker.
HEADER_BYTES_MAX = 4_096


def decode_request(record: StoredRecord, schema_ids: codec.SchemaIds | None = None) -> RankRequest:
    """A request that can be answered. Raises DecodeError with the reason code of its dead letter."""
    if record.headers is UNREADABLE:
        raise DecodeError(Reason.MALFORMED, "the name of a header is not UTF-8: none of its headers can be read")
    plain = quick.request(record.value, record.headers)
    request = plain or codec.decode(RANK_REQUESTS, record.value, record.headers, schema_ids)
    assert isinstance(request, RankRequest), request
    codec.check(request, record.timestamp)
    if record.timestamp - request.ts_ms > CLOCK_SKEW_MS_MAX:
        raise DecodeError(Reason.OUT_OF_RANGE, f"ts_ms {request.ts_ms} is long before its record's timestamp {record.timestamp}")
    if plain is None:
        codec.check_request(request)
    for name, header in record.headers:
        if name in (CORRELATION_ID, TRACE) and len(header) > HEADER_BYTES_MAX:
            raise DecodeError(Reason.OVERSIZE, f"header {name} has {len(header)} bytes, at most {HEADER_BYTES_MAX} are carried on")
    return request


def reply_place(headers: Mapping[str, bytes], partitions: Mapping[str, int]) -> tuple[str, int] | None:
    """Topic and partition that a request names for its answer, -1 is its key's; None where it names none that is allowed.

    partitions: how many each allowed topic has. One that is not there would never be delivered, and one request would stop the worker.
    """
    named = headers.get(REPLY_TOPIC, b"").decode(errors="replace")
    if named not in partitions:
        return None
    wanted = headers.get(REPLY_PARTITION, b"")
    partition = int.from_bytes(wanted) if len(wanted) == 4 else -1
    return named, partition if partition < partitions[named] else -1
