"""Where workers run: the nodes of a Ray cluster, which come and go, and of which some lack what a worker needs."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nfsearch.search.executors.cluster import RaySettings, require_room, room_for
from nfsearch.search.executors.worker import StartError
from nfsearch.support.terminal import announce

LOOK = 1.0  # seconds between two looks at the nodes
STARTS = 3  # workers in a row that die while they start, after which a node gets no more
OCCUPIED = 60.0  # seconds for which a node is passed over that turned out to be full of the work of others


@dataclass
class Node:
    """A machine of the cluster."""

    name: str
    capacity: int  # workers that its CPUs and GPUs are enough for
    memory: float  # bytes that each of so many may hold
    alive: bool = True
    left_out: bool = False  # no more workers are started on it
    lost: int = 0  # places at which workers could not start
    deaths: int = 0  # of workers while they started, since one last did
    occupied: float = -math.inf  # when others were last found to have taken its room

    @property
    def room(self) -> int:
        """Workers that it shall have."""
        return max(self.capacity - self.lost, 0) if self.alive and not self.left_out else 0


class Places:
    """The nodes, by Ray's names for them, and what is known of each as of the last look."""

    def __init__(self, settings: RaySettings, cuda: bool) -> None:
        """Raises ValueError if there is no room for what the settings ask for."""
        import ray

        self._settings, self._cuda = settings, cuda
        found = ray.nodes()
        require_room(settings, cuda, [each["Resources"] for each in found if each["Alive"]], "the Ray cluster has")
        self.nodes = {each["NodeID"]: self._node(each) for each in found}
        self.trouble = ""  # why a worker could last not start
        self._looked = time.monotonic()

    @property
    def room(self) -> int:
        """How many workers there shall be: as many as are asked for and there is room for."""
        room = sum(node.room for node in self.nodes.values())
        return room if self._settings.count == "auto" else min(room, self._settings.count)

    def look(self, *, now: bool = False) -> None:
        """Takes in which nodes have joined and gone, at most once a second unless it has to be `now`."""
        import ray

        if not now and time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        for each in ray.nodes():
            found = self._node(each)
            known = self.nodes.get(each["NodeID"])
            if known is None:
                self.nodes[each["NodeID"]] = found
                if found.alive:
                    announce(f"{found.name} has joined; room for workers: {found.capacity}")
            elif known.alive and not found.alive:
                known.alive = False
                announce(f"{known.name} is lost; what was evaluated there is evaluated elsewhere")

    def choose(self, used: Iterable[str], but: str | None = None) -> str | None:
        """The node with the most room beside the workers on the nodes that are `used`, other than `but`; None where all
        are full."""
        count, now = Counter(used), time.monotonic()
        free = {
            name: node.room - count[name]
            for name, node in self.nodes.items()
            if name != but and now - node.occupied > OCCUPIED
        }
        best = max(free, key=lambda name: free[name], default=None)
        return best if best is not None and free[best] > 0 else None

    def started(self, node: str) -> None:
        """A worker has started there."""
        self.nodes[node].deaths = 0

    def failed(self, node: str, error: StartError) -> None:
        """A worker could not start there. Where the machine lacks something, none of the others could either."""
        found, self.trouble = self.nodes[node], f"a worker could not start: {error.text}"
        if error.missing:
            self._leave_out(found)
        else:
            found.lost += 1
            announce(f"{found.name} has one worker less: {self.trouble}")

    def died(self, node: str, error: str) -> None:
        """A worker died there while it started, which may happen once."""
        found = self.nodes[node]
        found.deaths += 1
        if found.deaths == STARTS and found.alive:
            self.trouble = f"{STARTS} workers in a row did not start: {error}"
            self._leave_out(found)

    def _leave_out(self, node: Node) -> None:
        if not node.left_out:
            node.left_out = True
            announce(f"{node.name} is left out: {self.trouble}")

    def _node(self, found: Mapping[str, Any]) -> Node:
        resources = found["Resources"]
        capacity = room_for(self._settings, self._cuda, resources)
        memory = resources.get("memory", math.inf) / max(capacity, 1)
        name = f"The node {found['NodeManagerHostname']} ({found['NodeManagerAddress']})"
        return Node(name, capacity, memory, found["Alive"])
