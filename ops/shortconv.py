"""The short causal depthwise convolution, before a recurrence or alone.

y_t[c] = bias[c] + sum over j of weight[c, j] x_{t - taps + 1 + j}[c], with x = 0 before the start.

Its state is a ring [batch, taps, channels]: slot p % taps holds the input at position p, so that a step writes one slot
and moves nothing.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfsearch.ops.chooser import run
from nfsearch.ops.forms import Form, Inputs, draws
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


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, past: Tensor | None = None) -> Tensor:
    """x [batch, time, channels] to the same, after the inputs `past` [batch, taps - 1, channels] or none."""
    time, taps = x.shape[1], weight.shape[1]
    padded = F.pad(x, (0, 0, taps - 1, 0)) if past is None else torch.cat((past.to(x.dtype), x), dim=1)
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
    """`activate` of `causal_conv`; with a ring, after the `position` inputs before, and writes the new ones into it.

    On CUDA by one kernel, whose results have x's dtype.
    """
    past = None if ring is None else _continue(ring, x, position)
    channels, taps = weight.shape
    form = _form(parts, channels, taps, x.dtype, x.stride()[1:], bias is None, None if gain is None else gain.shape[-1])
    return tuple(run(form, x, x, weight, bias, past, gain))


def fused_causal_conv(x: Tensor, weight: Tensor, ring: Tensor | None = None, position: int = 0) -> Tensor:
    """`causal_conv`; with a ring, after the `position` inputs before, and writes the new ones into it. On CUDA by one
    kernel, where it serves."""
    past = None if ring is None else _continue(ring, x, position)
    return cast(Tensor, run(_plain_form(*weight.shape, x.dtype, x.stride()[1:]), x, x, weight, None, past))


@cache
def _plain_form(channels: int, taps: int, dtype: torch.dtype, strides: tuple[int, int]) -> Form:
    """Arguments as of `_form`."""

    def example(device: torch.device) -> Inputs:
        draw = draws(device)
        return [draw(2, 70, strides[0]).to(dtype)[..., :channels], draw(channels, taps), None, None]

    return Form(
        f"the short convolution alone ({dtype})",
        dtype,
        causal_conv,
        "nfsearch.ops.kernels.training.shortconv:conv",
        example,
        lambda: _unsupported(taps, strides),
        (channels, taps, strides),
    )


def _unsupported(taps: int, strides: tuple[int, int]) -> str:
    """Why the kernels cannot convolve such channels, or nothing."""
    if taps not in _TAPS:
        return f"they take {_TAPS.start} to {_TAPS.stop - 1} taps, not {taps}"
    return "" if strides[1] == 1 else "the channels do not lie side by side"


@cache
def _form(
    parts: Parts, channels: int, taps: int, dtype: torch.dtype, strides: tuple[int, int], bare: bool, gains: int | None
) -> Form:
    """`strides` of x over time and channels, whose rows may be slices of wider ones; `bare`: without a bias; how many
    gains there are, if any."""

    def example(device: torch.device) -> Inputs:
        draw = draws(device)
        given = draw(2, 70, strides[0]).to(dtype)[..., :channels]
        gain = None if gains is None else draw(2, 70, gains)
        return [given, draw(channels, taps), None if bare else draw(channels), None, gain]

    def plain(
        x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor | None, gain: Tensor | None
    ) -> tuple[Tensor, ...]:
        return activate(causal_conv(x, weight, bias, past), parts, gain)

    return Form(
        f"the short convolution ({dtype})",
        dtype,
        plain,
        "nfsearch.ops.kernels.training.shortconv:conv_silu",
        example,
        lambda: _unsupported(taps, strides),
        (parts, taps, strides, bare, gains is None),
        parts._asdict(),
    )


def causal_conv_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The definition, term by term: x [batch, time, channels] to the same."""
    outputs = []
    for t in range(x.shape[1]):
        y = torch.zeros_like(x[:, t]) if bias is None else bias.expand_as(x[:, t])
        for back in range(min(t + 1, weight.shape[1])):
            y = y + weight[:, -1 - back] * x[:, t - back]
        outputs.append(y)
    return torch.stack(outputs, dim=1)
