"""DeltaNet, as Nemotron-Flash runs it: short convolutions, no output gate, negative eigenvalues only on request."""

from __future__ import annotations

import torch
from torch import Tensor

from nfsearch.ops.chunked import delta_rule_step
from nfsearch.ops.layout import Layout
from nfsearch.ops.norms import fused_norm_heads, norm_heads
from nfsearch.ops.operator import Operator, RMSNorm, State, linear, project, wide, xavier_rows_
from nfsearch.ops.parallel import DELTA_RULE, Chunks, delta_rule
from nfsearch.ops.shortconv import (
    Parts,
    activate,
    causal_conv_reference,
    causal_conv_silu,
    causal_conv_step,
    conv_weight,
)


class DeltaNet(Operator):
    """u_t = beta_t (v_t - S_{t-1}^T k_t);  S_t = S_{t-1} + k_t u_t^T;  o_t = S_t^T q_t / sqrt(dim), per head.

    q, k, v pass a short convolution and silu, q and k are scaled to length one, beta = sigmoid, or twice that with
    `neg_eigval`: 1 - beta, an eigenvalue of what takes S_{t-1} to S_t, is then in (-1, 1) and not in (0, 1), so that
    a state can keep a parity (Grazzi et al., arXiv 2411.12537). The output is RMS-normalised per head (one
    weight for all heads) and projected.

    Rows of `in_proj`: `layout`, heads x head_dim of q, k and v each, a beta per head. `conv` [3 heads head_dim, taps]
    runs over q|k|v.

    State: `conv`, the ring [batch, taps, 3 heads head_dim]; `state` [batch, heads, key, value] in float32 or wider.
    """

    row_normalised = ("in_proj.weight",)
    column_normalised = ("out_proj.weight",)
    fused_step = "nfsearch.ops.kernels.decode.deltanet:FUSED"

    def __init__(self, width: int, *, heads: int, head_dim: int, conv: int, neg_eigval: bool = False) -> None:
        super().__init__(width)
        self.neg_eigval = neg_eigval
        self.heads, self.head_dim, self.inner = heads, head_dim, heads * head_dim
        self.layout = Layout.of(q=self.inner, k=self.inner, v=self.inner, beta=heads)
        self.in_proj = linear(width, self.layout.total)
        self.conv = conv_weight(self.layout.size("q|k|v"), conv)
        self.parts = Parts((self.inner,) * 3, head_dim, head_dim**-0.5)
        self.norm = RMSNorm(head_dim, 1e-5)
        self.out_proj = linear(self.inner, width)

    def reset_parameters(self) -> None:
        xavier_rows_(self.in_proj.weight, self.layout.sizes)
        xavier_rows_(self.out_proj.weight, (self.width,))

    def init_state(self, batch: int, max_length: int, *, device: torch.device | str, dtype: torch.dtype) -> State:
        ring = torch.zeros(batch, *self.conv.shape[::-1], device=device, dtype=dtype)
        shape = (batch, self.heads, self.head_dim, self.head_dim)
        return {"conv": ring, "state": torch.zeros(shape, device=device, dtype=wide(dtype))}

    @property
    def chunks(self) -> Chunks:
        return Chunks(DELTA_RULE, self.head_dim, self.head_dim)

    def forward(self, x: Tensor, state: State | None = None, position: int = 0) -> Tensor:
        qkv, beta = self.layout.split(project(self.in_proj, x), "q|k|v", "beta")
        held = state or {}
        q, k, v = self._heads(causal_conv_silu(qkv, self.conv, None, held.get("conv"), position, parts=self.parts))
        out, last = delta_rule(q, k, v, self.betas(beta), None, held.get("state"), like=x)
        if state is not None:
            state["state"].copy_(last.detach())
        return self.out_proj(fused_norm_heads(out, self.norm.weight, self.norm.eps, None, qkv.dtype))

    def step(self, x: Tensor, state: State, position: Tensor) -> Tensor:
        qkv, beta = self.layout.split(self.in_proj(x), "q|k|v", "beta")
        q, k, v = self._heads(activate(causal_conv_step(qkv, self.conv, None, state["conv"], position), self.parts))
        out = delta_rule_step(q, k, v, self.betas(beta), None, state["state"])
        return self.out_proj(norm_heads(out, self.norm.weight, self.norm.eps, None, qkv.dtype))

    def betas(self, beta: Tensor) -> Tensor:
        """How much of the error is written, in float32 or wider, of rows of the projection [..., heads]."""
        share = beta.to(wide(beta.dtype)).sigmoid()
        return 2 * share if self.neg_eigval else share

    def _heads(self, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """q, k, v [..., heads, head_dim] of parts [..., inner]."""
        return tuple(z.unflatten(-1, (self.heads, self.head_dim)) for z in parts)

    def reference(self, x: Tensor) -> Tensor:
        d = self.head_dim
        qkv, beta = self.layout.split(x @ self.in_proj.weight.T, "q|k|v", "beta")
        qkv = causal_conv_reference(qkv, self.conv)
        qkv = qkv * qkv.sigmoid()
        q, k, v = (z.unflatten(-1, (self.heads, d)) for z in qkv.chunk(3, dim=-1))
        q, k = (z / (z.square().sum(-1, keepdim=True) + 1e-6).sqrt() for z in (q, k))
        beta = beta.sigmoid() * (2 if self.neg_eigval else 1)
        state = x.new_zeros(len(x), self.heads, d, d)  # S, key x value
        outputs = []
        for t in range(x.shape[1]):
            recalled = torch.einsum("bhkv,bhk->bhv", state, k[:, t])
            update = beta[:, t, :, None] * (v[:, t] - recalled)
            state = state + torch.einsum("bhk,bhv->bhkv", k[:, t], update)
            out = torch.einsum("bhkv,bhk->bhv", state, q[:, t]) / d**0.5
            out = out / (out.square().mean(-1, keepdim=True) + self.norm.eps).sqrt() * self.norm.weight
            outputs.append(out.flatten(1) @ self.out_proj.weight.T)
        return torch.stack(outputs, dim=1)
