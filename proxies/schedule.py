"""How the learning rate goes over a training, and where one training branches into several budgets.

A trunk warms up and then keeps its rate. A budget leaves it some steps before its end and lets the rate decay to zero,
so that one trunk serves many budgets: each decays from a copy, and the trunk goes on as if it had not (warm-up, stable,
decay: Hu et al., MiniCPM, arXiv 2404.06395; Haegele et al., arXiv 2405.18392).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nfsearch.proxies.settings import TrainingSettings

_LAST_RATE = 0.1  # of the peak, where a cosine ends


@dataclass(frozen=True)
class Schedule:
    """Of a training that ends at `steps`. What it does before `branch` does not depend on where it ends."""

    steps: int
    warm: int  # steps
    peak: float
    decay: int | None  # steps of the linear decay to zero; None for a cosine from the peak on

    @classmethod
    def of(cls, settings: TrainingSettings, tokens: int) -> Schedule:
        """The warm-up is a share of `settings.tokens` whatever the budget, so that all budgets share a trunk."""
        steps, base = steps_of(settings, tokens), steps_of(settings, settings.tokens)
        decay = max(1, round(settings.decay * steps)) if settings.schedule == "trunk" else None
        return cls(steps, round(settings.warmup * base), settings.learning_rate, decay)

    @property
    def branch(self) -> int:
        """The first step that a longer training would take otherwise."""
        return 0 if self.decay is None else self.steps - self.decay

    def rate(self, step: int) -> float:
        """Of step number `step`, from 0: linear from zero over the warm-up; then the peak, and linear to zero at the
        end; or a cosine that reaches a tenth of the peak at the last step."""
        rising = (step + 1) / (self.warm + 1)
        if self.decay is not None:
            return self.peak * min(1.0, rising) * min(1.0, (self.steps - step) / (self.decay + 1))
        if step < self.warm:
            return self.peak * rising
        progress = (step - self.warm) / max(1, self.steps - 1 - self.warm)
        return self.peak * (_LAST_RATE + (1 - _LAST_RATE) * 0.5 * (1 + math.cos(math.pi * progress)))


def steps_of(settings: TrainingSettings, tokens: int) -> int:
    """Whole steps, at least one."""
    return max(1, tokens // (settings.batch * settings.sequence))
