"""The gated short convolution of LFM2 (transformers' `Lfm2ShortConv`), which has neither a bias nor an activation."""

from __future__ import annotations

import torch
from torch import Tensor

from nfsearch.ops.layout import Layout
from nfsearch.ops.operator import Operator, State, linear
from nfsearch.ops.shortconv import causal_conv_reference, causal_conv_step, conv_weight, fused_causal_conv


class GatedShortConv(Operator):
    """y_t = W_out (c_t * conv(b * u)_t), where b, c and u are linear in x.

    Rows of `in_proj`: `layout`, b, c and u, each as wide as the model, in the order that LFM2 keeps them in. `conv`
    [width, taps] runs over b * u.

    State: `conv`, the ring [batch, taps, width] of the last b * u.
    """

    row_normalised = ("in_proj.weight",)
    column_normalised = ("out_proj.weight",)
    fused_step = "nfsearch.ops.kernels.decode.gated_shortconv:FUSED"

    def __init__(self, width: int, *, conv: int) -> None:
        super().__init__(width)
        self.layout = Layout.of(b=width, c=width, u=width)
        self.in_proj = linear(width, self.layout.total)
        self.conv = conv_weight(width, conv)
        self.out_proj = linear(width, width)

    def init_state(self, batch: int, max_length: int, *, device: torch.device | str, dtype: torch.dtype) -> State:
        return {"conv": torch.zeros(batch, *self.conv.shape[::-1], device=device, dtype=dtype)}

    def forward(self, x: Tensor, state: State | None = None, position: int = 0) -> Tensor:
        b, c, u = self.layout.split(self.in_proj(x))
        ring = None if state is None else state["conv"]
        return self.out_proj(c * fused_causal_conv(b * u, self.conv, ring, position))

    def step(self, x: Tensor, state: State, position: Tensor) -> Tensor:
        b, c, u = self.layout.split(self.in_proj(x))
        return self.out_proj(c * causal_conv_step(b * u, self.conv, None, state["conv"], position))

    def reference(self, x: Tensor) -> Tensor:
        b, c, u = self.layout.split(x @ self.in_proj.weight.T)
        return (c * causal_conv_reference(b * u, self.conv)) @ self.out_proj.weight.T
