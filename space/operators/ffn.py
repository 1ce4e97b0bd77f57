"""The feed-forward layer, which mixes no tokens."""

from __future__ import annotations

from nfsearch.space.operators.spec import Cost, OperatorSpec, Setting, Shape


def _shape(width: int, ratio: float, act: str) -> Shape:
    # As released: rounded down to a multiple of 128. Models narrower than 1024 round to 16, or little would be left.
    multiple = 128 if width >= 1024 else 16
    inner = int(round(ratio * width, 6)) // multiple * multiple  # 4.6 x 3200 is 14719.999999999998 by itself
    if not inner:
        raise ValueError(f"ratio {ratio:g} of width {width} is less than {multiple}, the smallest inner size")
    return dict(inner=inner, act=act)


def _cost(width: int, inner: int, act: str) -> Cost:
    weights = (3 if act == "swiglu" else 2) * width * inner
    return Cost(parameters=weights, flops_per_token=2 * weights)


SPEC = OperatorSpec(
    name="F",
    long_name="ffn",
    kind="ffn",
    module="nfsearch.ops.ffn:FeedForward",
    settings={
        "ratio": Setting(3.0, "inner size over width", type=float, minimum=1e-3),
        "act": Setting("swiglu", "swiglu or relu2 (squared ReLU)", type=str, choices=("swiglu", "relu2")),
    },
    shape=_shape,
    cost=_cost,
)
