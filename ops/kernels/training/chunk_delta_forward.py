"""The delta rule over chunks of 64 steps: the kernels of the forward pass, and what the two passes share.

In a chunk, for one head, with g the log decay accumulated since its start and S the state before it:

    A_ij = beta_i (k_i . k_j) e^(g_i - g_j) for j < i;    T = (I + A)^-1
    U    = T (beta v - beta e^g k S)                      the updates, [CHUNK, value]
    O    = (e^g q) S + P U,  P_ij = (q_i . k_j) e^(g_i - g_j) for j <= i
    S   <- e^(g_end) S + (e^(g_end - g) k)^T U

`_solve` computes T (beta v) and W = T (beta e^g k) of all chunks at once, `_scan` walks over the chunks of a head, and
`_read` gives the output of all chunks at once. Only `_scan` is sequential, and its step is as short as can be: the
state is held transposed, [value, key], so that each of its two products takes from registers what the one before it
left there.

Buffers that never leave the two passes are [batch * heads, chunks, ...] and need no masks: steps past the end have
k = v = beta = 0 and change nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

CHUNK = tl.constexpr(64)


@triton.jit
def locate(chunk, heads, time):
    """Of program axis 1, batch * heads: the row of [batch * time * heads] where the chunk starts, and which steps are
    before the end."""
    sequence = tl.program_id(1)
    first = ((sequence // heads).to(tl.int64) * time + chunk * CHUNK) * heads + sequence % heads
    return first, tl.arange(0, CHUNK) < time - chunk * CHUNK


@triton.jit
def own_chunk(heads, time):
    """Of a program of (chunks, batch * heads): what `locate` says of its chunk, and the chunk's place among all."""
    chunk = tl.program_id(0)
    first, live = locate(chunk, heads, time)
    return first, live, tl.program_id(1).to(tl.int64) * tl.num_programs(0) + chunk


@triton.jit
def rows(x, heads, live, start, DIM: tl.constexpr, SIZE: tl.constexpr):
    """[CHUNK, SIZE] of x [..., time, heads, DIM] from column `start`; x points at the chunk's first row."""
    at = tl.arange(0, CHUNK)[:, None] * (heads * DIM) + (start + tl.arange(0, SIZE))[None, :]
    return tl.load(x + at, mask=live[:, None], other=0.0)


@triton.jit
def store_rows(x, value, heads, live, start, DIM: tl.constexpr, SIZE: tl.constexpr):
    at = tl.arange(0, CHUNK)[:, None] * (heads * DIM) + (start + tl.arange(0, SIZE))[None, :]
    tl.store(x + at, value.to(x.dtype.element_ty), mask=live[:, None])


@triton.jit
def gate(x, first, heads, live):
    """[CHUNK] of x [batch, time, heads], in float32."""
    return tl.load(x + first + tl.arange(0, CHUNK) * heads, mask=live, other=0.0).to(tl.float32)


@triton.jit
def decay(log_end, log_start, keep):
    """e^(end - start) where `keep`, which must imply start >= end, else 0."""
    return tl.exp(tl.where(keep, log_end - log_start, float("-inf")))


