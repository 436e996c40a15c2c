"""What is being answered and what was, by request: who is asked again, here or elsewhere, says the same."""

import asyncio
import contextlib
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from online_store.store import OnlineStore
from ranker import metrics
from ranker.encode import Facts, Items
from ranker.reads.asking import LATE_S
from ranker.reads.reader import Asked
from ranker.served.current import Served
from schemas import codec
from schemas.errors import DecodeError, StoreError
from schemas.topics import RANK_RESPONSES

#: How long the answer to a request_id is kept (milliseconds). A producer that retries later than this is answered anew.
ANSWER_TTL_MS = 900_000
#: Answers remembered in this process, for when the store is away.
ANSWERS_COUNT_MAX = 10_000
#: Answers that wait to be kept (some 3 KB each). What comes while a store takes none of them is not kept.
UNKEPT_COUNT_MAX = 8_192
#: How much of what something is said to take is what it took last: a few in a row are believed, one that stood still is not.
LAST_SHARE = 0.25
#: A store that hangs says of how long keeping takes no more than this (seconds).
KEEP_S_MAX = 0.04


class Said(NamedTuple):
    """What a response says, as ranker.encode.response takes it."""

    items: Items
    facts: Facts
    latency_ms: float


class Answer(NamedTuple):
    """What goes out. response: the encoded RankResponse; telemetry: the encoded RankTelemetry, None for a repeated answer.

    said: what the response was made of, where it was made just now.
    """

    response: bytes
    telemetry: bytes | None
    said: Said | None = None


#: Takes a request's answer.
Then = Callable[[Answer], None]


@dataclass(eq=False, slots=True)
class Call:
    """A request under way.

    received_s, deadline_s: time.perf_counter(). reserve_s: as Budgets.reserve_s. timer: of what happens at the latest. ours: its answer,
    while it is being kept. waiting: who waits for it. served: what it is ranked by. is_read: whether its read has begun; is_settled:
    whether its slate is there. is_patient: whether it may wait for company, with which it costs less.
    """

    asked: Asked
    key: bytes
    received_s: float
    waiting: list[Then] = field(default_factory=list)
    deadline_s: float = math.inf
    reserve_s: float = 0.0
    timer: asyncio.TimerHandle | None = None
    ours: Answer | None = None
    served: Served | None = None
    is_patient: bool = True
    is_read: bool = False
    is_settled: bool = False
    is_answered: bool = False

    def leave(self, then: Then) -> None:
        """Wait for it no longer."""
        if then in self.waiting:
            self.waiting.remove(then)

    def answer(self, answer: Answer) -> None:
        """Tell all who wait; its telemetry goes out once."""
        self.is_answered = True
        waiting, self.waiting = self.waiting, []
        for then in waiting:
            then(answer)
            answer = Answer(answer.response, None)

    def drop(self) -> None:
        """Nothing will be its answer."""
        self.is_settled = True
        self.wait(None)

    def wait(self, timer: asyncio.TimerHandle | None) -> None:
        """Have this timer, or none, and no other; one that had fired would refer to the call still, and the call to it."""
        if self.timer:
            self.timer.cancel()
        self.timer = timer


class Keeping(NamedTuple):
    """Answers that are to be kept, by answer_key. then: takes what holds of them. since_s: time.perf_counter()."""

    ours: Sequence[tuple[bytes, bytes]]
    then: Callable[[Sequence[bytes]], None]
    since_s: float


class Answers:
    """Encoded responses by answer_key."""

    def __init__(self, store: OnlineStore) -> None:
        """Nothing was answered yet."""
        self._store = store
        self._remembered: OrderedDict[bytes, bytes] = OrderedDict()
        self._waiting: deque[Keeping] = deque()
        self._waiting_count = 0
        self._keeping: asyncio.Task[None] | None = None
        #: How long answers take to be kept (seconds).
        self.keep_s = 0.0

    def find(self, key: bytes) -> bytes | None:
        """What this process answered."""
        return self._remembered.get(key)

    def remember(self, key: bytes, response: bytes) -> None:
        """Answer so from now on, as long as there is room."""
        self._remembered[key] = response
        if len(self._remembered) > ANSWERS_COUNT_MAX:
            self._remembered.popitem(last=False)

    def keep(self, ours: Sequence[tuple[bytes, bytes]], then: Callable[[Sequence[bytes]], None]) -> None:
        """Keep these answers, then say what holds of them: what another worker kept before, else ours, also where the store does not say.

        What stands under a key and is no response is not repeated. A store that hangs is waited for: who has less time goes on without.
        """
        if self._waiting_count >= UNKEPT_COUNT_MAX:
            then([response for _, response in ours])
            return
        self._waiting.append(Keeping(ours, then, time.perf_counter()))
        self._waiting_count += len(ours)
        if self._keeping is None:
            self._keeping = asyncio.get_running_loop().create_task(self._keep_all())

    async def _keep_all(self) -> None:
        """Keep what waits, one call after the other: what comes meanwhile shares the next."""
        try:
            while self._waiting:
                together = list(self._waiting)
                self._waiting.clear()
                self._waiting_count = 0
                with metrics.KEEP.time():
                    kept = await self._kept([answer for keeping in together for answer in keeping.ours])
                took_s = time.perf_counter() - together[0].since_s
                self.keep_s += LAST_SHARE * (min(took_s, KEEP_S_MAX) - self.keep_s)
                for keeping in together:
                    keeping.then([_holds(next(kept), response) for _, response in keeping.ours])
        finally:
            self._keeping = None

    async def _kept(self, ours: Sequence[tuple[bytes, bytes]]) -> Iterator[bytes]:
        """What stands under their keys now, ours where the store does not say."""
        # Given up with its caller's patience, each would cost its connection, and a slow store's reads would wait behind all the new ones.
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(LATE_S):
                return iter(await self._store.keep_answers(ours, ANSWER_TTL_MS))
        return iter([response for _, response in ours])


def nothing() -> None:
    """What is left to do for who waits for no answer."""


def _holds(kept: bytes, ours: bytes) -> bytes:
    if kept != ours:
        try:
            codec.decode(RANK_RESPONSES, kept)
        except DecodeError:
            return ours
    return kept
