"""The limits on what candidates are measured by, and what they cost without any training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from nfsearch.space import Architecture
from nfsearch.support.metrics import Measurements, Metric


@dataclass(frozen=True)
class Limits:
    """The most of some metrics, by name and in their units."""

    most: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, Metric] = field(default_factory=dict)  # of `most` at least, for the words

    def excess(self, found: Measurements) -> dict[str, tuple[float, str]]:
        """The limits exceeded by what was found so far: name -> (value / limit, the two in words). Equal to the limit
        is within; what was not found, because only training tells it, is no excess. A cost of infinity says that a part
        of the model does not fit into the device's memory."""
        over = {name: (math.inf, "does not fit into memory") for name, each in found.items() if each.value == math.inf}
        for name, limit in self.most.items():
            if name in found and name not in over and not found[name].value <= limit:
                unit = self.metrics[name].unit
                words = f"{unit.words(found[name].value)} against {unit.words(limit)}"
                over[name] = (found[name].value / limit, words)
        return over


@dataclass(frozen=True)
class Budgets:
    """`estimate` gives what is known of an architecture without any training: it has to be within the limits."""

    estimate: Callable[[Architecture], Measurements]
    limits: Limits = field(default_factory=Limits)

    def fit(self, architecture: Architecture) -> bool:
        """Whether it keeps all limits: what `SearchSpace` asks where the width follows from the latency."""
        return not self.limits.excess(self.estimate(architecture))
