"""What one candidate may take of time and memory, and how long it takes at least. No torch here."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

# FLOP/s that no training on one GPU exceeds (an H200's peak in bf16), nor one on all cores of a CPU (two AVX-512 units
# each in float32).
PEAK = {"cuda": 1e15, "cpu": 2e11 * (os.cpu_count() or 1)}


class TooLarge(Exception):
    """A candidate needs more memory or time than there is: it is refused before it starts."""


@dataclass(frozen=True)
class Bounds:
    """The seconds that a candidate may take, and the share of a GPU's memory."""

    seconds: float = math.inf
    share: float = 1.0


def flops_of_weights(parameters: float, tokens: int) -> float:
    """FLOPs of a training, scores of attention apart: two for each parameter and token forwards, and four backwards."""
    return 6.0 * parameters * tokens
