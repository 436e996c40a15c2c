"""A request's Avro read field by field, its ids in one compiled pass: a schema's walk over two hundred takes as long as ranking them.

Only bodies as most encoders write them, under the newest schema: one block an array, ids of up to 63 bytes, and of them only what can be
ranked. At whatever else schemas.codec looks: it is the definition, and tests hold this equal to it.
"""

import numba
import numpy as np

from schemas import avro, codec
from schemas.codec import SCHEMA_ID_HEADER, SINGLE_OBJECT
from schemas.columnar.words import Buffer
from schemas.records import CANDIDATES_COUNT_MAX, VALUE_BYTES_MAX, RankRequest
from schemas.topics import Headers

_HEAD = SINGLE_OBJECT + avro.NEWEST[RankRequest.__name__].fingerprint
_INT_MAX = 2**31 - 1
#: Bytes of a number that is surely a long; one that has more is looked at by the codec.
_NUMBER_BYTES_MAX = 9


def request(value: bytes | None, headers: Headers) -> RankRequest | None:
    """A RankRequest as it stands in Kafka, of which codec.check_request has nothing to say; None where the codec shall look at it."""
    if value is None or not value.startswith(_HEAD) or len(value) > VALUE_BYTES_MAX:
        return None
    if any(name == SCHEMA_ID_HEADER for name, _ in headers):
        return None
    try:
        return _request(value)
    except (IndexError, ValueError):
        # It ended before it should have, a count or a length cannot be, or letters are none.
        return None


def warm() -> None:
    """Have compiled what is compiled, so that nobody's request waits for it."""
    assert request(codec.encode(RankRequest(request_id="r", user_id="u", candidate_item_ids=["i"], k=1, ts_ms=1)), ()) is not None


def _request(raw: bytes) -> RankRequest | None:
    request_id, at = _text(raw, len(_HEAD))
    user_id, at = _text(raw, at)
    item_ids, at = _item_ids(raw, at)
    k, at = _number(raw, at)
    ts_ms, at = _number(raw, at)
    branch, at = _number(raw, at)
    deadline_ms, at = _number(raw, at) if branch == 1 else (None, at)
    context, at = _texts_by_name(raw, at)
    tenant, at = _text(raw, at)
    if at != len(raw) or branch not in (0, 1) or not request_id or not user_id or not 1 <= k <= _INT_MAX:
        return None
    if len(item_ids) > CANDIDATES_COUNT_MAX or (deadline_ms is not None and deadline_ms < 1):
        return None
    return RankRequest(
        request_id=request_id,
        user_id=user_id,
        candidate_item_ids=item_ids,
        k=k,
        ts_ms=ts_ms,
        deadline_ms=deadline_ms,
        context=context,
        tenant=tenant,
    )


def _item_ids(raw: bytes, at: int) -> tuple[list[str], int]:
    count, at = _number(raw, at)
    words = np.empty(len(raw) - at, np.uint8)
    end = _parted(np.frombuffer(raw, np.uint8), at, count, words)
    if end < 0 or raw[end]:
        raise ValueError(count)
    return words[1 : end - at].tobytes().decode().split("\0"), end + 1


@numba.njit(cache=True, nogil=True)
def _parted(raw: Buffer, at: int, count: int, words: Buffer) -> int:
    """Copy an array's words, with zeros in the place of their lengths; returns where the array ends.

    -1 where it has none, goes past the end, or has a word that is empty, is longer than a byte says or holds a zero of its own.
    """
    begin = at
    if count < 1:
        return -1
    for _ in range(count):
        if at >= len(raw) or raw[at] & 0x81 or not raw[at]:
            return -1
        end = at + 1 + (raw[at] >> 1)
        if end > len(raw):
            return -1
        words[at - begin] = 0
        for place in range(at + 1, end):
            if raw[place] == 0:
                return -1
            words[place - begin] = raw[place]
        at = end
    return at


def _texts_by_name(raw: bytes, at: int) -> tuple[dict[str, str], int]:
    count, at = _number(raw, at)
    found: dict[str, str] = {}
    for _ in range(count):
        name, at = _text(raw, at)
        found[name], at = _text(raw, at)
    if count < 0 or (count and raw[at]):
        raise ValueError(count)
    return found, at + 1 if count else at


def _text(raw: bytes, at: int) -> tuple[str, int]:
    size, at = _number(raw, at)
    end = at + size
    if size < 0 or end > len(raw):
        raise ValueError(size)
    return raw[at:end].decode(), end


def _number(raw: bytes, at: int) -> tuple[int, int]:
    """An int or a long, and what follows."""
    byte = raw[at]
    found, shift = byte & 0x7F, 7
    while byte > 0x7F:
        at += 1
        byte = raw[at]
        found |= (byte & 0x7F) << shift
        shift += 7
    if shift > 7 * _NUMBER_BYTES_MAX:
        raise ValueError(found)
    return (found >> 1) ^ -(found & 1), at + 1
