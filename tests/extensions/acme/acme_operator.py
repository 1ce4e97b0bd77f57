"""An operator: a moving average of each channel, with a decode step of its own on CUDA."""

import torch
import triton
import triton.language as tl
from torch import nn

from nfsearch.ops.forms import FusedStep
from nfsearch.ops.operator import Operator, linear, wide
from nfsearch.space import Cost, OperatorSpec


@triton.jit
def _average(u, decay, state, y, N, INNER: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a = tl.sigmoid(tl.load(decay + at % INNER).to(tl.float32))
    s = a * tl.load(state + at, mask=at < N, other=0.0) + (1 - a) * tl.load(u + at, mask=at < N, other=0.0)
    tl.store(state + at, s, mask=at < N)
    tl.store(y + at, s.to(y.dtype.element_ty), mask=at < N)


class Average(Operator):
    """s_t = a s_{t-1} + (1 - a) W x_t;  o_t = V s_t.  State: `state` [batch, width]."""

    row_normalised, column_normalised, fused_step = ("in_proj.weight",), ("out_proj.weight",), "acme_operator:FUSED"

    def __init__(self, width):
        super().__init__(width)
        self.in_proj, self.out_proj = linear(width, width), linear(width, width)
        self.decay = nn.Parameter(torch.zeros(width))

    def init_state(self, batch, max_length, *, device, dtype):
        return {"state": torch.zeros(batch, len(self.decay), device=device, dtype=wide(dtype))}

    def forward(self, x, state=None, position=0):
        s, a, rows = 0 if state is None else state["state"], self.decay.to(wide(x.dtype)).sigmoid(), []
        for u in self.in_proj(x).unbind(1):
            rows.append(s := a * s + (1 - a) * u)
        state is None or state["state"].copy_(s.detach())
        return self.out_proj(torch.stack(rows, 1).to(x.dtype))

    def step(self, x, state, position):
        return self.forward(x[:, None], state)[:, 0]

    reference = forward


def bind(op, norm, x, state):
    y, (n, inner) = torch.empty_like(state["state"], dtype=x.dtype), state["state"].shape

    def step(x, state, position):
        _average[(n * inner // 32,)](op.in_proj(norm(x)), op.decay, state["state"], y, n * inner, INNER=inner, BLOCK=32)
        return torch.addmm(x, y, op.out_proj.weight.T)

    return step


FUSED = FusedStep(bind, lambda op, dtype: "" if op.width % 32 == 0 else "the width is no multiple of 32")
COST = (lambda width: {}, lambda width: Cost(2 * width**2 + width, width))
SPEC = OperatorSpec("EMA", "average", "mixer", "acme_operator:Average", {}, *COST)
