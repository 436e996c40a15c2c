"""All servers of a store: which node holds a key, one batch a node and all nodes at once.

What a node cannot answer fails its own commands only. Keys that move to another node while we speak are followed there.
"""

import asyncio
from binascii import crc_hqx
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hiredis import ReplyError

from online_store.servers.address import Address, Tls, parse_url, without_password
from online_store.servers.node import Node, code_of, pack
from schemas.errors import SettingsError, StoreError

#: How often one call follows its commands to another node, or waits for keys that are on their way there. More is the caller's patience.
ROUNDS_MAX = 6
#: How long to wait for keys that are on their way to another node (seconds).
ON_THE_WAY_S = 0.02
#: Slots of a cluster: the protocol's own number.
SLOTS_COUNT = 16_384
ASKING = pack(b"ASKING")


class Command(NamedTuple):
    """One command as it goes over the wire, and the key that says to which node."""

    key: bytes
    packed: bytes


class Route(NamedTuple):
    """Where a command goes. asking: to a node that a slot is on its way to; loading: with the script before it."""

    address: Address | None
    asking: bool = False
    loading: bool = False


#: What goes which way: places among a call's commands.
Batches = Mapping[Route, Sequence[int]]


def slot_of(key: bytes) -> int:
    """The cluster slot of a key: CRC16 (XMODEM) of its hash tag, or of all of it, as the cluster specification says."""
    start = key.find(b"{") + 1
    end = key.find(b"}", start) if start else 0
    return crc_hqx(key[start:end] if end > start else key, 0) % SLOTS_COUNT


