"""What a candidate may cost on the device. Checked from estimates, before any training.

A latency of infinity says that a part of the model does not fit into the device's memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from nfsearch.space import Architecture

Latency = Mapping[str, tuple[float, float]]  # workload -> (seconds, error in seconds)


@dataclass(frozen=True)
class Budgets:
    """`estimate` gives the latency of an architecture for each workload, `memory` the bytes it takes when deployed."""

    estimate: Callable[[Architecture], Latency]
    seconds: Mapping[str, float] = field(default_factory=dict)  # workload -> most seconds
    memory: Callable[[Architecture], float] | None = None
    memory_bytes: float | None = None

    def __post_init__(self) -> None:
        if self.memory_bytes is not None and self.memory is None:
            raise ValueError("a memory limit needs a way to tell the memory of an architecture")

    def excess(self, architecture: Architecture, latency: Latency) -> dict[str, tuple[float, str]]:
        """The limits exceeded: name -> (estimate / limit, the two in words). Equal to the limit is within."""
        over = {name: (math.inf, "does not fit into memory") for name, (time, _) in latency.items() if time == math.inf}
        for workload, budget in self.seconds.items():
            if workload not in over and not latency[workload][0] <= budget:
                words = f"{latency[workload][0] * 1e3:.4g} ms against {budget * 1e3:.4g} ms"
                over[workload] = (latency[workload][0] / budget, words)
        if self.memory is not None and self.memory_bytes is not None:
            size = self.memory(architecture)
            if size > self.memory_bytes:
                words = f"{size / 1e9:.4g} GB against {self.memory_bytes / 1e9:.4g} GB"
                over["memory"] = (size / self.memory_bytes, words)
        return over

    def fit(self, architecture: Architecture) -> bool:
        """Whether it keeps all limits: what `SearchSpace` asks where the width follows from the latency."""
        return not self.excess(architecture, self.estimate(architecture))
