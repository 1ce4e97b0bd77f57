"""Linear attention with a decay per key channel (GLA), in chunks, with gradients.

With g_i [key] the log decay accumulated from the start of a chunk to its step i, G that of the whole chunk and S the
state before it, a head computes, products with e^. being per channel,

    o_i = S^T (e^{g_i} q_i) + sum_{j <= i} A_ij v_j          A_ij = sum over channels of q_i k_j e^{g_i - g_j}
    S'  = e^G S + sum_j (e^{G - g_j} k_j) v_j^T

e^{g_i - g_j} must be split between q and k for a matrix product to form A, at a step between j and i so that neither
factor exceeds one. No step lies between all pairs, but one does for all pairs of a level: level l takes the pairs i > j
whose highest differing bit is bit l, and splits at the last step before i's block of 2^l. So log2(CHUNK) products, each
of its own pairs, and the diagonal form A; their gradients likewise. Where the decays of a chunk are mild, so that no
factor comes near the limits of the dtype, one split in the middle serves all pairs. One kernel walks over the chunks
and stores the state before each of them; all else runs for all chunks at once.
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


@triton.jit(do_not_specialize=["time", "width"])
def _accumulate(q, k, log_decay, total, q_start, k_end, time, width, CHUNK: tl.constexpr, WIDTH: tl.constexpr):
    """g, e^g q and e^{G - g} k, all [batch, time, width] like q, k and the log decay; width is heads x key."""
    left = time - tl.program_id(0) * CHUNK
    at = (tl.program_id(2).to(tl.int64) * time + tl.program_id(0) * CHUNK) * width + tl.program_id(1) * WIDTH
    step_decay = load_tile(log_decay + at, left, width, CHUNK, WIDTH)
    g = tl.cumsum(step_decay, 0)
    rest = tl.minimum(tl.sum(step_decay, 0)[None, :] - g, 0.0)
    store_tile(total + at, g, left, width, CHUNK, WIDTH)
    store_tile(q_start + at, load_tile(q + at, left, width, CHUNK, WIDTH) * tl.exp(g), left, width, CHUNK, WIDTH)
    store_tile(k_end + at, load_tile(k + at, left, width, CHUNK, WIDTH) * tl.exp(rest), left, width, CHUNK, WIDTH)


@triton.jit
def _end(total, left, stride, CHUNK: tl.constexpr, WIDTH: tl.constexpr):
    """G [WIDTH] of the chunk at `total`."""
    return tl.load(total + (tl.minimum(left, CHUNK) - 1) * stride + tl.arange(0, WIDTH))


@triton.jit(do_not_specialize=["time", "count", "heads"])
def _states(x, y, total, initial, states, last, time, count, heads, KEY: tl.constexpr, VALUE: tl.constexpr,
            CHUNK: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr, INITIAL: tl.constexpr,
            REVERSE: tl.constexpr):  # fmt: skip
    """The state S before each chunk, of e^{G - g} k as x and v as y; with REVERSE the gradient of the state after each
    chunk, of e^g q as x and do as y:  dS = e^G dS' + sum_i (e^{g_i} q_i) do_i^T.  `last` is what the walk ends with.

    A program walks with KEYS rows and VALUES columns of one head's state.
    """
    b = (tl.program_id(0) // heads).to(tl.int64)
    h = tl.program_id(0) % heads
    inside = tl.program_id(1) * KEYS * VALUE + tl.program_id(2) * VALUES
    inside += tl.arange(0, KEYS)[:, None] * VALUE + tl.arange(0, VALUES)[None, :]
    head = (b * heads + h) * KEY * VALUE
    first_key = b * time * heads * KEY + h * KEY + tl.program_id(1) * KEYS
    first_value = b * time * heads * VALUE + h * VALUE + tl.program_id(2) * VALUES
    states += (b * count * heads + h) * KEY * VALUE
    s = tl.zeros((KEYS, VALUES), tl.float32)
    if INITIAL:
        s = tl.load(initial + head + inside)
    for step in range(count):
        n = tl.cast(count - 1 - step if REVERSE else step, tl.int64)
        left = time - n * CHUNK
        row = n * CHUNK * heads
        tl.store(states + n * heads * KEY * VALUE + inside, s.to(states.dtype.element_ty))
        key = load_tile(x + first_key + row * KEY, left, heads * KEY, CHUNK, KEYS)
        value = load_tile(y + first_value + row * VALUE, left, heads * VALUE, CHUNK, VALUES)
        whole = _end(total + first_key + row * KEY, left, heads * KEY, CHUNK, KEYS)
        s = product(tl.trans(key), value, s * tl.exp(whole)[:, None])
    tl.store(last + head + inside, s)


@triton.jit
def _first_level(g, total, left, stride, LEVELS: tl.constexpr, CHUNK: tl.constexpr, WIDTH: tl.constexpr,
                 LIMIT: tl.constexpr):  # fmt: skip
    """Whether the decays g [CHUNK, WIDTH] stay within e^LIMIT of those in the middle, and the level to begin with."""
    middle = tl.load(total + (tl.minimum(left, CHUNK // 2) - 1) * stride + tl.arange(0, WIDTH))
    away = tl.where(tl.arange(0, CHUNK)[:, None] < left, tl.abs(g - middle[None, :]), 0.0)
    mild = tl.max(tl.max(away, 1), 0) <= LIMIT
    return mild, tl.where(mild, LEVELS - 1, 0)


@triton.jit
def _split(g, total, left, stride, level, mild, CHUNK: tl.constexpr, WIDTH: tl.constexpr, LIMIT: tl.constexpr):
    """For the pairs of a level, or for all pairs if the decays are mild: the decay from the split to each later step
    and from each earlier step to the split, both [CHUNK, WIDTH], and by [CHUNK] which pairs those are: of one block,
    the later step higher in the order.
    """
    step = tl.arange(0, CHUNK)
    later = (step >> level) & 1
    split = tl.where(later == 1, ((step >> level) << level) - 1, step | ((1 << level) - 1))
    split = tl.minimum(tl.where(mild, CHUNK // 2 - 1, split), left - 1)
    inside = step[:, None] < left
    at_split = tl.load(total + split[:, None] * stride + tl.arange(0, WIDTH)[None, :], mask=inside, other=0.0)
    limit = tl.where(mild, LIMIT, 0.0)
    from_split = tl.exp(tl.minimum(g - at_split, limit))
    to_split = tl.exp(tl.minimum(at_split - g, limit))
    return from_split, to_split, step >> (level + 1), tl.where(mild, step, later)


@triton.jit(do_not_specialize=["time", "count", "heads"])
def _scores(q, k, total, scores, time, count, heads, KEY: tl.constexpr, CHUNK: tl.constexpr, LEVELS: tl.constexpr,
            LIMIT: tl.constexpr, KEYS: tl.constexpr):  # fmt: skip
    """A [batch, heads, count, CHUNK, CHUNK], zeros above the diagonal."""
    n = tl.program_id(0)
    h = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    left = time - n * CHUNK
    stride = heads * KEY
    here = (b * time + n * CHUNK) * stride + h * KEY
    step = tl.arange(0, CHUNK)
    found = tl.zeros((CHUNK, CHUNK), tl.float32)
    for first in range(0, KEY, KEYS):
        query = load_tile(q + here + first, left, stride, CHUNK, KEYS)
        key = load_tile(k + here + first, left, stride, CHUNK, KEYS)
        same = tl.sum(query.to(tl.float32) * key, 1)
        found += tl.where(step[:, None] == step[None, :], same[:, None], 0.0)
        g = load_tile(total + here + first, left, stride, CHUNK, KEYS)
        mild, first_level = _first_level(g, total + here + first, left, stride, LEVELS, CHUNK, KEYS, LIMIT)
        for level in tl.range(first_level, LEVELS, num_stages=1):
            from_split, to_split, block, order = _split(
                g, total + here + first, left, stride, level, mild, CHUNK, KEYS, LIMIT
            )
            some = product((query * from_split).to(query.dtype), tl.trans((key * to_split).to(key.dtype)))
            pairs = (block[:, None] == block[None, :]) & (order[:, None] > order[None, :])
            found += tl.where(pairs, some, 0.0)
    scores += ((b * heads + h) * count + n) * CHUNK * CHUNK
    store_tile(scores, found, CHUNK, CHUNK, CHUNK, CHUNK)


@triton.jit(do_not_specialize=["time", "count", "heads"])
def _output(q_start, v, scores, states, out, time, count, heads, KEY: tl.constexpr, VALUE: tl.constexpr,
            CHUNK: tl.constexpr, VALUES: tl.constexpr):  # fmt: skip
    n = tl.program_id(0) // (VALUE // VALUES)
    first = tl.program_id(0) % (VALUE // VALUES) * VALUES
    h = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    left = time - n * CHUNK
    here = (b * time + n * CHUNK) * heads + h
    query = load_tile(q_start + here * KEY, left, heads * KEY, CHUNK, KEY)
    state = load_tile(states + ((b * count + n) * heads + h) * KEY * VALUE + first, KEY, VALUE, KEY, VALUES)
    o = product(query, state)
    a = load_tile(scores + ((b * heads + h) * count + n) * CHUNK * CHUNK, CHUNK, CHUNK, CHUNK, CHUNK)
    value = load_tile(v + here * VALUE + first, left, heads * VALUE, CHUNK, VALUES)
    o = product(a, value, o)
    store_tile(out + here * VALUE + first, o, left, heads * VALUE, CHUNK, VALUES)


@triton.jit(do_not_specialize=["time", "count", "heads"])
def _values(k_end, v, d_out, scores, d_states, dv, d_scores, time, count, heads, KEY: tl.constexpr,
            VALUE: tl.constexpr, CHUNK: tl.constexpr, VALUES: tl.constexpr):  # fmt: skip
    """dv_j = sum_i A_ij do_i + dS'^T (e^{G - g_j} k_j), and dA_ij = do_i . v_j (right on and below the diagonal)."""
    n = tl.program_id(0)
    h = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    left = time - n * CHUNK
    here = (b * time + n * CHUNK) * heads + h
    key = load_tile(k_end + here * KEY, left, heads * KEY, CHUNK, KEY)
    pair = ((b * heads + h) * count + n) * CHUNK * CHUNK
    step = tl.arange(0, CHUNK)
    transposed = tl.load(scores + pair + step[None, :] * CHUNK + step[:, None])
    d_states += ((b * count + n) * heads + h) * KEY * VALUE
    found = tl.zeros((CHUNK, CHUNK), tl.float32)
    for first in range(0, VALUE, VALUES):
        value = load_tile(v + here * VALUE + first, left, heads * VALUE, CHUNK, VALUES)
        d_o = load_tile(d_out + here * VALUE + first, left, heads * VALUE, CHUNK, VALUES)
        d_state = load_tile(d_states + first, KEY, VALUE, KEY, VALUES)
        found = product(d_o, tl.trans(value), found)
        d_value = product(transposed, d_o, product(key, d_state))
        store_tile(dv + here * VALUE + first, d_value, left, heads * VALUE, CHUNK, VALUES)
    store_tile(d_scores + pair, found, CHUNK, CHUNK, CHUNK, CHUNK)


