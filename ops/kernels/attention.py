"""One token of grouped-query attention: rotary embedding, append to the cache, and attention over it, in one launch.

The cache is cut into tiles of TILE slots that SPLITS programs per key-value head share out in turn, so the grid does
not depend on how many tokens are cached; that number is read from device memory. The query heads of a group ride
along as rows of one tile. The last program of a head to finish adds up what its fellows found.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from .launch import begin, dependent, follow


@triton.jit
def _rotate(lo, hi, cos, sin):
    return lo * cos - hi * sin, hi * cos + lo * sin


@triton.jit
def _half(x, at, row, live, norm, start, HALF: tl.constexpr, QK_NORM: tl.constexpr):
    """Columns start .. start + HALF of rows `row` [rows, HALF] in float32, times the norm's weight, and squares."""
    d = tl.arange(0, HALF)
    v = tl.load(x + at + row[:, None] * 2 * HALF + start + d[None, :], mask=live[:, None], other=0.0).to(tl.float32)
    squares = tl.sum(v * v, 1)
    if QK_NORM:
        v = v * tl.load(norm + start + d).to(tl.float32)[None, :]
    return v, squares


@triton.jit
def _rotated(x, at, row, live, norm, cos, sin, HALF: tl.constexpr, QK_NORM: tl.constexpr, EPS: tl.constexpr):
    """Both halves of the rows of x at `at`, normed and rotated."""
    lo, squares = _half(x, at, row, live, norm, 0, HALF, QK_NORM)
    hi, more = _half(x, at, row, live, norm, HALF, HALF, QK_NORM)
    if QK_NORM:
        factor = tl.rsqrt((squares + more) / (2 * HALF) + EPS)[:, None]
        lo *= factor
        hi *= factor
    return _rotate(lo, hi, cos[None, :], sin[None, :])


