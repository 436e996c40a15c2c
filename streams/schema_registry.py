"""Schemas of a Confluent-compatible registry, fetched when a record first names one."""

from collections.abc import Iterator, Mapping
from uuid import UUID

import msgspec
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from schemas.avro import Schema, parse
from schemas.codec import SchemaIds
from schemas.errors import LogError

NOT_FOUND = 404


class RegistrySchemas(Mapping[int | UUID, Schema]):
    """The registry as a mapping from id or GUID to schema. Both are immutable there, so what was found or missed is kept."""

    def __init__(self, url: str) -> None:
        """Connects at the first look-up."""
        self._url = url
        self._client = SchemaRegistryClient({"url": url})
        self._found: dict[int | UUID, Schema | None] = {}

    def __getitem__(self, schema_id: int | UUID) -> Schema:
        """Raises KeyError where the registry has none, LogError where it does not answer."""
        if schema_id not in self._found:
            self._found[schema_id] = self._fetch(schema_id)
        found = self._found[schema_id]
        if found is None:
            raise KeyError(schema_id)
        return found

    def _fetch(self, schema_id: int | UUID) -> Schema | None:
        try:
            if isinstance(schema_id, UUID):
                answer = self._client.get_schema_by_guid(str(schema_id))
            else:
                answer = self._client.get_schema(schema_id)
        except SchemaRegistryError as error:
            if error.http_status_code == NOT_FOUND:
                return None
            message = f"the schema registry {self._url} refused schema {schema_id}: {error}. Is it up?"
            raise LogError(message) from error
        return parse(msgspec.json.decode(answer.schema_str or ""))

    def __iter__(self) -> Iterator[int | UUID]:
        """Over what was found so far."""
        return iter([schema_id for schema_id, found in self._found.items() if found])

    def __len__(self) -> int:
        """How many were found so far."""
        return sum(1 for _ in self)


def schema_ids(url: str) -> SchemaIds:
    """Schemas of the registry at url; none without one."""
    return RegistrySchemas(url) if url else {}