class Servers:
    """All nodes of a store."""

    def __init__(self, url: str, timeout_s: float, tls: Tls) -> None:
        """Connects at the first call. Raises SettingsError for a url that is none, and for files of `tls` that cannot be used."""
        try:
            self._target = parse_url(url)
        except ValueError as error:
            raise SettingsError(f"store_url is {without_password(url)!r}: it takes {error}.") from error
        self._timeout_s = timeout_s
        self._tls = tls.context() if self._target.tls else None
        self._nodes: dict[Address, Node] = {}
        self._sentinels = [Node(address, timeout_s, self._tls) for address in self._target.addresses]
        #: The node of each slot, or one node for all; empty where it must be asked for.
        self._slots: list[Address | None] = []
        self._looking = asyncio.Lock()

    @property
    def is_cluster(self) -> bool:
        """Whether keys of different hash tags may live on different nodes."""
        return self._target.kind == "cluster"

    async def run(self, commands: Sequence[Command], script: bytes = b"", *, beside: bool = False) -> list[Any]:
        """The answer of each command; an exception (ReplyError, OSError, StoreError) where it failed.

        script: packed SCRIPT LOAD, sent ahead where a node does not know the script. beside: each on a connection of its own, for a store
        that is no cluster. Raises OSError where nobody says who holds what.
        """
        answers: list[Any] = [None] * len(commands)
        batches = await self._routes(commands)
        for _ in range(ROUNDS_MAX):
            await self._round(commands, batches, answers, script, beside=beside)
            if not (batches := self._left(batches, answers)):
                break
            if any(code_of(answers[place]) == "TRYAGAIN" for places in batches.values() for place in places):
                await asyncio.sleep(ON_THE_WAY_S)
        return answers

    async def _round(  # a round of run
        self, commands: Sequence[Command], batches: Batches, answers: list[Any], script: bytes, *, beside: bool
    ) -> None:
        """Send each batch on its route and put its answers in their places."""
        asked = [
            self._batch(route, [commands[place].packed for place in places], script, beside=beside) for route, places in batches.items()
        ]
        # Gathering makes a task of each: where there is one node, that took as long as the rest of this.
        answered = [await asked[0]] if len(asked) == 1 else await asyncio.gather(*asked)
        for places, found in zip(batches.values(), answered, strict=True):
            for place, answer in zip(places, found, strict=True):
                answers[place] = answer

    def _left(self, batches: Batches, answers: Sequence[Any]) -> Batches:
        """What must be sent again, and where to."""
        left: dict[Route, list[int]] = defaultdict(list)
        for route, places in batches.items():
            for place in places:
                if isinstance(answers[place], ReplyError) and (again := self._again(answers[place], route)):
                    left[again].append(place)
        return left

    async def primaries(self) -> list[Node]:
        """Every node that holds keys. Raises OSError where nobody says which."""
        return [self._node(address) for address in dict.fromkeys(self._slots or await self._look()) if address]

    async def close(self) -> None:
        """Let go of all connections."""
        for node in (*self._nodes.values(), *self._sentinels):
            await node.close()

    async def _routes(self, commands: Sequence[Command]) -> Batches:
        slots = self._slots or await self._look()
        if len(slots) == 1 and commands:
            return {Route(slots[0]): range(len(commands))}
        batches: dict[Route, list[int]] = defaultdict(list)
        for place, command in enumerate(commands):
            batches[Route(slots[slot_of(command.key)])].append(place)
        return batches

    async def _batch(self, route: Route, parts: list[bytes], script: bytes, *, beside: bool) -> list[Any]:
        """The answers of one node to one batch."""
        count = len(parts)
        if route.address is None:
            self._slots = []
            return [ConnectionError("no node of the cluster holds this slot now")] * count
        if route.asking:
            parts = [part for packed in parts for part in (ASKING, packed)]
        if route.loading:
            parts.insert(0, script)
        try:
            together = (parts, 1) if beside else ([b"".join(parts)], len(parts))
            found = await self._node(route.address).execute(*together)
        except (OSError, StoreError) as error:
            self._slots = []
            return [error] * count
        if route.loading and isinstance(found[0], ReplyError):
            return [found[0]] * count
        return found[route.loading :][route.asking :: 1 + route.asking]

    def _again(self, answer: object, route: Route) -> Route | None:
        """Where a command must go next; None where its answer stands."""
        code = code_of(answer)
        if code in ("MOVED", "READONLY"):
            self._slots = []
        if code in ("MOVED", "ASK"):
            host, _, port = str(answer).split(" ")[2].rpartition(":")
            same = route.address.host if route.address else ""
            return Route(Address(host or same, int(port)), asking=code == "ASK")
        if code == "NOSCRIPT" and not route.loading:
            return route._replace(loading=True)
        return route if code == "TRYAGAIN" else None

    def _node(self, address: Address) -> Node:
        if address not in self._nodes:
            target, greeting = self._target, []
            if target.password:
                greeting.append(pack("AUTH", target.username or "default", target.password))
            if target.database:
                greeting.append(pack("SELECT", target.database))
            role = b"master" if target.kind == "sentinel" else b""
            greeting += [pack("ROLE")] if role else []
            self._nodes[address] = Node(address, self._timeout_s, self._tls, greeting, role)
        return self._nodes[address]

    async def _look(self) -> list[Address | None]:
        async with self._looking:
            if not self._slots:
                looks = {"": self._only, "sentinel": self._ask_sentinels, "cluster": self._ask_cluster}
                self._slots = await looks[self._target.kind]()
            return self._slots

    async def _only(self) -> list[Address | None]:
        return [self._target.addresses[0]]

    async def _ask_sentinels(self) -> list[Address | None]:
        _, found = await self._first(self._sentinels, ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._target.service))
        return [Address(found[0].decode(), int(found[1]))]

    async def _ask_cluster(self) -> list[Address | None]:
        asked, found = await self._first([self._node(address) for address in {*self._nodes, *self._target.addresses}], ("CLUSTER", "SLOTS"))
        slots: list[Address | None] = [None] * SLOTS_COUNT
        for first, last, (host, port, *_), *_ in found:
            slots[first : last + 1] = [Address(host.decode() if host else asked.address.host, port)] * (last + 1 - first)
        return slots

    async def _first(self, nodes: Sequence[Node], question: tuple[str, ...]) -> tuple[Node, list[Any]]:
        """Who answered first, asked in turn, and what. Raises ConnectionError where nobody knows."""
        answers: list[str] = []
        for node in sorted(nodes, key=lambda node: node.failed):
            try:
                answer = (await node.execute([pack(*question)], 1))[0]
            except OSError as error:
                answer = error
            if isinstance(answer, list):
                return node, answer
            answers.append(f"{node.address} says {answer!r}")
        raise ConnectionError(f"{' '.join(question)}: {', '.join(answers)}")
