"""The norms of what a recurrence gives, with their output gates: on CUDA by one kernel each way."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from nfsearch.ops.chooser import run
from nfsearch.ops.forms import Form, Inputs, draws
from nfsearch.ops.operator import wide


def norm_heads(y: Tensor, weight: Tensor, eps: float, gate: Tensor | None, dtype: torch.dtype) -> Tensor:
    """RMS norm of each head of y [..., heads, dim], times silu(gate [..., heads dim]) if given, in `dtype`.

    Computed in float32 or wider. Returns [..., heads dim].
    """
    y = F.rms_norm(y.to(wide(y.dtype)), weight.shape, weight.to(wide(y.dtype)), eps).flatten(-2)
    return (y if gate is None else y * F.silu(gate.to(y.dtype))).to(dtype)


def norm_gated(
    y: Tensor, u: Tensor, skip: Tensor, gate: Tensor, weight: Tensor, eps: float, dtype: torch.dtype, groups: int = 1
) -> Tensor:
    """RMS norm of (y + skip u) silu(gate) over all heads of each of the `groups` together, in `dtype`.

    y, u [..., heads, dim]; skip [heads]; gate [..., heads dim], as the result. Computed in float32 or wider.
    """
    y = y.to(wide(y.dtype))
    y = (y + u * skip.to(y.dtype)[:, None]).flatten(-2) * F.silu(gate.to(y.dtype))
    return norm_groups(y, weight.to(y.dtype), eps, groups).to(dtype)


def norm_groups(x: Tensor, weight: Tensor, eps: float, groups: int) -> Tensor:
    """RMS norm of each of so many equal parts of x [..., channels] by itself, times weight [channels]."""
    if groups == 1:
        return F.rms_norm(x, weight.shape, weight, eps)
    parts = x.unflatten(-1, (groups, -1))
    return F.rms_norm(parts, parts.shape[-1:], eps=eps).flatten(-2) * weight


def fused_norm_heads(y: Tensor, weight: Tensor, eps: float, gate: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`norm_heads` by a kernel where one serves."""
    rows = None if gate is None else (gate.stride(-2), gate.shape[-1], gate.dtype)
    form = _heads_form(*y.shape[-2:], eps, y.dtype, dtype, rows)
    return cast(Tensor, run(form, y, y, weight, gate).to(dtype))


def fused_norm_gated(
    y: Tensor, u: Tensor, skip: Tensor, gate: Tensor, weight: Tensor, eps: float, dtype: torch.dtype, groups: int = 1
) -> Tensor:
    """`norm_gated` by a kernel where one serves."""
    rows = gate.stride(-2), gate.shape[-1], gate.dtype
    form = _gated_form(*y.shape[-2:], groups, eps, y.dtype, u.dtype, dtype, rows)
    return cast(Tensor, run(form, y, y, u, skip, gate, weight).to(dtype))


# --- the records -----------------------------------------------------------------------------------------------------

Rows = tuple[int, int, torch.dtype]  # how wide the rows are that a gate is a slice of, its own width, its dtype


@cache
def _heads_form(heads: int, dim: int, eps: float, given: torch.dtype, dtype: torch.dtype, rows: Rows | None) -> Form:
    def example(device: torch.device) -> Inputs:
        draw = draws(device)
        return [draw(2, 35, heads, dim).to(given), draw(dim), _gate(rows, draw)]

    def kernel(y: Tensor, weight: Tensor, gate: Tensor | None) -> Tensor:
        from nfsearch.ops.kernels.training.norms import gated_norm

        return gated_norm(y.flatten(-2), weight, gate, eps=eps, order="none" if gate is None else "after", dtype=dtype)

    def plain(y: Tensor, weight: Tensor, gate: Tensor | None) -> Tensor:
        return norm_heads(y, weight, eps, gate, wide(y.dtype))

    key = (dim, eps, given, None if rows is None else rows[0])
    return Form(f"the norm of heads ({dtype})", dtype, plain, kernel, example, key=key)


@cache
def _gated_form(
    heads: int,
    dim: int,
    groups: int,
    eps: float,
    given: torch.dtype,
    skipping: torch.dtype,
    dtype: torch.dtype,
    rows: Rows,
) -> Form:
    def example(device: torch.device) -> Inputs:
        draw, shape = draws(device), (2, 35, heads, dim)
        return [
            draw(*shape).to(given), draw(*shape).to(skipping), draw(heads), _gate(rows, draw), draw(heads * dim)
        ]  # fmt: skip

    def kernel(y: Tensor, u: Tensor, skip: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
        from nfsearch.ops.kernels.training.norms import gated_norm

        y, u, whole = y.flatten(-2), u.flatten(-2), skip[:, None].expand(-1, dim).flatten()
        return gated_norm(y, weight, gate, u, whole, groups=groups, eps=eps, order="before", dtype=dtype)

    def plain(y: Tensor, u: Tensor, skip: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
        return norm_gated(y, u, skip, gate, weight, eps, wide(y.dtype), groups)

    key = (heads, dim, groups, eps, given, skipping, rows[0])
    return Form(f"the gated norm ({dtype})", dtype, plain, kernel, example, key=key)


def _gate(rows: Rows | None, draw: Callable[..., Tensor]) -> Tensor | None:
    """A gate [2, 35, channels] that is a slice of such rows."""
    return None if rows is None else draw(2, 35, rows[0]).to(rows[2])[..., : rows[1]]
