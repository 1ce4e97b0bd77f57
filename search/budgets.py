"""What a candidate may cost on the device. Checked from estimates, before any training.

A cost of infinity says that a part of the model does not fit into the device's memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from nfsearch.latency_lut.workload import MEMORY
from nfsearch.space import Architecture

Costs = Mapping[str, tuple[float, float]]  # workload -> (seconds, error in seconds); memory -> (bytes, 0)


@dataclass(frozen=True)
class Budgets:
    """`estimate` gives the costs of an architecture by name, `most` the limits of some of them in the same units."""

    estimate: Callable[[Architecture], Costs]
    most: Mapping[str, float] = field(default_factory=dict)

    def excess(self, costs: Costs) -> dict[str, tuple[float, str]]:
        """The limits exceeded: name -> (cost / limit, the two in words). Equal to the limit is within."""
        over = {name: (math.inf, "does not fit into memory") for name, (cost, _) in costs.items() if cost == math.inf}
        for name, limit in self.most.items():
            if name not in over and not costs[name][0] <= limit:
                scale, unit = (1e-9, "GB") if name == MEMORY else (1e3, "ms")
                words = f"{costs[name][0] * scale:.4g} {unit} against {limit * scale:.4g} {unit}"
                over[name] = (costs[name][0] / limit, words)
        return over

    def fit(self, architecture: Architecture) -> bool:
        """Whether it keeps all limits: what `SearchSpace` asks where the width follows from the latency."""
        return not self.excess(self.estimate(architecture))
