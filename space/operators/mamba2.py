"""Mamba2: a matrix state that decays at one rate for each head."""

from __future__ import annotations

from math import isclose

from nfsearch.space.operators.shared import CONV, heads_of
from nfsearch.space.operators.spec import Cost, OperatorSpec, Setting, Shape

_EXPAND = 2.0


def _shape(width: int, expand: float, heads: int | None, head_dim: int, groups: int, state: int, conv: int) -> Shape:
    filled = expand * width
    if heads is None:
        inner = round(filled)
        if not isclose(inner, filled, rel_tol=1e-9):
            raise ValueError(f"expand {expand:g} of width {width} is {filled:g}, no whole number of values")
        heads = heads_of(inner, head_dim)
    elif expand != _EXPAND and not isclose(heads * head_dim, filled, rel_tol=1e-9):
        raise ValueError(
            f"heads {heads} of head_dim {head_dim} are {heads * head_dim} values, and expand {expand:g} of width "
            f"{width} is {filled:g}: expected heads or expand, or both of one size"
        )
    if heads % groups:
        raise ValueError(f"groups {groups} does not divide the {heads} heads of width {width}")
    shape = dict(heads=heads, head_dim=head_dim, state=state, conv=conv)
    return shape if groups == 1 else {**shape, "groups": groups}  # a digest is of the sizes that there always were


def _cost(width: int, heads: int, head_dim: int, state: int, conv: int, groups: int = 1) -> Cost:
    inner = heads * head_dim
    channels = inner + 2 * groups * state  # x, B, C pass the convolution
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
        "expand": Setting(_EXPAND, "inner size over width", type=float, minimum=1e-3),
        "heads": Setting(None, "number of heads; none = those that fill expand times the width", optional=True),
        "head_dim": Setting(64, "size of a head"),
        "groups": Setting(1, "groups of heads; those of one share B and C, and are normalised together"),
        "state": Setting(128, "state size of each head"),
        "conv": CONV,
    },
    shape=_shape,
    cost=_cost,
)
