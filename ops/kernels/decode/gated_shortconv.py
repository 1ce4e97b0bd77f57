"""The step of the gated short convolution: channel by channel, from the ring of its last inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from nfsearch.ops.forms import FusedStep, State, Step
from nfsearch.ops.kernels.decode.convolution import convolved, past
from nfsearch.ops.kernels.decode.projection import odd_size, project, project_back
from nfsearch.ops.kernels.decode.weights import held
from nfsearch.ops.kernels.launch import begin, dependent, follow

_BLOCK = 128  # channels of a program


@triton.jit
def _token(proj, conv_w, ring, y, position_at, AT_B: tl.constexpr, AT_C: tl.constexpr, AT_U: tl.constexpr,
           CHANNELS: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
           PDL: tl.constexpr):  # fmt: skip
    """c * conv(b * u)."""
    begin(PDL, True)
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b = tl.program_id(1)
    live = channel < CHANNELS
    proj += b.to(tl.int64) * WIDTH + channel
    ring += b.to(tl.int64) * TAPS * CHANNELS
    position = tl.load(position_at)
    before = past(ring, conv_w, conv_w, position, channel, live, CHANNELS, TAPS, False)

    follow(PDL, True)

    product = tl.load(proj + AT_B, mask=live, other=0.0).to(tl.float32)
    product *= tl.load(proj + AT_U, mask=live, other=0.0).to(tl.float32)
    product = product.to(ring.dtype.element_ty)  # as it will be read again
    total = convolved(before, product, ring, conv_w, position, channel, live, True, CHANNELS, TAPS)
    o = total * tl.load(proj + AT_C, mask=live, other=0.0).to(tl.float32)
    tl.store(y + b * CHANNELS + channel, o.to(y.dtype.element_ty), mask=live)


def bind_token(op: Any, like: Tensor, state: State) -> Callable[[Tensor, State, Tensor], Tensor]:
    """What `out_proj` reads, [batch, width], for rows of `in_proj` of the batch, dtype and device of `like`."""
    batch, taps, channels = state["conv"].shape
    rows, shape, device, dtype = op.layout, (batch, channels), like.device, like.dtype
    weight = held(op, "conv")
    kernel = _token[(triton.cdiv(channels, _BLOCK), batch)]
    constants = dict(
        AT_B=rows.start("b"), AT_C=rows.start("c"), AT_U=rows.start("u"), CHANNELS=channels, TAPS=taps, BLOCK=_BLOCK,
        WIDTH=rows.total, num_warps=1, **dependent(like),
    )  # fmt: skip

    def launch(rows: Tensor, state: State, position: Tensor) -> Tensor:
        y = torch.empty(shape, device=device, dtype=dtype)
        kernel(rows, weight(), state["conv"], y, position, **constants)
        return y

    return launch


def bind(op: Any, norm: Any, x: Tensor, state: State) -> Step:
    """See `FusedStep`."""
    into, token, out = project(op.in_proj, norm, x), bind_token(op, x, state), project_back(op.out_proj, x)
    return lambda x, state, position: out(token(into(x), state, position), x)


def unsupported(op: Any, dtype: torch.dtype) -> str:
    """Why the kernels cannot serve, or nothing."""
    return odd_size(op.width)


FUSED = FusedStep(bind, unsupported)
