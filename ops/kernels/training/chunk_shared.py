"""Linear attention with a decay per head and keys and queries shared by the heads (Mamba2), in chunks, with gradients.

With g_i the log decay accumulated from the start of a chunk to its step i, G that of the whole chunk and S the state
before it, a head computes

    o_i = e^{g_i} S^T q_i + sum_{j <= i} e^{g_i - g_j} (q_i . k_j) v_j
    S'  = e^G S + sum_j e^{G - g_j} k_j v_j^T

One kernel walks over the chunks and stores the state before each of them; all else runs for all chunks at once. A
program takes a chunk and a group of heads, so that the products of q and k are formed once for the group, and so are
those that dq and dk need (their sums over heads are taken before the product). What the groups find for dq and dk is
summed afterwards in a fixed order. Tiles are named by what they hold: rows are steps, [CHUNK, KEY] or [CHUNK, VALUE].
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from nfsearch.ops.kernels import tiles
from nfsearch.ops.kernels.tiles import CHUNK, load_tile, product, store_tile


@triton.jit(do_not_specialize=["time", "count", "heads"])
def _totals(log_decay, total, time, count, heads, CHUNK: tl.constexpr, HEADS: tl.constexpr):
    """The log decay accumulated within each chunk: [batch, time, heads] to [batch, heads, count * CHUNK]."""
    n = tl.program_id(0)
    b = tl.program_id(2).to(tl.int64)
    step = n * CHUNK + tl.arange(0, CHUNK)
    h = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    at = (b * time + step[:, None]) * heads + h[None, :]
    g = tl.load(log_decay + at, mask=(step < time)[:, None] & (h < heads)[None, :], other=0.0)
    at = (b * heads + h[None, :]) * count * CHUNK + step[:, None]
    tl.store(total + at, tl.cumsum(g, 0), mask=(h < heads)[None, :])


@triton.jit
def _decays(total, CHUNK: tl.constexpr):
    """g [CHUNK] of the chunk at `total`, and G."""
    return tl.load(total + tl.arange(0, CHUNK)), tl.load(total + CHUNK - 1)


@triton.jit(do_not_specialize=["time", "count", "heads"])
def _states(x, y, total, initial, states, last, time, count, heads, KEY: tl.constexpr, VALUE: tl.constexpr,
            CHUNK: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr, INITIAL: tl.constexpr,
            REVERSE: tl.constexpr):  # fmt: skip
    """The state S before each chunk, of keys x and values y; with REVERSE the gradient of the state after each chunk,
    of queries x and output gradients y:  dS = e^G dS' + sum_i e^{g_i} q_i do_i^T.  `last` is what the walk ends with.

    A program walks with columns of KEYS keys and VALUES values of one head's state.
    """
    b = (tl.program_id(0) // heads).to(tl.int64)
    h = tl.program_id(0) % heads
    first_key = tl.program_id(1) * KEYS
    first_value = tl.program_id(2) * VALUES
    i = tl.arange(0, KEYS)[:, None]
    j = tl.arange(0, VALUES)[None, :]
    inside = (first_key + i) * VALUE + first_value + j
    head = (b * heads + h) * KEY * VALUE
    stride = heads * VALUE
    x += b * time * KEY + first_key
    y += b * time * stride + h * VALUE + first_value
    total += (b * heads + h) * count * CHUNK
    states += (b * count * heads + h) * KEY * VALUE
    s = tl.zeros((KEYS, VALUES), tl.float32)
    if INITIAL:
        s = tl.load(initial + head + inside)
    for step in range(count):
        n = tl.cast(count - 1 - step if REVERSE else step, tl.int64)
        tl.store(states + n * heads * KEY * VALUE + inside, s.to(states.dtype.element_ty))
        g, whole = _decays(total + n * CHUNK, CHUNK)
        left = time - n * CHUNK
        key = load_tile(x + n * CHUNK * KEY, left, KEY, CHUNK, KEYS)
        value = load_tile(y + n * CHUNK * stride, left, stride, CHUNK, VALUES)
        weight = tl.exp(g) if REVERSE else tl.exp(whole - g)
        value = (value * weight[:, None]).to(key.dtype)
        s = product(tl.trans(key), value, s * tl.exp(whole))
    tl.store(last + head + inside, s)


@triton.jit
def _between(g, ROWS_LATER: tl.constexpr, CHUNK: tl.constexpr):
    """The decay from an earlier step to a later one, 0 where it is none: [CHUNK, CHUNK], later steps along the rows or
    along the columns."""
    row = tl.arange(0, CHUNK)[:, None]
    column = tl.arange(0, CHUNK)[None, :]
    if ROWS_LATER:
        return tl.exp(tl.where(row >= column, g[:, None] - g[None, :], -float("inf")))
    return tl.exp(tl.where(row <= column, g[None, :] - g[:, None], -float("inf")))


@triton.jit(do_not_specialize=["time", "count", "heads", "group"])
def _output(q, k, v, total, states, out, time, count, heads, group, KEY: tl.constexpr, VALUE: tl.constexpr,
            CHUNK: tl.constexpr):  # fmt: skip
    n = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    first = tl.program_id(0) * group
    left = time - n * CHUNK
    stride = heads * VALUE
    here = b * time + n * CHUNK
    query = load_tile(q + here * KEY, left, KEY, CHUNK, KEY)
    key = load_tile(k + here * KEY, left, KEY, CHUNK, KEY)
    scores = product(query, tl.trans(key))
    v += here * stride
    out += here * stride
    total += b * heads * count * CHUNK + n * CHUNK
    states += (b * count + n) * heads * KEY * VALUE
    inside = tl.arange(0, KEY)[:, None] * VALUE + tl.arange(0, VALUE)[None, :]
    for h in range(first, tl.minimum(first + group, heads)):
        g, _ = _decays(total + h * count * CHUNK, CHUNK)
        value = load_tile(v + h * VALUE, left, stride, CHUNK, VALUE)
        state = tl.load(states + h * KEY * VALUE + inside)
        o = product(query, state) * tl.exp(g)[:, None]
        weights = (scores * _between(g, True, CHUNK)).to(value.dtype)
        o = product(weights, value, o)
        store_tile(out + h * VALUE, o, left, stride, CHUNK, VALUE)


@triton.jit
def _gradient(own, other, x, y, total, states, d_states, sums, out, left, stride, count, first, end, KEY: tl.constexpr,
              VALUE: tl.constexpr, CHUNK: tl.constexpr, KEYS: tl.constexpr, QUERY: tl.constexpr):  # fmt: skip
    """One side of `_gradients`: dq with own q, other k, x = do, y = v; or dk with own k, other q, x = v, y = do."""
    inside = tl.arange(0, KEYS)[:, None] * VALUE + tl.arange(0, VALUE)[None, :]
    pairs = tl.zeros((CHUNK, CHUNK), tl.float32)
    gradient = tl.zeros((CHUNK, KEYS), tl.float32)
    if QUERY:
        query = load_tile(own, left, KEY, CHUNK, KEYS)
    for h in range(first, end):
        g, whole = _decays(total + h * count * CHUNK, CHUNK)
        a = load_tile(x + h * VALUE, left, stride, CHUNK, VALUE)
        b = load_tile(y + h * VALUE, left, stride, CHUNK, VALUE)
        pairs += product(a, tl.trans(b)) * _between(g, QUERY, CHUNK)
        state = tl.load(states + h * KEY * VALUE + inside)
        if QUERY:
            past = product(a, tl.trans(state)) * tl.exp(g)[:, None]
            tl.store(sums + h * count * CHUNK + tl.arange(0, CHUNK), tl.sum(past * query, 1))
        else:
            d_state = tl.load(d_states + h * KEY * VALUE + inside)
            past = product(a, tl.trans(d_state)) * tl.exp(whole - g)[:, None]
            tl.store(sums + h * count, tl.exp(whole) * tl.sum(state.to(tl.float32) * d_state))
        gradient += past
    late = load_tile(other, left, KEY, CHUNK, KEYS)
    gradient = product(pairs.to(late.dtype), late, gradient)
    store_tile(out, gradient, left, KEY, CHUNK, KEYS)


@triton.jit(do_not_specialize=["time", "count", "heads", "group"])
def _gradients(q, k, v, d_out, total, states, d_states, dq, dk, rows, kept, time, count, heads, group,
               KEY: tl.constexpr, VALUE: tl.constexpr, CHUNK: tl.constexpr, KEYS: tl.constexpr):  # fmt: skip
    """dq and dk [groups, batch, time, key] of a group of heads, KEYS columns of one of them. With A_ij = e^{g_i - g_j}
    (do_i . v_j) and sums over the heads of the group,

        dq_i = sum_j A_ij k_j + e^{g_i} S do_i
        dk_j = sum_i A_ij q_i + e^{G - g_j} dS' v_j

    and what these columns contribute to rows [blocks, batch, heads, count * CHUNK], e^{g_i} q_i . S do_i, and to kept
    [blocks, batch, heads, count], e^G <S, dS'>.
    """
    n = tl.program_id(1)
    blocks: tl.constexpr = KEY // KEYS
    side = tl.program_id(0) % 2
    block = tl.program_id(0) // 2 % blocks
    part = tl.program_id(0) // 2 // blocks
    b = tl.program_id(2).to(tl.int64)
    batch = tl.num_programs(2)
    left = time - n * CHUNK
    stride = heads * VALUE
    here = b * time + n * CHUNK
    columns = here * KEY + block * KEYS
    own = part * batch * time * KEY + columns
    first = part * group
    end = tl.minimum(first + group, heads)
    v += here * stride
    d_out += here * stride
    total += b * heads * count * CHUNK + n * CHUNK
    rows += (block * batch + b) * heads * count * CHUNK + n * CHUNK
    kept += (block * batch + b) * heads * count + n
    states += (b * count + n) * heads * KEY * VALUE + block * KEYS * VALUE
    d_states += (b * count + n) * heads * KEY * VALUE + block * KEYS * VALUE
    if side == 0:
        _gradient(q + columns, k + columns, d_out, v, total, states, d_states, rows, dq + own, left, stride, count,
                  first, end, KEY, VALUE, CHUNK, KEYS, True)  # fmt: skip
    else:
        _gradient(k + columns, q + columns, v, d_out, total, states, d_states, kept, dk + own, left, stride, count,
                  first, end, KEY, VALUE, CHUNK, KEYS, False)  # fmt: skip


@triton.jit(do_not_specialize=["time", "count", "heads", "group"])
def _values(q, k, v, d_out, total, d_states, rows, kept, dv, d_decay, time, count, heads, group, KEY: tl.constexpr,
            VALUE: tl.constexpr, CHUNK: tl.constexpr, BLOCKS: tl.constexpr):  # fmt: skip
    """dv and the gradient of the log decay [batch, time, heads]. Tiles of pairs are transposed: rows are earlier steps.

        dv_j = sum_{i >= j} e^{g_i - g_j} (q_i . k_j) do_i + e^{G - g_j} dS'^T k_j

    g_i gains W_ij = A_ij (q_i . k_j) of each j and e^{g_i} q_i . S do_i; g_j loses W_ij and h_j = e^{G - g_j} k_j . dS'
    v_j; G gains sum_j h_j + e^G <S, dS'>. A log decay at step i is part of all g from i on, and of G.
    """
    n = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    batch = tl.num_programs(2)
    first = tl.program_id(0) * group
    step = tl.arange(0, CHUNK)
    left = time - n * CHUNK
    stride = heads * VALUE
    here = b * time + n * CHUNK
    query = load_tile(q + here * KEY, left, KEY, CHUNK, KEY)
    key = load_tile(k + here * KEY, left, KEY, CHUNK, KEY)
    scores = product(key, tl.trans(query))
    v += here * stride
    d_out += here * stride
    dv += here * stride
    total += b * heads * count * CHUNK + n * CHUNK
    rows += b * heads * count * CHUNK + n * CHUNK
    kept += b * heads * count + n
    d_decay += here * heads + step * heads
    d_states += (b * count + n) * heads * KEY * VALUE
    inside = tl.arange(0, KEY)[:, None] * VALUE + tl.arange(0, VALUE)[None, :]
    for h in range(first, tl.minimum(first + group, heads)):
        g, whole = _decays(total + h * count * CHUNK, CHUNK)
        value = load_tile(v + h * VALUE, left, stride, CHUNK, VALUE)
        d_o = load_tile(d_out + h * VALUE, left, stride, CHUNK, VALUE)
        d_state = tl.load(d_states + h * KEY * VALUE + inside)
        weights = scores * _between(g, False, CHUNK)
        pairs = product(value, tl.trans(d_o)) * weights
        gain = tl.sum(pairs, 0) - tl.sum(pairs, 1)
        written = product(key, d_state) * tl.exp(whole - g)[:, None]
        through = tl.sum(written * value, 1)
        held = 0.0
        for block in tl.static_range(BLOCKS):
            gain += tl.load(rows + (block * batch * heads + h) * count * CHUNK + step)
            held += tl.load(kept + (block * batch * heads + h) * count)
        gain = tl.cumsum(gain - through, 0, reverse=True) + (tl.sum(through) + held)
        tl.store(d_decay + h, gain, mask=step < left)
        written = product(weights.to(d_o.dtype), d_o, written)
        store_tile(dv + h * VALUE, written, left, stride, CHUNK, VALUE)


# Sizes of a head's keys and values; wider float32 tiles do not fit the registers.
SMALLEST = 16
_LARGEST = {torch.bfloat16: (256, 128), torch.float16: (256, 128), torch.float32: (128, 64)}


def refusal(key: int, value: int, dtype: torch.dtype) -> str:
    """Why the kernels cannot serve heads of these key and value sizes in this dtype, or nothing."""
    return tiles.refusal(key, value, dtype, SMALLEST, _LARGEST)


def _groups(programs: int, heads: int, wanted: int) -> tuple[int, int]:
    """Into how many groups the heads fall, so that a launch has about as many programs as wanted, and how many heads
    are in one."""
    groups = max(1, min(heads, wanted // programs))
    group = triton.cdiv(heads, groups)
    return triton.cdiv(heads, group), group


class _SharedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, initial: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        (batch, time, heads, value), key = v.shape, q.shape[2]
        chunk = CHUNK[v.dtype]
        count = triton.cdiv(time, chunk)
        total = torch.empty(batch, heads, count * chunk, device=v.device, dtype=torch.float32)
        _totals[(count, triton.cdiv(heads, 16), batch)](
            log_decay, total, time, count, heads, CHUNK=chunk, HEADS=16, num_warps=4
        )
        states, last = tiles.walk(_states, k, v, total, initial, reverse=False, stages=3)
        out = torch.empty_like(v)
        groups, group = _groups(batch * count, heads, 512)
        half = v.element_size() == 2
        _output[(groups, count, batch)](
            q, k, v, total, states, out, time, count, heads, group, KEY=key, VALUE=value, CHUNK=chunk,
            num_warps=4 if half else 8, num_stages=1 if not half else 3 if key * value <= 128 * 128 else 2,
        )  # fmt: skip
        ctx.save_for_backward(q, k, v, total, states)
        ctx.initial = initial is not None
        ctx.set_materialize_grads(False)
        return out, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor | None, d_last: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, total, states = ctx.saved_tensors
        batch, time, heads, value = v.shape
        key = q.shape[2]
        count = states.shape[1]
        chunk = total.shape[2] // count
        d_out = torch.zeros_like(v) if d_out is None else d_out.contiguous()
        d_last = None if d_last is None else d_last.contiguous()
        d_states, d_initial = tiles.walk(_states, q, d_out, total, d_last, reverse=True, stages=3)
        half = v.element_size() == 2
        keys = min(key, 128 if half else 64)
        blocks = key // keys
        groups, group = _groups(batch * count * blocks * 2, heads, 256)
        rows = torch.empty(blocks, batch, heads, count * chunk, device=v.device, dtype=torch.float32)
        kept = torch.empty(blocks, batch, heads, count, device=v.device, dtype=torch.float32)
        # Of one dtype however many groups there are, so that the kernel that is checked serves for all.
        dq, dk = (torch.empty(groups, batch, time, key, device=v.device, dtype=torch.float32) for _ in range(2))
        shape = dict(KEY=key, VALUE=value, CHUNK=chunk)
        _gradients[(groups * blocks * 2, count, batch)](
            q, k, v, d_out, total, states, d_states, dq, dk, rows, kept, time, count, heads, group, KEYS=keys, **shape,
            num_warps=16 if keys == 128 else 8, num_stages=3 if half else 1,
        )  # fmt: skip
        dv = torch.empty_like(v)
        d_decay = torch.empty(batch, time, heads, device=v.device, dtype=torch.float32)
        groups, group = _groups(batch * count, heads, 512)
        _values[(groups, count, batch)](
            q, k, v, d_out, total, d_states, rows, kept, dv, d_decay, time, count, heads, group, BLOCKS=blocks, **shape,
            num_warps=4 if half else 8, num_stages=3 if half and value <= 64 else 1,
        )  # fmt: skip
        dq, dk = ((x[0] if len(x) == 1 else x.sum(0)).to(q.dtype) for x in (dq, dk))
        return dq, dk, dv, d_decay, d_initial if ctx.initial else None


def shared_linear(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`chunked.shared_linear` on a GPU: the output in the dtype of v, and the state after it in float32.

    q, k [batch, time, key] and v [batch, time, heads, value] of one dtype, that of the matrix products (float32 sums);
    log_decay [batch, time, heads] and state [batch, heads, key, value] in float32. Gradients reach all five, from the
    output and from the last state, and repeat bit for bit. Sizes: see `refusal`.
    """
    if state is not None:
        state = state.contiguous()
    out, last = _SharedLinear.apply(q.contiguous(), k.contiguous(), v.contiguous(), log_decay.contiguous(), state)
    return out, last
