"""Feast on Redis: a feature view of items and one of users, asked by the names of their entities, as its own guides do.

online: two get_online_features calls, one for the candidates and one for the user. precompute: the same from two feature services
with precompute_online, which keep a whole vector a key; asked in the order of their ids, for Feast 0.67 answers in that order
whatever order it is asked in (feast-dev/feast issue 6805), and by full names, the only ones under which it finds what it has precomputed.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.types import Float32

from benchmarks.rank.peers.task import Floats, Task, World, measure, score, told

PRECOMPUTE = "precompute"
#: Rows of one write: as many as the parts of Feast's own materialization.
FILL_ROWS = 10_000


def store_of(task: Task) -> FeatureStore:
    """A local registry in the task's folder, the online store on the given server."""
    return FeatureStore(
        config=RepoConfig(
            project=f"rank_{task.variant}",
            provider="local",
            registry=str(Path(task.folder) / f"feast-{task.variant}.db"),
            online_store={"type": "redis", "connection_string": f"{task.host}:{task.port}"},
            entity_key_serialization_version=3,
        )
    )


def fill(task: Task, world: World) -> None:
    """Apply the definitions and write everybody's features."""
    store = store_of(task)
    now = datetime.now(UTC)
    kinds = (("user", world.user_ids, world.user_values), ("item", world.item_ids, world.item_values))
    for kind, ids, values in kinds:
        frame = pd.DataFrame(values, columns=_names(kind, values))
        frame.insert(0, f"{kind}_id", ids)
        frame.insert(1, "event_timestamp", now)
        source = Path(task.folder) / f"{kind}-{task.variant}.parquet"
        frame[:1].to_parquet(source)
        entity = Entity(name=kind, join_keys=[f"{kind}_id"], value_type=ValueType.STRING)
        view = FeatureView(
            name=kind,
            entities=[entity],
            ttl=timedelta(days=30),
            schema=[Field(name=name, dtype=Float32) for name in _names(kind, values)],
            source=FileSource(path=str(source), timestamp_field="event_timestamp"),
        )
        service = FeatureService(name=f"{kind}s", features=[view], precompute_online=task.variant == PRECOMPUTE)
        store.apply([entity, view, service])
        for start in range(0, len(frame), FILL_ROWS):
            store.write_to_online_store(kind, df=frame[start : start + FILL_ROWS])
        if service.precompute_online:
            store.precompute_feature_service(service.name)


def run(task: Task, world: World) -> None:
    """Measure."""
    store, session = store_of(task), task.session()
    names = {"user": _names("user", world.user_values), "item": _names("item", world.item_values)}
    features: dict[str, Any] = {kind: [f"{kind}:{name}" for name in found] for kind, found in names.items()}
    is_full = task.variant == PRECOMPUTE
    if is_full:
        features = {kind: store.get_feature_service(f"{kind}s") for kind in names}
        names = {kind: [f"{kind}__{name}" for name in found] for kind, found in names.items()}

    def read(kind: str, ids: list[str]) -> Floats:
        found = store.get_online_features(features[kind], [{f"{kind}_id": name} for name in ids], full_feature_names=is_full).to_dict()
        return np.array([found[name] for name in names[kind]], dtype=np.float32).T

    def rank(request: int) -> Floats:
        user, candidates = world.asked(request)
        order = np.argsort(candidates)
        items = np.empty((len(candidates), len(names["item"])), dtype=np.float32)
        items[order] = read("item", [candidates[place] for place in order])
        users = np.broadcast_to(read("user", [user]), (len(candidates), len(names["user"])))
        return score(session, np.concatenate([items, users], axis=1))

    measure(task, rank, len(world.asked_users))


def _names(kind: str, values: Floats) -> list[str]:
    return [f"{kind}_f{column}" for column in range(values.shape[1])]


if __name__ == "__main__":
    TASK = told()
    {"fill": fill, "measure": run}[TASK.action](TASK, TASK.data())
