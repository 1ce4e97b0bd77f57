"""Attention over all past tokens, or over a window of them."""

from __future__ import annotations

from nfsearch.space.operators.shared import heads_of
from nfsearch.space.operators.spec import Cost, OperatorSpec, Setting, Shape


def _shape(
    width: int, head_dim: int, kv_heads: int | None, window: int | None, qk_norm: bool, rope_base: float
) -> Shape:
    heads = heads_of(width, head_dim)
    if head_dim % 2:
        raise ValueError(f"head_dim {head_dim} is odd: rotary embedding turns pairs of values")
    if kv_heads is None:  # groups of four, as released; where four does not divide, the next larger group
        kv_heads = max(n for n in range(1, max(1, heads // 4) + 1) if heads % n == 0)
    if heads % kv_heads:
        raise ValueError(f"kv_heads {kv_heads} does not divide the {heads} heads of width {width}")
    return dict(
        heads=heads, kv_heads=kv_heads, head_dim=head_dim, window=window, qk_norm=qk_norm, rope_base=float(rope_base)
    )


def _cost(
    width: int, heads: int, kv_heads: int, head_dim: int, window: int | None, qk_norm: bool, rope_base: float
) -> Cost:
    weights = 2 * width * heads * head_dim + 2 * width * kv_heads * head_dim
    return Cost(
        parameters=weights + (2 * head_dim if qk_norm else 0),
        cache_per_token=2 * kv_heads * head_dim,
        window=window,
        flops_per_token=2 * weights,
        flops_per_past_token=4 * heads * head_dim,
    )


SPEC = OperatorSpec(
    name="A",
    long_name="attention",
    kind="mixer",
    module="nfsearch.ops.attention:Attention",
    settings={
        "head_dim": Setting(128, "size of a head"),
        "kv_heads": Setting(None, "key-value heads; none = a quarter of the heads", optional=True),
        "window": Setting(None, "how many positions are seen, the current one included; none = all", optional=True),
        "qk_norm": Setting(False, "RMS-normalise queries and keys per head", type=bool),
        "rope_base": Setting(10000.0, "base of the rotary angles", type=float, maximum=1e12),
    },
    shape=_shape,
    cost=_cost,
)
