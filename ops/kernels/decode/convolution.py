"""One token of the short convolution, from the ring of its last inputs; before a recurrence with SiLU.

A program of the kernel around it convolves the channels that it reads itself; one of those that share channels puts
the new inputs into the ring.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def past(ring, weight, bias, position, channel, mask, CHANNELS: tl.constexpr, TAPS: tl.constexpr,
         BIAS: tl.constexpr):  # fmt: skip
    """The convolution's share of the TAPS - 1 inputs before this one. No address depends on the position."""
    total = tl.zeros(channel.shape, tl.float32)
    if BIAS:
        total += tl.load(bias + channel, mask=mask, other=0.0).to(tl.float32)
    for slot in tl.static_range(TAPS):
        held = tl.load(ring + slot * CHANNELS + channel, mask=mask, other=0.0).to(tl.float32)
        back = (position + TAPS - slot) % TAPS  # 0 is the slot that the new input takes
        for tap in tl.static_range(TAPS - 1):
            factor = tl.load(weight + channel * TAPS + tap, mask=mask, other=0.0).to(tl.float32)
            total += tl.where(back == TAPS - 1 - tap, held * factor, 0.0)
    return total


@triton.jit
def convolved(before, raw, ring, weight, position, channel, mask, keep, CHANNELS: tl.constexpr,
              TAPS: tl.constexpr):  # fmt: skip
    """The convolution with the new input `raw`, which `keep` says to put into the ring."""
    tl.store(ring + (position % TAPS) * CHANNELS + channel, raw.to(ring.dtype.element_ty), mask=mask & keep)
    tap = tl.load(weight + channel * TAPS + (TAPS - 1), mask=mask, other=0.0).to(tl.float32)
    return before + tap * raw.to(tl.float32)


@triton.jit
def present(before, raw, ring, weight, position, channel, mask, keep, CHANNELS: tl.constexpr,
            TAPS: tl.constexpr):  # fmt: skip
    """SiLU of `convolved`."""
    total = convolved(before, raw, ring, weight, position, channel, mask, keep, CHANNELS, TAPS)
    return total * tl.sigmoid(total)
