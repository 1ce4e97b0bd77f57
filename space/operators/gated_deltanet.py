"""Gated DeltaNet: the delta rule on a state that decays."""

from __future__ import annotations

from nfsearch.space.operators.shared import CONV
from nfsearch.space.operators.spec import Cost, OperatorSpec, Setting, Shape


def _shape(width: int, head_dim: int, expand_v: int, conv: int, heads: int | None, key_heads: int | None) -> Shape:
    if heads is None:
        # The library default is a key dim of 0.75 width in heads of 256; the nearest whole number of heads is taken.
        heads = max(1, (3 * width + 2 * head_dim) // (4 * head_dim))
    shape: Shape = dict(heads=heads, key_dim=head_dim, value_dim=expand_v * head_dim, conv=conv)
    if key_heads is None or key_heads == heads:  # left out, so that digests are as before there was such
        return shape
    if heads % key_heads:
        raise ValueError(f"key_heads {key_heads} does not divide the {heads} heads of width {width}")
    return shape | {"key_heads": key_heads}


def _cost(width: int, heads: int, key_dim: int, value_dim: int, conv: int, key_heads: int | None = None) -> Cost:
    keys, values, state = (key_heads or heads) * key_dim, heads * value_dim, heads * key_dim * value_dim
    weights = width * (2 * keys + 3 * values + 2 * heads)  # q k | v gate out | beta decay
    channels = 2 * keys + values
    return Cost(
        parameters=weights + channels * conv + 2 * heads + value_dim,
        state=state,
        buffer=channels * conv,
        flops_per_token=2 * weights + 2 * channels * conv + 7 * state,
    )


SPEC = OperatorSpec(
    name="GDN",
    long_name="gated_deltanet",
    kind="mixer",
    module="nfsearch.ops.gated_deltanet:GatedDeltaNet",
    settings={
        "head_dim": Setting(256, "key size of a head"),
        "heads": Setting(None, "value heads; none = 0.75 width / head_dim, rounded", optional=True),
        "key_heads": Setting(None, "heads of queries and keys, which value heads share; none = heads", optional=True),
        "expand_v": Setting(2, "value size of a head over its key size"),
        "conv": CONV,
    },
    shape=_shape,
    cost=_cost,
)
