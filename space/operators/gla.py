"""Gated linear attention: a matrix state whose keys each decay at a rate of their own."""

from __future__ import annotations

from nfsearch.space.operators.spec import Cost, OperatorSpec, Setting, Shape

_RANK = 16


def _shape(width: int, heads: int, expand_k: float, expand_v: float) -> Shape:
    keys, values = round(width * expand_k), round(width * expand_v)
    if keys % heads or values % heads or not keys or not values:
        raise ValueError(f"width {width} gives key dim {keys} and value dim {values}, not multiples of {heads} heads")
    return dict(heads=heads, key_dim=keys // heads, value_dim=values // heads, rank=_RANK)


def _cost(width: int, heads: int, key_dim: int, value_dim: int, rank: int) -> Cost:
    keys, values, state = heads * key_dim, heads * value_dim, heads * key_dim * value_dim
    weights = width * (2 * keys + 3 * values + rank) + rank * keys  # q k | v gate out | low-rank decay
    return Cost(parameters=weights + keys + value_dim, state=state, flops_per_token=2 * weights + 5 * state)


SPEC = OperatorSpec(
    name="GLA",
    long_name="gated_linear_attention",
    kind="mixer",
    module="nfsearch.ops.gla:GatedLinearAttention",
    settings={
        "heads": Setting(4, "number of heads"),
        "expand_k": Setting(0.5, "key dim over width", type=float, minimum=1e-3),
        "expand_v": Setting(1.0, "value dim over width", type=float, minimum=1e-3),
    },
    shape=_shape,
    cost=_cost,
)
