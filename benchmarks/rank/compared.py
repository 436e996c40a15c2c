"""Runs the peers (benchmarks/rank/peers), each in a process of its own on the ranker's core, on the features that Millstream reads."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import machine, wire
from benchmarks.rank.requests import draw
from benchmarks.rank.serving import HOST, cpu_s
from benchmarks.rank.world import TREES, World
from ranker import bundle as bundles
from schemas.aggregates import ITEM, USER
from schemas.errors import MillstreamError

#: Feast wants an older redis-py than ours, so it lives in an environment of its own.
FEAST_PYTHON = Path(".venv-feast/bin/python")
#: How long one process may take (seconds): Feast writes some thousand rows a second.
RUN_S = 900.0
#: Requests that are there to be asked, and so users that peers hold: a key's cost does not depend on how many others there are.
REQUESTS_COUNT = 20_000
#: Scores are float32 made of equal vectors by an equal model.
TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class Peer:
    """One row. module: in benchmarks/rank/peers. freeze: gc.freeze() after the warm-up."""

    title: str
    module: str
    variant: str = ""
    freeze: bool = False

    @property
    def python(self) -> str:
        """Its interpreter."""
        return str(FEAST_PYTHON) if self.module == "feast_online" else sys.executable


FEAST = "Feast, two get_online_features + ONNX Runtime"
PACKED = "packed MGET by hand + ONNX Runtime"
PEERS = (
    Peer(PACKED, "packed", freeze=True),
    Peer("redis-py, pipelined HGETALL + ONNX Runtime", "hashes", freeze=True),
    Peer(FEAST, "feast_online", "online"),
    Peer(f"{FEAST}, gc.freeze()", "feast_online", "online", freeze=True),
    Peer(f"{FEAST}, precompute_online, gc.freeze()", "feast_online", "precompute", freeze=True),
)


@dataclass(frozen=True, slots=True)
class Bench:
    """Peers of one world. cores: the ranker's. store_idle_share: of a core, what the store uses for ingest alone."""

    world: World
    cores: set[int]
    folder: Path
    candidates: int
    seconds: float
    store_idle_share: float

    def ask(self, seed: int) -> None:
        """Write down whose features there are, and who will be asked for."""
        drawn = draw(seed, REQUESTS_COUNT, self.candidates, self.world.users, self.world.items)
        users, places = np.unique(drawn.user, return_inverse=True)
        items = np.arange(self.world.items)
        np.savez(
            self.folder / "world.npz",
            user_ids=_names(wire.user_ids(users)),
            user_values=self.world.vectors(USER, users),
            item_ids=_names(wire.item_ids(items)),
            item_values=self.world.vectors(ITEM, items),
            asked_users=places,
            asked_items=drawn.items,
        )

    def fill(self, peer: Peer) -> None:
        """Its own form of the features, into the store that Millstream's are in."""
        self._run(peer, "fill")

    def measure(self, peer: Peer) -> dict[str, Any]:
        """One run. Raises MillstreamError where it fails, or where its scores are not the model's."""
        begun_s, store_s = time.monotonic(), cpu_s(self.world.stack.store_pid)
        result: dict[str, Any] = json.loads(self._run(peer, "measure").splitlines()[-1])
        store_s = cpu_s(self.world.stack.store_pid) - store_s - self.store_idle_share * (time.monotonic() - begun_s)
        self._check(peer)
        requests = result["requests"] + result["requests_at_rate"]
        return {**result, "candidates": self.candidates, "store_cpu_ms": round(max(store_s, 0) / requests * 1000, 4), "errors": 0}

    def _run(self, peer: Peer, action: str) -> str:
        task = {
            "action": action,
            "variant": peer.variant,
            "world": str(self.folder / "world.npz"),
            "model": str(self._bundle() / bundles.MODEL),
            "host": HOST,
            "port": int(self.world.stack.store_url.rpartition(":")[2]),
            "folder": str(self.folder),
            "seconds": self.seconds,
            "freeze": peer.freeze,
            "scores": str(self.folder / "scores.npy"),
        }
        command = [peer.python, "-m", f"benchmarks.rank.peers.{peer.module}", json.dumps(task)]
        with machine.pinned(self.cores):
            done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S, check=False)  # noqa: S603  # our own command
        if done.returncode:
            advice = "`make .venv-feast/ready` installs Feast."
            raise MillstreamError(f"peer {peer.title} ended with {done.returncode} ({action}): {done.stderr[-2_000:]}. {advice}")
        return done.stdout

    def _bundle(self) -> Path:
        return bundles.latest(self.world.models[TREES])

    def _check(self, peer: Peer) -> None:
        scores = np.load(self.folder / "scores.npy")
        with np.load(self.folder / "world.npz") as there:
            matrices = [
                _matrix(there["item_values"][there["asked_items"][row]], there["user_values"][there["asked_users"][row]])
                for row in range(len(scores))
            ]
        session = bundles.load(self._bundle()).session
        expected = np.array([session.run(["scores"], {"features": matrix})[0] for matrix in matrices])
        if not np.allclose(scores, expected, atol=TOLERANCE):
            difference = float(np.abs(scores - expected).max())
            raise MillstreamError(f"peer {peer.title} scores otherwise than the model, by up to {difference}: a wrong run has no speed.")


def _names(ids: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    return np.array(wire.texts(ids), dtype=np.bytes_)


def _matrix(items: NDArray[np.float32], user: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.column_stack([items, np.tile(user, (len(items), 1))])
