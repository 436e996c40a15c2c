"""A read is waited for only so long, and goes on for nobody only so long."""

import asyncio
from collections.abc import Sequence

import pytest

from ranker.reads.asking import Values, ask
from tests.rankers import Failing

#: Longer than this machine may stand still (seconds).
PATIENCE_S = 30


class Endless(Failing):
    """Its reads take for ever, and say when they are given up."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = asyncio.Event()

    async def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """As MemoryStore.read."""
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()
        return await super().read(keys)


async def test_a_read_that_nobody_waits_for_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a store that is slow would have more and more of them."""
    monkeypatch.setattr("ranker.reads.asking.LATE_S", 0.01)
    store, brought = Endless(), list[Values]()
    with pytest.raises(TimeoutError):
        await ask(store, [b"key"], 0.001, brought.append)
    await asyncio.wait_for(store.ended.wait(), PATIENCE_S)

    assert brought == []
