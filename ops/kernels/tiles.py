"""What the chunk kernels share: chunks, tiles in memory, products of tiles."""

from __future__ import annotations

from typing import Any

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


def refusal(
    key: int, value: int, dtype: torch.dtype, smallest: int, largest: dict[torch.dtype, tuple[int, int]]
) -> str:
    """Why kernels cannot serve heads of these sizes in this dtype, or nothing: they take powers of two."""
    if dtype not in largest:
        return f"the kernels take bfloat16, float16 and float32, not {dtype}"
    for name, size, most in zip(("key", "value"), (key, value), largest[dtype], strict=True):
        if size < smallest or size > most or size & (size - 1):
            return f"in {dtype} the kernels take {name} sizes {smallest}, {2 * smallest}, ... {most}, not {size}"
    return ""


def walk(
    kernel: Any, x: torch.Tensor, y: torch.Tensor, total: torch.Tensor, initial: torch.Tensor | None, reverse: bool,
    stages: int,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """What a `_states` kernel gives of x [batch, time, (heads,) key] and y [batch, time, heads, value]: the states
    [batch, chunks, heads, key, value] in the dtype of y, and the last in float32."""
    (batch, time, heads, value), key, chunk = y.shape, x.shape[-1], CHUNK[y.dtype]
    count = triton.cdiv(time, chunk)
    states = torch.empty(batch, count, heads, key, value, device=y.device, dtype=y.dtype)
    last = torch.empty(batch, heads, key, value, device=y.device, dtype=torch.float32)
    keys, values = min(key, 64), min(value, 64)
    kernel[(batch * heads, key // keys, value // values)](
        x, y, total, last if initial is None else initial, states, last, time, count, heads, KEY=key, VALUE=value,
        CHUNK=chunk, KEYS=keys, VALUES=values, INITIAL=initial is not None, REVERSE=reverse, num_warps=4,
        num_stages=stages,
    )  # fmt: skip
    return states, last
