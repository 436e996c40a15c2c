"""The bodies that go over HTTP: what a client sends, what it gets. The server, its OpenAPI document and the client share them.

Nothing else is imported here, so that a client is light.
"""

from collections.abc import Sequence
from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType, field

from schemas.records import CANDIDATES_COUNT_MAX, ID_BYTES_MAX, TS_MS_MAX

#: JSON Schema counts characters, and the bound is of bytes: an id of other letters than ASCII's may be too long all the same.
Id = Annotated[str, Meta(min_length=1, max_length=ID_BYTES_MAX, description=f"At most {ID_BYTES_MAX} bytes of UTF-8.")]
Moment = Annotated[int, Meta(ge=1, le=TS_MS_MAX, description="Milliseconds since 1970, UTC.")]


class Rank(Struct, kw_only=True, frozen=True):
    """The body of POST /v1/rank. request_id: asked again with it, the same answer comes back; ts_ms: as of when, now if it is not said."""

    user_id: Id
    candidate_item_ids: Annotated[list[Id], Meta(min_length=1, max_length=CANDIDATES_COUNT_MAX)]
    k: Annotated[int, Meta(ge=1, le=2**31 - 1)] = CANDIDATES_COUNT_MAX
    request_id: Id | None = None
    ts_ms: Moment | None = None
    deadline_ms: Annotated[int, Meta(ge=1, le=2**63 - 1)] | None = None
    context: dict[str, str] = field(default_factory=dict)


class Place(Struct, frozen=True):
    """One item of the slate, best first. reasons: codes of the rules that touched it."""

    item_id: str
    score: float
    reasons: Sequence[str]


class Ranked(Struct, frozen=True):
    """The answer. degraded: NONE, or how far the ranker fell back."""

    ranked_items: list[Place]
    model_version: str
    feature_version: str
    latency_ms: float
    request_id: str
    degraded: str
    generation: str


class Described(Struct, frozen=True):
    """What the store knows of one entity as of a moment (online_store/view.py)."""

    kind: str
    id: str
    generation: str
    feature_version: str
    as_of_ms: Moment
    known: bool
    exact: bool
    static: dict[str, float | str | list[str | float] | None]
    windows: dict[str, dict[str, int]]
    features: dict[str, float | None]


class Status(Struct, frozen=True):
    """How the process is: alive, or ready to rank."""

    status: str


class Fault(Struct, frozen=True, kw_only=True, rename={"kind": "type"}):
    """A problem document (RFC 9457). at: the field at fault, as a JSON path."""

    kind: str = "about:blank"
    title: str
    status: int
    detail: str
    at: str | UnsetType = UNSET