@triton.jit
def _attention(qkv, keys, values, y, part, stats, arrived, position_at, q_norm, k_norm, WIDTH, SLOTS,
               HEADS: tl.constexpr, KV: tl.constexpr, HALF: tl.constexpr, GROUP_P: tl.constexpr, TILE: tl.constexpr,
               SPLITS: tl.constexpr, SPLITS_P: tl.constexpr, ROWS: tl.constexpr, AT_ONCE: tl.constexpr,
               LOG2_BASE: tl.constexpr, QK_NORM: tl.constexpr, EPS: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    begin(PDL, True)
    GROUP: tl.constexpr = HEADS // KV
    HD: tl.constexpr = 2 * HALF
    split = tl.program_id(0)
    g = tl.program_id(1)
    b = tl.program_id(2)
    d = tl.arange(0, HALF)
    e = tl.arange(0, HD)
    slot = tl.arange(0, TILE)
    row = tl.arange(0, GROUP_P)
    live_row = row < GROUP
    base = (b.to(tl.int64) * SLOTS * KV + g) * HD
    step: tl.constexpr = KV * HD

    position = tl.load(position_at)
    here = (position % SLOTS).to(tl.int32)
    cached = tl.minimum(position, SLOTS).to(tl.int32)
    # The first tile is asked for before q is there.
    at = split * TILE + slot
    seen = (at < cached) & (at != here)
    k_lo = tl.load(keys + base + at[:, None] * step + d[None, :], mask=seen[:, None], other=0.0)
    k_hi = tl.load(keys + base + at[:, None] * step + HALF + d[None, :], mask=seen[:, None], other=0.0)
    v = tl.load(values + base + at[:, None] * step + e[None, :], mask=seen[:, None], other=0.0)
    # Turns of each pair in float64: float32 loses the angle after some ten thousand tokens.
    turns = position.to(tl.float64) * tl.exp2(d.to(tl.float64) * (-LOG2_BASE / HALF)) * 0.15915494309189535
    angle = ((turns - tl.floor(turns)) * 6.283185307179586).to(tl.float32)
    cos = tl.cos(angle)
    sin = tl.sin(angle)

    follow(PDL, True)

    qkv += b.to(tl.int64) * WIDTH
    q_lo, q_hi = _rotated(qkv, g * GROUP * HD, row, live_row, q_norm, cos, sin, HALF, QK_NORM, EPS)
    q_lo = (q_lo * (HD**-0.5 * 1.4426950408889634)).to(keys.dtype.element_ty)
    q_hi = (q_hi * (HD**-0.5 * 1.4426950408889634)).to(keys.dtype.element_ty)
    one = tl.arange(0, 1)
    top = tl.full((GROUP_P,), -float("inf"), tl.float32)
    total = tl.zeros((GROUP_P,), tl.float32)
    o = tl.zeros((GROUP_P, HD), tl.float32)
    if split == 0:  # the new token, which this program also appends
        n_lo, n_hi = _rotated(qkv, (HEADS + g) * HD, one, one < 1, k_norm, cos, sin, HALF, QK_NORM, EPS)
        n_lo = n_lo.to(keys.dtype.element_ty)
        n_hi = n_hi.to(keys.dtype.element_ty)
        new_v = tl.load(qkv + (HEADS + KV + g) * HD + e)
        tl.store(keys + base + here * step + d[None, :], n_lo)
        tl.store(keys + base + here * step + HALF + d[None, :], n_hi)
        tl.store(values + base + here * step + e, new_v)
        top = tl.sum(q_lo.to(tl.float32) * n_lo.to(tl.float32), 1)
        top += tl.sum(q_hi.to(tl.float32) * n_hi.to(tl.float32), 1)
        total += 1.0
        o += new_v.to(tl.float32)[None, :]

    for start in range(split * TILE, cached, SPLITS * TILE):
        if start != split * TILE:
            at = start + slot
            seen = (at < cached) & (at != here)
            k_lo = tl.load(keys + base + at[:, None] * step + d[None, :], mask=seen[:, None], other=0.0)
            k_hi = tl.load(keys + base + at[:, None] * step + HALF + d[None, :], mask=seen[:, None], other=0.0)
            v = tl.load(values + base + at[:, None] * step + e[None, :], mask=seen[:, None], other=0.0)
        s = tl.dot(q_lo, tl.trans(k_lo), input_precision="ieee")
        s = tl.dot(q_hi, tl.trans(k_hi), s, input_precision="ieee")
        s = tl.where(seen[None, :], s, -float("inf"))
        higher = tl.maximum(top, tl.max(s, 1))
        safe = tl.where(higher == -float("inf"), 0.0, higher)
        p = tl.exp2(s - safe[:, None])
        fade = tl.exp2(top - safe)
        total = total * fade + tl.sum(p, 1)
        o = tl.dot(p.to(v.dtype), v, o * fade[:, None], input_precision="ieee")
        top = higher

    group = (b * KV + g).to(tl.int64) * SPLITS
    cell = (group + split) * GROUP + row
    tl.store(stats + 2 * cell, top, mask=live_row)
    tl.store(stats + 2 * cell + 1, total, mask=live_row)
    tl.store(part + cell[:, None] * HD + e[None, :], o, mask=live_row[:, None])
    tl.debug_barrier()
    if tl.atomic_add(arrived + b * KV + g, 1, sem="acq_rel", scope="gpu") == SPLITS - 1:
        tl.store(arrived + b * KV + g, 0)
        r = tl.arange(0, ROWS)
        i = tl.arange(0, SPLITS_P)[:, None]
        known = (i < SPLITS) & (r < GROUP)[None, :]
        cells = (group + i) * GROUP + r[None, :]
        tops = tl.load(stats + 2 * cells, mask=known, other=-float("inf"), cache_modifier=".cg")
        totals = tl.load(stats + 2 * cells + 1, mask=known, other=0.0, cache_modifier=".cg")
        peak = tl.max(tops, 0)
        peak = tl.where(r < GROUP, peak, 0.0)
        weight = tl.sum(totals * tl.exp2(tops - peak[None, :]), 0)
        scale = 1.0 / tl.where(r < GROUP, weight, 1.0)
        mixed = tl.zeros((ROWS, HD), tl.float32)
        for first in tl.static_range(0, SPLITS, AT_ONCE):
            i = first + tl.arange(0, AT_ONCE)[:, None]
            known = (i < SPLITS) & (r < GROUP)[None, :]
            cells = (group + i) * GROUP + r[None, :]
            share = tl.exp2(
                tl.load(stats + 2 * cells, mask=known, other=-float("inf"), cache_modifier=".cg") - peak[None, :]
            )
            found = tl.load(part + cells[:, :, None] * HD + e[None, None, :], mask=known[:, :, None], other=0.0,
                            cache_modifier=".cg")  # fmt: skip
            mixed += tl.sum(found * share[:, :, None], 0)
        to = y + (b * HEADS + g * GROUP + r[:, None]) * HD + e[None, :]
        tl.store(to, (mixed * scale[:, None]).to(y.dtype.element_ty), mask=(r < GROUP)[:, None])


def tiling(slots: int, kv_heads: int, batch: int) -> tuple[int, int, int]:
    """(TILE, SPLITS, warps): one wave of programs, none without a tile of a full cache."""
    tile = 128 if slots * kv_heads * batch >= 1 << 15 else 64
    tiles = triton.cdiv(slots, tile)
    return tile, max(1, min(tiles, 256 // (kv_heads * batch))), 4


def attention(
    qkv: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    position: torch.Tensor,
    *,
    heads: int,
    rope_base: float,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 1e-6,
    config: tuple[int, int, int] | None = None,
) -> torch.Tensor:
    """Attention of one new token per sequence over its cache and itself: [batch, heads * head_dim].

    qkv [batch, (heads + 2 kv_heads) * head_dim] before rotation; keys, values [batch, slots, kv_heads, head_dim], to
    which the token is appended at `position % slots` (the slots are the window, or all positions); position: int64
    tensor []. head_dim: a power of two from 32.
    """
    batch, slots, kv_heads, head_dim = keys.shape
    tile, splits, warps = config or tiling(slots, kv_heads, batch)
    group = heads // kv_heads
    rows = max(16, triton.next_power_of_2(group))  # what a matrix instruction takes
    y = torch.empty(batch, heads * head_dim, device=qkv.device, dtype=qkv.dtype)
    part = torch.empty(batch * kv_heads * splits * group * head_dim, device=qkv.device, dtype=torch.float32)
    stats = torch.empty(batch * kv_heads * splits * group * 2, device=qkv.device, dtype=torch.float32)
    _attention[(splits, kv_heads, batch)](
        qkv, keys, values, y, part, stats, _arrivals(qkv.device, batch * kv_heads), position,
        qkv if q_norm is None else q_norm, qkv if k_norm is None else k_norm, qkv.shape[1], slots, HEADS=heads,
        KV=kv_heads, HALF=head_dim // 2, GROUP_P=rows, TILE=tile, SPLITS=splits,
        SPLITS_P=triton.next_power_of_2(splits), ROWS=triton.next_power_of_2(group), AT_ONCE=16,
        LOG2_BASE=math.log2(rope_base), QK_NORM=q_norm is not None, EPS=eps, num_warps=warps, **dependent(qkv),
    )  # fmt: skip
    return y


_counters: dict[torch.device, torch.Tensor] = {}


def _arrivals(device: torch.device, count: int) -> torch.Tensor:
    """Counters that are zero between launches: the last program to arrive sets its own back."""
    known = _counters.get(device)
    if known is None or known.numel() < count:
        known = torch.zeros(max(1024, count), device=device, dtype=torch.int32)
        if not (known.is_cuda and torch.cuda.is_current_stream_capturing()):  # a graph's memory is the graph's
            _counters[device] = known
    return known
