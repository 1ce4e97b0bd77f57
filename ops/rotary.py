"""Rotary embedding of queries and keys: on CUDA one kernel each way, on the packed rows of attention's projection."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from nfsearch.ops.chooser import choose
from nfsearch.ops.forms import Form, draws
from nfsearch.ops.operator import wide


class Heads(NamedTuple):
    """Of the rows of a projection, q|k and what else there is: how many of q and of k, their size, how many values of
    each turn, and the base of the angles."""

    queries: int
    keys: int
    dim: int
    turned: int
    base: float


def turn(rows: Tensor, positions: Tensor, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    """q, k [batch, time, heads, dim], both turned, and the rest of rows [batch, time, q|k|rest]; positions [time]."""
    if not heads.turned or choose(_form(heads, rows.dtype), rows).runs == "torch":
        return _turned(rows, positions, heads)
    from nfsearch.ops.kernels.training.rotary import turn as by_kernel

    return by_kernel(rows, positions, *heads)


def rotate(x: Tensor, positions: Tensor, base: float, turned: int | None = None) -> Tensor:
    """Rotary embedding of the first `turned` of dim values, or of all. x [batch, time, heads, dim], positions [time]:
    pairs (i, i + turned/2) turn by position * base^(-2i/turned). Angles are computed in float32 or wider."""
    turned = x.shape[-1] if turned is None else turned
    if not turned:
        return x
    half = turned // 2
    kind = wide(x.dtype)
    exponent = torch.arange(half, device=x.device, dtype=kind) / half
    angle = positions.to(kind)[:, None, None] * torch.pow(base, -exponent)  # [time, 1, half]
    cos, sin = angle.cos(), angle.sin()
    a, b, rest = x.split((half, half, x.shape[-1] - turned), dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1).to(x.dtype)


def _turned(rows: Tensor, positions: Tensor, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    """`turn` in PyTorch."""
    size = (heads.queries + heads.keys) * heads.dim
    qk, rest = rows.split((size, rows.shape[-1] - size), dim=-1)
    qk = rotate(qk.unflatten(-1, (-1, heads.dim)), positions, heads.base, heads.turned)
    return *qk.split((heads.queries, heads.keys), dim=2), rest


@cache
def _form(heads: Heads, dtype: torch.dtype) -> Form:
    size = (heads.queries + 2 * heads.keys) * heads.dim  # with values after them

    def positions(rows: Tensor) -> Tensor:
        return torch.arange(5, 5 + rows.shape[1], device=rows.device)

    def kernel(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        from nfsearch.ops.kernels.training.rotary import turn as by_kernel

        return by_kernel(rows, positions(rows), *heads)

    return Form(
        f"the rotary embedding ({dtype})",
        dtype,
        lambda rows: _turned(rows, positions(rows), heads),
        kernel,
        lambda device: [draws(device)(2, 35, size).to(dtype)],
        key=heads,
    )
