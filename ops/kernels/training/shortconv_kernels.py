"""The kernels of the short convolution's training form, forward and backward.

A program owns one group of channels (a head) and ROWS stretches of `steps` steps. It walks through its stretches side
by side with the last inputs in registers, so that each value is loaded once, but for the few where stretches meet.
"""

# Tuples grow while Triton unrolls loops, and have no star there.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment, var-annotated"

from __future__ import annotations

import triton
import triton.language as tl

# Sizes that differ between batches and models: no kernel is compiled for their values.
_SIZES = ("time", "steps", "x_batch", "x_row", "n0", "n1", "n2", "scale")


@triton.jit
def _program(time, steps, n0, n1, n2, UNIT: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr):
    """This program's part (0, 1, 2), the part's first channel and size, its own first channel within the part, the
    sequence, and the first step of each stretch [ROWS]; last, which of the programs of a group it is."""
    program = tl.program_id(0)
    blocks0 = tl.cdiv(n0 * UNIT, GROUP)
    blocks1 = tl.cdiv(n1 * UNIT, GROUP)
    blocks = blocks0 + blocks1 + tl.cdiv(n2 * UNIT, GROUP)
    block = program % blocks
    place = program // blocks
    part = (block >= blocks0).to(tl.int32) + (block >= blocks0 + blocks1).to(tl.int32)
    first = tl.where(part == 0, 0, tl.where(part == 1, n0, n0 + n1)) * UNIT
    size = tl.where(part == 0, n0, tl.where(part == 1, n1, n2)) * UNIT
    block -= tl.where(part == 0, 0, tl.where(part == 1, blocks0, blocks0 + blocks1))
    tiles = tl.cdiv(time, ROWS * steps)
    start = (place % tiles) * ROWS * steps + tl.arange(0, ROWS) * steps
    return part, first, size, block * GROUP, place // tiles, start, place


@triton.jit
def _of_part(part, first, second, third):
    """The tensor of this part."""
    own = first
    if part == 1:
        own = second
    if part == 2:
        own = third
    return own


@triton.jit
def _load(at, t, time, inside, RAGGED: tl.constexpr):
    """A tile [ROWS, LANES]: steps t [ROWS] of the channels; zero outside of the sequence."""
    mask = ((t >= 0) & (t < time))[:, None]
    if RAGGED:
        mask = mask & inside
    return tl.load(at, mask=mask, other=0.0)


@triton.jit
def _before(x, past, t, time, row, b, channel, channels, inside, TAPS: tl.constexpr, RAGGED: tl.constexpr,
            PAST: tl.constexpr):  # fmt: skip
    """The TAPS - 1 inputs before steps t, oldest first; x points at steps t. `past` holds those before the start."""
    held = ()
    for j in tl.static_range(TAPS - 1):
        back = TAPS - 1 - j
        value = _load(x - back * row, t - back, time, inside, RAGGED).to(tl.float32)
        if PAST:
            at = past + (b * (TAPS - 1) + t + j).to(tl.int64)[:, None] * channels + channel[None, :]
            value += tl.load(at, mask=(t < back)[:, None] & inside, other=0.0).to(tl.float32)
        held = held + (value,)
    return held


@triton.jit
def _taps(weight, channel, inside, TAPS: tl.constexpr):
    """The weights of each tap, [1, LANES] each."""
    taps = ()
    for j in tl.static_range(TAPS):
        taps = taps + (tl.load(weight + channel[None, :] * TAPS + j, mask=inside, other=0.0).to(tl.float32),)
    return taps


