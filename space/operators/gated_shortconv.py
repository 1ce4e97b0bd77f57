"""LFM2's gated short convolution: a mixer that looks back over a few tokens alone."""

from __future__ import annotations

from nfsearch.space.operators.spec import Cost, OperatorSpec, Setting, Shape


def _shape(width: int, conv: int) -> Shape:
    return dict(conv=conv)


def _cost(width: int, conv: int) -> Cost:
    weights = 4 * width * width  # three parts in, one out
    return Cost(
        parameters=weights + width * conv,
        buffer=width * conv,
        flops_per_token=2 * weights + 2 * width * conv + 2 * width,
    )


SPEC = OperatorSpec(
    name="C",
    long_name="gated_short_convolution",
    kind="mixer",
    module="nfsearch.ops.gated_shortconv:GatedShortConv",
    settings={"conv": Setting(3, "taps of the short causal convolution")},
    shape=_shape,
    cost=_cost,
)
