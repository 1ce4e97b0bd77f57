"""DeltaNet: a matrix state that the delta rule writes."""

from __future__ import annotations

from nfsearch.space.operators.shared import CONV, heads_of
from nfsearch.space.operators.spec import Cost, OperatorSpec, Setting, Shape


def _shape(width: int, head_dim: int, conv: int, neg_eigval: bool) -> Shape:
    shape = dict(heads=heads_of(width, head_dim), head_dim=head_dim, conv=conv)
    # Said only where it is so: an architecture's digest is of its shapes, and those without it keep theirs.
    return shape | dict(neg_eigval=True) if neg_eigval else shape


def _cost(width: int, heads: int, head_dim: int, conv: int, neg_eigval: bool = False) -> Cost:
    inner, state = heads * head_dim, heads * head_dim * head_dim
    weights = 4 * width * inner + width * heads
    return Cost(
        parameters=weights + 3 * inner * conv + head_dim,
        state=state,
        buffer=3 * inner * conv,
        flops_per_token=2 * weights + 6 * inner * conv + 6 * state,
    )


SPEC = OperatorSpec(
    name="D",
    long_name="deltanet",
    kind="mixer",
    module="nfsearch.ops.deltanet:DeltaNet",
    settings={
        "head_dim": Setting(128, "size of a head"),
        "conv": CONV,
        "neg_eigval": Setting(False, "write up to twice the error, so that a state may change its sign", type=bool),
    },
    shape=_shape,
    cost=_cost,
)
