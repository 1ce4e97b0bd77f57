"""How a head's state is shared out."""

from __future__ import annotations

import triton


def columns(values: int) -> int:
    """VALUES of a program (of four warps), chosen on an H200 within the decode steps of the Nemotron-Flash shapes.
    Alone, smaller programs are faster."""
    return min(32, triton.next_power_of_2(values))
