"""What comes before a matrix product of many sequences: a norm, a gate or an activation, in a program for each row, or
for each head of a row where a norm is over heads.

For a few sequences `gemv` does the same on the way to its product, if heads are powers of two.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from nfsearch.ops.kernels.decode.gemv import load_vector, pieces
from nfsearch.ops.kernels.launch import begin, dependent, follow


@triton.jit
def _piece(x, norm, START: tl.constexpr, P: tl.constexpr, K: tl.constexpr, NORM: tl.constexpr, ACT: tl.constexpr):
    """Values START .. START + P in float32 [1, P], times the norm's weight, and the sum of their squares [1]."""
    v = load_vector(x, START, P, K, K).to(tl.float32)
    squares = tl.sum(v * v, 1)
    if NORM:
        v = v * load_vector(norm, START, P, K, K).to(tl.float32)
    if ACT == "swiglu":
        v = v * tl.sigmoid(v) * load_vector(x + K, START, P, K, K).to(tl.float32)
    if ACT == "relu2":
        v = tl.maximum(v, 0.0)
        v = v * v
    return v, squares


@triton.jit
def _store(y, v, gate, START: tl.constexpr, P: tl.constexpr, K: tl.constexpr, GATE: tl.constexpr):
    if GATE:  # the gate comes after the norm
        z = load_vector(gate, START, P, K, K).to(tl.float32)
        v = v * z * tl.sigmoid(z)
    k = START + tl.arange(0, P)[None, :]
    tl.store(y + k, v.to(y.dtype.element_ty), mask=k < K)


@triton.jit
def _prologue(x, gate, norm, y, x_stride, gate_stride, K: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr,
              EPS: tl.constexpr, NORM: tl.constexpr, GROUPS: tl.constexpr, GATE: tl.constexpr, ACT: tl.constexpr,
              PDL: tl.constexpr):  # fmt: skip
    begin(PDL, True)
    b = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    x += b * x_stride + head * K
    gate += b * gate_stride + head * K
    y += (b * tl.num_programs(1) + head) * K
    norm += head % GROUPS * K
    follow(PDL, True)
    v1, squares = _piece(x, norm, 0, K1, K, NORM, ACT)
    if K2 > 0:
        v2, more = _piece(x, norm, K1, K2, K, NORM, ACT)
        squares += more
    factor = 1.0
    if NORM:
        factor = tl.rsqrt(squares / K + EPS)[:, None]
    _store(y, v1 * factor, gate, 0, K1, K, GATE)
    if K2 > 0:
        _store(y, v2 * factor, gate, K1, K2, K, GATE)


def bind(
    like: torch.Tensor,
    columns: int,
    *,
    group: int | None = None,
    groups: int = 1,
    x_stride: int | None = None,
    gate_stride: int = 0,
    eps: float = 1e-6,
    act: str = "none",
) -> Callable[..., torch.Tensor]:
    """`prologue` with a result [batch, columns], batch, dtype and device being those of `like`: a function of x, the
    norm's weight and the gate, which are announced here as in `gemv.bind`."""
    k = group or columns
    k1, k2 = pieces(k)
    shape, device, dtype = (len(like), columns), like.device, like.dtype
    stride = columns if x_stride is None else x_stride
    kernel = _prologue[(len(like), columns // k)]
    constants = dict(
        K=k, K1=k1, K2=k2, EPS=eps, NORM=group is not None, GROUPS=groups, GATE=gate_stride > 0,
        ACT=act, num_warps=4 if k <= 4096 else 8, **dependent(like),
    )  # fmt: skip

    def launch(x: torch.Tensor, norm: torch.Tensor | None = None, gate: torch.Tensor | None = None) -> torch.Tensor:
        y = torch.empty(shape, device=device, dtype=dtype)
        kernel(
            x, x if gate is None else gate, x if norm is None else norm, y, stride, gate_stride, **constants
        )  # fmt: skip
        return y

    return launch


def prologue(
    x: torch.Tensor,
    *,
    norm: torch.Tensor | None = None,
    gate: torch.Tensor | None = None,
    groups: int = 1,
    eps: float = 1e-6,
    act: str = "none",
) -> torch.Tensor:
    """act(norm(x)) for x [batch, columns], in its dtype; the norm is over parts as long as its weight, or as one of its
    `groups`, and is multiplied by silu(gate) [batch, columns] if given. `act` as of `gemv`; "swiglu" takes x
    [batch, 2 * columns], gates first, and goes without a norm.
    """
    launch = bind(
        x,
        x.shape[1] // 2 if act == "swiglu" else x.shape[1],
        group=None if norm is None else len(norm) // groups,
        groups=groups,
        x_stride=x.stride(0),
        gate_stride=0 if gate is None else gate.stride(0),
        eps=eps,
        act=act,
    )
    return launch(x, norm, gate)
