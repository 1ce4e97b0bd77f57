"""What the descriptions of several operators share."""

from __future__ import annotations

from nfsearch.space.operators.spec import Setting

CONV = Setting(4, "taps of the short causal convolutions")


def heads_of(width: int, head_dim: int) -> int:
    """The number of heads of that size. Raises ValueError where they do not fill the width."""
    if width % head_dim:
        raise ValueError(f"width {width} is not a multiple of head_dim {head_dim}")
    return width // head_dim
