"""Gated linear attention: a decay per key channel, and a gated output."""

from __future__ import annotations

from functools import cache
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfsearch.ops.chooser import run
from nfsearch.ops.chunked import linear_step
from nfsearch.ops.forms import Form, draws
from nfsearch.ops.layout import Layout
from nfsearch.ops.norms import fused_norm_heads, norm_heads
from nfsearch.ops.operator import Operator, RMSNorm, State, linear, wide
from nfsearch.ops.parallel import GATED_LINEAR, Chunks, gated_linear

_DECAY_ROOT = 16  # a = sigmoid(.) to the power of 1/16, so that memory starts long


class GatedLinearAttention(Operator):
    """S_t = diag(a_t) S_{t-1} + k_t v_t^T;  o_t = S_t^T q_t / sqrt(key_dim), per head.

    a_t = sigmoid(W2 W1 x + b)^(1/16) of low rank. The output is RMS-normalised per head, multiplied by silu(gate) and
    projected.

    Rows of `in_proj`: `layout`, heads x key_dim of q and k each, heads x value_dim of v and the gate each, and W1
    (`low`). `decay_proj` is W2 [heads key_dim, rank] with its bias b.

    State: `state` [batch, heads, key, value] in float32 or wider.
    """

    row_normalised = ("in_proj.weight",)
    column_normalised = ("out_proj.weight",)
    fused_step = "nfsearch.ops.kernels.decode.gla:FUSED"

    def __init__(self, width: int, *, heads: int, key_dim: int, value_dim: int, rank: int) -> None:
        super().__init__(width)
        self.heads, self.key_dim, self.value_dim = heads, key_dim, value_dim
        keys, values = heads * key_dim, heads * value_dim
        self.layout = Layout.of(q=keys, k=keys, v=values, gate=values, low=rank)
        self.in_proj = linear(width, self.layout.total)
        self.decay_proj = nn.Linear(rank, keys)
        self.norm = RMSNorm(value_dim, 1e-5)
        self.out_proj = linear(values, width)

    def init_state(self, batch: int, max_length: int, *, device: torch.device | str, dtype: torch.dtype) -> State:
        shape = (batch, self.heads, self.key_dim, self.value_dim)
        return {"state": torch.zeros(shape, device=device, dtype=wide(dtype))}

    @property
    def chunks(self) -> Chunks:
        return Chunks(GATED_LINEAR, self.key_dim, self.value_dim)

    def forward(self, x: Tensor, state: State | None = None, position: int = 0) -> Tensor:
        q, k, v, decay, gate = self._heads(x)
        log_decay = _fused_log_decay(decay)
        out, last = gated_linear(q, k, v, log_decay, None if state is None else state["state"], like=x)
        if state is not None:
            state["state"].copy_(last.detach())
        return self.out_proj(fused_norm_heads(out, self.norm.weight, self._eps, gate, gate.dtype))

    def step(self, x: Tensor, state: State, position: Tensor) -> Tensor:
        q, k, v, decay, gate = self._heads(x)
        log_decay = _log_decay(decay)
        q, k, v = (z.to(log_decay.dtype) for z in (q, k, v))
        out = linear_step(q, k, v, log_decay, state["state"])
        return self.out_proj(norm_heads(out, self.norm.weight, self._eps, gate, gate.dtype))

    @property
    def _eps(self) -> float:
        """Of the norm of what q, not scaled by 1/sqrt(key_dim), reads: the norm of y / c is that of y with eps c^2."""
        return self.norm.eps * self.key_dim

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """q, k, v, what the decay is made of, each [..., heads, dim], and the gate [..., heads value_dim]."""
        *qkv, gate, low = self.layout.split(self.in_proj(x))
        q, k, v, decay = (z.unflatten(-1, (self.heads, -1)) for z in (*qkv, self.decay_proj(low)))
        return q, k, v, decay, gate

    def reference(self, x: Tensor) -> Tensor:
        *qkv, gate, low = self.layout.split(x @ self.in_proj.weight.T)
        q, k, v = (z.unflatten(-1, (self.heads, -1)) for z in qkv)
        decay = torch.sigmoid(low @ self.decay_proj.weight.T + self.decay_proj.bias) ** (1 / _DECAY_ROOT)
        decay = decay.unflatten(-1, (self.heads, -1))
        state = x.new_zeros(len(x), self.heads, self.key_dim, self.value_dim)  # S, key x value
        outputs = []
        for t in range(x.shape[1]):
            state = decay[:, t, :, :, None] * state + torch.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
            out = torch.einsum("bhkv,bhk->bhv", state, q[:, t]) / self.key_dim**0.5
            out = out / (out.square().mean(-1, keepdim=True) + self.norm.eps).sqrt() * self.norm.weight
            out = out.flatten(1) * gate[:, t] * gate[:, t].sigmoid()
            outputs.append(out @ self.out_proj.weight.T)
        return torch.stack(outputs, dim=1)


def _log_decay(x: Tensor) -> Tensor:
    """log a, in float32 or wider, of what the decay is made of."""
    return F.logsigmoid(x.to(wide(x.dtype))) / _DECAY_ROOT


def _fused_log_decay(x: Tensor) -> Tensor:
    """`_log_decay` by a kernel where it serves."""
    return cast(Tensor, run(_decay_form(x.dtype), x, x))


@cache
def _decay_form(dtype: torch.dtype) -> Form:
    return Form(
        f"the log decay ({dtype})",
        dtype,
        _log_decay,
        "nfsearch.ops.kernels.training.log_sigmoid:log_sigmoid",
        lambda device: [draws(device)(3000).to(dtype)],
        how={"root": _DECAY_ROOT},
    )
