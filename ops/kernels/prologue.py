"""What comes before a matrix product of many sequences: a norm, a gate or an activation, in one kernel a row.

For a few sequences `gemv` does the same on the way to its product.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from nfsearch.ops.kernels.gemv import _input, _load_vector, pieces
from nfsearch.ops.kernels.launch import begin, dependent, follow


@triton.jit
def _piece(x, gate, norm, START: tl.constexpr, P: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr,
           EPS: tl.constexpr, NORM: tl.constexpr, ACT: tl.constexpr):  # fmt: skip
    scale = 1.0
    if NORM != "none":
        scale = _load_vector(norm, START, P, K, GROUP).to(tl.float32)
    v, squares = _input(x, gate, scale, START, P, K, GROUP, EPS, NORM)
    if ACT == "swiglu":
        v = v * tl.sigmoid(v) * _load_vector(x + K, START, P, K, K).to(tl.float32)
    if ACT == "relu2":
        v = tl.maximum(v, 0.0)
        v = v * v
    return v, squares


@triton.jit
def _store(y, v, START: tl.constexpr, P: tl.constexpr, K: tl.constexpr):
    k = START + tl.arange(0, P)[None, :]
    tl.store(y + k, v.to(y.dtype.element_ty), mask=k < K)


@triton.jit
def _prologue(x, gate, norm, y, x_stride, gate_stride, K: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr,
              GROUP: tl.constexpr, EPS: tl.constexpr, NORM: tl.constexpr, ACT: tl.constexpr,
              PDL: tl.constexpr):  # fmt: skip
    begin(PDL, True)
    b = tl.program_id(0).to(tl.int64)
    x += b * x_stride
    gate += b * gate_stride
    y += b * K
    follow(PDL, True)
    v1, squares = _piece(x, gate, norm, 0, K1, K, GROUP, EPS, NORM, ACT)
    if K2 > 0:
        v2, more = _piece(x, gate, norm, K1, K2, K, GROUP, EPS, NORM, ACT)
        squares += more
    factor = 1.0
    if NORM == "rms":
        factor = tl.rsqrt(squares / K + EPS)[:, None]
    _store(y, v1 * factor, 0, K1, K)
    if K2 > 0:
        _store(y, v2 * factor, K1, K2, K)


def prologue(
    x: torch.Tensor,
    *,
    norm: torch.Tensor | None = None,
    mode: str = "none",
    gate: torch.Tensor | None = None,
    eps: float = 1e-6,
    act: str = "none",
) -> torch.Tensor:
    """act(norm(x)) for x [batch, columns], in its dtype; `mode`, `gate` and `act` as of `gemv`.

    `act` "swiglu" takes x [batch, 2 * columns], gates first, and goes without a norm.
    """
    columns = x.shape[1] // 2 if act == "swiglu" else x.shape[1]
    y = torch.empty(len(x), columns, device=x.device, dtype=x.dtype)
    k1, k2 = pieces(columns)
    _prologue[(len(x),)](
        x, x if gate is None else gate, x if norm is None else norm, y, x.stride(0),
        0 if gate is None else gate.stride(0), K=columns, K1=k1, K2=k2, GROUP=columns if norm is None else len(norm),
        EPS=eps, NORM=mode, ACT=act, num_warps=4 if columns <= 4096 else 8, **dependent(x),
    )  # fmt: skip
    return y
