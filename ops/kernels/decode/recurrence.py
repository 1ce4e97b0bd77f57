"""One token of a linear recurrence: short convolution, SiLU, norms, gates and the update of the state in place.

One kernel for DeltaNet, Gated DeltaNet, GLA and Mamba2, told apart when it is compiled. A program owns VALUES columns
of one head's state [keys, values] (for Mamba2, whose state is stored [head_dim, state], the state dimension plays the
keys: B is k, C is q, x is v). What a head's programs share, its q and k, each of them computes for itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from nfsearch.ops.kernels.launch import begin, dependent, follow


@triton.jit
def _past(ring, weight, bias, position, channel, mask, CHANNELS: tl.constexpr, TAPS: tl.constexpr,
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
def _present(past, raw, ring, weight, position, channel, mask, keep, CHANNELS: tl.constexpr,
             TAPS: tl.constexpr):  # fmt: skip
    """SiLU of the convolution with the new input `raw`, which `keep` says to put into the ring."""
    tl.store(ring + (position % TAPS) * CHANNELS + channel, raw.to(ring.dtype.element_ty), mask=mask & keep)
    tap = tl.load(weight + channel * TAPS + (TAPS - 1), mask=mask, other=0.0).to(tl.float32)
    total = past + tap * raw.to(tl.float32)
    return total * tl.sigmoid(total)


@triton.jit
def _softplus(x):
    y = tl.exp(-tl.abs(x))
    z = 1.0 + y
    exact = tl.where(z == 1.0, y, tl.log(z) * (y / tl.where(z == 1.0, 1.0, z - 1.0)))  # log1p(y)
    return tl.maximum(x, 0.0) + exact


@triton.jit
def _recurrence(proj, conv_w, conv_b, ring, state, y, position_at, a_log, dt_bias, skip, decay_w, decay_b,
                KIND: tl.constexpr, HEADS: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, TAPS: tl.constexpr,
                RANK: tl.constexpr, RANK_P: tl.constexpr, KEYS_P: tl.constexpr, VALUES: tl.constexpr,
                WIDTH: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    begin(PDL, True)
    h = tl.program_id(0)
    block = tl.program_id(1)
    b = tl.program_id(2)
    k = tl.arange(0, KEYS_P)
    v = block * VALUES + tl.arange(0, VALUES)
    live_k = k < KEYS
    live_v = v < DIM
    proj += b.to(tl.int64) * WIDTH
    # Columns of q, k and v in the projection, and the column where the convolution's channels start.
    FIRST: tl.constexpr = HEADS * DIM if KIND == "mamba2" else 0
    CHANNELS: tl.constexpr = HEADS * DIM + 2 * KEYS * (1 if KIND == "mamba2" else HEADS)
    if KIND == "mamba2":  # z | x | B | C | dt, B and C shared by the heads
        at_v = FIRST + h * DIM + v
        at_k = 2 * HEADS * DIM + k
        at_q = at_k + KEYS
        first_k = (h == 0) & (block == 0)
    else:  # q | k | v | ...
        at_q = h * KEYS + k
        at_k = HEADS * KEYS + at_q
        at_v = 2 * HEADS * KEYS + h * DIM + v
        first_k = block == 0
    cell = state + ((b * HEADS + h).to(tl.int64) * KEYS + k[:, None]) * DIM + v[None, :]
    live = live_k[:, None] & live_v[None, :]

    s = tl.load(cell, mask=live, other=0.0).to(tl.float32)  # written a whole step ago
    if KIND == "gla":
        r = tl.arange(0, RANK_P)
        low_at = (h * KEYS + k)[:, None] * RANK + r[None, :]
        low_w = tl.load(decay_w + low_at, mask=live_k[:, None] & (r < RANK)[None, :], other=0.0).to(tl.float32)
        low_b = tl.load(decay_b + h * KEYS + k, mask=live_k, other=0.0).to(tl.float32)
    else:
        BIAS: tl.constexpr = KIND == "mamba2"
        position = tl.load(position_at)
        ring += b.to(tl.int64) * TAPS * CHANNELS
        past_q = _past(ring, conv_w, conv_b, position, at_q - FIRST, live_k, CHANNELS, TAPS, BIAS)
        past_k = _past(ring, conv_w, conv_b, position, at_k - FIRST, live_k, CHANNELS, TAPS, BIAS)
        past_v = _past(ring, conv_w, conv_b, position, at_v - FIRST, live_v, CHANNELS, TAPS, BIAS)
    if KIND == "gated_delta" or KIND == "mamba2":
        rate = -tl.exp(tl.load(a_log + h).to(tl.float32))
        shift = tl.load(dt_bias + h).to(tl.float32)

    follow(PDL, True)

    q_t = tl.load(proj + at_q, mask=live_k, other=0.0)
    k_t = tl.load(proj + at_k, mask=live_k, other=0.0)
    v_t = tl.load(proj + at_v, mask=live_v, other=0.0)
    # With S' the decayed state and S = S' + k u^T: S^T q = S'^T q + (k . q) u. So all sums over the keys stand side by
    # side, and the factors that scale q and k to length one come after them.
    if KIND == "gla":
        low = tl.load(proj + 2 * HEADS * KEYS + 2 * HEADS * DIM + r, mask=r < RANK, other=0.0).to(tl.float32)
        s = s * tl.exp(-_softplus(-tl.sum(low_w * low[None, :], 1) - low_b) / 16.0)[:, None]
        q_t = q_t.to(tl.float32) * KEYS**-0.5
        k_t = k_t.to(tl.float32)
        u = v_t.to(tl.float32)
        o = tl.sum(s * q_t[:, None], 0) + tl.sum(k_t * q_t) * u
    else:
        q_t = _present(past_q, q_t, ring, conv_w, position, at_q - FIRST, live_k, first_k, CHANNELS, TAPS)
        k_t = _present(past_k, k_t, ring, conv_w, position, at_k - FIRST, live_k, first_k, CHANNELS, TAPS)
        v_t = _present(past_v, v_t, ring, conv_w, position, at_v - FIRST, live_v, True, CHANNELS, TAPS)
        recalled_q = tl.sum(s * q_t[:, None], 0)
        overlap = tl.sum(k_t * q_t)
        if KIND == "mamba2":
            dt = _softplus(tl.load(proj + 2 * HEADS * DIM + 2 * KEYS + h).to(tl.float32) + shift)
            decay = tl.exp(dt * rate)
            u = v_t * dt
            o = decay * recalled_q + overlap * u + tl.load(skip + h).to(tl.float32) * v_t
            z = tl.load(proj + h * DIM + v, mask=live_v, other=0.0).to(tl.float32)
            o = o * z * tl.sigmoid(z)  # the output gate, here because it comes before the norm
            s = s * decay
        else:
            recalled_k = tl.sum(s * k_t[:, None], 0)
            q_unit = tl.rsqrt(tl.sum(q_t * q_t) + 1e-6) * KEYS**-0.5
            k_unit = tl.rsqrt(tl.sum(k_t * k_t) + 1e-6)
            gates = proj + CHANNELS  # beta
            if KIND == "gated_delta":
                gates += HEADS * DIM  # beta | decay
                decay = tl.exp(rate * _softplus(tl.load(gates + HEADS + h).to(tl.float32) + shift))
                recalled_q *= decay
                recalled_k *= decay
                s = s * decay
            beta = tl.sigmoid(tl.load(gates + h).to(tl.float32))
            u = beta * (v_t - k_unit * recalled_k)
            k_t = k_t * k_unit
            o = q_unit * (recalled_q + k_unit * overlap * u)
    s += k_t[:, None] * u[None, :]
    tl.store(y + (b * HEADS + h) * DIM + v, o.to(y.dtype.element_ty), mask=live_v)
    tl.store(cell, s.to(state.dtype.element_ty), mask=live)


@dataclass(frozen=True)
class Gates:
    """What decides how the state decays: per-head for Mamba2 and Gated DeltaNet, low-rank per key for GLA."""

    a_log: torch.Tensor | None = None  # [heads]
    dt_bias: torch.Tensor | None = None  # [heads]
    skip: torch.Tensor | None = None  # [heads], Mamba2's D
    decay_weight: torch.Tensor | None = None  # [keys, rank]
    decay_bias: torch.Tensor | None = None  # [keys]


def tiling(kind: str, keys: int, values: int, batch: int) -> tuple[int, int]:
    """(VALUES, warps) of a program, chosen on an H200: GLA, which multiplies its decays first, within the step of a
    block, the others within the decode steps of the Nemotron-Flash shapes. Alone, smaller programs are faster."""
    if kind != "gla":
        block, warps = 32, 4
    elif batch < 32:
        block, warps = 16, 4
    else:
        block, warps = (32, 4) if keys <= 128 else (16, 2)
    return min(block, triton.next_power_of_2(values)), warps


def recurrence(
    kind: str,
    proj: torch.Tensor,
    state: torch.Tensor,
    position: torch.Tensor,
    *,
    ring: torch.Tensor | None = None,
    conv_weight: torch.Tensor | None = None,
    conv_bias: torch.Tensor | None = None,
    gates: Gates | None = None,
    config: tuple[int, int] | None = None,
) -> torch.Tensor:
    """What the state gives for one token, before the output norm (for "mamba2" gated already): [batch, heads * values].

    kind: "delta", "gated_delta", "gla" or "mamba2"; proj [batch, rows of the in-projection]; state [batch, heads, keys,
    values] and ring [batch, taps, channels] are updated in place; position: int64 tensor [], tokens before this one;
    conv_weight [channels, taps]. Reads the state before its predecessor is complete, so that must not be EARLY (see
    `launch`) nor write the state.
    """
    batch, heads, keys, values = state.shape
    gates = gates or Gates()
    rank = gates.decay_weight.shape[1] if gates.decay_weight is not None else 1
    y = torch.empty(batch, heads * values, device=proj.device, dtype=proj.dtype)
    block, warps = config or tiling(kind, keys, values, batch)

    def given(tensor: torch.Tensor | None) -> torch.Tensor:
        return proj if tensor is None else tensor

    _recurrence[(heads, triton.cdiv(values, block), batch)](
        proj, given(conv_weight), given(conv_bias), given(ring), state, y, position, given(gates.a_log),
        given(gates.dt_bias), given(gates.skip), given(gates.decay_weight), given(gates.decay_bias), KIND=kind,
        HEADS=heads, KEYS=keys, DIM=values, TAPS=1 if ring is None else ring.shape[1], RANK=rank,
        RANK_P=triton.next_power_of_2(rank), KEYS_P=triton.next_power_of_2(keys), VALUES=block, WIDTH=proj.shape[1],
        num_warps=warps, **dependent(proj),
    )  # fmt: skip
    return y