@triton.jit
def _join(inverse, system, SIZE: tl.constexpr, PRECISION: tl.constexpr):
    """The inverse of the diagonal blocks of 2 SIZE from that of the blocks of SIZE."""
    i = tl.arange(0, CHUNK)[:, None]
    j = tl.arange(0, CHUNK)[None, :]
    joined = (i // (2 * SIZE) == j // (2 * SIZE)) & (i // SIZE > j // SIZE)
    half = tl.dot(inverse, tl.where(joined, system, 0.0), input_precision=PRECISION)
    return inverse - tl.dot(half, inverse, input_precision=PRECISION)


@triton.jit
def _inverse(system, blocks, PRECISION: tl.constexpr):
    """(I + system)^-1 of a strictly lower triangular [CHUNK, CHUNK].

    The four diagonal blocks of 16 are inverted side by side by forward substitution, then joined two and two. `blocks`
    is memory for [CHUNK, 16] float32: a row of a matrix in registers cannot be addressed.
    """
    i = tl.arange(0, CHUNK)[:, None]
    j = tl.arange(0, CHUNK)[None, :]
    tl.store(blocks + i * 16 + j % 16, system, mask=i // 16 == j // 16)
    tl.debug_barrier()
    inner = tl.arange(0, 16)[:, None]
    solved = tl.where(inner == j % 16, 1.0, 0.0)  # [16, CHUNK]: column j is that of block j // 16
    for row in range(1, 16):
        factors = tl.load(blocks + (j // 16 * 16 + row) * 16 + inner)
        solved -= tl.where(inner == row, tl.sum(factors * solved, 0)[None, :], 0.0)
    solved = tl.reshape(tl.broadcast_to(solved[None, :, :], [4, 16, CHUNK]), [CHUNK, CHUNK])
    inverse = tl.where(i // 16 == j // 16, solved, 0.0)
    return _join(_join(inverse, system, 16, PRECISION), system, 32, PRECISION)


@triton.jit(do_not_specialize=("heads", "time"))
def _solve(k, v, beta, log_decay, total, blocks, inverse, erase, updates, heads, time, KEY: tl.constexpr,
           VALUE: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, DECAY: tl.constexpr, KEEP: tl.constexpr,
           PRECISION: tl.constexpr):  # fmt: skip
    """total = g; inverse = T; erase = W; updates = T (beta v)."""
    first, live, at = own_chunk(heads, time)
    i = tl.arange(0, CHUNK)
    below = i[:, None] > i[None, :]
    system = tl.zeros([CHUNK, CHUNK], tl.float32)
    for start in range(0, KEY, BK):
        x = rows(k + first * KEY, heads, live, start, KEY, BK)
        system = tl.dot(x, tl.trans(x), system, input_precision=PRECISION)
    b = gate(beta, first, heads, live)
    system = tl.where(below, system * b[:, None], 0.0)
    b_k = b
    if DECAY:
        g = tl.cumsum(gate(log_decay, first, heads, live), 0)
        tl.store(total + at * CHUNK + i, g)
        system *= decay(g[:, None], g[None, :], below)
        b_k = b * tl.exp(g)
    t = _inverse(system, blocks + at * (CHUNK * 16), PRECISION)
    if KEEP:
        to = inverse + at * (CHUNK * CHUNK) + i[:, None] * CHUNK + i[None, :]
        tl.store(to, t.to(inverse.dtype.element_ty))
    updates += at * (CHUNK * VALUE) + i[:, None] * VALUE
    factors = (t * b[None, :]).to(v.dtype.element_ty)
    for start in range(0, VALUE, BV):
        x = tl.dot(factors, rows(v + first * VALUE, heads, live, start, VALUE, BV), input_precision=PRECISION)
        tl.store(updates + (start + tl.arange(0, BV))[None, :], x.to(updates.dtype.element_ty))
    erase += at * (CHUNK * KEY) + i[:, None] * KEY
    factors = (t * b_k[None, :]).to(k.dtype.element_ty)
    for start in range(0, KEY, BK):
        x = tl.dot(factors, rows(k + first * KEY, heads, live, start, KEY, BK), input_precision=PRECISION)
        tl.store(erase + (start + tl.arange(0, BK))[None, :], x.to(erase.dtype.element_ty))


@triton.jit(do_not_specialize=("heads", "time", "chunks"))
def _scan(k, total, erase, updates, starts, state, last, heads, time, chunks, KEY: tl.constexpr, VALUE: tl.constexpr,
          BV: tl.constexpr, DECAY: tl.constexpr, STATE: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """starts = the state before each chunk, [value, key]; updates = U, in place; last = the state at the end."""
    sequence = tl.program_id(1).to(tl.int64)
    first, _ = locate(0, heads, time)
    i = tl.arange(0, CHUNK)
    key = tl.arange(0, KEY)[None, :]
    value = (tl.program_id(0) * BV + tl.arange(0, BV))[:, None]
    k += first * KEY
    total += sequence * chunks * CHUNK
    erase += sequence * chunks * (CHUNK * KEY) + i[:, None] * KEY + key
    updates += sequence * chunks * (CHUNK * VALUE) + i[None, :] * VALUE + value
    starts += sequence * chunks * (VALUE * KEY) + value * KEY + key
    cell = sequence * (KEY * VALUE) + key * VALUE + value
    dtype: tl.constexpr = k.dtype.element_ty
    s = tl.zeros([BV, KEY], tl.float32)
    if STATE:
        s += tl.load(state + cell)
    for chunk in range(chunks):
        held = s.to(dtype)
        tl.store(starts, held)
        x = rows(k, heads, i < time - chunk * CHUNK, 0, KEY, KEY)
        u = tl.load(updates).to(tl.float32) - tl.dot(held, tl.trans(tl.load(erase)), input_precision=PRECISION)
        tl.store(updates, u.to(dtype))
        if DECAY:
            end = tl.load(total + CHUNK - 1)
            u *= tl.exp(end - tl.load(total + i))[None, :]
            s *= tl.exp(end)
            total += CHUNK
        s = tl.dot(u.to(dtype), x, s, input_precision=PRECISION)
        k += heads * (CHUNK * KEY)
        erase += CHUNK * KEY
        updates += CHUNK * VALUE
        starts += VALUE * KEY
    tl.store(last + cell, s)


@triton.jit(do_not_specialize=("heads", "time"))
def _read(q, k, total, updates, starts, out, heads, time, KEY: tl.constexpr, VALUE: tl.constexpr, BK: tl.constexpr,
          BV: tl.constexpr, DECAY: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    first, live, at = own_chunk(heads, time)
    begin = tl.program_id(2) * BV
    i = tl.arange(0, CHUNK)
    value = begin + tl.arange(0, BV)
    scores = tl.zeros([CHUNK, CHUNK], tl.float32)
    o = tl.zeros([CHUNK, BV], tl.float32)
    for start in range(0, KEY, BK):
        query = rows(q + first * KEY, heads, live, start, KEY, BK)
        x = rows(k + first * KEY, heads, live, start, KEY, BK)
        s = tl.load(starts + at * (VALUE * KEY) + value[:, None] * KEY + (start + tl.arange(0, BK))[None, :])
        scores = tl.dot(query, tl.trans(x), scores, input_precision=PRECISION)
        o = tl.dot(query, tl.trans(s), o, input_precision=PRECISION)
    keep = i[:, None] >= i[None, :]
    if DECAY:
        g = tl.load(total + at * CHUNK + i)
        o *= tl.exp(g)[:, None]
        scores *= decay(g[:, None], g[None, :], keep)
    else:
        scores = tl.where(keep, scores, 0.0)
    u = tl.load(updates + at * (CHUNK * VALUE) + i[:, None] * VALUE + value[None, :])
    o = tl.dot(scores.to(u.dtype), u, o, input_precision=PRECISION)
    store_rows(out + first * VALUE, o, heads, live, begin, VALUE, BV)


class Kept(NamedTuple):
    """What the backward pass needs besides the inputs."""

    total: torch.Tensor  # g, [batch * heads, chunks, CHUNK] float32; the inputs' beta where nothing decays
    inverse: torch.Tensor  # T, [batch * heads, chunks, CHUNK, CHUNK]
    updates: torch.Tensor  # U, [batch * heads, chunks, CHUNK, value]
    starts: torch.Tensor  # S transposed, [batch * heads, chunks, value, key]


def precision(dtype: torch.dtype) -> str:
    """How products of float32 are done: within the inverse of half-precision inputs, and everywhere for float32."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


class Tile(NamedTuple):
    """Columns of keys and of values that a program takes at a time (the scans hold all keys), and launch options."""

    keys: int
    values: int
    warps: int
    stages: int


# Measured on an H200 with Triton 3.6, results checked there against float64. Others are not known to be right: 16
# columns and 8 warps are compiled to code that leaves its memory, and so is `_gradients` with keys=32, values=64 and
# warps=4.
_HALF = {
    "solve": Tile(64, 64, 4, 1),
    "scan": Tile(0, 32, 4, 4),
    "read": Tile(64, 128, 4, 2),
    "pull": Tile(64, 64, 4, 1),
    "scan_back": Tile(0, 32, 4, 3),
    "gradients": Tile(64, 64, 4, 1),
}


def tiling(kernel: str, key: int, value: int, dtype: torch.dtype) -> dict[str, int]:
    """The sizes of a kernel's tiles and its launch options."""
    tile = _HALF[kernel]
    if dtype == torch.float32:
        tile = Tile(min(tile.keys, 32), 32, 8, 1)
    elif kernel.startswith("scan") and key > 128:
        tile = Tile(0, 32, 8, 2)
    keys = {"BK": min(key, tile.keys)} if tile.keys else {}
    return keys | {"BV": min(value, tile.values), "num_warps": tile.warps, "num_stages": tile.stages}


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor,
    log_decay: torch.Tensor | None,
    state: torch.Tensor | None,
    keep: bool,
) -> tuple[torch.Tensor, torch.Tensor, Kept]:
    """The output [batch, time, heads, value], the last state [batch, heads, key, value], and, if `keep`, what the
    backward pass needs. All inputs contiguous."""
    (batch, time, heads, key), value = q.shape, v.shape[-1]
    chunks, sequences = triton.cdiv(time, CHUNK.value), batch * heads
    options = {"KEY": key, "VALUE": value, "DECAY": log_decay is not None, "PRECISION": precision(q.dtype)}
    out = torch.empty_like(v)
    last = q.new_empty(batch, heads, key, value, dtype=torch.float32)
    total = beta if log_decay is None else beta.new_empty(sequences, chunks, CHUNK.value, dtype=torch.float32)
    inverse = q.new_empty(sequences, chunks, CHUNK.value, CHUNK.value) if keep else q
    erase = q.new_empty(sequences, chunks, CHUNK.value, key)
    updates = q.new_empty(sequences, chunks, CHUNK.value, value)
    starts = q.new_empty(sequences, chunks, value, key)
    _solve[(chunks, sequences)](
        k, v, beta, beta if log_decay is None else log_decay, total,
        q.new_empty(sequences, chunks, CHUNK.value, 16, dtype=torch.float32), inverse, erase, updates, heads, time,
        KEEP=keep, **options, **tiling("solve", key, value, q.dtype),
    )  # fmt: skip
    scan, read = (tiling(kernel, key, value, q.dtype) for kernel in ("scan", "read"))
    _scan[(value // scan["BV"], sequences)](
        k, total, erase, updates, starts, last if state is None else state, last, heads, time, chunks,
        STATE=state is not None, **options, **scan,
    )  # fmt: skip
    _read[(chunks, sequences, value // read["BV"])](q, k, total, updates, starts, out, heads, time, **options, **read)
    return out, last, Kept(total, inverse, updates, starts)
