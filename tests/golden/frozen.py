"""What must never change by accident: stored bytes, wire bytes, names and fingerprints, each computed anew from one fixed example."""

from pathlib import Path
from typing import Any

import fastavro
import numpy as np

from online_store.keys import Entity, Generation, answer_key, guard_key, record_key, shard_of
from online_store.record import ROW, Layout, layouts, merge
from schemas import avro, codec
from schemas.features import REGISTRY
from schemas.records import (
    Click,
    Consent,
    Content,
    DeadLetter,
    Dwell,
    Impression,
    RankedItem,
    RankRequest,
    RankResponse,
    RankTelemetry,
    Record,
    ServedItem,
    User,
)
from schemas.windows import DAY_MS

FOLDER = Path(__file__).parent / "data"
TS_MS = 1_760_000_000_000
GENERATION = Generation(3, "0123456789abcdef")
ENTITIES = (Entity("", "user", "u1"), Entity("acme", "item", "a:b"), Entity("", "model", "m-1"), Entity("", "item", "été"))
#: The number under which a schema registry would know every schema.
SCHEMA_ID = 258

_EVENT = {"request_id": "r1", "user_id": "u1", "item_id": "i1", "ts_ms": TS_MS, "model_version": "m1", "tenant": "acme"}
_SERVED: dict[str, Any] = {
    "request_id": "r1",
    "user_id": "u1",
    "model_version": "m1",
    "feature_version": "f1",
    "generation": "g3",
    "degraded": "NONE",
}
RECORDS: tuple[Record, ...] = (
    Impression(**_EVENT, position=2, context={"tab": "home"}),  # type: ignore[arg-type]  # one table for three records
    Click(**_EVENT, dwell_ms=1_500),  # type: ignore[arg-type]  # as above
    Dwell(**_EVENT, dwell_ms=90_000),  # type: ignore[arg-type]  # as above
    Content(
        item_id="i1",
        author_id="a1",
        created_at_ms=TS_MS - DAY_MS,
        ts_ms=TS_MS,
        language="en",
        topic_tags=["news", "été"],
        quality_score=0.625,
        content_embedding=[0.5, -1.0],
        safety_labels=["ok"],
        attributes={"price": 2.5},
        tenant="acme",
    ),
    User(
        user_id="u1",
        created_at_ms=TS_MS - 9 * DAY_MS,
        ts_ms=TS_MS,
        locale="de-CH",
        region="eu",
        consent=Consent(personalization=True, analytics=False),
        attributes={"followers": 12.0},
    ),
    RankRequest(request_id="r1", user_id="u1", candidate_item_ids=["i1", "i2"], k=1, ts_ms=TS_MS, deadline_ms=80, context={"tab": "home"}),
    RankResponse(
        **_SERVED, ranked_items=[RankedItem(item_id="i1", score=0.75, reasons=["PINNED"])], latency_ms=1.25, arm="ranked", ts_ms=TS_MS
    ),
    RankTelemetry(
        **_SERVED,
        items=[ServedItem(item_id="i1", position=0, score=0.75, vector=np.array([1.5, np.nan], "<f4").tobytes(), shadow_score=0.5)],
        arm="ranked",
        ts_ms=TS_MS,
        store_offsets={"clicks/0": 17},
    ),
    DeadLetter(topic="clicks", partition=1, offset=7, reason="MALFORMED", detail="why", value=b"\x00\xff", key=b"u1"),
)


def files() -> dict[str, str]:
    """Every golden file's text by its name."""
    return {
        "records.txt": _lines({kind: _record(layout).hex() for kind, layout in layouts(REGISTRY).items()}),
        "blank_records.txt": _lines({kind: layout.blank.hex() for kind, layout in layouts(REGISTRY).items()}),
        "layouts.txt": "".join(_layout(layout) for layout in layouts(REGISTRY).values()),
        "avro.txt": _lines({_name(record): codec.encode(record).hex() for record in RECORDS}),
        "confluent.txt": _lines({_name(record): codec.encode_confluent(record, SCHEMA_ID).hex() for record in RECORDS}),
        "json.txt": _lines({_name(record): codec.encode_json(record).decode() for record in RECORDS}),
        "fingerprints.txt": _lines(_fingerprints()),
        "keys.txt": _lines(_keys()),
        "shards.txt": _lines({f"{entity.tenant}:{entity.id}": _shards(entity) for entity in ENTITIES}),
    }


def _lines(named: dict[str, str]) -> str:
    return "".join(f"{name} {value}\n" for name, value in named.items())


def _name(record: Record) -> str:
    return type(record).__name__


def _record(layout: Layout) -> bytes:
    """A tombstone long ago, a profile since, events of forty days."""
    value = next((record for record in RECORDS if isinstance(record, {"item": Content, "user": User}.get(layout.kind, DeadLetter))), None)
    old = layout.pack_static(None, 0, TS_MS - 20 * DAY_MS, 3)
    new = [layout.pack_static(value, 1, TS_MS, 4)] if isinstance(value, (Content, User)) else []
    times_ms = [TS_MS - number * DAY_MS // 3 for number in range(120)]
    rows = [(0, ts_ms // layout.tile_ms, number, number // 2, number // 3, number * 1_000, ts_ms) for number, ts_ms in enumerate(times_ms)]
    return merge(layout, None, np.array(rows, ROW), [old, *new])


def _layout(layout: Layout) -> str:
    """Where every field stands: kind.field, offset, form."""
    places = {**_places(layout.dtype), **{f"static.{name}": place for name, place in _places(layout.static_dtype).items()}}
    return _lines({f"{layout.kind}.{name}": place for name, place in places.items()})


def _places(dtype: np.dtype[Any]) -> dict[str, str]:
    return {name: f"{field[1]} {field[0].base.str}{list(field[0].shape) or ''}" for name, field in (dtype.fields or {}).items()}


def _fingerprints() -> dict[str, str]:
    """Of the default registry, of every published schema, and the Avro specification's own vector."""
    return {
        "registry": REGISTRY.fingerprint,
        **{f"{schema.name}.v{schema.version}": schema.fingerprint.hex() for schema in avro.published()},
        '"null"': fastavro.schema.fingerprint('"null"', "CRC-64-AVRO"),
    }


def _keys() -> dict[str, str]:
    records = {f"record of {entity.tenant}/{entity.kind}/{entity.id}": record_key(GENERATION, entity) for entity in ENTITIES}
    others = {"guard of shard 17": guard_key(GENERATION, 17), "answer to acme/r1": answer_key("acme", "r1")}
    return {name: key.decode() for name, key in {**records, **others}.items()}


def _shards(entity: Entity) -> str:
    return " ".join(str(shard_of(entity.tenant, entity.id, 2**power)) for power in range(11))
