"""Mamba2: a matrix state that decays at one rate for each head."""

from __future__ import annotations

from nfsearch.space.operators.shared import CONV, heads_of
from nfsearch.space.operators.spec import Cost, OperatorSpec, Setting, Shape


def _shape(width: int, expand: int, head_dim: int, state: int, conv: int) -> Shape:
    return dict(heads=heads_of(expand * width, head_dim), head_dim=head_dim, state=state, conv=conv)


def _cost(width: int, heads: int, head_dim: int, state: int, conv: int) -> Cost:
    inner = heads * head_dim
    channels = inner + 2 * state  # x, B, C pass the convolution
    weights = width * (inner + channels + heads) + inner * width
    return Cost(
        parameters=weights + channels * (conv + 1) + 3 * heads + inner,
        state=inner * state,
        buffer=channels * conv,
        flops_per_token=2 * weights + 2 * channels * conv + 5 * inner * state,
    )


SPEC = OperatorSpec(
    name="M2",
    long_name="mamba2",
    kind="mixer",
    module="nfsearch.ops.mamba2:Mamba2",
    settings={
        "expand": Setting(2, "inner size over width"),
        "head_dim": Setting(64, "size of a head"),
        "state": Setting(128, "state size of each head"),
        "conv": CONV,
    },
    shape=_shape,
    cost=_cost,
)
