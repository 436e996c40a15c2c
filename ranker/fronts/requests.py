"""What a caller asks becomes a request that can be answered: by the same checks whichever front end it waits at."""

import uuid
from collections.abc import Callable, Sequence

from ranker.fronts.shapes import Rank
from schemas import codec
from schemas.errors import DecodeError
from schemas.records import CLOCK_SKEW_MS_MAX, RankRequest, Reason

#: A larger body is refused (bytes): 200 candidates of the longest ids and a context take half of it.
BODY_BYTES_MAX = 65_536

#: Names in lower case, values as they came.
Headers = Sequence[tuple[bytes, bytes]]
#: A request's answer that goes to telemetry: who asked, and the encoded RankTelemetry.
Tell = Callable[[RankRequest, bytes], None]


def request_of(said: Rank, tenant: str, now_ms: int) -> RankRequest:
    """A request that can be answered. now_ms: milliseconds UTC. Raises DecodeError, whose detail begins with the field at fault."""
    request = RankRequest(
        request_id=said.request_id or str(uuid.uuid4()),
        user_id=said.user_id,
        candidate_item_ids=said.candidate_item_ids,
        k=said.k,
        ts_ms=now_ms if said.ts_ms is None else said.ts_ms,
        deadline_ms=said.deadline_ms,
        context=said.context,
        tenant=tenant,
    )
    codec.check(request, now_ms)
    if not "".join(said.candidate_item_ids).isascii():
        # A Rank counts an id's letters, not its bytes; all else that a request is refused for it has said itself.
        codec.check_request(request)
    if now_ms - request.ts_ms > CLOCK_SKEW_MS_MAX:
        raise DecodeError(Reason.OUT_OF_RANGE, f"ts_ms {request.ts_ms} is long before now, {now_ms}")
    return request