@triton.jit
def _shift(bias, channel, inside, LANES: tl.constexpr, BIAS: tl.constexpr):
    """The bias of each channel, [1, LANES]."""
    shift = tl.zeros((1, LANES), tl.float32)
    if BIAS:
        shift = tl.load(bias + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    return shift


@triton.jit
def _convolve(held, new, taps, shift, TAPS: tl.constexpr):
    total = shift + taps[TAPS - 1] * new
    for j in tl.static_range(TAPS - 1):
        total += taps[j] * held[j]
    return total


@triton.jit(do_not_specialize=_SIZES)
def forward(x, past, weight, bias, gain, y0, y1, y2, y3, time, steps, x_batch, x_row, n0, n1, n2, scale,
            GROUP: tl.constexpr, LANES: tl.constexpr, ROWS: tl.constexpr, TAPS: tl.constexpr, UNIT: tl.constexpr,
            UNROLL: tl.constexpr, RAGGED: tl.constexpr, BIAS: tl.constexpr, PAST: tl.constexpr, SILU: tl.constexpr,
            NORMED: tl.constexpr, GAIN: tl.constexpr):  # fmt: skip
    part, first, size, offset, b, t, _ = _program(time, steps, n0, n1, n2, UNIT, GROUP, ROWS)
    lane = tl.arange(0, LANES)
    inside = ((lane < GROUP) & (offset + lane < size))[None, :]
    channel = first + offset + lane
    row = x_row * UNIT
    x += b.to(tl.int64) * (x_batch * UNIT) + t.to(tl.int64)[:, None] * row + channel[None, :]
    y = _of_part(part, y0, y1, y2)
    at = (b.to(tl.int64) * time + t)[:, None] * size + (offset + lane)[None, :]
    if GAIN:
        heads = n0 * UNIT // GROUP
        gain += (b.to(tl.int64) * time + t) * heads + offset // GROUP
    taps = _taps(weight, channel, inside, TAPS)
    shift = _shift(bias, channel, inside, LANES, BIAS)
    length = tl.where(part == 0, scale, 1.0)  # of a head after its normalisation
    held = _before(x, past, t, time, row, b, channel, (n0 + n1 + n2) * UNIT, inside, TAPS, RAGGED, PAST)
    for _done in range(0, steps, UNROLL):
        news = ()
        for i in tl.static_range(UNROLL):
            news = news + (_load(x + i * row, t + i, time, inside, RAGGED),)
        for i in tl.static_range(UNROLL):
            new = news[i].to(tl.float32)
            s = _convolve(held, new, taps, shift, TAPS)
            held = held[1:] + (new,)
            if SILU:
                s = s * tl.sigmoid(s)
            live = (t + i < time)[:, None]
            if RAGGED:
                live = live & inside
            if GAIN:
                factor = tl.load(gain + i * heads, mask=(t + i < time) & (part == 0), other=0.0).to(tl.float32)
                scaled = (s * factor[:, None]).to(y3.dtype.element_ty)
                tl.store(y3 + at + i * size, scaled, mask=live & (part == 0))
            if NORMED > 0:
                unit = tl.rsqrt(tl.sum(s * s, 1) + 1e-6) * length
                s = s * tl.where(part < NORMED, unit, 1.0)[:, None]
            tl.store(y + at + i * size, s.to(y.dtype.element_ty), mask=live)
        x += UNROLL * row
        at += UNROLL * size
        if GAIN:
            gain += UNROLL * heads
        t += UNROLL


@triton.jit
def _slope(z, dy, dy3, factor, part, length, SILU: tl.constexpr, NORMED: tl.constexpr, GAIN: tl.constexpr):
    """The gradient of the convolution's result z [ROWS, LANES], and that of the gain [ROWS]."""
    s = z
    if SILU:
        gate = tl.sigmoid(z)
        s = z * gate
    ds = dy.to(tl.float32)
    dgain = tl.zeros((z.shape[0],), tl.float32)
    if GAIN:
        added = dy3.to(tl.float32)
        dgain = tl.sum(added * s, 1)
        ds += added * factor[:, None]
    if NORMED > 0:
        inverse = tl.rsqrt(tl.sum(s * s, 1) + 1e-6)
        normed = part < NORMED
        along = tl.where(normed, tl.sum(ds * s, 1) * inverse * inverse, 0.0)
        ds = (ds - s * along[:, None]) * tl.where(normed, inverse * length, 1.0)[:, None]
    if SILU:
        ds = ds * gate * (1.0 + z - s)
    return ds, dgain


@triton.jit
def _spread(dz, counted, inputs, taps, dw, open_, TAPS: tl.constexpr):
    """dz to the TAPS inputs it came from, the oldest of which is then finished; what is `counted` to the weights."""
    weights = ()
    for j in tl.static_range(TAPS):
        weights = weights + (dw[j] + counted * inputs[j],)
    finished = open_[0] + taps[0] * dz
    moved = ()
    for j in tl.static_range(1, TAPS - 1):
        moved = moved + (open_[j] + taps[j] * dz,)
    return weights, moved + (taps[TAPS - 1] * dz,), finished


@triton.jit
def _zeros(COUNT: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr):
    """A tuple of tiles of zeros."""
    zeros = ()
    for _i in tl.static_range(COUNT):
        zeros = zeros + (tl.zeros((ROWS, LANES), tl.float32),)
    return zeros


@triton.jit
def _next(x, dy, dy3, part, t, time, row, size, inside, UNROLL: tl.constexpr, RAGGED: tl.constexpr,
          GAIN: tl.constexpr):  # fmt: skip
    """The inputs of UNROLL steps from t, and the gradients that arrive at their results and at the scaled ones."""
    news = ()
    dys = ()
    dy3s = ()
    for i in tl.static_range(UNROLL):
        news = news + (_load(x + i * row, t + i, time, inside, RAGGED),)
        dys = dys + (_load(dy + i * size, t + i, time, inside, RAGGED),)
        if GAIN:
            mine = tl.where(part == 0, t + i, -1)
            dy3s = dy3s + (_load(dy3 + i * size, mine, time, inside, RAGGED),)
        else:
            dy3s = dy3s + (0.0,)
    return news, dys, dy3s


@triton.jit
def _store_weights(partial, dw, db, channels, keep, TAPS: tl.constexpr, BIAS: tl.constexpr):
    """This program's share of the gradients of weight and bias."""
    for j in tl.static_range(TAPS):
        tl.store(partial + j * channels, tl.sum(dw[j], 0), mask=keep)
    if BIAS:
        tl.store(partial + TAPS * channels, tl.sum(db, 0), mask=keep)


@triton.jit(do_not_specialize=_SIZES)
def backward(x, past, weight, bias, gain, dy0, dy1, dy2, dy3, dx, dgain, partial, time, steps, x_batch, x_row, n0, n1,
             n2, scale, GROUP: tl.constexpr, LANES: tl.constexpr, ROWS: tl.constexpr, TAPS: tl.constexpr,
             UNIT: tl.constexpr, UNROLL: tl.constexpr, RAGGED: tl.constexpr, BIAS: tl.constexpr, PAST: tl.constexpr,
             SILU: tl.constexpr, NORMED: tl.constexpr, GAIN: tl.constexpr):  # fmt: skip
    part, first, size, offset, b, t, place = _program(time, steps, n0, n1, n2, UNIT, GROUP, ROWS)
    lane = tl.arange(0, LANES)
    inside = ((lane < GROUP) & (offset + lane < size))[None, :]
    channel = first + offset + lane
    channels = (n0 + n1 + n2) * UNIT
    row = x_row * UNIT
    x += b.to(tl.int64) * (x_batch * UNIT) + t.to(tl.int64)[:, None] * row + channel[None, :]
    step = b.to(tl.int64) * time + t
    dy = _of_part(part, dy0, dy1, dy2)
    at = step[:, None] * size + (offset + lane)[None, :]
    dx += (step[:, None] - (TAPS - 1)) * channels + channel[None, :]
    if GAIN:
        heads = n0 * UNIT // GROUP
        gain += step * heads + offset // GROUP
        dgain += step * heads + offset // GROUP
    taps = _taps(weight, channel, inside, TAPS)
    shift = _shift(bias, channel, inside, LANES, BIAS)
    length = tl.where(part == 0, scale, 1.0)
    held = _before(x, past, t, time, row, b, channel, channels, inside, TAPS, RAGGED, PAST)
    dw = _zeros(TAPS, ROWS, LANES)
    open_ = _zeros(TAPS - 1, ROWS, LANES)  # what the gradients of the last inputs have gathered so far, oldest first
    db = tl.zeros((ROWS, LANES), tl.float32)
    # TAPS - 1 steps more: the first of the next stretch still reach back into this one.
    for done in range(0, steps + TAPS - 1, UNROLL):
        news, dys, dy3s = _next(x, dy + at, dy3 + at, part, t, time, row, size, inside, UNROLL, RAGGED, GAIN)
        for i in tl.static_range(UNROLL):
            own = done + i < steps
            factor = 0.0
            if GAIN:
                factor = tl.load(gain + i * heads, mask=(t + i < time) & (part == 0), other=0.0).to(tl.float32)
            new = news[i].to(tl.float32)
            z = _convolve(held, new, taps, shift, TAPS)
            dz, dg = _slope(z, dys[i], dy3s[i], factor, part, length, SILU, NORMED, GAIN)
            if GAIN:
                mask = (t + i < time) & (part == 0) & own
                tl.store(dgain + i * heads, dg.to(dgain.dtype.element_ty), mask=mask)
            inputs = held + (new,)
            counted = tl.where(own, dz, 0.0)
            dw, open_, finished = _spread(dz, counted, inputs, taps, dw, open_, TAPS)
            db += counted
            held = inputs[1:]
            back = done + i - (TAPS - 1)  # the step that is finished, of this stretch
            live = ((t + i - (TAPS - 1) < time) & (back >= 0) & (back < steps))[:, None]
            if RAGGED:
                live = live & inside
            tl.store(dx + i * channels, finished.to(dx.dtype.element_ty), mask=live)
        x += UNROLL * row
        at += UNROLL * size
        dx += UNROLL * channels
        if GAIN:
            gain += UNROLL * heads
            dgain += UNROLL * heads
        t += UNROLL
    partial += place.to(tl.int64) * (TAPS + 1) * channels + channel
    _store_weights(partial, dw, db, channels, tl.reshape(inside, (LANES,)), TAPS, BIAS)
