"""Rotary embedding of the packed rows of attention's projection, forward and backward.

Forward, q and k are read where they lie in the rows, turned, and written to tensors of their own. Backward, the
gradients of q, k and the rest are written to the packed gradient of the rows, those of q and k turned back. A program
takes ROWS tokens, computes their angles once, and goes through the heads.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

ROWS = 16  # tokens of a program
_COPIED = 128  # values of a row at a time
_SIZES = ("tokens", "time", "row", "heads", "kv_heads", "left")


@triton.jit
def _move(source, target, at, to, mask, cos, sin, DIM: tl.constexpr, HALF: tl.constexpr, LANES: tl.constexpr,
          REST: tl.constexpr):  # fmt: skip
    """One head of each token from `at` of the source to `to` of the target [ROWS, 1]: the pairs (i, i + HALF) turned,
    the values after them as they are."""
    lane = tl.arange(0, LANES)[None, :]
    live = mask & (lane < HALF)
    a = tl.load(source + at + lane, mask=live, other=0.0).to(tl.float32)
    b = tl.load(source + at + HALF + lane, mask=live, other=0.0).to(tl.float32)
    tl.store(target + to + lane, (a * cos - b * sin).to(target.dtype.element_ty), mask=live)
    tl.store(target + to + HALF + lane, (b * cos + a * sin).to(target.dtype.element_ty), mask=live)
    if 2 * HALF < DIM:
        rest = 2 * HALF + tl.arange(0, REST)[None, :]
        left = mask & (rest < DIM)
        tl.store(target + to + rest, tl.load(source + at + rest, mask=left, other=0.0), mask=left)


@triton.jit(do_not_specialize=_SIZES)
def _turn(rows, q, k, rest, positions, tokens, time, row, heads, kv_heads, left, log_base, DIM: tl.constexpr,
          HALF: tl.constexpr, LANES: tl.constexpr, REST: tl.constexpr, COPIED: tl.constexpr, ROWS: tl.constexpr,
          UNIT: tl.constexpr, BACK: tl.constexpr):  # fmt: skip
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mask = (token < tokens)[:, None]
    position = tl.load(positions + token % time, mask=token < tokens, other=0).to(tl.float32)
    pair = tl.arange(0, LANES).to(tl.float32)
    angle = position[:, None] * tl.exp2(-(pair / HALF) * log_base)[None, :]
    cos = tl.cos(angle)
    sin = tl.sin(angle)
    wide = token.to(tl.int64)[:, None]
    packed = wide * (row * UNIT)
    for head in range(heads):
        own = (wide * heads + head) * DIM
        if BACK:
            _move(q, rows, own, packed + head * DIM, mask, cos, -sin, DIM, HALF, LANES, REST)
        else:
            _move(rows, q, packed + head * DIM, own, mask, cos, sin, DIM, HALF, LANES, REST)
    packed += heads * DIM
    for head in range(kv_heads):
        own = (wide * kv_heads + head) * DIM
        if BACK:
            _move(k, rows, own, packed + head * DIM, mask, cos, -sin, DIM, HALF, LANES, REST)
        else:
            _move(rows, k, packed + head * DIM, own, mask, cos, sin, DIM, HALF, LANES, REST)
    if BACK:
        packed += kv_heads * DIM
        size = left * UNIT
        for first in range(0, size, COPIED):
            lane = first + tl.arange(0, COPIED)[None, :]
            live = mask & (lane < size)
            tl.store(rows + packed + lane, tl.load(rest + wide * size + lane, mask=live, other=0.0), mask=live)


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, positions: torch.Tensor, heads: int, kv_heads: int, dim: int, turned: int,
        base: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
        ctx.save_for_backward(positions)
        ctx.how = (turned, base)
        batch, time, _ = rows.shape
        q, k = (rows.new_empty(batch, time, count, dim) for count in (heads, kv_heads))
        rest = rows[..., (heads + kv_heads) * dim :]
        _launch(rows, q, k, rest, positions, turned, base, back=False)
        return q, k, rest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (positions,) = ctx.saved_tensors
        dq, dk, drest = (grad.contiguous() for grad in grads)
        drows = dq.new_empty(*drest.shape[:2], dq[0, 0].numel() + dk[0, 0].numel() + drest.shape[2])
        _launch(drows, dq, dk, drest, positions, *ctx.how, back=True)
        return drows, None, None, None, None, None, None


def _launch(
    rows: torch.Tensor, q: torch.Tensor, k: torch.Tensor, rest: torch.Tensor, positions: torch.Tensor, turned: int,
    base: float, *, back: bool,
) -> None:  # fmt: skip
    batch, time, heads, dim = q.shape
    row, left = rows.shape[-1], rest.shape[-1]
    unit = math.gcd(8, row, left)
    _turn[(triton.cdiv(batch * time, ROWS),)](
        rows, q, k, rest, positions, batch * time, time, row // unit, heads, k.shape[2], left // unit, math.log2(base),
        DIM=dim, HALF=turned // 2, LANES=triton.next_power_of_2(turned // 2),
        REST=triton.next_power_of_2(max(1, dim - turned)), COPIED=_COPIED, ROWS=ROWS, UNIT=unit, BACK=back, num_warps=4,
    )  # fmt: skip


def turn(
    rows: torch.Tensor, positions: torch.Tensor, heads: int, kv_heads: int, dim: int, turned: int, base: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q [batch, time, heads, dim] and k [batch, time, kv_heads, dim], both turned, and the rest, a view of the rows.

    rows [batch, time, q|k|rest], positions [time]. Of each head of q and k the first `turned` values turn: the pairs
    (i, i + turned/2) by position * base^(-2i/turned). Angles are computed in float32.
    """
    return _Turned.apply(rows.contiguous(), positions, heads, kv_heads, dim, turned, base)
