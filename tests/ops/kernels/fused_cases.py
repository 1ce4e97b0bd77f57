"""Cases of the kernels that fuse what lies between products: a kernel, its plain form, and inputs for both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nfsearch.ops import ffn, residual, rotary
from nfsearch.ops.forms import Form
from nfsearch.ops.kernels.training.rotary import turn
from nfsearch.ops.rotary import Heads

Draw = Callable[..., Tensor]  # shape, dtype
Case = tuple[Callable[..., Any], Callable[..., Any], list[Tensor | None]]


def stream(
    width: int, kind: torch.dtype, adding: torch.dtype | None, dtype: torch.dtype
) -> Callable[[Draw, int, int], Case]:
    """x [batch, time, width], what is added to it, and the norm's weight."""

    def make(draw: Draw, batch: int, time: int) -> Case:
        added = None if adding is None else draw(batch, time, width, dtype=adding)
        inputs = [draw(batch, time, width, dtype=kind), added, draw(width)]
        return *_both(residual._form(width, 1e-5, kind, adding, dtype)), inputs

    return make


def activation(act: str, inner: int, dtype: torch.dtype) -> Callable[[Draw, int, int], Case]:
    """Rows of the FFN's first product [batch, time, gate|up]."""

    def make(draw: Draw, batch: int, time: int) -> Case:
        packed = inner * (2 if act == "swiglu" else 1)
        kernel, plain = _both(ffn._form(act, inner, dtype))
        return lambda hidden: [kernel(hidden)], lambda hidden: [plain(hidden)], [draw(batch, time, packed, dtype=dtype)]

    return make


def turned(
    queries: int, keys: int, rest: int, dim: int, turning: int, dtype: torch.dtype
) -> Callable[[Draw, int, int], Case]:
    """Rows of attention's projection [batch, time, q|k|rest], rest being so many values."""

    heads = Heads(queries, keys, dim, turning, 1e4)

    def kernel(rows: Tensor) -> list[Tensor]:
        return [z for z in turn(rows, positions(rows), *heads) if z.numel()]

    def plain(rows: Tensor) -> list[Tensor]:
        return [z for z in rotary._turned(rows, positions(rows), heads) if z.numel()]

    def make(draw: Draw, batch: int, time: int) -> Case:
        return kernel, plain, [draw(batch, time, (queries + keys) * dim + rest, dtype=dtype)]

    return make


def positions(rows: Tensor) -> Tensor:
    return torch.arange(5, 5 + rows.shape[1], device=rows.device)


def _both(form: Form) -> tuple[Callable[..., Any], Callable[..., Any]]:
    return form.run_kernel, form.plain
