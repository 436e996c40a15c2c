"""Vectors of float32 as they lie in memory, one MGET for the user and all candidates: what a good engineer writes by hand."""

from typing import Any

import numpy as np
import redis

from benchmarks.rank.peers.task import Floats, Task, World, measure, score, told

#: Keys of one call while the store is filled.
FILL_KEYS = 2_000


def fill(task: Task, world: World) -> None:
    """A value a vector."""
    store = redis.Redis(task.host, task.port)
    for kind, ids, values in (("user", world.user_ids, world.user_values), ("item", world.item_ids, world.item_values)):
        for start in range(0, len(ids), FILL_KEYS):
            part = zip(ids[start : start + FILL_KEYS], values[start : start + FILL_KEYS], strict=True)
            store.mset({f"packed:{kind}:{name}": row.tobytes() for name, row in part})


def run(task: Task, world: World) -> None:
    """Measure."""
    store, session = redis.Redis(task.host, task.port), task.session()
    of_item, of_user = world.item_values.shape[1], world.user_values.shape[1]

    def rank(request: int) -> Floats:
        user, candidates = world.asked(request)
        values: Any = store.mget([f"packed:user:{user}", *[f"packed:item:{item}" for item in candidates]])
        first, *rest = values
        matrix = np.empty((len(candidates), of_item + of_user), dtype=np.float32)
        matrix[:, :of_item] = np.frombuffer(b"".join(rest), dtype=np.float32).reshape(-1, of_item)
        matrix[:, of_item:] = np.frombuffer(first, dtype=np.float32)
        return score(session, matrix)

    measure(task, rank, len(world.asked_users))


if __name__ == "__main__":
    TASK = told()
    {"fill": fill, "measure": run}[TASK.action](TASK, TASK.data())
