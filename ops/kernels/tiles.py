"""What the chunk kernels share: chunks, tiles in memory, products of tiles."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

CHUNK = {torch.bfloat16: 64, torch.float16: 64, torch.float32: 32}  # steps; float32 needs twice the registers


@triton.jit
def load_tile(x, left, stride, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """ROWS rows of WIDTH numbers from x on, zeros where there are but `left`."""
    row = tl.arange(0, ROWS)[:, None]
    return tl.load(x + row * stride + tl.arange(0, WIDTH)[None, :], mask=row < left, other=0.0)


@triton.jit
def store_tile(x, tile, left, stride, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.arange(0, ROWS)[:, None]
    tl.store(x + row * stride + tl.arange(0, WIDTH)[None, :], tile.to(x.dtype.element_ty), mask=row < left)


@triton.jit
def product(a, b, c=None):
    """a @ b + c in float32. Of float32 tiles it is the sum of three TF32 products, exact to about 22 bits: exact
    products run outside the tensor cores, and take minutes to compile."""
    return tl.dot(a, b, c, input_precision="tf32x3")
