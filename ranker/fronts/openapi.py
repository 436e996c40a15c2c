"""What goes over HTTP: the shapes of bodies, and the document that describes them (OpenAPI 3.1)."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct, field

from ranker.fronts import problems
from schemas.records import CANDIDATES_COUNT_MAX, TS_MS_MAX, Id, Long

#: What a query spells with digits.
NUMBERS = ("k", "ts_ms", "deadline_ms")


class Rank(Struct, kw_only=True, frozen=True):
    """The body of POST /v1/rank. request_id: asked again with it, the same answer comes back; ts_ms: as of when, now if it is not said."""

    user_id: Id
    candidate_item_ids: Annotated[list[Id], Meta(min_length=1, max_length=CANDIDATES_COUNT_MAX)]
    k: Annotated[int, Meta(ge=1, le=2**31 - 1)] = CANDIDATES_COUNT_MAX
    request_id: Id | None = None
    ts_ms: Long | None = None
    deadline_ms: Annotated[int, Meta(ge=1, le=2**63 - 1)] | None = None
    context: dict[str, str] = field(default_factory=dict)


class Place(Struct, frozen=True):
    """One item of the slate, best first. reasons: codes of the rules that touched it."""

    item_id: str
    score: float
    reasons: list[str]


class Ranked(Struct, frozen=True):
    """The answer. degraded: NONE, or how far the ranker fell back."""

    ranked_items: list[Place]
    model_version: str
    feature_version: str
    latency_ms: float
    request_id: str
    degraded: str
    generation: str


def body_of(query: Mapping[str, Sequence[str]]) -> bytes:
    """The body that a query spells: `candidate_item_ids` repeated, numbers as digits, `context.KEY` for each key of the context."""
    found: dict[str, Any] = {"context": {}}
    for name, words in query.items():
        holder, _, key = name.partition(".")
        if holder == "context" and key:
            found["context"][key] = words[-1]
        elif name == "candidate_item_ids":
            found[name] = words
        else:
            found[name] = int(words[-1]) if name in NUMBERS and words[-1].isdecimal() else words[-1]
    return msgspec.json.encode(found)


def document() -> dict[str, Any]:
    """What this front end takes and gives (OpenAPI 3.1)."""
    (rank, ranked), parts = msgspec.json.schema_components((Rank, Ranked), ref_template="#/components/schemas/{name}")
    problem = {"description": "What was wrong (RFC 9457)", "content": {problems.TYPE.decode(): {"schema": {"type": "object"}}}}
    text = {"type": "string"}

    def answers(schema: dict[str, Any], *statuses: HTTPStatus) -> dict[str, Any]:
        good = {"200": {"description": "The answer", "content": {"application/json": {"schema": schema}}}}
        return good | {str(int(status)): problem for status in statuses}

    too_large, invalid = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY
    away, unknown = HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.NOT_FOUND
    where: list[Any] = [{"name": name, "in": "path", "required": True, "schema": text} for name in ("kind", "id")]
    when = {"name": "as_of_ms", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": TS_MS_MAX}}
    asked = [
        {"name": "user_id", "in": "query", "required": True, "schema": text},
        {"name": "candidate_item_ids", "in": "query", "required": True, "schema": {"type": "array", "items": text}},
        *({"name": name, "in": "query", "schema": {"type": "integer", "minimum": 1}} for name in NUMBERS),
        {"name": "request_id", "in": "query", "schema": text},
    ]
    refused, hurried = HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS
    body = {"required": True, "content": {"application/json": {"schema": rank}}}
    paths = {
        "/v1/rank": {
            "post": {"requestBody": body, "responses": answers(ranked, HTTPStatus.BAD_REQUEST, refused, too_large, invalid, hurried)}
        },
        "/v1/explain": {
            "get": {"parameters": asked, "responses": answers({"type": "object"}, HTTPStatus.BAD_REQUEST, refused, invalid, hurried, away)}
        },
        "/v1/features/{kind}/{id}": {
            "get": {"parameters": [*where, when], "responses": answers({"type": "object"}, refused, unknown, invalid, hurried, away)}
        },
        "/healthz": {"get": {"responses": answers({"type": "object"})}},
        "/readyz": {"get": {"responses": answers({"type": "object"}, away)}},
    }
    return {"openapi": "3.1.0", "info": {"title": "Millstream", "version": "1"}, "paths": paths, "components": {"schemas": parts}}
