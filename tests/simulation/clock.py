"""An event loop whose time is virtual: it jumps to the next timer instead of waiting for it, so that a run takes what it computes."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

from schemas.errors import MillstreamError

T = TypeVar("T")


class StalledError(MillstreamError):
    """Nothing is ready and no timer is set: the run would wait for ever."""


class Idle(selectors.SelectSelector):
    """Waits for nobody: to wait is to move the time."""

    def __init__(self) -> None:
        """At second 0."""
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Nothing of the outside is ever ready. Raises StalledError where there is no timer to wait for."""
        if timeout is None:
            raise StalledError("every task waits for another one: no timer is set. Look for an event that nobody sets.")
        self.now_s += max(timeout, 0.0)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Runs tasks in the order in which they became ready; its clock starts at 0."""

    def __init__(self) -> None:
        """Nothing is scheduled."""
        self._idle = Idle()
        super().__init__(self._idle)

    def time(self) -> float:
        """Virtual seconds since the start."""
        return self._idle.now_s


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns, run to its end in virtual time; tasks that it leaves behind are cancelled."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(main)
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.close()


async def for_ever() -> NoReturn:
    """Where a dead process waits until its tasks are cancelled."""
    while True:
        await asyncio.get_running_loop().create_future()
