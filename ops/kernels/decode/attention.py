"""One token of grouped-query attention: rotary embedding, append to the cache, and attention over it.

The cache is cut into tiles of TILE slots that SPLITS programs per key-value head share out in turn, so the grid does
not depend on how many tokens are cached; that number is read from device memory. The query heads of a group ride
along as rows of one tile. Where there are several programs, a second kernel adds up what they found: the one that ends
last could do it instead, but alone it takes longer than a launch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from nfsearch.ops.forms import FusedStep, State, Step
from nfsearch.ops.kernels.decode.projection import odd_size, power_of_two, project, project_back
from nfsearch.ops.kernels.decode.weights import Held, held
from nfsearch.ops.kernels.launch import begin, dependent, follow
from nfsearch.ops.layout import Layout


@triton.jit
def _columns(x, head, live, norm, column, HALF: tl.constexpr, NORM: tl.constexpr):
    """These columns of each head [heads, HALF] in float32, times the norm's weight, and the sum of their squares."""
    at = head[:, None] * 2 * HALF + column[None, :]
    v = tl.load(x + at, mask=live[:, None], other=0.0).to(tl.float32)
    squares = tl.sum(v * v, 1)
    if NORM == "heads":
        v = v * tl.load(norm + column).to(tl.float32)[None, :]
    if NORM == "all":
        v = v * tl.load(norm + at, mask=live[:, None], other=0.0).to(tl.float32)
    return v, squares


@triton.jit
def _partner(column, PAIRS: tl.constexpr):
    """With which column each turns; one that does not turn, with itself."""
    return tl.where(column < PAIRS, column + PAIRS, tl.where(column < 2 * PAIRS, column - PAIRS, column))


@triton.jit
def _rotated(x, head, live, norm, turn, ALL: tl.constexpr, ALL_P: tl.constexpr, HALF: tl.constexpr,
             PAIRS: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr):  # fmt: skip
    """Both halves of these heads, of the ALL values from x on, normed and rotated."""
    d = tl.arange(0, HALF)
    lo, squares = _columns(x, head, live, norm, d, HALF, NORM)
    hi, more = _columns(x, head, live, norm, d + HALF, HALF, NORM)
    factor = 1.0
    if NORM == "heads":
        factor = tl.rsqrt((squares + more) / (2 * HALF) + EPS)[:, None]
    if NORM == "all":
        i = tl.arange(0, ALL_P)
        every = tl.load(x + i, mask=i < ALL, other=0.0).to(tl.float32)
        factor = tl.rsqrt(tl.sum(every * every, 0) / ALL + EPS)
    if NORM != "none":
        lo *= factor
        hi *= factor
    lo_cos, lo_sin, hi_cos, hi_sin = turn
    new_lo = lo
    new_hi = hi
    if PAIRS == HALF:
        new_lo = lo * lo_cos[None, :] + hi * lo_sin[None, :]
        new_hi = hi * hi_cos[None, :] + lo * hi_sin[None, :]
    elif PAIRS > 0:  # partners lie anywhere, and are read again
        lo_too, _ = _columns(x, head, live, norm, _partner(d, PAIRS), HALF, NORM)
        new_lo = lo * lo_cos[None, :] + lo_too * factor * lo_sin[None, :]
        if 2 * PAIRS > HALF:  # else none of this half turn
            hi_too, _ = _columns(x, head, live, norm, _partner(d + HALF, PAIRS), HALF, NORM)
            new_hi = hi * hi_cos[None, :] + hi_too * factor * hi_sin[None, :]
    return new_lo, new_hi


@triton.jit
def _tile(keys, values, base, first, cached, here, KV: tl.constexpr, HALF: tl.constexpr, TILE: tl.constexpr):
    """Both halves of the keys, the values, and which slots hold a token, for the slots from `first`."""
    slot = first + tl.arange(0, TILE)
    seen = (slot < cached) & (slot != here)
    d = tl.arange(0, HALF)[None, :]
    at = base + slot[:, None] * (2 * KV * HALF)
    lo = tl.load(keys + at + d, mask=seen[:, None], other=0.0)
    hi = tl.load(keys + at + HALF + d, mask=seen[:, None], other=0.0)
    v = tl.load(values + at + tl.arange(0, 2 * HALF)[None, :], mask=seen[:, None], other=0.0)
    return lo, hi, v, seen


