"""Functions of single numbers that kernels of decoding and of training share."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def softplus(x):
    y = tl.exp(-tl.abs(x))
    z = 1.0 + y
    exact = tl.where(z == 1.0, y, tl.log(z) * (y / tl.where(z == 1.0, 1.0, z - 1.0)))  # log1p(y)
    return tl.maximum(x, 0.0) + exact
