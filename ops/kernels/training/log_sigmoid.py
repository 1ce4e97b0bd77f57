"""log sigmoid(x) / root in float32 of x in any dtype, one pass each way: GLA's log decay, one per key and step."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from nfsearch.ops.kernels.pointwise import softplus

_VALUES = 2048  # of a program


@triton.jit(do_not_specialize=("inverse_root",))
def _forward(x, y, count, inverse_root, VALUES: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * VALUES + tl.arange(0, VALUES)
    value = tl.load(x + at, mask=at < count, other=0.0).to(tl.float32)
    tl.store(y + at, -softplus(-value) * inverse_root, mask=at < count)


@triton.jit(do_not_specialize=("inverse_root",))
def _backward(x, dy, dx, count, inverse_root, VALUES: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * VALUES + tl.arange(0, VALUES)
    value = tl.load(x + at, mask=at < count, other=0.0).to(tl.float32)
    grad = tl.load(dy + at, mask=at < count, other=0.0) * tl.sigmoid(-value) * inverse_root
    tl.store(dx + at, grad.to(dx.dtype.element_ty), mask=at < count)


class _LogSigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, root: float) -> torch.Tensor:
        ctx.root = root
        ctx.save_for_backward(x)
        y = torch.empty(x.shape, device=x.device, dtype=torch.float32)
        _forward[(triton.cdiv(x.numel(), _VALUES),)](x, y, x.numel(), 1 / root, VALUES=_VALUES)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (x,) = ctx.saved_tensors
        dx = torch.empty_like(x)
        _backward[(triton.cdiv(x.numel(), _VALUES),)](x, grad.contiguous(), dx, x.numel(), 1 / ctx.root, VALUES=_VALUES)
        return dx, None


def log_sigmoid(x: torch.Tensor, root: float) -> torch.Tensor:
    """log sigmoid(x) / root in float32, of x's shape; contiguous."""
    return _LogSigmoid.apply(x.contiguous(), root)
