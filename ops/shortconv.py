"""The short causal depthwise convolution before a recurrence.

y_t[c] = bias[c] + sum over j of weight[c, j] x_{t - taps + 1 + j}[c], with x = 0 before the start.

Its state is a ring [batch, taps, channels]: slot p % taps holds the input at position p, so that a step writes one slot
and moves nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfsearch.ops.fusing import kernels_serve
from nfsearch.ops.operator import wide

_TAPS = range(2, 9)  # that the kernels take


class Parts(NamedTuple):
    """What the convolved channels are: three parts, one after the other, in groups (heads)."""

    sizes: tuple[int, int, int]
    group: int
    scale: float | None = None  # if given, the groups of the first two parts have length one, those of the first this


def conv_weight(channels: int, taps: int) -> nn.Parameter:
    """A weight [channels, taps], uniform in +-1/sqrt(taps), as `nn.Conv1d` draws it."""
    return nn.Parameter(torch.empty(channels, taps).uniform_(-(taps**-0.5), taps**-0.5))


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, ring: Tensor | None = None, position: int = 0
) -> Tensor:
    """x [batch, time, channels] to the same; with a ring, continues after `position` inputs and writes the new ones."""
    time, taps = x.shape[1], weight.shape[1]
    if ring is None:
        padded = F.pad(x, (0, 0, taps - 1, 0))
    else:
        padded = torch.cat((_continue(ring, x, position).to(x.dtype), x), dim=1)
    rows = weight.to(x.dtype).unbind(1)
    y = padded[:, :time] * rows[0]
    for j in range(1, taps):
        y = y + padded[:, j : j + time] * rows[j]
    return y if bias is None else y + bias.to(x.dtype)


def _continue(ring: Tensor, x: Tensor, position: int) -> Tensor:
    """The inputs before x [batch, taps - 1, channels]; puts the new ones into the ring."""
    taps = ring.shape[1]
    slots = torch.arange(position - taps + 1, position + x.shape[1], device=x.device) % taps
    past = ring[:, slots[: taps - 1]]
    ring.index_copy_(1, slots[taps - 1 :][-taps:], x[:, -taps:].detach().to(ring.dtype))
    return past


def causal_conv_step(x: Tensor, weight: Tensor, bias: Tensor | None, ring: Tensor, position: Tensor) -> Tensor:
    """x [batch, channels] at `position` (int64 []) to the same; writes its slot of the ring."""
    taps = weight.shape[1]
    ring.index_copy_(1, position[None] % taps, x[:, None].to(ring.dtype))
    age = (position - torch.arange(taps, device=x.device)) % taps  # of the input in each slot
    y = (ring.to(x.dtype) * weight.to(x.dtype)[:, taps - 1 - age].mT).sum(1)
    return y if bias is None else y + bias.to(x.dtype)


def l2_normalise(x: Tensor) -> Tensor:
    """x / sqrt(|x|^2 + 1e-6) over the last axis."""
    return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()


def activate(y: Tensor, parts: Parts, gain: Tensor | None = None) -> tuple[Tensor, ...]:
    """silu of the convolved y [..., channels], cut into `parts`, in float32 or wider.

    With a gain [..., groups of the first part] there is a fourth result: the first part, each group times its gain.
    """
    results = list(F.silu(y.to(wide(y.dtype))).split(parts.sizes, dim=-1))
    if parts.scale is not None:
        first, second = (l2_normalise(z.unflatten(-1, (-1, parts.group))).flatten(-2) for z in results[:2])
        results[:2] = first * parts.scale, second
    if gain is not None:
        results.append((results[0].unflatten(-1, (-1, parts.group)) * gain[..., None]).flatten(-2))
    return tuple(results)


def causal_conv_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    ring: Tensor | None = None,
    position: int = 0,
    *,
    parts: Parts,
    gain: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """`activate` of `causal_conv`. On CUDA by one kernel, whose results have x's dtype."""
    if not _kernel_serves(x, weight, bias, parts, gain):
        return activate(causal_conv(x, weight, bias, ring, position), parts, gain)
    from nfsearch.ops.kernels.training.shortconv import conv_silu

    past = None if ring is None else _continue(ring, x, position)
    return conv_silu(x, weight, bias, past, gain, **parts._asdict())


def _kernel_serves(x: Tensor, weight: Tensor, bias: Tensor | None, parts: Parts, gain: Tensor | None) -> bool:
    channels, taps = weight.shape
    if taps not in _TAPS or x.stride(2) != 1:
        return False

    def example(draw: Callable[..., Tensor]) -> list[Tensor | None]:
        given = draw(2, 70, x.stride(1)).to(x.dtype)[..., :channels]
        gains = None if gain is None else draw(2, 70, gain.shape[-1])
        return [given, draw(channels, taps), None if bias is None else draw(channels), gains]

    def kernel(x: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor | None) -> tuple[Tensor, ...]:
        from nfsearch.ops.kernels.training.shortconv import conv_silu

        return conv_silu(x, weight, bias, None, gain, **parts._asdict())

    def plain(x: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor | None) -> tuple[Tensor, ...]:
        return activate(causal_conv(x, weight, bias), parts, gain)

    return kernels_serve(
        "the short convolution",
        (parts, taps, x.stride(1), bias is None, gain is None),
        x.dtype,
        x,
        kernel,
        plain,
        example,
    )


def causal_conv_recurrence(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The definition, term by term: x [batch, time, channels] to the same."""
    outputs = []
    for t in range(x.shape[1]):
        y = torch.zeros_like(x[:, t]) if bias is None else bias.expand_as(x[:, t])
        for back in range(min(t + 1, weight.shape[1])):
            y = y + weight[:, -1 - back] * x[:, t - back]
        outputs.append(y)
    return torch.stack(outputs, dim=1)
