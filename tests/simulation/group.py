"""The consumer group and its supervisor: who reads which partition, who is taken for dead, who does not know it yet."""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from schemas.topics import Source
from tests.simulation.process import Process

#: How often coordinator and supervisor look (virtual seconds).
TICK_S = 0.25
#: How long a member may be silent before its partitions go to others (virtual seconds).
SESSION_TIMEOUT_S = 2.0
#: How long a supervisor takes to start a process again (virtual seconds), at most.
RESTART_S = 1.5


@dataclass(slots=True)
class Group:
    """Processes, and which of them are members.

    made: a new process of that number, not started. wanted: how many the supervisor keeps alive. failures: what ended processes by itself.
    """

    pick: random.Random
    sources: Sequence[Source]
    made: Callable[[int], Process]
    wanted: int
    processes: list[Process] = field(default_factory=list)
    members: list[Process] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)
    _made: int = 0
    _starting: int = 0
    _silent_since_s: dict[int, float] = field(default_factory=dict)

    def start(self) -> None:
        """A new process comes, and partitions move."""
        process = self.made(self._made)
        self._made += 1
        process.start()
        self.processes.append(process)
        self._join(process)

    def living(self) -> list[Process]:
        """Processes that run, or would if they were let."""
        return [process for process in self.processes if not process.dead]

    def zombies(self) -> list[Process]:
        """Processes that lost their partitions and may not know it."""
        return [process for process in self.living() if process not in self.members]

    def rebalance(self) -> None:
        """Deal all sources to the members anew; whoever is stopped hears of it when it goes on."""
        members = [member for member in self.members if not member.dead]
        dealt = self.pick.sample(list(self.sources), len(self.sources))
        for place, member in enumerate(members):
            member.spawn(member.assign(dealt[place :: len(members)]))

    async def run(self) -> None:
        """Look after the processes, as long as the run lasts."""
        while True:
            await asyncio.sleep(TICK_S)
            self._bury()
            for member in list(self.members):
                self._look_at(member, asyncio.get_running_loop().time())
            for process in self.zombies():
                if not process.stopped and self.pick.random() < 0.3:
                    self._join(process)
            while len(self.living()) + self._starting < self.wanted:
                self._starting += 1
                asyncio.get_running_loop().call_later(RESTART_S * self.pick.random(), self._started)

    def _join(self, process: Process) -> None:
        self.members.append(process)
        self.rebalance()

    def _look_at(self, member: Process, now_s: float) -> None:
        """A member that is silent for too long, or said goodbye, is none any more."""
        if not (member.dead or member.stopped):
            self._silent_since_s.pop(member.number, None)
            return
        since_s = self._silent_since_s.setdefault(member.number, now_s)
        if member.left or now_s - since_s >= SESSION_TIMEOUT_S:
            self.members.remove(member)
            self.rebalance()

    def _bury(self) -> None:
        self.failures += [process.failure for process in self.processes if process.failure]
        self.processes = self.living()

    def _started(self) -> None:
        self._starting -= 1
        self.start()
