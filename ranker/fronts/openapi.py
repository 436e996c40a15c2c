"""What goes over HTTP: the shapes of answers, and the document that describes all of it (OpenAPI 3.1)."""

from http import HTTPStatus
from typing import Any

import msgspec
from msgspec import Struct

from ranker.fronts import problems
from ranker.fronts.requests import Rank
from schemas.records import TS_MS_MAX


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
    refused, hurried = HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS
    body = {"required": True, "content": {"application/json": {"schema": rank}}}
    paths = {
        "/v1/rank": {
            "post": {"requestBody": body, "responses": answers(ranked, HTTPStatus.BAD_REQUEST, refused, too_large, invalid, hurried)}
        },
        "/v1/features/{kind}/{id}": {
            "get": {"parameters": [*where, when], "responses": answers({"type": "object"}, refused, unknown, invalid, hurried, away)}
        },
        "/healthz": {"get": {"responses": answers({"type": "object"})}},
        "/readyz": {"get": {"responses": answers({"type": "object"}, away)}},
    }
    return {"openapi": "3.1.0", "info": {"title": "Millstream", "version": "1"}, "paths": paths, "components": {"schemas": parts}}
