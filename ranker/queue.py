"""Who waits to be ranked, and who would wait too long: it is said at once, while it still costs little. And what one round gathers."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from ranker.reads.answers import LAST_SHARE, Call

#: Requests of one batch. A batch costs over 1 ms however few are in it, little for each of so many; more would let the first wait for the
#: last, and who comes meanwhile for all of them.
BATCH_COUNT_MAX = 32
#: So many begin a read at once, while the batch before is ranked: what any batch costs is little for each of them.
SHARED_COUNT = 16
#: Who comes so long after a batch (seconds) shares the next read where only the patient wait, and behind a read that took longer than this:
#: it had to wait for the store, or for the loop, and many small ones would make either slower. Else the next begins at once.
WINDOW_S = 0.002
#: Requests that may wait, and how long the first of them may have (seconds): a read that hangs, and some. Past either one is answered by
#: popularity: it would not be read for inside its deadline, and callers would run out of connections to ask on.
WAITING_COUNT_MAX, WAITING_S_MAX = 512, 0.03

One = TypeVar("One")


class Queue:
    """Calls in the order they came, taken in batches. now_s: time.perf_counter()."""

    def __init__(self) -> None:
        """Nobody waits."""
        self._calls: deque[Call] = deque()
        #: When the last batch began, and how long one takes; how long its read took, and until when company may come.
        self._begun_s = self._batch_s = self._read_s = self._window_end_s = 0.0

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def is_long(self) -> bool:
        """Whether so many wait that they begin a read at once."""
        return len(self._calls) >= SHARED_COUNT

    def put(self, call: Call) -> None:
        """Behind all others."""
        self._calls.append(call)

    def take(self, now_s: float, keep_s: float) -> tuple[list[Call], list[Call]]:
        """The next batch; and who was in it, but waited too long to be ranked in time. keep_s: how long it takes to keep answers."""
        self._begun_s = now_s
        batch: list[Call] = []
        late: list[Call] = []
        for _ in range(min(len(self._calls), BATCH_COUNT_MAX)):
            call = self._calls.popleft()
            (late if self._is_late(call, now_s, keep_s) else batch).append(call)
        return batch, late

    def _is_late(self, call: Call, now_s: float, keep_s: float) -> bool:
        """Only who waited for long: else, after one batch that took too long, all would be turned away, and none show that it is over."""
        return now_s - call.received_s > WAITING_S_MAX and now_s + self._batch_s + keep_s > call.deadline_s - call.reserve_s

    def was_read(self, now_s: float) -> None:
        """What the last batch must know is there."""
        self._read_s = now_s - self._begun_s

    def done(self, now_s: float) -> None:
        """It is the next one's turn."""
        self._batch_s += LAST_SHARE * (now_s - self._begun_s - self._batch_s)
        self._window_end_s = now_s + WINDOW_S

    def pause_s(self, now_s: float) -> float:
        """How long to wait for who may come yet, before the next batch is taken; none where it is not above zero."""
        is_worth_it = not self.is_long and (self._read_s > WINDOW_S or all(call.is_patient for call in self._calls))
        return self._window_end_s - now_s if is_worth_it else 0.0

    def is_too_long(self, until_s: float, now_s: float) -> bool:
        """Whether who comes now would not be ranked until then, behind all who wait."""
        if not self._calls:
            return False
        count = len(self._calls)
        if count >= WAITING_COUNT_MAX or now_s - self._calls[0].received_s > WAITING_S_MAX:
            return True
        # The one under way, those before, its own; and half of one again where it is ranked while the next is read.
        batches = count // BATCH_COUNT_MAX + (1.5 if self.is_long else 1)
        return max(now_s, self._begun_s + self._batch_s) + batches * self._batch_s > until_s


class Gathered(Generic[One]):
    """What comes in one round of the loop, taken in batches in the next; one by one where a batch cannot be taken."""

    def __init__(self, take: Callable[[list[One]], None]) -> None:
        """Nothing came yet."""
        self._take = take
        self._batch: list[One] = []

    def put(self, one: One) -> None:
        """With what came before it in this round."""
        if len(self._batch) in (0, BATCH_COUNT_MAX):
            self._batch = []
            asyncio.get_running_loop().call_soon(self._go, self._batch)
        self._batch.append(one)

    def _go(self, batch: list[One]) -> None:
        if batch is self._batch:
            self._batch = []
        try:
            self._take(batch)
        except BaseException:
            # A fault that nobody thought of is the loop's to tell, and the others' answers must not hang on it.
            for one in batch if len(batch) > 1 else ():
                asyncio.get_running_loop().call_soon(self._take, [one])
            raise
