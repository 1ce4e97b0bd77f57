"""The feed-forward operator."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

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
        return self._apply_rows(x)

    def step(self, x: Tensor, state: State, position: Tensor) -> Tensor:
        return self._apply_rows(x)

    def _apply_rows(self, x: Tensor) -> Tensor:
        hidden = self.gate_up(x)
        if self.act == "swiglu":
            gate, up = self.layout.split(hidden)
            return self.down(F.silu(gate) * up)
        return self.down(F.relu(hidden).square())

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
