"""Short causal depthwise convolution, SiLU and the scaling of heads to length one in one pass, forward and backward; or
the convolution alone.

The input is a slice of the in-projection's output, read where it lies. Its channels are three parts (q|k|v, or Mamba2's
x|B|C), each written to a tensor of its own, so that neither direction cuts or joins anything.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
from torch.autograd.function import once_differentiable

from nfsearch.ops.kernels.training import shortconv_kernels as kernels

FORWARD_VALUES, BACKWARD_VALUES = 1024, 512  # of a step in a program: eight and four a thread
_GROUP = 64  # channels of a program where no head says how many


class _Shape(NamedTuple):
    """How a call is cut into programs."""

    sizes: tuple[int, int, int]  # channels of each part
    group: int  # channels of a program
    lanes: int  # a power of two that holds them
    groups: int  # of all parts
    rows: int
    steps: int
    warps: int
    unit: int  # divides all distances between rows
    programs: int  # of each group


def _shape(x: torch.Tensor, sizes: tuple[int, int, int], group: int, values: int) -> _Shape:
    """`values` of a step side by side in a program, if the group is not larger."""
    batch, time, _ = x.shape
    lanes = triton.next_power_of_2(group)
    rows = max(1, values // lanes)
    groups = sum(triton.cdiv(size, group) for size in sizes)
    steps = 32
    while steps > 8 and groups * batch * triton.cdiv(time, rows * steps) < 1024:  # too few to fill a large GPU
        steps //= 2
    unit = math.gcd(8, *x.stride()[:2], *sizes)
    warps, programs = max(4, lanes // 256), batch * triton.cdiv(time, rows * steps)
    return _Shape(sizes, group, lanes, groups, rows, steps, warps, unit, programs)


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        past: torch.Tensor | None,
        gain: torch.Tensor | None,
        sizes: tuple[int, int, int],
        group: int,
        scale: float | None,
        silu: bool,
    ) -> tuple[torch.Tensor, ...]:
        ctx.how = (sizes, group, scale, silu)
        ctx.save_for_backward(x, weight, bias, past, gain)
        batch, time, _ = x.shape
        parts = [*sizes, sizes[0]] if gain is not None else sizes
        ys = [torch.empty(batch, time, size, device=x.device, dtype=x.dtype) for size in parts]
        shape = _shape(x, sizes, group, FORWARD_VALUES)
        _launch(kernels.forward, shape, (x, past, weight, bias, gain), (*ys, *ys[:1])[:4], scale, silu)
        return tuple(ys)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        sizes, group, scale, silu = ctx.how
        x, weight, bias, past, gain = ctx.saved_tensors
        channels, taps = weight.shape
        dys = [grad.contiguous() for grad in grads]
        shape = _shape(x, sizes, group, BACKWARD_VALUES)
        dx = torch.empty(x.shape, device=x.device, dtype=x.dtype)
        dgain = None if gain is None else torch.empty_like(gain)
        partial = torch.empty(shape.programs, taps + 1, channels, device=x.device, dtype=torch.float32)
        outputs = (*(*dys, *dys[:1])[:4], dx, dx if dgain is None else dgain, partial)
        _launch(kernels.backward, shape, (x, past, weight, bias, gain), outputs, scale, silu)
        total = partial[:, : taps if bias is None else taps + 1].sum(0)
        dw = total[:taps].mT.to(weight.dtype).contiguous()
        db = None if bias is None else total[taps].to(bias.dtype)
        return dx, dw, db, None, dgain, None, None, None, None


def _launch(
    kernel: Any,
    shape: _Shape,
    inputs: tuple[torch.Tensor | None, ...],
    outputs: tuple[torch.Tensor, ...],
    scale: float | None,
    silu: bool,
) -> None:
    x, past, weight, bias, gain = inputs
    assert x is not None
    assert weight is not None
    given = [x if tensor is None else tensor for tensor in inputs]
    group, lanes, unit = shape.group, shape.lanes, shape.unit
    kernel[(shape.groups * shape.programs,)](
        *given, *outputs, x.shape[1], shape.steps, x.stride(0) // unit, x.stride(1) // unit,
        *(size // unit for size in shape.sizes), scale or 1.0, GROUP=group, LANES=lanes, ROWS=shape.rows,
        TAPS=weight.shape[1], UNIT=unit, UNROLL=4, RAGGED=lanes != group or any(n % group for n in shape.sizes),
        BIAS=bias is not None, PAST=past is not None, SILU=silu, NORMED=0 if scale is None else 2,
        GAIN=gain is not None, num_warps=shape.warps,
    )  # fmt: skip


def conv_silu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    past: torch.Tensor | None,
    gain: torch.Tensor | None,
    *,
    sizes: tuple[int, int, int],
    group: int,
    scale: float | None = None,
) -> tuple[torch.Tensor, ...]:
    """silu(causal convolution of x [batch, time, channels]), its channels cut into three parts of `sizes`.

    weight [channels, taps] with 2 to 8 taps; bias [channels]; past [batch, taps - 1, channels] are the inputs
    before x, zero if not given. With a scale, each group of `group` channels of the first two parts is brought to
    length one, of the first then to `scale`. With a gain [batch, time, groups of the first part] there is a fourth
    result: the first part, each group times its gain. All results are contiguous and of x's dtype; sums run in float32.
    """
    assert x.stride(2) == 1
    return _Conv.apply(x, weight.contiguous(), bias, past, gain, sizes, group, scale, True)


def conv(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, past: torch.Tensor | None) -> torch.Tensor:
    """The causal convolution of x [batch, time, channels] alone; weight, bias and past as of `conv_silu`."""
    assert x.stride(2) == 1
    sizes = (x.shape[2], 0, 0)  # one part, which no heads cut
    return _Conv.apply(x, weight.contiguous(), bias, past, None, sizes, _GROUP, None, False)[0]
