"""The records that cross Kafka, as Python values; their wire form is in schemas/avro, field for field.

Times are event time in milliseconds UTC. Ids are UTF-8, at most ID_BYTES_MAX bytes; the tenant is empty where there is one.
"""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct, field

#: Avro's integers, so that JSON cannot carry what Avro could not.
Int = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
Long = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
#: What an event cannot do without.
Id = Annotated[str, Meta(min_length=1)]

#: An id longer than this (bytes of UTF-8) is dead-lettered. Larger lets one producer fill the store's memory with keys.
ID_BYTES_MAX = 128
#: A value longer than this (bytes) is dead-lettered unread. Larger lets one record hold up a whole batch.
VALUE_BYTES_MAX = 262_144
#: A dead letter may be this long (bytes, before compression): it carries a record of any length that Kafka took, and must itself be taken.
LETTER_BYTES_MAX = 64 * 2**20
#: Events this far ahead of their Kafka timestamp are dead-lettered (milliseconds). Larger lets one producer's clock
#: push a ring past real history; smaller refuses honest clocks behind a slow NTP.
CLOCK_SKEW_MS_MAX = 300_000
#: A dwell longer than this (milliseconds, a day) is a broken timer, not a reader: dead-lettered.
DWELL_MS_MAX = 86_400_000
#: A rank request may not name more candidates than this; the fleet is sized for it.
CANDIDATES_COUNT_MAX = 200
#: The largest event time a tile number can hold (milliseconds; the year 2262).
TS_MS_MAX = 9_223_372_036_854


class Reason(StrEnum):
    """Why a record is in dead-letters."""

    MALFORMED = "MALFORMED"  # no known framing, broken JSON or Avro, bytes left over, a null where none is allowed
    OVERSIZE = "OVERSIZE"  # the value or an id is longer than its bound
    UNKNOWN_SCHEMA = "UNKNOWN_SCHEMA"  # the schema is not known, or is not one of this topic's records
    WRONG_TYPE = "WRONG_TYPE"  # a field is missing or has another type than the record says
    MISSING_ID = "MISSING_ID"  # an id is absent or empty
    FUTURE_DATED = "FUTURE_DATED"  # event time too far from the Kafka timestamp
    OUT_OF_RANGE = "OUT_OF_RANGE"  # a number outside what it can mean: a negative dwell, a time before 1970


class Degraded(StrEnum):
    """How far a rank response fell back; NONE is a full answer."""

    NONE = "NONE"
    STALE = "STALE"  # by the model, from what the near cache still had
    POPULARITY = "POPULARITY"
    INPUT_ORDER = "INPUT_ORDER"


class Named(Struct, kw_only=True, frozen=True, tag_field="type", tag=True, gc=False):
    """What stands on a topic. In JSON it may say its own name. gc: nothing in it refers back, and searching for that took half the time."""


class Impression(Named, kw_only=True, frozen=True):
    """An item was shown to a user. position: 0 is the top."""

    request_id: Id
    user_id: Id
    item_id: Id
    ts_ms: Long
    position: Int
    model_version: str | None = None
    context: dict[str, str] = field(default_factory=dict)
    tenant: str = ""


class Click(Named, kw_only=True, frozen=True):
    """An item was opened. dwell_ms: how long it was read, if the reader was back before the click was sent."""

    request_id: Id
    user_id: Id
    item_id: Id
    ts_ms: Long
    dwell_ms: Long | None = None
    model_version: str | None = None
    tenant: str = ""


class Dwell(Named, kw_only=True, frozen=True):
    """The reader came back: counts towards dwell only."""

    request_id: Id
    user_id: Id
    item_id: Id
    ts_ms: Long
    dwell_ms: Long
    model_version: str | None = None
    tenant: str = ""


class Content(Named, kw_only=True, frozen=True):
    """An item and what is known of it; a null value in its place removes the item."""

    item_id: Id
    author_id: str
    created_at_ms: Long
    ts_ms: Long
    language: str = ""
    topic_tags: list[str] = field(default_factory=list)
    quality_score: float | None = None
    content_embedding: list[float] | None = None
    safety_labels: list[str] = field(default_factory=list)
    attributes: dict[str, float] = field(default_factory=dict)
    tenant: str = ""


class Consent(Struct, kw_only=True, frozen=True):
    """What a person allowed."""

    personalization: bool = True
    analytics: bool = True


class User(Named, kw_only=True, frozen=True):
    """A person and what is known of them; a null value in its place means: forget this person."""

    user_id: Id
    created_at_ms: Long
    ts_ms: Long
    locale: str = ""
    region: str = ""
    consent: Consent = Consent()
    attributes: dict[str, float] = field(default_factory=dict)
    tenant: str = ""


class RankRequest(Named, kw_only=True, frozen=True):
    """Rank these candidates for this user. k: how many to return; deadline_ms: from receipt, None is the default."""

    request_id: Id
    user_id: Id
    candidate_item_ids: list[str]
    k: Int
    ts_ms: Long
    deadline_ms: Long | None = None
    context: dict[str, str] = field(default_factory=dict)
    tenant: str = ""


class RankedItem(Struct, kw_only=True, frozen=True):
    """One place of a slate. score: the model's, or the fallback's; reasons: codes of the rules that touched it."""

    item_id: str
    score: float
    reasons: list[str] = field(default_factory=list)


class RankResponse(Named, kw_only=True, frozen=True):
    """The slate, and everything needed to know where it came from."""

    request_id: Id
    user_id: Id
    ranked_items: list[RankedItem]
    model_version: str
    feature_version: str
    generation: str
    latency_ms: float
    degraded: str
    arm: str
    ts_ms: Long
    tenant: str = ""


class ServedItem(Struct, kw_only=True, frozen=True, gc=False):
    """One returned item with the packed little-endian float32 vector that was scored; empty where nothing was."""

    item_id: str
    position: Int
    score: float
    vector: bytes
    propensity: float = 1.0
    shadow_score: float | None = None


class RankTelemetry(Named, kw_only=True, frozen=True):
    """What was served, for training. store_offsets: source -> next offset the store had applied, where known.

    staleness_ms: how long before the oldest of the vectors was read; past 500 only while the store was away.
    """

    request_id: Id
    user_id: Id
    items: list[ServedItem]
    model_version: str
    feature_version: str
    generation: str
    degraded: str
    arm: str
    ts_ms: Long
    store_offsets: dict[str, Long] = field(default_factory=dict)
    tenant: str = ""
    staleness_ms: Long = 0


#: What stands in place of a reason where a letter of dead-letters only marks another one, of the same topic, partition and offset:
#: its record is about to be sent again, was sent again (compose/redrive.py).
LETTERS_MARKED = ("REDRIVING", "REDRIVEN")


class DeadLetter(Named, kw_only=True, frozen=True):
    """A record that could not be used, with its bytes as they were and where they stood. value: None was null."""

    topic: str
    partition: Int
    offset: Long
    reason: str
    detail: str
    value: bytes | None
    key: bytes | None = None


Event = Impression | Click | Dwell
Record = (
    Impression | Click | Dwell | Content | User | RankRequest | RankResponse | RankTelemetry | DeadLetter
)  # every record with a schema of its own
