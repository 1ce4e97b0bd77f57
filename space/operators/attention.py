"""Attention over all past tokens, or over a window of them."""

from __future__ import annotations

from nfsearch.space.operators.shared import heads_of
from nfsearch.space.operators.spec import Cost, OperatorSpec, Setting, Shape


def _shape(
    width: int,
    head_dim: int,
    heads: int | None,
    kv_heads: int | None,
    window: int | None,
    qk_norm: bool | str,
    rope: float,
    rope_base: float,
    gate: bool,
) -> Shape:
    if heads is None:
        heads = heads_of(width, head_dim)
    if head_dim % 2:
        raise ValueError(f"head_dim {head_dim} is odd: rotary embedding turns pairs of values")
    if kv_heads is None:  # groups of four, as released; where four does not divide, the next larger group
        kv_heads = max(n for n in range(1, max(1, heads // 4) + 1) if heads % n == 0)
    if heads % kv_heads:
        raise ValueError(f"kv_heads {kv_heads} does not divide the {heads} heads of width {width}")
    sizes = dict(heads=heads, kv_heads=kv_heads, head_dim=head_dim, window=window, qk_norm=qk_norm)
    # What is off is left out: the digest of an architecture, which is of its sizes, is then as before there was such.
    extra: Shape = {"gate": True} if gate else {}
    if (rotary := 2 * round(rope * head_dim / 2)) != head_dim:
        extra["rotary"] = rotary
    return sizes | {"rope_base": float(rope_base)} | extra


def _cost(
    width: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    window: int | None,
    qk_norm: bool | str,
    rope_base: float,
    rotary: int | None = None,
    gate: bool = False,
) -> Cost:
    weights = width * head_dim * ((3 if gate else 2) * heads + 2 * kv_heads)
    normed = {False: 0, True: 2, "all": heads + kv_heads}[qk_norm]
    return Cost(
        parameters=weights + normed * head_dim,
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
        "heads": Setting(None, "query heads; none = as many as fill the width", optional=True),
        "kv_heads": Setting(None, "key-value heads; none = a quarter of the heads", optional=True),
        "window": Setting(None, "how many positions are seen, the current one included; none = all", optional=True),
        "qk_norm": Setting(
            False, "RMS-normalise queries and keys: per head, or all heads together", choices=(False, True, "all")
        ),
        "rope": Setting(
            1.0,
            "share of a head's values that rotary embedding turns; 0 = no positions",
            type=float,
            minimum=0,
            maximum=1,
        ),
        "rope_base": Setting(10000.0, "base of the rotary angles", type=float, maximum=1e12),
        "gate": Setting(False, "multiply the output by the sigmoid of a projection", type=bool),
    },
    shape=_shape,
    cost=_cost,
)
