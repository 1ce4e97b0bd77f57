"""Mamba2 (state space duality), in one group as Nemotron-Flash runs it, or in several as Nemotron-H does."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfsearch.ops.chunked import linear_step
from nfsearch.ops.layout import Layout
from nfsearch.ops.norms import fused_norm_gated, norm_gated
from nfsearch.ops.operator import Operator, RMSNorm, State, initial_step_bias, linear, project, wide
from nfsearch.ops.parallel import SHARED_LINEAR, Chunks, shared_linear
from nfsearch.ops.shortconv import (
    Parts,
    activate,
    causal_conv_reference,
    causal_conv_silu,
    causal_conv_step,
    conv_weight,
)


class Mamba2(Operator):
    """h_t = exp(delta_t A) h_{t-1} + delta_t B_t x_t^T;  y_t = h_t^T C_t + D x_t, per head; the heads of a
    group, which follow one another, share B and C.

    delta_t = softplus(dt_t + dt_bias), A = -exp(A_log). x, B, C pass a short convolution (with bias) and silu. The
    output is multiplied by silu(z), then RMS-normalised over all heads of a group together, then projected.

    Rows of `in_proj`: `layout`, heads x head_dim of z and x each, groups x `state` of B and C each, a dt per head.
    `conv` [channels, taps] and `conv_bias` run over x|B|C.

    State: `conv`, the ring [batch, taps, channels]; `state` [batch, heads, state, head_dim] (key x value, B being the
    key) in float32 or wider.
    """

    row_normalised = ("in_proj.weight",)
    column_normalised = ("out_proj.weight",)
    fused_step = "nfsearch.ops.kernels.decode.mamba2:FUSED"

    def __init__(self, width: int, *, heads: int, head_dim: int, state: int, conv: int, groups: int = 1) -> None:
        super().__init__(width)
        self.heads, self.head_dim, self.state_size, self.inner = heads, head_dim, state, heads * head_dim
        self.groups, self.variant, keys = groups, (groups,), groups * state
        self.layout = Layout.of(z=self.inner, x=self.inner, b=keys, c=keys, dt=heads)
        self.in_proj = linear(width, self.layout.total)
        self.conv = conv_weight(self.layout.size("x|b|c"), conv)
        self.parts = Parts((self.inner, keys, keys), head_dim)
        self.conv_bias = nn.Parameter(torch.empty(len(self.conv)).uniform_(-(conv**-0.5), conv**-0.5))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = RMSNorm(self.inner, 1e-5)
        self.out_proj = linear(self.inner, width)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.A_log.uniform_(1, 16).log_()
        self.dt_bias.copy_(initial_step_bias(self.heads, self.dt_bias.device))

    def init_state(self, batch: int, max_length: int, *, device: torch.device | str, dtype: torch.dtype) -> State:
        ring = torch.zeros(batch, *self.conv.shape[::-1], device=device, dtype=dtype)
        shape = (batch, self.heads, self.state_size, self.head_dim)
        return {"conv": ring, "state": torch.zeros(shape, device=device, dtype=wide(dtype))}

    @property
    def chunks(self) -> Chunks:
        return Chunks(SHARED_LINEAR, self.state_size, self.head_dim)

    def forward(self, x: Tensor, state: State | None = None, position: int = 0) -> Tensor:
        z, xbc, dt = self._rows(x)
        held = state or {}
        delta, log_decay = self._decay(dt)
        u, b, c, v = self._heads(
            causal_conv_silu(xbc, self.conv, self.conv_bias, held.get("conv"), position, parts=self.parts, gain=delta)
        )
        b, c, v, log_decay = (self._apart(z) for z in (b, c, v, log_decay))
        y, last = shared_linear(c, b, v, log_decay, self._states_apart(held.get("state")), like=x)
        if self.groups > 1:
            y = y.unflatten(0, (-1, self.groups)).transpose(1, 2).flatten(2, 3)
        if state is not None:
            state["state"].copy_(last.detach().view_as(state["state"]))
        return self.out_proj(fused_norm_gated(y, u, self.D, z, self.norm.weight, self.norm.eps, z.dtype, self.groups))

    def step(self, x: Tensor, state: State, position: Tensor) -> Tensor:
        z, xbc, dt = self._rows(x)
        delta, log_decay = self._decay(dt)
        xbc = causal_conv_step(xbc, self.conv, self.conv_bias, state["conv"], position)
        u, b, c, v = self._heads(activate(xbc, self.parts, delta))
        b, c = (self.per_head(z) for z in (b, c))
        y = linear_step(c, b, v, log_decay[..., None], state["state"])
        return self.out_proj(norm_gated(y, u, self.D, z, self.norm.weight, self.norm.eps, z.dtype, self.groups))

    def _rows(self, x: Tensor) -> tuple[Tensor, ...]:
        """z, x|B|C, dt."""
        return self.layout.split(project(self.in_proj, x), "z", "x|b|c", "dt")

    def _heads(self, parts: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x [..., heads, head_dim], B and C [..., groups x state], delta x like x."""
        u, b, c, v = parts
        return u.unflatten(-1, (self.heads, -1)), b, c, v.unflatten(-1, (self.heads, -1))

    def _apart(self, x: Tensor) -> Tensor:
        """[batch, time, groups x ..., ...] with each group as a sequence of its own, [batch x groups, time, ..., ...]:
        the recurrence knows keys that all heads share."""
        return x if self.groups == 1 else x.unflatten(2, (self.groups, -1)).transpose(1, 2).flatten(0, 1)

    def _states_apart(self, state: Tensor | None) -> Tensor | None:
        """The same of a state [batch, heads, state, head_dim]."""
        return state if state is None or self.groups == 1 else state.unflatten(1, (self.groups, -1)).flatten(0, 1)

    def per_head(self, x: Tensor) -> Tensor:
        """B or C [..., groups x state] of each head: [..., heads, state]."""
        x = x.unflatten(-1, (self.groups, 1, -1))
        return x.expand(*x.shape[:-2], self.heads // self.groups, -1).flatten(-3, -2)

    def _decay(self, dt: Tensor) -> tuple[Tensor, Tensor]:
        """delta and delta A, [..., heads] in float32 or wider."""
        kind = wide(dt.dtype)
        delta = F.softplus(dt.to(kind) + self.dt_bias.to(kind))
        return delta, -delta * self.A_log.to(kind).exp()

    def reference(self, x: Tensor) -> Tensor:
        z, xbc, dt = self.layout.split(x @ self.in_proj.weight.T, "z", "x|b|c", "dt")
        xbc = causal_conv_reference(xbc, self.conv, self.conv_bias)
        xbc = xbc * xbc.sigmoid()
        u = xbc[..., : self.inner].unflatten(-1, (self.heads, -1))
        b, c = (self.per_head(part) for part in xbc[..., self.inner :].chunk(2, dim=-1))
        delta = torch.log1p(torch.exp(dt + self.dt_bias))
        a = -torch.exp(self.A_log)
        state = x.new_zeros(len(x), self.heads, self.head_dim, self.state_size)  # h, value x key as in the paper
        outputs = []
        for t in range(x.shape[1]):
            written = delta[:, t, :, None, None] * torch.einsum("bhp,bhn->bhpn", u[:, t], b[:, t])
            state = torch.exp(delta[:, t] * a)[..., None, None] * state + written
            y = torch.einsum("bhpn,bhn->bhp", state, c[:, t]) + self.D[:, None] * u[:, t]
            y = (y.flatten(1) * z[:, t] * z[:, t].sigmoid()).unflatten(1, (self.groups, -1))
            y = y / (y.square().mean(-1, keepdim=True) + self.norm.eps).sqrt()
            outputs.append((y.flatten(1) * self.norm.weight) @ self.out_proj.weight.T)
        return torch.stack(outputs, dim=1)