@triton.jit
def _angle(position, quarters, column):
    """Cosine and sine of how far each column has turned. `quarters`: quarter turns a token, of each column.

    Few instructions on purpose: those of a general cosine and sine, twice as many as all else in this kernel, took
    longer to fetch than to run.
    """
    # In float64, as float32 loses the angle after some ten thousand tokens.
    turned = position.to(tl.float64) * tl.load(quarters + column)
    whole = tl.floor(turned + 0.5)
    a = ((turned - whole) * 1.5707963267948966).to(tl.float32)  # from -pi / 4 to pi / 4, where few terms are enough
    aa = a * a
    sin = a + a * aa * (-1 / 6 + aa * (1 / 120 + aa * (-1 / 5040 + aa * (1 / 362880))))
    cos = 1 + aa * (-1 / 2 + aa * (1 / 24 + aa * (-1 / 720 + aa * (1 / 40320))))
    quarter = whole.to(tl.int64) & 3
    odd = (quarter & 1) == 1
    new_cos = tl.where(odd, sin, cos)
    new_sin = tl.where(odd, cos, sin)
    new_cos = tl.where((quarter == 1) | (quarter == 2), -new_cos, new_cos)
    return new_cos, tl.where(quarter >= 2, -new_sin, new_sin)


@triton.jit
def _turn(position, quarters, HALF: tl.constexpr, PAIRS: tl.constexpr):
    """What the columns of each half are multiplied by, and their partners, as they turn: four factors [HALF]."""
    d = tl.arange(0, HALF)
    lo_cos = tl.full((HALF,), 1.0, tl.float32)
    lo_sin = tl.full((HALF,), 0.0, tl.float32)
    hi_cos = lo_cos
    hi_sin = lo_sin
    if PAIRS > 0:
        lo_cos, lo_sin = _angle(position, quarters, d)
    if PAIRS == HALF:
        hi_cos = lo_cos
        hi_sin = lo_sin
    elif 2 * PAIRS > HALF:
        hi_cos, hi_sin = _angle(position, quarters, d + HALF)
    return lo_cos, tl.where(d < PAIRS, -lo_sin, lo_sin), hi_cos, hi_sin


@triton.jit
def _append(qkv, at_v, keys, values, slot, lo, hi, HALF: tl.constexpr):
    """Puts the new token into its slot: both halves of its key [1, HALF], and its value."""
    d = tl.arange(0, HALF)
    e = tl.arange(0, 2 * HALF)
    lo = lo.to(keys.dtype.element_ty)
    hi = hi.to(keys.dtype.element_ty)
    v = tl.load(qkv + at_v + e)
    tl.store(keys + slot + d[None, :], lo)
    tl.store(keys + slot + HALF + d[None, :], hi)
    tl.store(values + slot + e, v)
    return lo, hi, v


@triton.jit
def _fold(q_lo, q_hi, k_lo, k_hi, v, seen, top, total, o):
    """The softmax so far, with a tile of the cache more."""
    s = tl.dot(q_lo, tl.trans(k_lo), input_precision="ieee")
    s = tl.dot(q_hi, tl.trans(k_hi), s, input_precision="ieee")
    s = tl.where(seen[None, :], s, -float("inf"))
    higher = tl.maximum(top, tl.max(s, 1))
    safe = tl.where(higher == -float("inf"), 0.0, higher)
    p = tl.exp2(s - safe[:, None])
    fade = tl.exp2(top - safe)
    total = total * fade + tl.sum(p, 1)
    o = tl.dot(p.to(v.dtype), v, o * fade[:, None], input_precision="ieee")
    return higher, total, o


@triton.jit
def _opened(o, gate, at, live, GATE: tl.constexpr):
    """What attention gives, times the sigmoid of the gate's values at the same places."""
    if GATE:
        o = o * tl.sigmoid(tl.load(gate + at, mask=live, other=0.0).to(tl.float32))
    return o


