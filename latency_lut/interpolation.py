"""Between measured contexts.

Decoding one token costs a constant and what reading the past costs, so between two neighbouring contexts its time is
taken to be linear. A prompt costs something between proportional and quadratic in its length, and a power of it fits
both: a prompt's time is a straight line between neighbours on logarithmic axes. Either way an estimate lies between
the two measurements beside it and never falls where they rise. Nothing is carried beyond the first and last context.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise


def summed(grid: Sequence[int], first: int, last: int) -> dict[int, float]:
    """How often each point of the rising `grid` counts in the sum over contexts first, first + 1, ..., last of the
    function that is linear between its points. All of them must lie within the grid."""
    weights = dict.fromkeys(grid, 0.0)
    for low, high in pairwise(grid):
        a, b = max(first, low), min(last, high - 1)  # `high` itself is the next stretch's
        if a <= b:
            upper = (b - a + 1) * ((a + b) / 2 - low) / (high - low)  # contexts times their mean place in the stretch
            weights[high] += upper
            weights[low] += b - a + 1 - upper
    if first <= grid[-1] <= last:
        weights[grid[-1]] += 1.0
    return {context: weight for context, weight in weights.items() if weight}


def around(grid: Sequence[int], context: int) -> tuple[int, int]:
    """The points next to a context that lies within the grid; both are the context itself where it was measured."""
    return max(point for point in grid if point <= context), min(point for point in grid if point >= context)


def neighbours(grid: Sequence[int], context: int) -> tuple[int, int, float]:
    """The points `around` a context, and its place between them, 0 to 1, on a logarithmic axis."""
    low, high = around(grid, context)
    return low, high, 0.0 if low == high else math.log(context / low) / math.log(high / low)
