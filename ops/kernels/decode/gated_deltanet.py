"""Gated DeltaNet's step: the delta rule with a decay per head, on q, k and v from a short convolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from nfsearch.ops.forms import FusedStep, State, Step
from nfsearch.ops.kernels.decode.convolution import past, present
from nfsearch.ops.kernels.decode.projection import odd_size, project, project_back
from nfsearch.ops.kernels.decode.tiling import columns
from nfsearch.ops.kernels.decode.weights import held
from nfsearch.ops.kernels.launch import begin, dependent, follow
from nfsearch.ops.kernels.pointwise import softplus


@triton.jit
def _token(proj, conv_w, ring, state, y, position_at, a_log, dt_bias, AT_Q: tl.constexpr, AT_K: tl.constexpr,
           AT_V: tl.constexpr, AT_BETA: tl.constexpr, AT_DECAY: tl.constexpr, CHANNELS: tl.constexpr,
           HEADS: tl.constexpr, GROUP: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, TAPS: tl.constexpr,
           KEYS_P: tl.constexpr, VALUES: tl.constexpr, WIDTH: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """S *= a;  u = beta (v - S^T k);  S += k u^T;  o = S^T q. The channels of the convolution start with those of q."""
    begin(PDL, True)
    h = tl.program_id(0)
    block = tl.program_id(1)
    b = tl.program_id(2)
    k = tl.arange(0, KEYS_P)
    v = block * VALUES + tl.arange(0, VALUES)
    live_k = k < KEYS
    live_v = v < DIM
    proj += b.to(tl.int64) * WIDTH
    at_q = AT_Q + h // GROUP * KEYS + k
    at_k = AT_K + h // GROUP * KEYS + k
    at_v = AT_V + h * DIM + v
    cell = state + ((b * HEADS + h).to(tl.int64) * KEYS + k[:, None]) * DIM + v[None, :]
    live = live_k[:, None] & live_v[None, :]

    s = tl.load(cell, mask=live, other=0.0).to(tl.float32)  # written a whole step ago
    position = tl.load(position_at)
    ring += b.to(tl.int64) * TAPS * CHANNELS
    past_q = past(ring, conv_w, conv_w, position, at_q - AT_Q, live_k, CHANNELS, TAPS, False)
    past_k = past(ring, conv_w, conv_w, position, at_k - AT_Q, live_k, CHANNELS, TAPS, False)
    past_v = past(ring, conv_w, conv_w, position, at_v - AT_Q, live_v, CHANNELS, TAPS, False)
    rate = -tl.exp(tl.load(a_log + h).to(tl.float32))
    shift = tl.load(dt_bias + h).to(tl.float32)

    follow(PDL, True)

    q_t = tl.load(proj + at_q, mask=live_k, other=0.0)
    k_t = tl.load(proj + at_k, mask=live_k, other=0.0)
    v_t = tl.load(proj + at_v, mask=live_v, other=0.0)
    keep = (block == 0) & (h % GROUP == 0)
    q_t = present(past_q, q_t, ring, conv_w, position, at_q - AT_Q, live_k, keep, CHANNELS, TAPS)
    k_t = present(past_k, k_t, ring, conv_w, position, at_k - AT_Q, live_k, keep, CHANNELS, TAPS)
    v_t = present(past_v, v_t, ring, conv_w, position, at_v - AT_Q, live_v, True, CHANNELS, TAPS)
    recalled_q = tl.sum(s * q_t[:, None], 0)
    overlap = tl.sum(k_t * q_t)
    recalled_k = tl.sum(s * k_t[:, None], 0)
    q_unit = tl.rsqrt(tl.sum(q_t * q_t) + 1e-6) * KEYS**-0.5
    k_unit = tl.rsqrt(tl.sum(k_t * k_t) + 1e-6)
    decay = tl.exp(rate * softplus(tl.load(proj + AT_DECAY + h).to(tl.float32) + shift))
    recalled_q *= decay
    recalled_k *= decay
    s = s * decay
    beta = tl.sigmoid(tl.load(proj + AT_BETA + h).to(tl.float32))
    u = beta * (v_t - k_unit * recalled_k)
    k_t = k_t * k_unit
    o = q_unit * (recalled_q + k_unit * overlap * u)
    s += k_t[:, None] * u[None, :]
    tl.store(y + (b * HEADS + h) * DIM + v, o.to(y.dtype.element_ty), mask=live_v)
    tl.store(cell, s.to(state.dtype.element_ty), mask=live)


def bind_token(op: Any, like: Tensor, state: State) -> Callable[[Tensor, State, Tensor], Tensor]:
    """What the state gives for rows of `in_proj` of the batch, dtype and device of `like`, before the output norm:
    [batch, heads * value_dim]."""
    batch, heads, keys, values = state["state"].shape
    rows, block = op.layout, columns(values)
    shape, device, dtype = (batch, heads * values), like.device, like.dtype
    weight, a_log, dt_bias = held(op, "conv"), held(op, "A_log"), held(op, "dt_bias")
    kernel = _token[(heads, triton.cdiv(values, block), batch)]
    constants = dict(
        AT_Q=rows.start("q"), AT_K=rows.start("k"), AT_V=rows.start("v"), AT_BETA=rows.start("beta"),
        AT_DECAY=rows.start("decay"), CHANNELS=rows.size("q|k|v"), HEADS=heads,
        GROUP=heads * keys // rows.size("k"), KEYS=keys, DIM=values,
        TAPS=op.conv.shape[1], KEYS_P=triton.next_power_of_2(keys), VALUES=block, WIDTH=rows.total, num_warps=4,
        **dependent(like),
    )  # fmt: skip

    def launch(rows: Tensor, state: State, position: Tensor) -> Tensor:
        y = torch.empty(shape, device=device, dtype=dtype)
        kernel(rows, weight(), state["conv"], state["state"], y, position, a_log(), dt_bias(), **constants)
        return y

    return launch


def bind(op: Any, norm: Any, x: Tensor, state: State) -> Step:
    """See `FusedStep`."""
    into, token = project(op.in_proj, norm, x), bind_token(op, x, state)
    out = project_back(op.out_proj, x, op.norm, "gated_heads", op.layout.total)
    gate = slice(op.layout.start("gate"), op.layout.start("gate") + op.layout.size("gate"))

    def step(x: Tensor, state: State, position: Tensor) -> Tensor:
        rows = into(x)
        return out(token(rows, state, position), x, rows[:, gate])

    return step


def unsupported(op: Any, dtype: torch.dtype) -> str:
    """Why the kernels cannot serve, or nothing."""
    return odd_size(op.width, norm=op.value_dim)


FUSED = FusedStep(bind, unsupported)
