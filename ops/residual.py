"""The residual stream with the norm that reads it: on CUDA one kernel each way."""

from __future__ import annotations

from functools import cache
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from nfsearch.ops.chooser import run
from nfsearch.ops.forms import Form, Inputs, draws
from nfsearch.ops.operator import RMSNorm
from nfsearch.ops.parallel import product_dtype


def add_norm(x: Tensor, added: Tensor | None, norm: RMSNorm) -> tuple[Tensor, Tensor]:
    """x + added, or x itself, and the norm of that, all [..., width].

    Where the kernel serves, the norm comes in the dtype that products with it have (autocast's, where that is on).
    """
    form = _form(x.shape[-1], norm.eps, x.dtype, None if added is None else added.dtype, product_dtype(x))
    return cast(tuple[Tensor, Tensor], run(form, x, x, added, norm.weight))


@cache
def _form(width: int, eps: float, stream: torch.dtype, adding: torch.dtype | None, dtype: torch.dtype) -> Form:
    def example(device: torch.device) -> Inputs:
        draw = draws(device)
        added = None if adding is None else draw(3, 35, width).to(adding)
        return [draw(3, 35, width).to(stream), added, draw(width)]

    def plain(x: Tensor, added: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
        x = x if added is None else x + added
        return x, F.rms_norm(x, (width,), weight.to(x.dtype), eps)

    def unsupported() -> str:
        wider = adding is not None and torch.promote_types(stream, adding) != stream
        return f"{adding} is added to {stream}" if wider else ""

    how = {"eps": eps, "dtype": dtype}
    kernel = "nfsearch.ops.kernels.training.add_norm:add_norm"
    name = f"the residual stream with its norm ({dtype})"
    return Form(name, dtype, plain, kernel, example, unsupported, (width, eps, stream, adding), how)
