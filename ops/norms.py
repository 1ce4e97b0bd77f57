"""The norms of what a recurrence gives, with their output gates: on CUDA by one kernel each way."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from nfsearch.ops.fusing import kernels_serve
from nfsearch.ops.operator import wide


def norm_heads(y: Tensor, weight: Tensor, eps: float, gate: Tensor | None, dtype: torch.dtype) -> Tensor:
    """RMS norm of each head of y [..., heads, dim], times silu(gate [..., heads dim]) if given, in `dtype`.

    Computed in float32 or wider. Returns [..., heads dim].
    """
    y = F.rms_norm(y.to(wide(y.dtype)), weight.shape, weight.to(wide(y.dtype)), eps).flatten(-2)
    return (y if gate is None else y * F.silu(gate.to(y.dtype))).to(dtype)


def norm_gated(
    y: Tensor, u: Tensor, skip: Tensor, gate: Tensor, weight: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    """RMS norm of (y + skip u) silu(gate) over all heads together, in `dtype`.

    y, u [..., heads, dim]; skip [heads]; gate [..., heads dim], as the result. Computed in float32 or wider.
    """
    y = y.to(wide(y.dtype))
    y = (y + u * skip.to(y.dtype)[:, None]).flatten(-2) * F.silu(gate.to(y.dtype))
    return F.rms_norm(y, weight.shape, weight.to(y.dtype), eps).to(dtype)


def fused_norm_heads(y: Tensor, weight: Tensor, eps: float, gate: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`norm_heads` by a kernel where one serves."""
    heads, dim = y.shape[-2:]

    def example(draw: Callable[..., Tensor]) -> list[Tensor | None]:
        return [draw(2, 35, heads, dim).to(y.dtype), draw(dim), _rows_like(gate, draw)]

    def kernel(y: Tensor, weight: Tensor, gate: Tensor | None) -> Tensor:
        from nfsearch.ops.kernels.training.norms import gated_norm

        return gated_norm(y.flatten(-2), weight, gate, eps=eps, order="none" if gate is None else "after", dtype=dtype)

    def plain(y: Tensor, weight: Tensor, gate: Tensor | None) -> Tensor:
        return norm_heads(y, weight, eps, gate, wide(y.dtype))

    key = (dim, eps, y.dtype, None if gate is None else gate.stride(-2))
    if kernels_serve("the norm of heads", key, dtype, y, kernel, plain, example):
        return kernel(y, weight, gate)
    return norm_heads(y, weight, eps, gate, dtype)


def fused_norm_gated(
    y: Tensor, u: Tensor, skip: Tensor, gate: Tensor, weight: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    """`norm_gated` by a kernel where one serves."""
    heads, dim = y.shape[-2:]

    def example(draw: Callable[..., Tensor]) -> list[Tensor | None]:
        shape = (2, 35, heads, dim)
        return [
            draw(*shape).to(y.dtype), draw(*shape).to(u.dtype), draw(heads), _rows_like(gate, draw), draw(heads * dim)
        ]  # fmt: skip

    def kernel(y: Tensor, u: Tensor, skip: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
        from nfsearch.ops.kernels.training.norms import gated_norm

        whole = skip[:, None].expand(-1, dim).flatten()
        return gated_norm(y.flatten(-2), weight, gate, u.flatten(-2), whole, eps=eps, order="before", dtype=dtype)

    def plain(y: Tensor, u: Tensor, skip: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
        return norm_gated(y, u, skip, gate, weight, eps, wide(y.dtype))

    key = (heads, dim, eps, y.dtype, u.dtype, gate.stride(-2))
    if kernels_serve("the gated norm", key, dtype, y, kernel, plain, example):
        return kernel(y, u, skip, gate, weight)
    return norm_gated(y, u, skip, gate, weight, eps, dtype)


def _rows_like(gate: Tensor | None, draw: Callable[..., Tensor]) -> Tensor | None:
    """A gate [2, 35, channels] that is a slice of rows as wide as this one's."""
    return None if gate is None else draw(2, 35, gate.stride(-2)).to(gate.dtype)[..., : gate.shape[-1]]
