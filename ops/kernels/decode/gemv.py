"""Matrix times one or a few vectors, with the norm before it and the activation or residual after it in one kernel.

At batch 1 a projection is nothing but reading its weights, so the kernel is laid out for bytes in flight: each program
owns ROWS rows, asks for all of their weights in one go before it waits for its input, and reduces once. The many
programs balance themselves over the device, and those of the next kernel move in as these finish.

Columns are covered by at most two power-of-two pieces (6144 = 4096 + 2048), so widths like 3072 waste no lanes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

from nfsearch.ops.kernels.launch import begin, dependent, follow

MAX_BATCH = 8  # beyond it, a matrix product on tensor cores is faster


@triton.jit
def _load_rows(w, row, N, START: tl.constexpr, P: tl.constexpr, K: tl.constexpr):
    """Columns START .. START + P of rows `row`: [ROWS, P], zero past K."""
    k = START + tl.arange(0, P)
    mask = (row < N)[:, None]
    if START + P > K:
        mask = mask & (k < K)[None, :]
    return tl.load(w + row.to(tl.int64)[:, None] * K + k[None, :], mask=mask, other=0.0, eviction_policy="evict_first")


@triton.jit
def load_vector(x, START: tl.constexpr, P: tl.constexpr, K: tl.constexpr, PERIOD: tl.constexpr):
    """Values START .. START + P as [1, P], zero past K; those of `x` repeat every PERIOD."""
    k = START + tl.arange(0, P)[None, :]
    if START + P > K:
        return tl.load(x + k % PERIOD, mask=k < K, other=0.0)
    return tl.load(x + k % PERIOD)


@triton.jit
def _input(x, gate, scale, START: tl.constexpr, P: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr,
           EPS: tl.constexpr, NORM: tl.constexpr):  # fmt: skip
    """One piece of the input in float32 [1, P], and what it adds to the squares of a norm over all K, [1]."""
    v = load_vector(x, START, P, K, K).to(tl.float32)
    squares = tl.zeros((1,), tl.float32)
    if NORM == "rms":  # the common factor 1 / rms is applied to the results
        squares = tl.sum(v * v, 1)
        v = v * scale
    if NORM == "heads" or NORM == "gated_heads":
        groups = tl.reshape(v, (P // GROUP, GROUP))
        mean = tl.sum(groups * groups, 1) / GROUP
        v = tl.reshape(groups * tl.rsqrt(mean + EPS)[:, None], (1, P)) * scale
    if NORM == "gated_heads":  # the gate comes after the norm
        z = load_vector(gate, START, P, K, K).to(tl.float32)
        v = v * z * tl.sigmoid(z)
    return v, squares


@triton.jit
def _dot(w, v):
    """[ROWS, P] times [1, P], summed over P."""
    return tl.sum(w.to(tl.float32) * v, 1)


@triton.jit
def _gemv(x, gate, norm, w, residual, y, N, x_stride, gate_stride, K: tl.constexpr, K1: tl.constexpr,
          K2: tl.constexpr, BATCH: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr, PERIOD: tl.constexpr,
          EPS: tl.constexpr, NORM: tl.constexpr, ACT: tl.constexpr, RESIDUAL: tl.constexpr,
          UNIT_ROWS: tl.constexpr, EARLY: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    begin(PDL, EARLY)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    a1 = _load_rows(w, row, N, 0, K1, K)
    if K2 > 0:
        a2 = _load_rows(w, row, N, K1, K2, K)
    if ACT == "swiglu":  # rows N .. 2N are the values that the gates of rows 0 .. N let pass
        up = w + tl.full((), N, tl.int64) * K
        b1 = _load_rows(up, row, N, 0, K1, K)
        if K2 > 0:
            b2 = _load_rows(up, row, N, K1, K2, K)
    scale1 = 1.0
    scale2 = 1.0
    if NORM != "none":
        scale1 = load_vector(norm, 0, K1, K, PERIOD).to(tl.float32)
        if K2 > 0:
            scale2 = load_vector(norm, K1, K2, K, PERIOD).to(tl.float32)

    follow(PDL, EARLY)

    for b in tl.static_range(BATCH):
        v1, squares = _input(x + b * x_stride, gate + b * gate_stride, scale1, 0, K1, K, GROUP, EPS, NORM)
        s = _dot(a1, v1)
        if K2 > 0:
            v2, more = _input(x + b * x_stride, gate + b * gate_stride, scale2, K1, K2, K, GROUP, EPS, NORM)
            squares += more
            s += _dot(a2, v2)
        if ACT == "swiglu":
            t = _dot(b1, v1)
            if K2 > 0:
                t += _dot(b2, v2)
        if NORM == "rms":
            factor = tl.rsqrt(squares / K + EPS)
            s = s * factor
            if ACT == "swiglu":
                t = t * factor
        if UNIT_ROWS:
            length = _dot(a1, a1.to(tl.float32))
            if K2 > 0:
                length += _dot(a2, a2.to(tl.float32))
            s = s / tl.sqrt(length)
        if ACT == "swiglu":
            s = s * tl.sigmoid(s) * t
        if ACT == "relu2":
            s = tl.maximum(s, 0.0)
            s = s * s
        if RESIDUAL:
            s += tl.load(residual + b * N + row, mask=row < N, other=0.0).to(tl.float32)
        tl.store(y + b * N + row, s.to(y.dtype.element_ty), mask=row < N)


def pieces(columns: int) -> tuple[int, int]:
    """Two powers of two (the second may be 0) that cover `columns` with as little waste as two can."""
    first = 1 << (columns.bit_length() - 1)
    rest = columns - first
    second = triton.next_power_of_2(rest) if rest else 0
    return (2 * first, 0) if second == first else (first, max(second, 8) if second else 0)


# (rows, columns): (ROWS, warps) where the rule of `tiling` is not the fastest: batch 1, bf16, H200, within the step of
# a block (what is faster alone need not be) or, at widths 2048 and 3072, within the decode steps of the Nemotron-Flash
# shapes; heads of width 1024 alone. Rows count a gate and its value once.
_MEASURED = {
    (1024, 1536): (2, 1),
    (1024, 2048): (8, 4),
    (1024, 3072): (2, 1),
    (1024, 4096): (2, 4),
    (3072, 1024): (4, 2),
    (4384, 1024): (16, 4),
    (131072, 1024): (4, 1),
    (1280, 2048): (8, 4),
    (3856, 1280): (8, 4),
    (6152, 1280): (4, 4),
    (1536, 2560): (8, 8),
    (1792, 2560): (4, 4),
    (1792, 3584): (8, 8),
    (2048, 2048): (4, 2),
    (2048, 3072): (8, 4),
    (2048, 4096): (8, 8),
    (2048, 6144): (8, 8),
    (3072, 2048): (8, 4),
    (6144, 2048): (4, 4),
    (6160, 2048): (2, 4),
    (8512, 2048): (2, 4),
    (9228, 2048): (2, 4),
    (131072, 2048): (8, 4),
    (3072, 3072): (4, 2),
    (3072, 6144): (2, 4),
    (3072, 9216): (1, 8),
    (9216, 3072): (1, 1),
    (12640, 3072): (2, 2),
    (131072, 3072): (4, 4),
}


def tiling(rows: int, columns: int, swiglu: bool) -> tuple[int, int]:
    """(ROWS, warps): as measured, or by a rule that was among the fastest at widths 1024 to 3072. Rows that two pieces
    cover want few warps, so that each asks for much of both; of a head, whose rows are many, one."""
    if (rows, columns) in _MEASURED:
        return _MEASURED[rows, columns]
    first, second = pieces(columns)
    if first + second <= 4096 and second:
        values, warps = 8192, 2 if rows <= 16384 else 1
    elif first <= 2048:
        values, warps = 15000 if swiglu else 8192, 4  # four rows of gates at 1024 and 1792, two at 2048
    elif first + second <= 4096:
        values, warps = 16384, 8
    elif first + second <= 6144:
        values, warps = 12288, 4
    else:
        values, warps = 24576, 8 if columns <= 12288 else 16
    block = max(1, values // columns // (2 if swiglu else 1))
    return 1 << (block.bit_length() - 1), warps


def bind(
    like: torch.Tensor,
    w: torch.Tensor,
    *,
    mode: str = "none",
    group: int | None = None,
    groups: int = 1,
    x_stride: int | None = None,
    gate_stride: int = 0,
    eps: float = 1e-6,
    act: str = "none",
    residual: bool = False,
    unit_rows: bool = False,
    dtype: torch.dtype | None = None,
    early: bool = True,
    config: tuple[int, int] | None = None,
) -> Callable[..., torch.Tensor]:
    """`gemv` for inputs of the batch, dtype and device of `like` and weights of the shape of `w`: a function of x, w,
    the norm's weight, the gate and the residual, each given if it was announced here: the norm with how many values it
    is over (`group`) and of how many such `groups` its weight is, the gate with its stride, which is that of wider rows
    if it is a slice of them."""
    batch, columns = len(like), w.shape[1]
    rows = w.shape[0] // 2 if act == "swiglu" else w.shape[0]
    k1, k2 = pieces(columns)
    block, warps = config or tiling(rows, columns, act == "swiglu")
    shape, device, dtype = (batch, rows), like.device, dtype or like.dtype
    stride = columns if x_stride is None else x_stride
    kernel = _gemv[(triton.cdiv(rows, block),)]
    constants = dict(
        K=columns, K1=k1, K2=k2, BATCH=batch, ROWS=block, GROUP=group or columns, PERIOD=groups * (group or columns),
        EPS=eps, NORM=mode, ACT=act, RESIDUAL=residual, UNIT_ROWS=unit_rows, num_warps=warps, EARLY=early,
        **dependent(like),
    )  # fmt: skip

    def launch(
        x: torch.Tensor,
        w: torch.Tensor,
        norm: torch.Tensor | None = None,
        gate: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        y = torch.empty(shape, device=device, dtype=dtype)
        kernel(
            x, x if gate is None else gate, w if norm is None else norm, w, y if residual is None else residual, y,
            rows, stride, gate_stride, **constants,
        )  # fmt: skip
        return y

    return launch


def gemv(
    x: torch.Tensor,
    w: torch.Tensor,
    *,
    norm: torch.Tensor | None = None,
    gate: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    groups: int = 1,
    **how: Any,
) -> torch.Tensor:
    """`act(norm(x) @ w.T) + residual` for x [batch, columns], w [rows, columns]; at most MAX_BATCH sequences.

    `mode` is the norm before it: "none"; "rms" over all columns; "heads" over parts as long as the weight `norm`, or as
    one of its `groups`; "gated_heads", that times silu(gate). `gate` [batch, columns] and `x` may be slices of wider
    rows. `act` "swiglu" takes w [2 * rows, columns]; `unit_rows` divides each result by the length of its row of w.
    Sums in float32. `early` as in `launch`: not for a projection into a state.
    """
    launch = bind(
        x,
        w,
        group=None if norm is None else len(norm) // groups,
        groups=groups,
        x_stride=x.stride(0),
        gate_stride=0 if gate is None else gate.stride(0),
        residual=residual is not None,
        **how,
    )
    return launch(x, w, norm, gate, residual)
