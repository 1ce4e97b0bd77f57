"""Mamba2's step: a decay per head, keys and queries that the heads of a group share, on x, B and C from a short
convolution.

The state of a head is [state, head_dim], keys x values: B is the key, C the query, x the value.
"""

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
def _token(proj, conv_w, conv_b, ring, state, y, position_at, a_log, dt_bias, skip, AT_Z: tl.constexpr,
           AT_X: tl.constexpr, AT_B: tl.constexpr, AT_C: tl.constexpr, AT_DT: tl.constexpr, CHANNELS: tl.constexpr,
           HEADS: tl.constexpr, SHARING: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, TAPS: tl.constexpr,
           KEYS_P: tl.constexpr, VALUES: tl.constexpr, WIDTH: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """S = a S + delta B x^T;  o = (S^T C + D x) silu(z). The channels of the convolution start with those of x."""
    begin(PDL, True)
    h = tl.program_id(0)
    block = tl.program_id(1)
    b = tl.program_id(2)
    k = tl.arange(0, KEYS_P)
    v = block * VALUES + tl.arange(0, VALUES)
    live_k = k < KEYS
    live_v = v < DIM
    proj += b.to(tl.int64) * WIDTH
    at_v = AT_X + h * DIM + v
    at_k = AT_B + h // SHARING * KEYS + k
    at_q = AT_C + h // SHARING * KEYS + k
    first = (h % SHARING == 0) & (block == 0)
    cell = state + ((b * HEADS + h).to(tl.int64) * KEYS + k[:, None]) * DIM + v[None, :]
    live = live_k[:, None] & live_v[None, :]

    s = tl.load(cell, mask=live, other=0.0).to(tl.float32)  # written a whole step ago
    position = tl.load(position_at)
    ring += b.to(tl.int64) * TAPS * CHANNELS
    past_q = past(ring, conv_w, conv_b, position, at_q - AT_X, live_k, CHANNELS, TAPS, True)
    past_k = past(ring, conv_w, conv_b, position, at_k - AT_X, live_k, CHANNELS, TAPS, True)
    past_v = past(ring, conv_w, conv_b, position, at_v - AT_X, live_v, CHANNELS, TAPS, True)
    rate = -tl.exp(tl.load(a_log + h).to(tl.float32))
    shift = tl.load(dt_bias + h).to(tl.float32)

    follow(PDL, True)

    q_t = tl.load(proj + at_q, mask=live_k, other=0.0)
    k_t = tl.load(proj + at_k, mask=live_k, other=0.0)
    v_t = tl.load(proj + at_v, mask=live_v, other=0.0)
    q_t = present(past_q, q_t, ring, conv_w, position, at_q - AT_X, live_k, first, CHANNELS, TAPS)
    k_t = present(past_k, k_t, ring, conv_w, position, at_k - AT_X, live_k, first, CHANNELS, TAPS)
    v_t = present(past_v, v_t, ring, conv_w, position, at_v - AT_X, live_v, True, CHANNELS, TAPS)
    recalled_q = tl.sum(s * q_t[:, None], 0)
    overlap = tl.sum(k_t * q_t)
    dt = softplus(tl.load(proj + AT_DT + h).to(tl.float32) + shift)
    decay = tl.exp(dt * rate)
    u = v_t * dt
    o = decay * recalled_q + overlap * u + tl.load(skip + h).to(tl.float32) * v_t
    z = tl.load(proj + AT_Z + h * DIM + v, mask=live_v, other=0.0).to(tl.float32)
    o = o * z * tl.sigmoid(z)  # the output gate, here because it comes before the norm
    s = s * decay
    s += k_t[:, None] * u[None, :]
    tl.store(y + (b * HEADS + h) * DIM + v, o.to(y.dtype.element_ty), mask=live_v)
    tl.store(cell, s.to(state.dtype.element_ty), mask=live)


def bind_token(op: Any, like: Tensor, state: State) -> Callable[[Tensor, State, Tensor], Tensor]:
    """What the state gives for rows of `in_proj` of the batch, dtype and device of `like`, gated, before the output
    norm: [batch, heads * head_dim]."""
    batch, heads, keys, values = state["state"].shape
    rows, block = op.layout, columns(values)
    shape, device, dtype = (batch, heads * values), like.device, like.dtype
    names = ("conv", "conv_bias", "A_log", "dt_bias", "D")
    weight, bias, a_log, dt_bias, skip = (held(op, name) for name in names)
    kernel = _token[(heads, triton.cdiv(values, block), batch)]
    constants = dict(
        AT_Z=rows.start("z"), AT_X=rows.start("x"), AT_B=rows.start("b"), AT_C=rows.start("c"), AT_DT=rows.start("dt"),
        CHANNELS=rows.size("x|b|c"), HEADS=heads, SHARING=heads // op.groups, KEYS=keys, DIM=values,
        TAPS=op.conv.shape[1], KEYS_P=triton.next_power_of_2(keys), VALUES=block, WIDTH=rows.total, num_warps=4,
        **dependent(like),
    )  # fmt: skip

    def launch(rows: Tensor, state: State, position: Tensor) -> Tensor:
        y = torch.empty(shape, device=device, dtype=dtype)
        kernel(
            rows, weight(), bias(), state["conv"], state["state"], y, position, a_log(), dt_bias(), skip(), **constants
        )  # fmt: skip
        return y

    return launch


def bind(op: Any, norm: Any, x: Tensor, state: State) -> Step:
    """See `FusedStep`."""
    into, token = project(op.in_proj, norm, x), bind_token(op, x, state)
    out = project_back(op.out_proj, x, op.norm, "rms" if op.groups == 1 else "heads", groups=op.groups)

    def step(x: Tensor, state: State, position: Tensor) -> Tensor:
        return out(token(into(x), state, position), x)

    return step


def unsupported(op: Any, dtype: torch.dtype) -> str:
    """Why the kernels cannot serve, or nothing."""
    return odd_size(op.width, op.inner, norm=op.inner // op.groups)


FUSED = FusedStep(bind, unsupported)
