"""The delta rule over chunks of 64 steps: the kernels of the backward pass (see `chunk_delta_forward` for the symbols).

With dO given, dS the gradient of the state after the chunk, and R = beta v - beta e^g k S, so that U = T R:

    dU = P^T dO + (e^(g_end - g) k) dS;    dR = T^T dU;    dA = -dR U^T, strictly lower
    dS before the chunk = e^(g_end) dS + (e^g q)^T dO - (beta e^g k)^T dR
    dv_i = beta_i dR_i;    dbeta_i = dR_i . U_i / beta_i

`_pull` computes dq, T^T P^T dO and Y = T^T (e^(g_end - g) k) of all chunks at once, `_scan_back` walks from the last
chunk to the first, where dR = T^T P^T dO + Y dS, and `_gradients` turns dO, dR, U, S and dS into the other gradients,
all chunks at once. The gradient of a product with its operand on the other side is computed as a product of its own
where the first is at hand only as a result: a transposed result of a product is miscompiled by some versions of Triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from nfsearch.ops.kernels.training.chunk_delta_forward import (
    CHUNK,
    Kept,
    decay,
    gate,
    locate,
    own_chunk,
    precision,
    rows,
    store_rows,
    tiling,
)


@triton.jit(do_not_specialize=("heads", "time"))
def _pull(q, k, d_out, total, inverse, updates, starts, d_q, d_total, d_residuals, reach, heads, time,
          KEY: tl.constexpr, VALUE: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, DECAY: tl.constexpr,
          PRECISION: tl.constexpr):  # fmt: skip
    """d_residuals = T^T P^T dO; reach = Y; d_total = the part of the gradient of g that comes through e^g q."""
    first, live, at = own_chunk(heads, time)
    i = tl.arange(0, CHUNK)
    q += first * KEY
    k += first * KEY
    d_q += first * KEY
    d_out += first * VALUE
    d_residuals += at * (CHUNK * VALUE) + i[:, None] * VALUE
    updates += at * (CHUNK * VALUE) + i[:, None] * VALUE
    reach += at * (CHUNK * KEY) + i[:, None] * KEY
    scores = tl.zeros([CHUNK, CHUNK], tl.float32)  # P^T
    for start in range(0, KEY, BK):
        x = rows(k, heads, live, start, KEY, BK)
        scores = tl.dot(x, tl.trans(rows(q, heads, live, start, KEY, BK)), scores, input_precision=PRECISION)
    later, earlier = i[:, None], i[None, :]
    if DECAY:
        g = tl.load(total + at * CHUNK + i)
        scores *= decay(g[None, :], g[:, None], later <= earlier)
    t = tl.load(inverse + at * (CHUNK * CHUNK) + i[None, :] * CHUNK + i[:, None])  # T^T
    scores = tl.where(later <= earlier, scores, 0.0).to(t.dtype)
    d_p = tl.zeros([CHUNK, CHUNK], tl.float32)
    for start in range(0, VALUE, BV):
        value = (start + tl.arange(0, BV))[None, :]
        d_o = rows(d_out, heads, live, start, VALUE, BV)
        d_p = tl.dot(d_o, tl.trans(tl.load(updates + value)), d_p, input_precision=PRECISION)
        x = tl.dot(scores, d_o, input_precision=PRECISION)
        x = tl.dot(t, x.to(t.dtype), input_precision=PRECISION)
        tl.store(d_residuals + value, x.to(t.dtype))
    if DECAY:
        d_p *= decay(g[:, None], g[None, :], later >= earlier)
        t = (t * tl.exp(tl.load(total + at * CHUNK + CHUNK - 1) - g)[None, :]).to(t.dtype)
    d_p = tl.where(later >= earlier, d_p, 0.0).to(t.dtype)
    d_g = tl.zeros([CHUNK], tl.float32)
    for start in range(0, KEY, BK):
        key = (start + tl.arange(0, BK))[None, :]
        x = rows(k, heads, live, start, KEY, BK)
        tl.store(reach + key, tl.dot(t, x, input_precision=PRECISION).to(t.dtype))
        d_query = tl.zeros([CHUNK, BK], tl.float32)
        for begin in range(0, VALUE, BV):
            s = tl.load(starts + at * (VALUE * KEY) + (begin + tl.arange(0, BV))[:, None] * KEY + key)
            d_query = tl.dot(rows(d_out, heads, live, begin, VALUE, BV), s, d_query, input_precision=PRECISION)
        if DECAY:
            d_query *= tl.exp(g)[:, None]
        d_query = tl.dot(d_p, x, d_query, input_precision=PRECISION)
        store_rows(d_q, d_query, heads, live, start, KEY, BK)
        if DECAY:
            d_g += tl.sum(d_query * rows(q, heads, live, start, KEY, BK), 1)
    if DECAY:
        tl.store(d_total + at * CHUNK + i, d_g)


@triton.jit(do_not_specialize=("heads", "time", "chunks"))
def _scan_back(q, k, beta, d_out, total, reach, d_residuals, d_ends, d_last, d_state, heads, time, chunks,
               KEY: tl.constexpr, VALUE: tl.constexpr, BV: tl.constexpr, DECAY: tl.constexpr, LAST: tl.constexpr,
               STATE: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """d_ends = dS of each chunk, [value, key]; d_residuals = dR, in place; d_state = dS before the first chunk."""
    sequence = tl.program_id(1).to(tl.int64)
    first, _ = locate(chunks - 1, heads, time)
    i = tl.arange(0, CHUNK)
    key = tl.arange(0, KEY)[None, :]
    value = (tl.program_id(0) * BV + tl.arange(0, BV))[:, None]
    q += first * KEY
    k += first * KEY
    d_out += first * VALUE + i[None, :] * (heads * VALUE) + value
    beta += first + i * heads
    end = sequence * chunks + chunks - 1
    total += end * CHUNK
    reach += end * (CHUNK * KEY) + i[:, None] * KEY + key
    d_residuals += end * (CHUNK * VALUE) + i[None, :] * VALUE + value
    d_ends += end * (VALUE * KEY) + value * KEY + key
    cell = sequence * (KEY * VALUE) + key * VALUE + value
    dtype: tl.constexpr = k.dtype.element_ty
    d_s = tl.zeros([BV, KEY], tl.float32)
    if LAST:
        d_s += tl.load(d_last + cell)
    for back in range(chunks):
        live = i < time - (chunks - 1 - back) * CHUNK
        held = d_s.to(dtype)
        tl.store(d_ends, held)
        y = tl.load(reach)
        d_r = tl.load(d_residuals).to(tl.float32) + tl.dot(held, tl.trans(y), input_precision=PRECISION)
        tl.store(d_residuals, d_r.to(dtype))
        d_o = tl.load(d_out, mask=live[None, :], other=0.0)
        b = tl.load(beta, mask=live, other=0.0).to(tl.float32)
        if DECAY:
            since_start = tl.exp(tl.load(total + i))
            d_o = (d_o * since_start[None, :]).to(dtype)
            b *= since_start
            d_s *= tl.exp(tl.load(total + CHUNK - 1))
            total -= CHUNK
        d_s = tl.dot(d_o, rows(q, heads, live, 0, KEY, KEY), d_s, input_precision=PRECISION)
        d_r = (d_r * -b[None, :]).to(dtype)
        d_s = tl.dot(d_r, rows(k, heads, live, 0, KEY, KEY), d_s, input_precision=PRECISION)
        q -= heads * (CHUNK * KEY)
        k -= heads * (CHUNK * KEY)
        d_out -= heads * (CHUNK * VALUE)
        beta -= heads * CHUNK
        reach -= CHUNK * KEY
        d_residuals -= CHUNK * VALUE
        d_ends -= VALUE * KEY
    if STATE:
        tl.store(d_state + cell, d_s)


@triton.jit
def _pairs(updates, d_residuals, d_out, d_v, b, heads, live, VALUE: tl.constexpr, BV: tl.constexpr,
           PRECISION: tl.constexpr):  # fmt: skip
    """The gradients of all pairs of steps, those of P and A transposed and that of A as it is; beta times that of beta.
    Stores dv."""
    d_p_t = tl.zeros([CHUNK, CHUNK], tl.float32)
    d_a_t = tl.zeros([CHUNK, CHUNK], tl.float32)
    d_a = tl.zeros([CHUNK, CHUNK], tl.float32)
    d_b = tl.zeros([CHUNK], tl.float32)
    for start in range(0, VALUE, BV):
        value = (start + tl.arange(0, BV))[None, :]
        u = tl.load(updates + value)
        d_r = tl.load(d_residuals + value)
        d_o = rows(d_out, heads, live, start, VALUE, BV)
        d_p_t = tl.dot(u, tl.trans(d_o), d_p_t, input_precision=PRECISION)
        d_a_t = tl.dot(u, tl.trans(d_r), d_a_t, input_precision=PRECISION)
        d_a = tl.dot(d_r, tl.trans(u), d_a, input_precision=PRECISION)
        d_r = d_r.to(tl.float32)
        d_b += tl.sum(d_r * u, 1)
        store_rows(d_v, d_r * b[:, None], heads, live, start, VALUE, BV)
    return d_p_t, d_a_t, d_a, d_b


@triton.jit
def _through_states(updates, d_residuals, starts, d_ends, cells, d_end, end, KEY: tl.constexpr,
                    VALUE: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, DECAY: tl.constexpr,
                    PRECISION: tl.constexpr):  # fmt: skip
    """dR S and U dS, BK columns of them, at `cells` of the states; d_end with what the states contribute to it."""
    later = tl.zeros([CHUNK, BK], tl.float32)
    earlier = tl.zeros([CHUNK, BK], tl.float32)
    for begin in range(0, VALUE, BV):
        value = (begin + tl.arange(0, BV))[None, :]
        s = tl.load(starts + cells + begin * KEY)
        d_s = tl.load(d_ends + cells + begin * KEY)
        later = tl.dot(tl.load(d_residuals + value), s, later, input_precision=PRECISION)
        earlier = tl.dot(tl.load(updates + value), d_s, earlier, input_precision=PRECISION)
        if DECAY:
            kept = s.to(tl.float32) * d_s.to(tl.float32)
            d_end += tl.sum(tl.sum(kept, 1), 0) * tl.exp(end) / CHUNK
    return later, earlier, d_end


@triton.jit(do_not_specialize=("heads", "time"))
def _gradients(q, k, beta, d_out, total, updates, d_residuals, starts, d_ends, d_total, d_k, d_v, d_beta, d_log_decay,
               heads, time, KEY: tl.constexpr, VALUE: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
               DECAY: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """d_total, of `_pull`, is the part of the gradient of g that comes through e^g q."""
    first, live, at = own_chunk(heads, time)
    i = tl.arange(0, CHUNK)
    dtype: tl.constexpr = k.dtype.element_ty
    q += first * KEY
    k += first * KEY
    d_k += first * KEY
    d_v += first * VALUE
    d_out += first * VALUE
    updates += at * (CHUNK * VALUE) + i[:, None] * VALUE
    d_residuals += at * (CHUNK * VALUE) + i[:, None] * VALUE
    b = gate(beta, first, heads, live)
    d_p_t, d_a_t, d_a, d_b = _pairs(updates, d_residuals, d_out, d_v, b, heads, live, VALUE, BV, PRECISION)
    row, column = i[:, None], i[None, :]
    if DECAY:
        g = tl.load(total + at * CHUNK + i)
        end = tl.load(total + at * CHUNK + CHUNK - 1)
        backward = decay(g[None, :], g[:, None], row <= column)
        d_p_t *= backward
        d_a_t *= backward
        d_a *= decay(g[:, None], g[None, :], row >= column)
    d_p_t = tl.where(row <= column, d_p_t, 0.0).to(dtype)
    d_a_t = tl.where(row < column, d_a_t * -b[None, :], 0.0).to(dtype)
    d_a = tl.where(row > column, -d_a, 0.0).to(dtype)

    # What k_i does as the later step of a pair is multiplied by beta_i, what it does as the earlier one is not.
    d_g = tl.zeros([CHUNK], tl.float32)
    d_end = tl.zeros([CHUNK], tl.float32)
    for start in range(0, KEY, BK):
        cells = at * (VALUE * KEY) + tl.arange(0, BV)[:, None] * KEY + (start + tl.arange(0, BK))[None, :]
        later, earlier, d_end = _through_states(
            updates, d_residuals, starts, d_ends, cells, d_end, end if DECAY else 0.0, KEY, VALUE, BK, BV, DECAY,
            PRECISION,
        )  # fmt: skip
        x = rows(k, heads, live, start, KEY, BK)
        if DECAY:
            later *= tl.exp(g)[:, None]
            earlier *= tl.exp(end - g)[:, None]
            d_end += tl.sum(earlier * x, 1)
        later = tl.dot(d_a, x, -later, input_precision=PRECISION)
        earlier = tl.dot(d_p_t, rows(q, heads, live, start, KEY, BK), earlier, input_precision=PRECISION)
        earlier = tl.dot(d_a_t, x, earlier, input_precision=PRECISION)
        later *= b[:, None]
        store_rows(d_k, later + earlier, heads, live, start, KEY, BK)
        if DECAY:
            d_g += tl.sum((later - earlier) * x, 1)
    d_b /= tl.where(b == 0.0, 1.0, b)
    tl.store(d_beta + first + i * heads, d_b.to(d_beta.dtype.element_ty), mask=live)
    if DECAY:
        d_g += tl.load(d_total + at * CHUNK + i)
        d_g = tl.cumsum(d_g, 0, reverse=True) + tl.sum(d_end, 0)
        tl.store(d_log_decay + first + i * heads, d_g.to(d_log_decay.dtype.element_ty), mask=live)


def backward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor,
    log_decay: torch.Tensor | None,
    state: torch.Tensor | None,
    kept: Kept,
    d_out: torch.Tensor,
    d_last: torch.Tensor | None,
) -> tuple[torch.Tensor | None, ...]:
    """The gradients of q, k, v, beta, log_decay and state. All tensors contiguous."""
    (batch, time, heads, key), value = q.shape, v.shape[-1]
    chunks, sequences = triton.cdiv(time, CHUNK.value), batch * heads
    options = {"KEY": key, "VALUE": value, "DECAY": log_decay is not None, "PRECISION": precision(q.dtype)}
    d_q, d_k, d_v, d_beta = (torch.empty_like(x) for x in (q, k, v, beta))
    d_log_decay = None if log_decay is None else torch.empty_like(log_decay)
    d_state = None if state is None else torch.empty_like(state)
    d_residuals, d_ends = torch.empty_like(kept.updates), torch.empty_like(kept.starts)
    reach = q.new_empty(sequences, chunks, CHUNK.value, key)
    d_total = torch.empty_like(kept.total)
    _pull[(chunks, sequences)](
        q, k, d_out, kept.total, kept.inverse, kept.updates, kept.starts, d_q, d_total, d_residuals, reach, heads, time,
        **options, **tiling("pull", key, value, q.dtype),
    )  # fmt: skip
    scan = tiling("scan_back", key, value, q.dtype)
    _scan_back[(value // scan["BV"], sequences)](
        q, k, beta, d_out, kept.total, reach, d_residuals, d_ends, q if d_last is None else d_last,
        q if d_state is None else d_state, heads, time, chunks, LAST=d_last is not None,
        STATE=state is not None, **options, **scan,
    )  # fmt: skip
    _gradients[(chunks, sequences)](
        q, k, beta, d_out, kept.total, kept.updates, d_residuals, kept.starts, d_ends, d_total, d_k, d_v, d_beta,
        d_beta if d_log_decay is None else d_log_decay, heads, time, **options,
        **tiling("gradients", key, value, q.dtype),
    )  # fmt: skip
    return d_q, d_k, d_v, d_beta, d_log_decay, d_state
