"""A hash a user and an item, a field a feature, read by redis-py in one pipeline of HGETALL; what most tutorials show."""

import numpy as np
import redis

from benchmarks.rank.peers.task import Floats, Task, World, measure, score, told

#: Keys of one pipeline while the store is filled.
FILL_KEYS = 2_000


def fill(task: Task, world: World) -> None:
    """Numbers as text, which is what a hash holds."""
    store = redis.Redis(task.host, task.port)
    for kind, ids, values in (("user", world.user_ids, world.user_values), ("item", world.item_ids, world.item_values)):
        names = [f"f{column}" for column in range(values.shape[1])]
        for start in range(0, len(ids), FILL_KEYS):
            rows = values[start : start + FILL_KEYS].tolist()
            with store.pipeline(transaction=False) as pipeline:
                for name, row in zip(ids[start : start + FILL_KEYS], rows, strict=True):
                    pipeline.hset(f"hash:{kind}:{name}", mapping=dict(zip(names, row, strict=True)))
                pipeline.execute()


def run(task: Task, world: World) -> None:
    """Measure."""
    store, session = redis.Redis(task.host, task.port), task.session()
    fields = {kind: [f"f{column}".encode() for column in range(count)] for kind, count in _columns(world).items()}

    def rank(request: int) -> Floats:
        user, candidates = world.asked(request)
        with store.pipeline(transaction=False) as pipeline:
            pipeline.hgetall(f"hash:user:{user}")
            for item in candidates:
                pipeline.hgetall(f"hash:item:{item}")
            of_user, *of_items = pipeline.execute()
        values = [float(of_user[name]) for name in fields["user"]]
        rows = [[float(found[name]) for name in fields["item"]] + values for found in of_items]
        return score(session, np.array(rows, dtype=np.float32))

    measure(task, rank, len(world.asked_users))


def _columns(world: World) -> dict[str, int]:
    return {"user": world.user_values.shape[1], "item": world.item_values.shape[1]}


if __name__ == "__main__":
    TASK = told()
    {"fill": fill, "measure": run}[TASK.action](TASK, TASK.data())
