"""The step of gated linear attention: a decay of low rank per key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from nfsearch.ops.forms import FusedStep, State, Step
from nfsearch.ops.kernels.decode.projection import odd_size, project, project_back
from nfsearch.ops.kernels.decode.weights import held
from nfsearch.ops.kernels.launch import begin, dependent, follow
from nfsearch.ops.kernels.pointwise import softplus


@triton.jit
def _token(proj, state, y, decay_w, decay_b, AT_Q: tl.constexpr, AT_K: tl.constexpr, AT_V: tl.constexpr,
           AT_LOW: tl.constexpr, HEADS: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, RANK: tl.constexpr,
           RANK_P: tl.constexpr, KEYS_P: tl.constexpr, VALUES: tl.constexpr, WIDTH: tl.constexpr,
           PDL: tl.constexpr):  # fmt: skip
    """S = diag(a) S + k v^T;  o = S^T q."""
    begin(PDL, True)
    h = tl.program_id(0)
    block = tl.program_id(1)
    b = tl.program_id(2)
    k = tl.arange(0, KEYS_P)
    v = block * VALUES + tl.arange(0, VALUES)
    live_k = k < KEYS
    live_v = v < DIM
    proj += b.to(tl.int64) * WIDTH
    cell = state + ((b * HEADS + h).to(tl.int64) * KEYS + k[:, None]) * DIM + v[None, :]
    live = live_k[:, None] & live_v[None, :]

    s = tl.load(cell, mask=live, other=0.0).to(tl.float32)  # written a whole step ago
    r = tl.arange(0, RANK_P)
    at = h * KEYS + k
    low_at = at[:, None] * RANK + r[None, :]
    low_w = tl.load(decay_w + low_at, mask=live_k[:, None] & (r < RANK)[None, :], other=0.0).to(tl.float32)
    low_b = tl.load(decay_b + at, mask=live_k, other=0.0).to(tl.float32)

    follow(PDL, True)

    q_t = tl.load(proj + AT_Q + at, mask=live_k, other=0.0)
    k_t = tl.load(proj + AT_K + at, mask=live_k, other=0.0)
    v_t = tl.load(proj + AT_V + h * DIM + v, mask=live_v, other=0.0)
    low = tl.load(proj + AT_LOW + r, mask=r < RANK, other=0.0).to(tl.float32)
    s = s * tl.exp(-softplus(-tl.sum(low_w * low[None, :], 1) - low_b) / 16.0)[:, None]
    q_t = q_t.to(tl.float32) * KEYS**-0.5
    k_t = k_t.to(tl.float32)
    u = v_t.to(tl.float32)
    o = tl.sum(s * q_t[:, None], 0) + tl.sum(k_t * q_t) * u
    s += k_t[:, None] * u[None, :]
    tl.store(y + (b * HEADS + h) * DIM + v, o.to(y.dtype.element_ty), mask=live_v)
    tl.store(cell, s.to(state.dtype.element_ty), mask=live)


def tiling(keys: int, values: int, batch: int) -> tuple[int, int]:
    """(VALUES, warps) of a program, chosen on an H200 within the step of a block: the decays are multiplied first."""
    if batch < 32:
        block, warps = 16, 4
    else:
        block, warps = (32, 4) if keys <= 128 else (16, 2)
    return min(block, triton.next_power_of_2(values)), warps


def bind_token(op: Any, like: Tensor, state: State) -> Callable[[Tensor, State, Tensor], Tensor]:
    """What the state gives for rows of `in_proj` of the batch, dtype and device of `like`, before the output norm:
    [batch, heads * value_dim]."""
    batch, heads, keys, values = state["state"].shape
    rows, (block, warps) = op.layout, tiling(keys, values, batch)
    shape, device, dtype = (batch, heads * values), like.device, like.dtype
    weight, bias, rank = held(op.decay_proj), held(op.decay_proj, "bias"), rows.size("low")
    kernel = _token[(heads, triton.cdiv(values, block), batch)]
    constants = dict(
        AT_Q=rows.start("q"), AT_K=rows.start("k"), AT_V=rows.start("v"), AT_LOW=rows.start("low"), HEADS=heads,
        KEYS=keys, DIM=values, RANK=rank, RANK_P=triton.next_power_of_2(rank), KEYS_P=triton.next_power_of_2(keys),
        VALUES=block, WIDTH=rows.total, num_warps=warps, **dependent(like),
    )  # fmt: skip

    def launch(rows: Tensor, state: State, position: Tensor) -> Tensor:
        y = torch.empty(shape, device=device, dtype=dtype)
        kernel(rows, state["state"], y, weight(), bias(), **constants)
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
