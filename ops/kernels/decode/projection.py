"""The projections of a block's step: into the operator with the block's norm before it, and back with the residual
after it; and the head of a model.

One kernel each for a few sequences; for more than MAX_BATCH they are cuBLAS's, each with a kernel before it. Each
function binds one for inputs of the batch, dtype and device of x, and the module's weights as they are when it is
called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nfsearch.ops.kernels.decode import gemv, prologue
from nfsearch.ops.kernels.decode.gemv import MAX_BATCH
from nfsearch.ops.kernels.decode.weights import held


def project(linear: Any, norm: Any, x: Tensor, act: str = "none", early: bool = False) -> Callable[[Tensor], Tensor]:
    """act(norm(x) @ w.T) of x: one kernel, or cuBLAS between two. `early` as in `launch`."""
    weight, scale, eps = held(linear), held(norm), norm.eps
    rows, columns = linear.weight.shape
    if len(x) <= MAX_BATCH:
        launch = gemv.bind(x, linear.weight, mode="rms", group=columns, eps=eps, act=act, early=early)
        return lambda x: launch(x, weight(), scale())
    before = prologue.bind(x, columns, group=columns, eps=eps)
    if act == "none":
        return lambda x: F.linear(before(x, scale()), weight())
    after = prologue.bind(x, rows // 2 if act == "swiglu" else rows, x_stride=rows, act=act)
    return lambda x: after(F.linear(before(x, scale()), weight()))


def project_back(
    linear: Any, x: Tensor, norm: Any = None, mode: str = "none", gate_stride: int = 0, groups: int = 1
) -> Callable[..., Tensor]:
    """x + norm(y, gate) @ w.T, a function of y, x and the gate; `norm` is the operator's output norm (a module with
    weight and eps, the weight of so many groups that are normalised each by itself) or None, the gate a slice of rows
    of `gate_stride` values."""
    weight, columns = held(linear), linear.weight.shape[1]
    few = len(x) <= MAX_BATCH
    if norm is None:
        if not few:
            return lambda y, x, gate=None: torch.addmm(x, y, weight().T)
        launch = gemv.bind(x, linear.weight, residual=True)
        return lambda y, x, gate=None: launch(y, weight(), None, None, x)
    scale, eps, group = held(norm), norm.eps, len(norm.weight) // groups
    if few and (mode == "rms" or power_of_two(group)):
        launch = gemv.bind(
            x, linear.weight, mode=mode, group=group, groups=groups, gate_stride=gate_stride, eps=eps, residual=True
        )  # fmt: skip
        return lambda y, x, gate=None: launch(y, weight(), scale(), gate, x)
    before = prologue.bind(x, columns, group=group, groups=groups, gate_stride=gate_stride, eps=eps)
    if not few:
        return lambda y, x, gate=None: torch.addmm(x, before(y, scale(), gate), weight().T)
    launch = gemv.bind(x, linear.weight, residual=True)
    return lambda y, x, gate=None: launch(before(y, scale(), gate), weight(), None, None, x)


def power_of_two(size: int) -> bool:
    return size & (size - 1) == 0


def bind_head(norm: Any, embedding: Any, unit_rows: bool, x: Tensor) -> Callable[[Tensor], Tensor]:
    """Logits [batch, vocab] in float32 of the last block's x; `unit_rows` divides each by the length of its row."""
    weight, scale, columns = held(embedding), held(norm), x.shape[1]
    if len(x) <= MAX_BATCH:
        launch = gemv.bind(
            x, weight(), mode="rms", group=columns, eps=norm.eps, unit_rows=unit_rows, dtype=torch.float32,
            config=_head_tiling(*weight().shape),
        )  # fmt: skip
        return lambda x: launch(x, weight(), scale())
    before = prologue.bind(x, columns, group=columns, eps=norm.eps)

    def many(x: Tensor) -> Tensor:
        w = weight()
        logits = F.linear(before(x, scale()), w)
        return logits / torch.linalg.vector_norm(w, dim=1, dtype=torch.float32) if unit_rows else logits.float()

    return many


def _head_tiling(rows: int, columns: int) -> tuple[int, int] | None:
    """(ROWS, warps) of a narrow head, whose many rows want single warps that ask for 10 kB each: on an H200 at 4 TB/s,
    as measured with 16384 to 131072 rows of 256 to 1792 columns. None: as other projections."""
    return (1 << ((5120 // columns).bit_length() - 1), 1) if rows >= 16384 and columns < 2048 else None


def odd_size(*sizes: int, norm: int = 8) -> str:
    """Why the kernels cannot read rows of these sizes, or an output norm over this many, or nothing."""
    for size in sizes:
        if size % 8:
            return f"{size} values are not a multiple of 8"
    return f"the output norm's {norm} values are not a multiple of 8" if norm % 8 else ""
