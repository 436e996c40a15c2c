"""By what requests are ranked now: a pipeline and the generation that it reads, as the store's pointer names them.

Another generation of the same registry is read at once. For another registry or model a pipeline is made beside the one that runs: until it
has loaded, compiled and read what is popular, requests are ranked as before, from the generation before, which is kept up to date.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from online_store.keys import Generation, Pointer
from online_store.snapshot.file import Snapshot
from online_store.store import OnlineStore
from ranker import metrics
from ranker.batch import Pipeline
from ranker.bundle import Bundle
from ranker.encode import Facts
from ranker.reads.reader import asked_of
from schemas.errors import BundleError, GenerationError, SettingsError, StoreError
from schemas.features import Registry
from schemas.records import Degraded, RankRequest

#: Finds the bundle of a model_version for a registry, the newest that fits if it is empty; and a snapshot that fits, if there is one.
Find = Callable[[Registry, str], tuple[Bundle, Snapshot | None]]
#: Makes a pipeline of what was found. Takes seconds; raises BundleError, and SettingsError for rules that do not fit that registry.
Make = Callable[[Registry, str], Pipeline]

log = logging.getLogger("millstream.serve")


def no_other(registry: Registry, model_version: str) -> tuple[Bundle, Snapshot | None]:
    """A Find that knows of nothing. Raises BundleError."""
    raise BundleError(f"there is no other bundle here: neither for registry {registry.fingerprint} nor {model_version!r}.")


class Served(NamedTuple):
    """What a request is ranked by, from its read to its answer."""

    pipeline: Pipeline
    generation: Generation | None

    def facts(self, request: RankRequest, degraded: Degraded) -> Facts:
        """What the answer to a request says besides its items."""
        manifest, name = self.pipeline.manifest, self.generation.name if self.generation else ""
        named = (manifest.model_version, manifest.feature_version, name, degraded, "default")
        return Facts(request.request_id, request.user_id, *named, request.ts_ms, request.tenant)

    async def explain(self, request: RankRequest) -> dict[str, Any]:
        """As Ranker.explain."""
        asked = asked_of(request)
        known = await self.pipeline.read(self.generation, [asked])
        facts = self.facts(request, Degraded.NONE)
        named = ("request_id", "user_id", "model_version", "feature_version", "generation", "ts_ms")
        return {name: getattr(facts, name) for name in named} | self.pipeline.explain(asked, known)


class Current:
    """What new requests are ranked by: `served`, replaced in one step."""

    def __init__(self, store: OnlineStore, pipeline: Pipeline, make: Make) -> None:
        """Of no generation yet."""
        self._store = store
        self._make = make
        self._refused: Pointer | None = None
        self.served = Served(pipeline, None)

    async def refresh(self) -> None:
        """Look what is current, and go over to it; where the store is away, or that cannot be served, nothing changes."""
        try:
            pointer = await self._store.pointer()
            if pointer is None or self.served.pipeline.fits(pointer):
                await self._read(pointer.generation if pointer else None)
            else:
                await self._switch(pointer, (await self._store.generations()).get(pointer.generation))
        except StoreError:
            metrics.FALLBACKS.labels("refresh").inc()
        await self.served.pipeline.look(self.served.generation)

    async def _read(self, generation: Generation | None) -> None:
        if generation != self.served.generation:
            self.served.pipeline.forget()
            self.served = self.served._replace(generation=generation)
            await self.served.pipeline.prewarm(generation)

    async def _switch(self, pointer: Pointer, registry: Registry | None) -> None:
        if registry is None:
            self._refuse(pointer, GenerationError("it is not registered. Roll back, or `millstream replay rebuild` another."))
            return
        try:
            pipeline = await asyncio.to_thread(self._make, registry, pointer.model_version)
        except (BundleError, SettingsError) as error:
            self._refuse(pointer, error)
            return
        await pipeline.prewarm(pointer.generation)
        self.served = Served(pipeline, pointer.generation)
        log.info("generation %s is current: requests are ranked by model %s", pointer.name, pipeline.manifest.model_version)

    def _refuse(self, pointer: Pointer, error: Exception) -> None:
        metrics.FALLBACKS.labels("switch").inc()
        if pointer != self._refused:
            self._refused = pointer
            log.error("generation %s is current and cannot be served, so requests are ranked as before: %s", pointer.name, error)