@triton.jit(do_not_specialize=("SLOTS",))
def _attention(qkv, keys, values, part, stats, y, position_at, quarters, q_norm, k_norm, WIDTH, SLOTS,
               AT_Q: tl.constexpr, AT_K: tl.constexpr, AT_V: tl.constexpr, AT_GATE: tl.constexpr, HEADS: tl.constexpr,
               KV: tl.constexpr, HALF: tl.constexpr, PAIRS: tl.constexpr, GROUP_P: tl.constexpr, Q_P: tl.constexpr,
               K_P: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr, STAGES: tl.constexpr, NORM: tl.constexpr,
               EPS: tl.constexpr, GATE: tl.constexpr, EARLY: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    begin(PDL, EARLY)
    GROUP: tl.constexpr = HEADS // KV
    HD: tl.constexpr = 2 * HALF
    split = tl.program_id(0)
    g = tl.program_id(1)
    b = tl.program_id(2)
    e = tl.arange(0, HD)
    row = tl.arange(0, GROUP_P)
    live_row = row < GROUP
    base = (b.to(tl.int64) * SLOTS * KV + g) * HD
    position = tl.load(position_at)
    here = (position % SLOTS).to(tl.int32)
    cached = tl.minimum(position, SLOTS).to(tl.int32)
    turn = _turn(position, quarters, HALF, PAIRS)

    follow(PDL, True)

    qkv += b.to(tl.int64) * WIDTH
    head = g * GROUP + row
    q_lo, q_hi = _rotated(qkv + AT_Q, head, live_row, q_norm, turn, HEADS * HD, Q_P, HALF, PAIRS, NORM, EPS)
    q_lo = (q_lo * (HD**-0.5 * 1.4426950408889634)).to(keys.dtype.element_ty)
    q_hi = (q_hi * (HD**-0.5 * 1.4426950408889634)).to(keys.dtype.element_ty)
    top = tl.full((GROUP_P,), -float("inf"), tl.float32)
    total = tl.zeros((GROUP_P,), tl.float32)
    o = tl.zeros((GROUP_P, HD), tl.float32)
    if split == 0:  # the new token, which this program also appends
        one = tl.arange(0, 1)
        k_lo, k_hi = _rotated(qkv + AT_K, g + one, one < 1, k_norm, turn, KV * HD, K_P, HALF, PAIRS, NORM, EPS)
        slot = base + here * (KV * HD)
        n_lo, n_hi, new_v = _append(qkv, AT_V + g * HD, keys, values, slot, k_lo, k_hi, HALF)
        top = tl.sum(q_lo.to(tl.float32) * n_lo.to(tl.float32), 1)
        top += tl.sum(q_hi.to(tl.float32) * n_hi.to(tl.float32), 1)
        total += 1.0
        o += new_v.to(tl.float32)[None, :]

    for first in tl.range(split * TILE, cached, SPLITS * TILE, num_stages=STAGES):
        k_lo, k_hi, v, seen = _tile(keys, values, base, first, cached, here, KV, HALF, TILE)
        top, total, o = _fold(q_lo, q_hi, k_lo, k_hi, v, seen, top, total, o)

    if not EARLY:
        begin(PDL, True)
    if SPLITS == 1:
        at = head[:, None] * HD + e[None, :]
        o = _opened(o / total[:, None], qkv + AT_GATE, at, live_row[:, None], GATE)
        tl.store(y + b * HEADS * HD + at, o.to(y.dtype.element_ty), mask=live_row[:, None])
    else:
        cell = ((b * KV + g).to(tl.int64) * SPLITS + split) * GROUP + row
        tl.store(stats + 2 * cell, top, mask=live_row)
        tl.store(stats + 2 * cell + 1, total, mask=live_row)
        tl.store(part + cell[:, None] * HD + e[None, :], o, mask=live_row[:, None])


@triton.jit
def _combine(part, stats, qkv, y, WIDTH, AT_GATE: tl.constexpr, HEADS: tl.constexpr, KV: tl.constexpr,
             HD: tl.constexpr, SPLITS: tl.constexpr, SPLITS_P: tl.constexpr, GATE: tl.constexpr,
             PDL: tl.constexpr):  # fmt: skip
    """The softmax over all splits of one query head."""
    begin(PDL, True)
    GROUP: tl.constexpr = HEADS // KV
    h = tl.program_id(0)
    b = tl.program_id(1)
    i = tl.arange(0, SPLITS_P)
    e = tl.arange(0, HD)
    cell = ((b * KV + h // GROUP).to(tl.int64) * SPLITS + i) * GROUP + h % GROUP
    follow(PDL, True)
    top = tl.load(stats + 2 * cell, mask=i < SPLITS, other=-float("inf"))
    total = tl.load(stats + 2 * cell + 1, mask=i < SPLITS, other=0.0)
    o = tl.load(part + cell[:, None] * HD + e[None, :], mask=(i < SPLITS)[:, None], other=0.0)
    share = tl.exp2(top - tl.max(top, 0))
    mixed = tl.sum(o * share[:, None], 0) / tl.sum(total * share, 0)
    at = h * HD + e
    mixed = _opened(mixed, qkv + b.to(tl.int64) * WIDTH + AT_GATE, at, at >= 0, GATE)
    tl.store(y + b * HEADS * HD + at, mixed.to(y.dtype.element_ty))


class Tiling(NamedTuple):
    """How the cache is shared out: slots in a tile, programs for a key-value head, and launch options.

    Programs of the next launch that come early go where there is room, and then some multiprocessors have more of them
    than others. Where they run long that costs more than it saves; they then come when these have read their share.
    """

    tile: int
    splits: int
    warps: int
    stages: int
    early: bool


def tiling(slots: int, kv_heads: int, batch: int, row: int, processors: int = 132) -> Tiling:
    """For key-value heads of `row` bytes: the split whose waves of programs are the shortest in all.

    Chosen on an H200 with batch 1 to 128, 2 to 8 key-value heads and 1k to 32k slots, for few tiles within the decode
    steps of the Nemotron-Flash shapes: a program costs its tiles and about two more, and a multiprocessor does best
    with several short programs, with one of some length, and with two where there is much to read.
    """
    tile = max(16, min(64, 64 * 256 // row))  # three stages of keys and values fit into shared memory
    tiles, heads = triton.cdiv(slots, tile), kv_heads * batch
    load = heads * slots / 64 / processors
    each, stages = (3, 2) if load < 7 else (1, 3) if load < 96 else (2, 3)

    def time(splits: int) -> float:
        return triton.cdiv(heads * splits, each * processors) * (tiles / splits + 2)

    splits = min((s for s in _SPLITS if s <= tiles), key=time)
    return Tiling(tile, splits, 4, stages, early=splits > 1 and load < 24)


_SPLITS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def tiling_of(keys: torch.Tensor) -> Tiling:
    """For a cache of keys [batch, slots, kv_heads, head_dim]."""
    batch, slots, kv_heads, head_dim = keys.shape
    return tiling(slots, kv_heads, batch, head_dim * keys.element_size(), _processors(keys.device))


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


@cache
def _quarters(head_dim: int, pairs: int, base: float, device: torch.device) -> Tensor:
    """How many quarter turns each value of a head makes from one token to the next: [head_dim], float64; the first
    `pairs` values turn with the next `pairs`, the rest not. Layers of one kind share it."""
    pair = torch.arange(pairs, dtype=torch.float64)
    turning = base ** (-pair / max(pairs, 1)) * (2 / math.pi)
    return torch.cat((turning, turning, torch.zeros(head_dim - 2 * pairs, dtype=torch.float64))).to(device)


def bind_attention(
    like: Tensor,
    keys: Tensor,
    layout: Layout,
    rope_base: float,
    norms: tuple[Held, Held] | None = None,
    eps: float = 0.0,
    how: Tiling | None = None,
    rotary: int | None = None,
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Attention of one new token per sequence over its cache and itself: [batch, heads * head_dim]; a function of qkv,
    keys, values and position, for inputs of the batch, dtype and device of `like` and a cache of the shape of `keys`.

    qkv are rows of this layout before rotation; keys, values [batch, slots, kv_heads, head_dim], to which the token is
    appended at `position % slots` (the slots are the window, or all positions); position: int64 tensor []. head_dim: a
    power of two from 32. `norms`: the weights of the norms of q and k, per head or as long as all heads. The first
    `rotary` values of a head turn, or all. If the rows have a gate, its sigmoid multiplies the result.
    """
    batch, slots, kv_heads, head_dim = keys.shape
    how, heads, width = how or tiling_of(keys), layout.size("q") // head_dim, layout.total
    pairs = (head_dim if rotary is None else rotary) // 2
    quarters = _quarters(head_dim, pairs, rope_base, like.device)
    rows = max(16, triton.next_power_of_2(heads // kv_heads))  # what a matrix instruction takes
    options, device, dtype = dependent(like), like.device, like.dtype
    shape, cells = (batch, heads * head_dim), batch * heads * how.splits
    gated = "gate" in layout.names
    over = "none" if norms is None else "heads" if len(norms[0]()) == head_dim else "all"
    shared = dict(
        HEADS=heads, KV=kv_heads, SPLITS=how.splits, GATE=gated, AT_GATE=layout.start("gate") if gated else 0, **options
    )  # fmt: skip
    constants = dict(
        AT_Q=layout.start("q"), AT_K=layout.start("k"), AT_V=layout.start("v"), HALF=head_dim // 2,
        PAIRS=pairs, GROUP_P=rows, Q_P=triton.next_power_of_2(layout.size("q")),
        K_P=triton.next_power_of_2(layout.size("k")), TILE=how.tile, STAGES=how.stages,
        NORM=over, EPS=eps, EARLY=how.early, num_warps=how.warps, **shared,
    )  # fmt: skip
    kernel, combine = _attention[(how.splits, kv_heads, batch)], _combine[(heads, batch)]
    known = triton.next_power_of_2(how.splits)
    combining = dict(HD=head_dim, SPLITS_P=known, num_warps=8 if known * head_dim > 8192 else 4, **shared)

    def launch(qkv: Tensor, keys: Tensor, values: Tensor, position: Tensor) -> Tensor:
        y = torch.empty(shape, device=device, dtype=dtype)
        q_norm, k_norm = (qkv, qkv) if norms is None else (norms[0](), norms[1]())
        if how.splits == 1:
            kernel(qkv, keys, values, y, y, y, position, quarters, q_norm, k_norm, width, slots, **constants)
            return y
        part = torch.empty(cells * head_dim, device=device, dtype=torch.float32)
        stats = torch.empty(cells * 2, device=device, dtype=torch.float32)
        kernel(qkv, keys, values, part, stats, y, position, quarters, q_norm, k_norm, width, slots, **constants)
        combine(part, stats, qkv, y, width, **combining)
        return y

    return launch


def bind(op: Any, norm: Any, x: Tensor, state: State, tiling: Tiling | None = None) -> Step:
    """See `FusedStep`."""
    norms, eps = ((held(op.q_norm), held(op.k_norm)), op.q_norm.eps) if op.q_norm is not None else (None, 0.0)
    attend = bind_attention(x, state["keys"], op.layout, op.rope_base, norms, eps, tiling, op.rotary)
    into, out = project(op.qkv, norm, x), project_back(op.out_proj, x)

    def step(x: Tensor, state: State, position: Tensor) -> Tensor:
        return out(attend(into(x), state["keys"], state["values"], position), x)

    return step


def choices(state: State) -> dict[str, Tiling]:
    """How this cache is shared out."""
    return {"tiling": tiling_of(state["keys"])}


def unsupported(op: Any, dtype: torch.dtype) -> str:
    """Why the kernels cannot serve, or nothing."""
    if op.head_dim < 32 or not power_of_two(op.head_dim):
        return f"head_dim {op.head_dim} is not a power of two from 32"
    return odd_size(op.width)


FUSED = FusedStep(bind, unsupported, choices)
