"""The short causal depthwise convolution before a recurrence.

y_t[c] = bias[c] + sum over j of weight[c, j] x_{t - taps + 1 + j}[c], with x = 0 before the start.

Its state is a ring [batch, taps, channels]: slot p % taps holds the input at position p, so that a step writes one slot
and moves nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
        slots = torch.arange(position - taps + 1, position + time, device=x.device) % taps
        padded = torch.cat((ring[:, slots[: taps - 1]].to(x.dtype), x), dim=1)
        ring.index_copy_(1, slots[taps - 1 :][-taps:], x[:, -taps:].detach().to(ring.dtype))
    rows = weight.to(x.dtype).unbind(1)
    y = padded[:, :time] * rows[0]
    for j in range(1, taps):
        y = y + padded[:, j : j + time] * rows[j]
    return y if bias is None else y + bias.to(x.dtype)


def causal_conv_step(x: Tensor, weight: Tensor, bias: Tensor | None, ring: Tensor, position: Tensor) -> Tensor:
    """x [batch, channels] at `position` (int64 []) to the same; writes its slot of the ring."""
    taps = weight.shape[1]
    ring.index_copy_(1, position[None] % taps, x[:, None].to(ring.dtype))
    age = (position - torch.arange(taps, device=x.device)) % taps  # of the input in each slot
    y = (ring.to(x.dtype) * weight.to(x.dtype)[:, taps - 1 - age].mT).sum(1)
    return y if bias is None else y + bias.to(x.dtype)


def causal_conv_recurrence(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The definition, term by term: x [batch, time, channels] to the same."""
    outputs = []
    for t in range(x.shape[1]):
        y = torch.zeros_like(x[:, t]) if bias is None else bias.expand_as(x[:, t])
        for back in range(min(t + 1, weight.shape[1])):
            y = y + weight[:, -1 - back] * x[:, t - back]
        outputs.append(y)
    return torch.stack(outputs, dim=1)
