"""The document that describes what goes over HTTP (OpenAPI 3.1); the bodies are in ranker/fronts/shapes.py."""

import re
from collections.abc import Mapping, Sequence
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
#: What a query spells with digits; of 64 bits, which is what they fit.
NUMBERS, DIGITS = ("k", "ts_ms", "deadline_ms"), re.compile("[0-9]{1,19}")


def body_of(query: Mapping[str, Sequence[str]]) -> bytes:
    """The body that a query spells: `candidate_item_ids` repeated, numbers as digits, `context.KEY` for each key of the context."""
    found: dict[str, Any] = {"context": {}}
    for name, words in query.items():
        holder, _, key = name.partition(".")
        word = ",".join(words)
        if holder == "context" and key:
            found["context"][key] = word
        elif name == "candidate_item_ids":
            found[name] = words
        elif name != "context":
            found[name] = int(word) if name in NUMBERS and DIGITS.fullmatch(word) else word
    return msgspec.json.encode(found)


def _query(shape: dict[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """Fields of a body as a query spells them: what is not given is left out, there is no null."""
    fields = {name: shape["properties"][name] for name in names}
    schemas = {name: schema.get("anyOf", [schema])[0] for name, schema in fields.items()}
    return [{"name": name, "in": "query", "required": name in shape["required"], "schema": schema} for name, schema in schemas.items()]


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
    word = text | {"minLength": 1, "maxLength": ID_BYTES_MAX}
    one = {"kind": text | {"enum": [*kinds]}, "id": word}
    where = [{"name": name, "in": "path", "required": True, "schema": schema} for name, schema in one.items()]
    when = {"name": "as_of_ms", "in": "query", "schema": msgspec.json.schema(Moment)}
    query = _query(parts["Rank"], ("user_id", "candidate_item_ids", "request_id", *NUMBERS))
    body = {"requestBody": {"required": True, "content": {"application/json": {"schema": rank}}}, "security": SECURITY}
    explained = {"type": "object", "required": ["items"], "properties": {"items": {"type": "array", "items": {"type": "object"}}}}
    paths = {
        "/v1/rank": {"post": body | answers(ranked, bad, STRANGER, too_large, invalid, HURRIED)},
        "/v1/explain": {"get": {"parameters": query, "security": SECURITY} | answers(explained, bad, STRANGER, invalid, HURRIED, away)},
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
