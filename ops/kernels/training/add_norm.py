"""The residual stream and the norm after it in one pass, forward and backward.

Forward, a program takes ROWS tokens: it adds what an operator gave, writes the sum, and the norm that the next operator
reads. Backward, a program walks over several such tiles with the gradient of the norm's weight in registers; what the
programs found is then added up in one order, so that a training repeats bit for bit. What the norm keeps of a row is
computed again, as the row is read anyway.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

VALUES = 2048  # of a tile, where a row is not longer
_PROGRAMS = 1024  # that walk in the backward pass: about eight on each multiprocessor of a large GPU
_SIZES = ("rows", "size", "steps")


@triton.jit
def _tile(tile, rows, size, LANES: tl.constexpr, ROWS: tl.constexpr, UNIT: tl.constexpr, RAGGED: tl.constexpr):
    """Where the values of this tile lie [ROWS, LANES], and which of them there are."""
    row = tile * ROWS + tl.arange(0, ROWS)
    lane = tl.arange(0, LANES)
    at = row.to(tl.int64)[:, None] * (size * UNIT) + lane[None, :]
    mask = (row < rows)[:, None]
    if RAGGED:
        mask = mask & (lane < size * UNIT)[None, :]
    return at, mask


@triton.jit(do_not_specialize=_SIZES)
def _forward(x, added, weight, total, out, rows, size, eps, LANES: tl.constexpr, ROWS: tl.constexpr,
             UNIT: tl.constexpr, RAGGED: tl.constexpr, ADDS: tl.constexpr):  # fmt: skip
    at, mask = _tile(tl.program_id(0), rows, size, LANES, ROWS, UNIT, RAGGED)
    lane = tl.arange(0, LANES)
    w = tl.load(weight + lane, mask=lane < size * UNIT, other=0.0).to(tl.float32)
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    if ADDS:
        value += tl.load(added + at, mask=mask, other=0.0).to(tl.float32)
        kept = value.to(total.dtype.element_ty)
        tl.store(total + at, kept, mask=mask)
        value = kept.to(tl.float32)  # what the backward pass will read
    inverse = tl.rsqrt(tl.sum(value * value, 1) / (size * UNIT) + eps)
    tl.store(out + at, (value * inverse[:, None] * w[None, :]).to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=_SIZES)
def _backward(total, weight, dtotal, dout, dx, dadded, partial, rows, size, steps, eps, LANES: tl.constexpr,
              ROWS: tl.constexpr, UNIT: tl.constexpr, RAGGED: tl.constexpr, ADDS: tl.constexpr,
              STREAM: tl.constexpr):  # fmt: skip
    lane = tl.arange(0, LANES)
    w = tl.load(weight + lane, mask=lane < size * UNIT, other=0.0).to(tl.float32)
    dweight = tl.zeros((ROWS, LANES), tl.float32)
    for i in range(steps):
        at, mask = _tile(tl.program_id(0) * steps + i, rows, size, LANES, ROWS, UNIT, RAGGED)
        value = tl.load(total + at, mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(dout + at, mask=mask, other=0.0).to(tl.float32)
        inverse = tl.rsqrt(tl.sum(value * value, 1) / (size * UNIT) + eps)[:, None]
        normed = value * inverse
        dweight += grad * normed
        grad = grad * w[None, :]
        along = (tl.sum(grad * normed, 1) / (size * UNIT))[:, None]
        grad = (grad - normed * along) * inverse
        if STREAM:
            grad += tl.load(dtotal + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx + at, grad.to(dx.dtype.element_ty), mask=mask)
        if ADDS:
            tl.store(dadded + at, grad.to(dadded.dtype.element_ty), mask=mask)
    tl.store(partial + tl.program_id(0).to(tl.int64) * LANES + lane, tl.sum(dweight, 0))


def _tiling(size: int) -> dict[str, Any]:
    """Eight to sixteen values a thread."""
    lanes = triton.next_power_of_2(size)
    unit = math.gcd(8, size)
    warps = max(4, min(16, lanes // 256))
    return dict(LANES=lanes, ROWS=max(1, VALUES // lanes), UNIT=unit, RAGGED=lanes != size, num_warps=warps)


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, added: torch.Tensor | None, weight: torch.Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        size = x.shape[-1]
        rows, how = x.numel() // size, _tiling(size)
        total = x if added is None else torch.empty_like(x)
        out = torch.empty(x.shape, device=x.device, dtype=dtype)
        _forward[(triton.cdiv(rows, how["ROWS"]),)](
            x, x if added is None else added, weight, total, out, rows, size // how["UNIT"], eps,
            ADDS=added is not None, **how,
        )  # fmt: skip
        ctx.save_for_backward(total, weight)
        ctx.eps, ctx.added = eps, None if added is None else added.dtype
        ctx.set_materialize_grads(False)
        return total, out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dtotal: torch.Tensor | None, dout: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        total, weight = ctx.saved_tensors
        if dout is None:  # nobody reads the norm
            same = None if dtotal is None or ctx.added is None else dtotal.to(ctx.added)
            return dtotal, same, None, None, None
        size = total.shape[-1]
        rows, how = total.numel() // size, _tiling(size)
        tiles = triton.cdiv(rows, how["ROWS"])
        steps = max(1, tiles // _PROGRAMS)
        programs = triton.cdiv(tiles, steps)
        dx = torch.empty_like(total)
        dadded = dx if ctx.added in (None, dx.dtype) else torch.empty(dx.shape, device=dx.device, dtype=ctx.added)
        partial = torch.empty(programs, how["LANES"], device=total.device, dtype=torch.float32)
        _backward[(programs,)](
            total, weight, dx if dtotal is None else dtotal.contiguous(), dout.contiguous(), dx, dadded, partial, rows,
            size // how["UNIT"], steps, ctx.eps, ADDS=dadded is not dx, STREAM=dtotal is not None, **how,
        )  # fmt: skip
        dweight = partial[:, :size].sum(0).to(weight.dtype)
        return dx, None if ctx.added is None else dadded, dweight, None, None


def add_norm(
    x: torch.Tensor, added: torch.Tensor | None, weight: torch.Tensor, *, eps: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """x + added [..., width], x itself if nothing is added, in x's dtype; and its RMS norm times `weight`, in `dtype`.

    Computed in float32. The gradients have the dtypes of what they belong to.
    """
    return _AddNorm.apply(x.contiguous(), None if added is None else added.contiguous(), weight, eps, dtype)
