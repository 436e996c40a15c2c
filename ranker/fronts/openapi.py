"""The document that describes what goes over HTTP (OpenAPI 3.1); the bodies are in ranker/fronts/shapes.py."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from ranker.fronts import problems
from ranker.fronts.shapes import Described, Fault, Moment, Rank, Ranked, Status
from schemas.records import ID_BYTES_MAX

#: What every caller may be told before its request is looked at.
STRANGER, HURRIED = HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS
#: A token, where the operator gave a file of them.
SECURITY: list[dict[str, list[str]]] = [{}, {"bearer": []}]


def document(kinds: Sequence[str]) -> dict[str, Any]:
    """What this front end takes and gives. kinds: that the registry has."""
    shapes, parts = msgspec.json.schema_components((Rank, Ranked, Described, Status, Fault), ref_template="#/components/schemas/{name}")
    rank, ranked, described, status, fault = shapes
    problem = {"description": "What was wrong (RFC 9457)", "content": {problems.TYPE.decode(): {"schema": fault}}}
    text = {"type": "string"}

    def answers(schema: dict[str, Any], *statuses: HTTPStatus, kind: str = "application/json") -> dict[str, Any]:
        good = {"200": {"description": "The answer", "content": {kind: {"schema": schema}}}}
        return {"responses": good | {str(int(status)): problem for status in statuses}}

    bad, too_large, invalid = HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY
    away, unknown = HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.NOT_FOUND
    one = {"kind": text | {"enum": [*kinds]}, "id": text | {"minLength": 1, "maxLength": ID_BYTES_MAX}}
    where: list[Any] = [{"name": name, "in": "path", "required": True, "schema": schema} for name, schema in one.items()]
    when = {"name": "as_of_ms", "in": "query", "schema": msgspec.json.schema(Moment)}
    body = {"requestBody": {"required": True, "content": {"application/json": {"schema": rank}}}, "security": SECURITY}
    paths = {
        "/v1/rank": {"post": body | answers(ranked, bad, STRANGER, too_large, invalid, HURRIED)},
        "/v1/features/{kind}/{id}": {
            "get": {"parameters": [*where, when], "security": SECURITY} | answers(described, bad, STRANGER, unknown, invalid, HURRIED, away)
        },
        "/healthz": {"get": answers(status)},
        "/readyz": {"get": answers(status, away)},
        "/metrics": {"get": answers(text, kind="text/plain")},
        "/openapi.json": {"get": answers({"type": "object"})},
    }
    components = {"schemas": parts, "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}}
    return {"openapi": "3.1.0", "info": {"title": "Millstream", "version": "1"}, "paths": paths, "components": components}
