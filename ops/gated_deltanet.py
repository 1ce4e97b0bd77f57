"""Gated DeltaNet: the delta rule with a decay per head, and a gated output."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfsearch.ops.chunked import delta_rule_step
from nfsearch.ops.layout import Layout
from nfsearch.ops.norms import fused_norm_heads, norm_heads
from nfsearch.ops.operator import Operator, RMSNorm, State, initial_step_bias, linear, project, wide, xavier_rows_
from nfsearch.ops.parallel import GATED_DELTA_RULE, Chunks, delta_rule
from nfsearch.ops.shortconv import (
    Parts,
    activate,
    causal_conv_reference,
    causal_conv_silu,
    causal_conv_step,
    conv_weight,
)


class GatedDeltaNet(Operator):
    """S' = a_t S_{t-1};  u_t = beta_t (v_t - S'^T k_t);  S_t = S' + k_t u_t^T;  o_t = S_t^T q_t / sqrt(key_dim).

    Per head, log a_t = -exp(A_log) softplus(decay_t + dt_bias). q, k, v pass a short convolution and silu, q and k are
    scaled to length one, beta = sigmoid. The output is RMS-normalised per head, multiplied by silu(gate), projected.

    Head h, of values, reads key head h // (heads / key_heads), of which there may be fewer.

    Rows of `in_proj`: `layout`, key_heads x key_dim of q and k each, heads x value_dim of v and the gate each, a beta
    and a decay per head. `conv` [2 key_heads key_dim + heads value_dim, taps] runs over q|k|v.

    State: `conv`, the ring [batch, taps, channels]; `state` [batch, heads, key, value] in float32 or wider.
    """

    row_normalised = ("in_proj.weight",)
    column_normalised = ("out_proj.weight",)
    fused_step = "nfsearch.ops.kernels.decode.gated_deltanet:FUSED"

    def __init__(
        self, width: int, *, heads: int, key_dim: int, value_dim: int, conv: int, key_heads: int | None = None
    ) -> None:
        super().__init__(width)
        self.heads, self.key_dim, self.value_dim = heads, key_dim, value_dim
        self.key_heads = key_heads or heads
        keys, values = self.key_heads * key_dim, heads * value_dim
        self.dims = (key_dim, key_dim, value_dim)  # of a head of q, k and v
        self.layout = Layout.of(q=keys, k=keys, v=values, gate=values, beta=heads, decay=heads)
        self.in_proj = linear(width, self.layout.total)
        self.conv = conv_weight(self.layout.size("q|k|v"), conv)
        self.parts = Parts((keys, keys, values), key_dim, key_dim**-0.5)
        self.A_log = nn.Parameter(torch.empty(heads))
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.norm = RMSNorm(value_dim, 1e-5)
        self.out_proj = linear(values, width)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        xavier_rows_(self.in_proj.weight, self.layout.sizes)
        xavier_rows_(self.out_proj.weight, (self.width,))
        self.A_log.uniform_(0, 16).clamp_(min=1e-4).log_()
        self.dt_bias.copy_(initial_step_bias(self.heads, self.dt_bias.device))

    def init_state(self, batch: int, max_length: int, *, device: torch.device | str, dtype: torch.dtype) -> State:
        ring = torch.zeros(batch, *self.conv.shape[::-1], device=device, dtype=dtype)
        shape = (batch, self.heads, self.key_dim, self.value_dim)
        return {"conv": ring, "state": torch.zeros(shape, device=device, dtype=wide(dtype))}

    @property
    def chunks(self) -> Chunks:
        return Chunks(GATED_DELTA_RULE, self.key_dim, self.value_dim)

    def forward(self, x: Tensor, state: State | None = None, position: int = 0) -> Tensor:
        qkv, gate, rest = self._rows(x)
        held = state or {}
        q, k, v = self._heads(causal_conv_silu(qkv, self.conv, None, held.get("conv"), position, parts=self.parts))
        beta, log_decay = self._gates(rest)
        out, last = delta_rule(q, k, v, beta, log_decay, held.get("state"), like=x)
        if state is not None:
            state["state"].copy_(last.detach())
        return self.out_proj(fused_norm_heads(out, self.norm.weight, self.norm.eps, gate, gate.dtype))

    def step(self, x: Tensor, state: State, position: Tensor) -> Tensor:
        qkv, gate, rest = self._rows(x)
        q, k, v = self._heads(activate(causal_conv_step(qkv, self.conv, None, state["conv"], position), self.parts))
        beta, log_decay = self._gates(rest)
        out = delta_rule_step(q, k, v, beta, log_decay, state["state"])
        return self.out_proj(norm_heads(out, self.norm.weight, self.norm.eps, gate, gate.dtype))

    def _rows(self, x: Tensor) -> tuple[Tensor, ...]:
        """q|k|v, gate, beta|decay."""
        return self.layout.split(project(self.in_proj, x), "q|k|v", "gate", "beta|decay")

    def _heads(self, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """q, k, v [..., heads, dim] of parts [..., key_heads key_dim or heads value_dim]."""
        q, k, v = (z.unflatten(-1, (-1, size)) for z, size in zip(parts, self.dims, strict=True))
        if self.key_heads < self.heads:
            q, k = (z.repeat_interleave(self.heads // self.key_heads, dim=-2) for z in (q, k))
        return q, k, v

    def _gates(self, rest: Tensor) -> tuple[Tensor, Tensor]:
        """beta and log a, [..., heads] in float32 or wider."""
        beta, decay = rest.to(wide(rest.dtype)).chunk(2, dim=-1)
        rate = self.A_log.to(decay.dtype).exp()
        return beta.sigmoid(), -rate * F.softplus(decay + self.dt_bias.to(decay.dtype))

    def reference(self, x: Tensor) -> Tensor:
        qkv, gate, beta, decay = self.layout.split(x @ self.in_proj.weight.T, "q|k|v", "gate", "beta", "decay")
        qkv = causal_conv_reference(qkv, self.conv)
        parts = qkv.split(self.layout.sizes[:3], dim=-1)
        q, k, v = ((z * z.sigmoid()).unflatten(-1, (-1, size)) for z, size in zip(parts, self.dims, strict=True))
        q, k = (z / (z.square().sum(-1, keepdim=True) + 1e-6).sqrt() for z in (q, k))
        q, k = (z.repeat_interleave(self.heads // self.key_heads, dim=2) for z in (q, k))
        decay = torch.exp(-self.A_log.exp() * torch.log1p(torch.exp(decay + self.dt_bias)))
        beta = beta.sigmoid()
        state = x.new_zeros(len(x), self.heads, self.key_dim, self.value_dim)  # S, key x value
        outputs = []
        for t in range(x.shape[1]):
            state = decay[:, t, :, None, None] * state
            recalled = torch.einsum("bhkv,bhk->bhv", state, k[:, t])
            update = beta[:, t, :, None] * (v[:, t] - recalled)
            state = state + torch.einsum("bhk,bhv->bhkv", k[:, t], update)
            out = torch.einsum("bhkv,bhk->bhv", state, q[:, t]) / self.key_dim**0.5
            out = out / (out.square().mean(-1, keepdim=True) + self.norm.eps).sqrt() * self.norm.weight
            out = out.flatten(1) * gate[:, t] * gate[:, t].sigmoid()
            outputs.append(out @ self.out_proj.weight.T)
        return torch.stack(outputs, dim=1)
