"""RMS norm of the recurrences' outputs with their gate in one pass, forward and backward.

A program takes ROWS rows (heads, or for Mamba2 whole tokens or groups of their heads) side by side, which have one
weight, and walks on to the next ones. What the norm keeps of a row is computed again in the backward pass, which reads
the row anyway.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

Order = Literal["none", "after", "before"]

VALUES = 2048  # of a tile, where a row is not longer
_SIZES = ("rows", "heads", "size", "z_row", "steps")


@triton.jit
def _at(row, heads, size, z_row, lane, UNIT: tl.constexpr):
    """Where rows [ROWS] of y, and of the gate, lie: [ROWS, LANES] each."""
    wide = row.to(tl.int64)
    token = wide // heads
    z = token * (z_row * UNIT) + (wide - token * heads) * (size * UNIT)
    return (wide * (size * UNIT))[:, None] + lane[None, :], z[:, None] + lane[None, :]


@triton.jit
def _inputs(y, z, u, skip, at, z_at, mask, GATE: tl.constexpr, SKIP: tl.constexpr):
    """The output with what skips the recurrence, its gate and what that is made of, and u; in float32."""
    value = tl.load(y + at, mask=mask, other=0.0).to(tl.float32)
    raw = value
    gate = value
    skipped = value
    if SKIP:
        skipped = tl.load(u + at, mask=mask, other=0.0).to(tl.float32)
        value += skipped * skip
    if GATE != "none":
        raw = tl.load(z + z_at, mask=mask, other=0.0).to(tl.float32)
        gate = tl.sigmoid(raw)
    return value, raw, gate, skipped


@triton.jit(do_not_specialize=_SIZES)
def _forward(y, z, u, skip, weight, out, rows, heads, size, z_row, steps, eps, LANES: tl.constexpr,
             ROWS: tl.constexpr, UNIT: tl.constexpr, RAGGED: tl.constexpr, GATE: tl.constexpr,
             SKIP: tl.constexpr):  # fmt: skip
    lane = tl.arange(0, LANES)
    inside = lane < size * UNIT
    weight += tl.program_id(1) * (size * UNIT)
    skip += tl.program_id(1) * (size * UNIT)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mask = (row < rows)[:, None]
    at, z_at = _at(row * tl.num_programs(1) + tl.program_id(1), heads, size, z_row, lane, UNIT)
    if RAGGED:
        mask = mask & inside[None, :]
    w = tl.load(weight + lane, mask=inside, other=0.0).to(tl.float32)[None, :]
    factor = w
    if SKIP:
        factor = tl.load(skip + lane, mask=inside, other=0.0).to(tl.float32)[None, :]
    value, raw, gate, _ = _inputs(y, z, u, factor, at, z_at, mask, GATE, SKIP)
    if GATE == "before":
        value = value * raw * gate
    inverse = tl.rsqrt(tl.sum(value * value, 1) / (size * UNIT) + eps)
    value = value * inverse[:, None] * w
    if GATE == "after":
        value = value * raw * gate
    tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=_SIZES)
def _backward(y, z, u, skip, weight, dout, dy, dz, du, partial, rows, heads, size, z_row, steps, eps,
              LANES: tl.constexpr, ROWS: tl.constexpr, UNIT: tl.constexpr, RAGGED: tl.constexpr, GATE: tl.constexpr,
              SKIP: tl.constexpr):  # fmt: skip
    lane = tl.arange(0, LANES)
    inside = lane < size * UNIT
    weight += tl.program_id(1) * (size * UNIT)
    skip += tl.program_id(1) * (size * UNIT)
    w = tl.load(weight + lane, mask=inside, other=0.0).to(tl.float32)[None, :]
    factor = w
    if SKIP:
        factor = tl.load(skip + lane, mask=inside, other=0.0).to(tl.float32)[None, :]
    dweight = tl.zeros((ROWS, LANES), tl.float32)
    dskip = dweight
    for i in range(steps):
        row = (tl.program_id(0) * steps + i) * ROWS + tl.arange(0, ROWS)
        mask = (row < rows)[:, None]
        at, z_at = _at(row * tl.num_programs(1) + tl.program_id(1), heads, size, z_row, lane, UNIT)
        if RAGGED:
            mask = mask & inside[None, :]
        grad = tl.load(dout + at, mask=mask, other=0.0).to(tl.float32)
        value, raw, gate, skipped = _inputs(y, z, u, factor, at, z_at, mask, GATE, SKIP)
        open_ = raw * gate  # silu
        slope = gate * (1.0 + raw - open_)
        gated = value * open_ if GATE == "before" else value
        inverse = tl.rsqrt(tl.sum(gated * gated, 1) / (size * UNIT) + eps)[:, None]
        normed = gated * inverse
        if GATE == "after":
            tl.store(dz + at, (grad * normed * w * slope).to(dz.dtype.element_ty), mask=mask)
            grad = grad * open_
        dweight += grad * normed
        grad = grad * w
        along = (tl.sum(grad * normed, 1) / (size * UNIT))[:, None]
        grad = (grad - normed * along) * inverse
        if GATE == "before":
            tl.store(dz + at, (grad * value * slope).to(dz.dtype.element_ty), mask=mask)
            grad = grad * open_
        if SKIP:
            dskip += grad * skipped
            tl.store(du + at, (grad * factor).to(du.dtype.element_ty), mask=mask)
        tl.store(dy + at, grad.to(dy.dtype.element_ty), mask=mask)
    partial += (tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * (2 * LANES) + lane
    tl.store(partial, tl.sum(dweight, 0))
    if SKIP:
        tl.store(partial + LANES, tl.sum(dskip, 0))


def _tiling(size: int) -> tuple[int, int, int]:
    """LANES, ROWS and warps: eight to sixteen values a thread."""
    lanes = triton.next_power_of_2(size)
    return lanes, max(1, VALUES // lanes), max(4, min(16, lanes // 256))


class _GatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        y: torch.Tensor,
        weight: torch.Tensor,
        z: torch.Tensor | None,
        u: torch.Tensor | None,
        skip: torch.Tensor | None,
        groups: int,
        eps: float,
        order: Order,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        ctx.how = (groups, eps, order)
        ctx.save_for_backward(y, weight, z, u, skip)
        out = torch.empty(y.shape, device=y.device, dtype=dtype)
        _launch(_forward, (y, z, u, skip, weight), (out,), 1, *ctx.how)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        groups = ctx.how[0]
        y, weight, z, u, skip = ctx.saved_tensors
        size = weight.shape[0] // groups
        lanes, rows, _ = _tiling(size)
        tiles = triton.cdiv(y.numel() // len(weight), rows)
        steps = min(16, max(1, groups * tiles // 2048))  # about four programs on each multiprocessor of a large GPU
        dy = torch.empty_like(y)
        dz, du = (None if x is None else torch.empty(y.shape, device=y.device, dtype=x.dtype) for x in (z, u))
        partial = torch.empty(triton.cdiv(tiles, steps), groups, 2, lanes, device=y.device, dtype=torch.float32)
        outputs = (grad.contiguous(), dy, dy if dz is None else dz, dy if du is None else du, partial)
        _launch(_backward, (y, z, u, skip, weight), outputs, steps, *ctx.how)
        total = partial[:, :, : 1 if skip is None else 2, :size].sum(0)  # [groups, one or two, size]
        dweight = total[:, 0].flatten().to(weight.dtype)
        dskip = None if skip is None else total[:, 1].flatten().to(skip.dtype)
        dz = None if dz is None or z is None else dz.view(z.shape)
        return dy, dweight, dz, du, dskip, None, None, None, None


def _launch(
    kernel: Any,
    inputs: tuple[torch.Tensor | None, ...],
    outputs: tuple[torch.Tensor, ...],
    steps: int,
    groups: int,
    eps: float,
    order: Order,
) -> None:
    y, z, _, skip, weight = inputs
    assert y is not None
    assert weight is not None
    size = weight.shape[0] // groups
    lanes, rows, warps = _tiling(size)
    total, z_row = y.numel() // len(weight), y.shape[-1] if z is None else z.stride(0)  # rows of each group
    heads = 1 if z is None else z.shape[1] // size
    unit = math.gcd(8, size, z_row)
    kernel[(triton.cdiv(total, rows * steps), groups)](
        *(y if x is None else x for x in inputs), *outputs, total, heads, size // unit, z_row // unit, steps, eps,
        LANES=lanes, ROWS=rows, UNIT=unit, RAGGED=lanes != size, GATE=order, SKIP=skip is not None, num_warps=warps,
    )  # fmt: skip


def gated_norm(
    y: torch.Tensor,
    weight: torch.Tensor,
    gate: torch.Tensor | None = None,
    u: torch.Tensor | None = None,
    skip: torch.Tensor | None = None,
    *,
    groups: int = 1,
    eps: float,
    order: Order,
    dtype: torch.dtype,
) -> torch.Tensor:
    """RMS norm of y [batch, time, channels] over parts as long as `weight`, in `dtype`; or, where that is as long as
    the channels, over each of so many `groups` of them.

    `order` "after" multiplies the norm by silu(gate); "before" normalises y silu(gate), y first being y + u skip if u
    (like y) and skip [channels] are given. The gate [batch, time, channels] may be a slice of wider rows. Sums run in
    float32, gradients have the dtypes of what they belong to.
    """
    rows = None if gate is None else gate.reshape(-1, gate.shape[-1])
    if rows is not None and rows.stride(1) != 1:
        rows = rows.contiguous()
    u = None if u is None else u.contiguous()
    return _GatedNorm.apply(y.contiguous(), weight, rows, u, skip, groups, eps, order, dtype)