@triton.jit
def _through_states(v, d_out, states, d_states, left, heads, VALUE: tl.constexpr, CHUNK: tl.constexpr,
                    KEYS: tl.constexpr, VALUES: tl.constexpr):  # fmt: skip
    """S do_i and dS' v_j, and <S, dS'> of each channel."""
    d_query = tl.zeros((CHUNK, KEYS), tl.float32)
    d_key = tl.zeros((CHUNK, KEYS), tl.float32)
    kept = tl.zeros((KEYS,), tl.float32)
    for first in range(0, VALUE, VALUES):
        value = load_tile(v + first, left, heads * VALUE, CHUNK, VALUES)
        d_o = load_tile(d_out + first, left, heads * VALUE, CHUNK, VALUES)
        state = load_tile(states + first, KEYS, VALUE, KEYS, VALUES)
        d_state = load_tile(d_states + first, KEYS, VALUE, KEYS, VALUES)
        kept += tl.sum(state.to(tl.float32) * d_state, 1)
        d_query = product(d_o, tl.trans(state), d_query)
        d_key = product(value, tl.trans(d_state), d_key)
    return d_query, d_key, kept


@triton.jit(do_not_specialize=["time", "count", "heads"])
def _gradients(q, k, v, d_out, total, d_scores, states, d_states, dq, dk, d_decay, time, count, heads,
               KEY: tl.constexpr, VALUE: tl.constexpr, CHUNK: tl.constexpr, LEVELS: tl.constexpr, LIMIT: tl.constexpr,
               KEYS: tl.constexpr, VALUES: tl.constexpr):  # fmt: skip
    """dq, dk and the gradient of the log decay, KEYS channels of them:

        dq_i = e^{g_i} S do_i       + sum_{j <= i} dA_ij k_j e^{g_i - g_j}
        dk_j = e^{G - g_j} dS' v_j  + sum_{i >= j} dA_ij q_i e^{g_i - g_j}

    g_i gains q_i dq_i and g_j loses k_j dk_j, channel by channel (the diagonal's shares cancel); G gains e^G <S, dS'>
    and what k_j loses through S'. A log decay at step i is part of all g from i on, and of G. Pairs on one side of i
    must cancel in the sum, so q dq and k dk take the rounded factors that the products take.
    """
    n = tl.program_id(0) // (KEY // KEYS)
    channel = tl.program_id(0) % (KEY // KEYS) * KEYS
    h = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    left = time - n * CHUNK
    stride = heads * KEY
    here = (b * time + n * CHUNK) * heads + h
    v += here * VALUE
    d_out += here * VALUE
    state_at = ((b * count + n) * heads + h) * KEY * VALUE + channel * VALUE
    here = here * KEY + channel
    d_query, d_key, kept = _through_states(
        v, d_out, states + state_at, d_states + state_at, left, heads, VALUE, CHUNK, KEYS, VALUES
    )
    query = load_tile(q + here, left, stride, CHUNK, KEYS)
    key = load_tile(k + here, left, stride, CHUNK, KEYS)
    g = load_tile(total + here, left, stride, CHUNK, KEYS)
    whole = _end(total + here, left, stride, CHUNK, KEYS)
    d_query *= tl.exp(g)
    d_key *= tl.exp(tl.minimum(whole[None, :] - g, 0.0))
    through = key * d_key
    gain = query * d_query - through
    of_whole = kept * tl.exp(whole) + tl.sum(through, 0)

    step = tl.arange(0, CHUNK)
    d_scores += ((b * heads + h) * count + n) * CHUNK * CHUNK
    same = tl.load(d_scores + step * (CHUNK + 1)).to(tl.float32)[:, None]
    d_query += same * key
    d_key += same * query
    mild, first_level = _first_level(g, total + here, left, stride, LEVELS, CHUNK, KEYS, LIMIT)
    for level in tl.range(first_level, LEVELS, num_stages=1):
        from_split, to_split, block, order = _split(g, total + here, left, stride, level, mild, CHUNK, KEYS, LIMIT)
        faded_query = (query * from_split).to(query.dtype)
        faded_key = (key * to_split).to(key.dtype)
        same_block = block[:, None] == block[None, :]
        pairs = same_block & (order[:, None] > order[None, :])
        swapped = same_block & (order[:, None] < order[None, :])
        x = product(tl.load(d_scores + step[:, None] * CHUNK + step[None, :], mask=pairs, other=0.0), faded_key)
        y = product(tl.load(d_scores + step[None, :] * CHUNK + step[:, None], mask=swapped, other=0.0), faded_query)
        d_query += x * from_split
        d_key += y * to_split
        gain += faded_query * x - faded_key * y
    store_tile(dq + here, d_query, left, stride, CHUNK, KEYS)
    store_tile(dk + here, d_key, left, stride, CHUNK, KEYS)
    store_tile(d_decay + here, tl.cumsum(gain, 0, reverse=True) + of_whole[None, :], left, stride, CHUNK, KEYS)


# Sizes of a head's keys and values; wider float32 tiles do not fit the registers.
SMALLEST = 16
_LARGEST = {torch.bfloat16: (256, 512), torch.float16: (256, 512), torch.float32: (128, 512)}


def refusal(key: int, value: int, dtype: torch.dtype) -> str:
    """Why the kernels cannot serve heads of these key and value sizes in this dtype, or nothing."""
    return tiles.refusal(key, value, dtype, SMALLEST, _LARGEST)


class _GatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, initial: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        batch, time, heads, key = q.shape
        value, chunk = v.shape[3], CHUNK[v.dtype]
        count = triton.cdiv(time, chunk)
        sizes = (time, count, heads)
        total, q_start, k_end = (torch.empty_like(x) for x in (log_decay, q, k))
        keys, values = min(key, 64), min(value, 64)
        _accumulate[(count, heads * key // keys, batch)](
            q, k, log_decay, total, q_start, k_end, time, heads * key, CHUNK=chunk, WIDTH=keys, num_warps=4
        )
        states, last = tiles.walk(_states, k_end, v, total, initial, reverse=False, stages=2)
        warps = 4 if v.element_size() == 2 else 8
        scores = torch.empty(batch, heads, count, chunk, chunk, device=v.device, dtype=v.dtype)
        _scores[(count, heads, batch)](
            q, k, total, scores, *sizes, KEY=key, CHUNK=chunk, KEYS=keys, **_splits(v.dtype), num_warps=warps,
            num_stages=1,
        )  # fmt: skip
        out = torch.empty_like(v)
        _output[(count * (value // values), heads, batch)](
            q_start, v, scores, states, out, *sizes, KEY=key, VALUE=value, CHUNK=chunk, VALUES=values, num_warps=warps,
        )  # fmt: skip
        ctx.save_for_backward(q, k, v, total, q_start, k_end, scores, states)
        ctx.initial = initial is not None
        ctx.set_materialize_grads(False)
        return out, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor | None, d_last: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, total, q_start, k_end, scores, states = ctx.saved_tensors
        batch, time, heads, key = q.shape
        value, count, chunk = v.shape[3], scores.shape[2], scores.shape[3]
        d_out = torch.zeros_like(v) if d_out is None else d_out.contiguous()
        d_states, d_initial = tiles.walk(
            _states, q_start, d_out, total, None if d_last is None else d_last.contiguous(), reverse=True, stages=2
        )
        dq, dk, dv, d_decay, d_scores = (torch.empty_like(x) for x in (q, k, v, total, scores))
        sizes = (time, count, heads)
        shape = dict(KEY=key, VALUE=value, CHUNK=chunk, VALUES=min(value, 64))
        half = v.element_size() == 2
        _values[(count, heads, batch)](
            k_end, v, d_out, scores, d_states, dv, d_scores, *sizes, **shape, num_warps=4 if half else 8,
            num_stages=2 if half else 1,
        )  # fmt: skip
        keys = min(key, 64)
        _gradients[(count * (key // keys), heads, batch)](
            q, k, v, d_out, total, d_scores, states, d_states, dq, dk, d_decay, *sizes, KEYS=keys, **shape,
            **_splits(v.dtype), num_warps=8, num_stages=2 if half else 1,
        )  # fmt: skip
        return dq, dk, dv, d_decay, d_initial if ctx.initial else None


def _splits(dtype: torch.dtype) -> dict[str, Any]:
    """Levels of pairs, and the log decay that factors may reach and be a number, squared with room, of the dtype."""
    return {"LEVELS": CHUNK[dtype].bit_length() - 1, "LIMIT": 5.0 if dtype == torch.float16 else 30.0}


def gated_linear(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`chunked.gated_linear` on a GPU: the output in the dtype of v, and the state after it in float32.

    q, k [batch, time, heads, key] and v [batch, time, heads, value] of one dtype, that of the matrix products (float32
    sums); log_decay [batch, time, heads, key] and state [batch, heads, key, value] in float32. Gradients reach all
    five, from the output and from the last state, and repeat bit for bit. Sizes: see `refusal`.
    """
    if state is not None:
        state = state.contiguous()
    out, last = _GatedLinear.apply(q.contiguous(), k.contiguous(), v.contiguous(), log_decay.contiguous(), state)
    return out, last
