"""Schemas of a Confluent-compatible registry, fetched when a record first names one.

Its client is 18 MB and half a second of a start: it is imported where there is a registry.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING
from uuid import UUID

import msgspec

from schemas.avro import Schema, parse
from schemas.codec import SchemaIds
from schemas.errors import LogError, SchemaError

if TYPE_CHECKING:
    from confluent_kafka.schema_registry import Schema as Registered

#: The registry's own code for a schema that it does not have; a bare 404 is a wrong URL, which must not dead-letter a whole topic.
NOT_FOUND = 40403
#: How the client tries again. A look-up holds up the whole worker: longer patience is its supervisor's.
RETRIES = {"max.retries": 2, "retries.wait.ms": 100, "retries.max.wait.ms": 500}
#: Schemas remembered, found or missed. Past it the oldest go: garbage that begins like an id must not fill the memory.
SCHEMAS_COUNT_MAX = 10_000

log = logging.getLogger("millstream.ingest")


class RegistrySchemas(Mapping[int | UUID, Schema]):
    """The registry as a mapping from id or GUID to schema. Both are immutable there, so what was found or missed is kept."""

    def __init__(self, url: str) -> None:
        """Connects at the first look-up."""
        from confluent_kafka.schema_registry import SchemaRegistryClient  # noqa: PLC0415  # as the module says

        self._url = url
        self._client = SchemaRegistryClient({"url": url} | RETRIES)
        self._found: dict[int | UUID, Schema | None] = {}

    def __getitem__(self, schema_id: int | UUID) -> Schema:
        """Raises KeyError where the registry has none, LogError where it does not answer."""
        if schema_id not in self._found:
            self._found[schema_id] = self._fetch(schema_id)
            if len(self._found) > SCHEMAS_COUNT_MAX:
                del self._found[next(iter(self._found))]
        found = self._found[schema_id]
        if found is None:
            raise KeyError(schema_id)
        return found

    def _fetch(self, schema_id: int | UUID) -> Schema | None:
        # Whichever HTTP library the client uses: it lets its errors through.
        from confluent_kafka.schema_registry.common._httpx_compat import httpx  # noqa: PLC0415  # as the module says
        from confluent_kafka.schema_registry.error import SchemaRegistryError  # noqa: PLC0415  # as the module says

        try:
            if isinstance(schema_id, UUID):
                answer = self._client.get_schema_by_guid(str(schema_id))
            else:
                answer = self._client.get_schema(schema_id)
        except (SchemaRegistryError, httpx.HTTPError, ValueError) as error:
            if isinstance(error, SchemaRegistryError) and error.error_code == NOT_FOUND:
                return None
            message = f"the schema registry {self._url} did not give schema {schema_id}: {error!r}. Is it up, and is the URL right?"
            raise LogError(message) from error
        return _parsed(schema_id, answer)

    def __iter__(self) -> Iterator[int | UUID]:
        """Over what was found so far."""
        return iter([schema_id for schema_id, found in self._found.items() if found])

    def __len__(self) -> int:
        """How many were found so far."""
        return sum(1 for _ in self)


def _parsed(schema_id: int | UUID, answer: "Registered") -> Schema | None:
    """A registered schema ready for use; None for one that no record of ours can have, which is for dead-letters to tell."""
    try:
        raw = msgspec.json.decode(answer.schema_str or "")
        return parse(raw) if answer.schema_type == "AVRO" and raw["type"] == "record" else None
    except (SchemaError, msgspec.DecodeError, ValueError, LookupError, TypeError) as error:
        log.warning("schema %s of the registry is none that we can read: %r", schema_id, error)
        return None


def schema_ids(url: str) -> SchemaIds:
    """Schemas of the registry at url; none without one."""
    return RegistrySchemas(url) if url else {}
