"""What Schemathesis cannot know of our front end: which good requests fit, and which 5xx there may be. Loaded as its hooks."""

import json
from http import HTTPStatus
from typing import Any

import schemathesis

from ranker.fronts.requests import BODY_BYTES_MAX
from schemas.records import ID_BYTES_MAX

RANK_PATH = "/v1/rank"
#: Where a store that holds nothing yet may be told by a 503.
STORE_PATHS = ("/readyz", "/v1/features/{kind}/{id}", "/v1/explain")


@schemathesis.check
def what_fits_is_ranked(_: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case[Any]) -> None:
    """A request as the document has it is refused for what no schema can say, and for nothing else."""
    is_good = case.meta is not None and case.meta.generation.mode.is_positive
    if is_good and case.operation.path == RANK_PATH and fits(case.body):
        assert response.status_code == HTTPStatus.OK, "a good request is refused"


def fits(body: Any) -> bool:  # noqa: ANN401  # what was drawn
    """Whether a request keeps the bounds that are of bytes, asks as of now, and writes whole numbers as such: to JSON Schema 2.0 is one."""
    ids = [body["user_id"], *body["candidate_item_ids"], body.get("request_id") or ""]
    is_short = all(len(name.encode()) <= ID_BYTES_MAX for name in ids) and len(json.dumps(body)) <= BODY_BYTES_MAX
    is_whole = not any(isinstance(body.get(name), float) for name in ("k", "deadline_ms"))
    return is_short and is_whole and body.get("ts_ms") is None


@schemathesis.check
def only_the_store_is_missed(_: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case[Any]) -> None:
    """No 5xx but a 503 where the store alone could answer."""
    is_expected = response.status_code == HTTPStatus.SERVICE_UNAVAILABLE and case.operation.path in STORE_PATHS
    assert is_expected or response.status_code < HTTPStatus.INTERNAL_SERVER_ERROR, "a server error"
