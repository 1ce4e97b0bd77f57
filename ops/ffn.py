"""The feed-forward operator."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from nfsearch.ops.chooser import run
from nfsearch.ops.forms import Form, draws
from nfsearch.ops.layout import Layout
from nfsearch.ops.operator import Operator, State, linear


class FeedForward(Operator):
    """SwiGLU: down(silu(gate x) * (up x)), or squared ReLU: down(relu(up x)^2). No bias.

    Rows of `gate_up`: `layout`, gate and up, each `inner` (SwiGLU), or up alone (squared ReLU).
    """

    row_normalised = ("gate_up.weight",)
    column_normalised = ("down.weight",)
    fused_step = "nfsearch.ops.kernels.decode.ffn:FUSED"

    def __init__(self, width: int, *, inner: int, act: str) -> None:
        super().__init__(width)
        self.inner, self.act = inner, act
        self.layout = Layout.of(gate=inner, up=inner) if act == "swiglu" else Layout.of(up=inner)
        self.gate_up = linear(width, self.layout.total)
        self.down = linear(inner, width)

    def forward(self, x: Tensor, state: State | None = None, position: int = 0) -> Tensor:
        hidden = self.gate_up(x)
        return self.down(run(_form(self.act, self.inner, hidden.dtype), hidden, hidden))

    def step(self, x: Tensor, state: State, position: Tensor) -> Tensor:
        return self.down(_activated(self.gate_up(x), self.act))

    def reference(self, x: Tensor) -> Tensor:
        outputs = []
        for row in x.unbind(1):
            if self.act == "swiglu":
                gate, up = (z.T for z in self.layout.split(self.gate_up.weight.T))
                hidden = (row @ gate.T) * (row @ gate.T).sigmoid() * (row @ up.T)
            else:
                hidden = (row @ self.gate_up.weight.T).clamp(min=0) ** 2
            outputs.append(hidden @ self.down.weight.T)
        return torch.stack(outputs, dim=1)


def _activated(hidden: Tensor, act: str) -> Tensor:
    """[..., inner] of hidden, which are rows of `gate_up`."""
    if act == "swiglu":
        gate, up = hidden.chunk(2, dim=-1)
        return F.silu(gate) * up
    return F.relu(hidden).square()


@cache
def _form(act: str, inner: int, dtype: torch.dtype) -> Form:
    """`_activated` in training and prefill: on CUDA by one kernel each way, on the packed rows."""
    return Form(
        f"the activation of the feed-forward operator ({dtype})",
        dtype,
        lambda hidden: _activated(hidden, act),
        "nfsearch.ops.kernels.training.ffn:activate",
        lambda device: [draws(device)(37, inner * (2 if act == "swiglu" else 1)).to(dtype)],
        key=(act, inner),
        how={"act": act},
    )
