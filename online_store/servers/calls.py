"""One call to the store: counted by how it ended, the client's errors turned into ours."""

import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from hiredis import ReplyError
from prometheus_client import Counter

from online_store.servers.node import code_of
from schemas.errors import StoreAwayError, StoreError

STORE_CALLS = Counter("millstream_store_calls", "Calls to the online store, by how they ended.", ["call", "outcome"])
#: Looking it up took as long as counting four times.
_counter = functools.cache(STORE_CALLS.labels)
#: Refusals that pass by themselves or when an operator acts: a restart, a failover, slots on their way, a full memory or disk.
PASSING = frozenset(
    {"LOADING", "BUSY", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "MOVED", "ASK", "TRYAGAIN", "NOREPLICAS", "OOM", "MISCONF"}
)
FULL = "ERR max number of clients"
#: What to do about refusals that do not pass; for any other, a record is at fault.
ADVICE = {
    "NOAUTH": "Put user and password into store_url: redis://user:password@host.",
    "NOPERM": "Grant that to the store's user: docs/operations.md has the whole ACL line.",
}

P = ParamSpec("P")
T = TypeVar("T")


def answered(call: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Count a call, and turn the client's errors into ours, in one place."""

    @functools.wraps(call)
    async def counted(*args: P.args, **kwargs: P.kwargs) -> T:
        outcome = "error"
        try:
            answer = await call(*args, **kwargs)
            outcome = "ok"
        except OSError as error:
            outcome = "away"
            message = f"the store did not answer {call.__name__}: {error!r}. Is it up? `millstream stack status` tells."
            raise StoreAwayError(message) from error
        except ReplyError as error:
            if code_of(error) in PASSING or str(error).startswith(FULL):
                outcome = "away"
                raise StoreAwayError(
                    f"the store cannot do {call.__name__} now: {error}. It is tried again; an operator may have to act."
                ) from error
            advice = ADVICE.get(code_of(error), "Rebuild the generation from the log if a record is at fault.")
            raise StoreError(f"the store refused {call.__name__}: {error}. {advice}") from error
        finally:
            _counter(call.__name__, outcome).inc()
        return answer

    return counted
