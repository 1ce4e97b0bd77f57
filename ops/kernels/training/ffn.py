"""What the feed-forward operator does between its products, in one pass, forward and backward."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

Act = Literal["swiglu", "relu2"]

_COLUMNS, _ROWS = 512, 4  # of a program, at most
_SIZES = ("rows", "inner")


@triton.jit
def _tile(rows, inner, COLUMNS: tl.constexpr, ROWS: tl.constexpr, UNIT: tl.constexpr, RAGGED: tl.constexpr):
    """This program's rows [ROWS, 1] and columns [1, COLUMNS], and which of its values there are."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]  # of which there can be more than a second axis takes
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    mask = row < rows
    if RAGGED:
        mask = mask & (column < inner * UNIT)
    return row.to(tl.int64), column, mask


@triton.jit(do_not_specialize=_SIZES)
def _forward(hidden, out, rows, inner, ACT: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
             UNIT: tl.constexpr, RAGGED: tl.constexpr):  # fmt: skip
    row, column, mask = _tile(rows, inner, COLUMNS, ROWS, UNIT, RAGGED)
    size = inner * UNIT
    if ACT == "swiglu":
        at = row * (2 * size) + column
        gate = tl.load(hidden + at, mask=mask, other=0.0).to(tl.float32)
        up = tl.load(hidden + at + size, mask=mask, other=0.0).to(tl.float32)
        value = gate * tl.sigmoid(gate) * up
    else:
        value = tl.load(hidden + row * size + column, mask=mask, other=0.0).to(tl.float32)
        value = tl.maximum(value, 0.0) * value
    tl.store(out + row * size + column, value.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=_SIZES)
def _backward(hidden, dout, dhidden, rows, inner, ACT: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
              UNIT: tl.constexpr, RAGGED: tl.constexpr):  # fmt: skip
    row, column, mask = _tile(rows, inner, COLUMNS, ROWS, UNIT, RAGGED)
    size = inner * UNIT
    grad = tl.load(dout + row * size + column, mask=mask, other=0.0).to(tl.float32)
    if ACT == "swiglu":
        at = row * (2 * size) + column
        gate = tl.load(hidden + at, mask=mask, other=0.0).to(tl.float32)
        up = tl.load(hidden + at + size, mask=mask, other=0.0).to(tl.float32)
        open_ = tl.sigmoid(gate)
        silu = gate * open_
        dgate = grad * up * open_ * (1.0 + gate - silu)
        tl.store(dhidden + at, dgate.to(dhidden.dtype.element_ty), mask=mask)
        tl.store(dhidden + at + size, (grad * silu).to(dhidden.dtype.element_ty), mask=mask)
    else:
        at = row * size + column
        value = tl.load(hidden + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(dhidden + at, (2.0 * grad * tl.maximum(value, 0.0)).to(dhidden.dtype.element_ty), mask=mask)


class _Activate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, act: Act) -> torch.Tensor:
        ctx.act = act
        ctx.save_for_backward(hidden)
        inner = hidden.shape[-1] // (2 if act == "swiglu" else 1)
        out = torch.empty(*hidden.shape[:-1], inner, device=hidden.device, dtype=hidden.dtype)
        _launch(_forward, act, hidden, out, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: torch.Tensor) -> tuple[torch.Tensor, None]:
        (hidden,) = ctx.saved_tensors
        dhidden, dout = torch.empty_like(hidden), dout.contiguous()
        _launch(_backward, ctx.act, hidden, dout, dout, dhidden)
        return dhidden, None


def _launch(kernel: Any, act: Act, hidden: torch.Tensor, like: torch.Tensor, *tensors: torch.Tensor) -> None:
    inner = like.shape[-1]
    rows = like.numel() // inner
    columns = min(_COLUMNS, triton.next_power_of_2(inner))
    unit = math.gcd(8, inner)
    kernel[(triton.cdiv(rows, _ROWS), triton.cdiv(inner, columns))](
        hidden, *tensors, rows, inner // unit, ACT=act, COLUMNS=columns, ROWS=_ROWS, UNIT=unit,
        RAGGED=inner % columns != 0, num_warps=4,
    )  # fmt: skip


def activate(hidden: torch.Tensor, *, act: Act) -> torch.Tensor:
    """silu(gate) * up of hidden [..., gate|up] ("swiglu"), or relu(hidden)^2 ("relu2"): [..., inner] in its dtype.

    Computed in float32. The gradient comes packed as `hidden` is.
    """
    return _Activate.apply(hidden.contiguous(), act)
