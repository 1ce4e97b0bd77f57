"""Linear recurrences: a chunked parallel form and a one-token step of each.

Three of them serve four operators:

    delta rule            S' = a_t S_{t-1};  u_t = beta_t (v_t - S'^T k_t);  S_t = S' + k_t u_t^T;  o_t = S_t^T q_t
    shared linear         S_t = a_t S_{t-1} + k_t v_t^T;        o_t = S_t^T q_t    (q, k the same for all heads)
    gated linear          S_t = diag(a_t) S_{t-1} + k_t v_t^T;  o_t = S_t^T q_t

Decays are given as logarithms, log a_t <= 0. A state is [batch, heads, key, value], and computation runs in the dtype
of the tensors given (make them float32 or wider). Only differences of accumulated log decays that are <= 0 are ever
exponentiated, so that no decay, however strong, overflows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def _split(time: int, longest: int) -> tuple[int, int]:
    """How many chunks and how long, with as little padding as can be: 65 steps are 2 x 33, not 2 x 64."""
    count = math.ceil(time / longest)
    return count, math.ceil(time / count)


def _chunks(x: Tensor, count: int, chunk: int) -> Tensor:
    """[batch, time, heads, ...] to [batch, heads, count, chunk, ...]; zeros after the end, which change no state."""
    missing = count * chunk - x.shape[1]
    if missing:
        x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, missing))
    return x.unflatten(1, (count, chunk)).movedim(3, 1)


def _unchunk(x: Tensor, time: int) -> Tensor:
    """[batch, heads, count, chunk, dim] back to [batch, time, heads, dim]."""
    return x.movedim(1, 3).flatten(1, 2)[:, :time]


def _between(total: Tensor) -> Tensor:
    """The decay from step j to step i: exp(total_i - total_j), 0 for j > i. [..., chunk] to [..., chunk, chunk]."""
    later = torch.ones(total.shape[-1], total.shape[-1], dtype=torch.bool, device=total.device).triu(1)
    return (total[..., :, None] - total[..., None, :]).masked_fill(later, -math.inf).exp()


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    state: Tensor | None = None,
    *,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """The delta rule, optionally with a decay per head (Gated DeltaNet), and the state after it.

    q, k [batch, time, heads, key]; v [batch, time, heads, value]; beta, log_decay [batch, time, heads].
    Within a chunk the updates u obey a unit lower triangular system, which is solved exactly.
    """
    time = q.shape[1]
    count, chunk = _split(time, chunk)
    q, k, v, beta = (_chunks(x, count, chunk) for x in (q, k, v, beta))
    weighted = k * beta[..., None]
    system, scores = weighted @ k.mT, q @ k.mT
    if log_decay is None:
        scores, k_end, whole = scores.tril(), k, None
    else:
        total = _chunks(log_decay, count, chunk).cumsum(-1)
        between = _between(total)
        since_start = total.exp()[..., None]
        system, scores = system * between, scores * between
        q, weighted, k_end = q * since_start, weighted * since_start, k * between[..., -1, :, None]
        whole = since_start[..., -1, :, None]  # [batch, heads, count, 1, 1]
    both = torch.cat((v * beta[..., None], weighted), dim=-1)
    solved = torch.linalg.solve_triangular(system, both, upper=False, unitriangular=True)
    updates, erased = solved.split((v.shape[-1], k.shape[-1]), dim=-1)
    if state is None:
        state = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
    starts, done = [], []
    decays = [None] * count if whole is None else whole.unbind(2)
    for update, erase, key, decay in zip(updates.unbind(2), erased.unbind(2), k_end.unbind(2), decays, strict=True):
        starts.append(state)
        done.append(update - erase @ state)
        state = (state if decay is None else state * decay) + key.mT @ done[-1]
    out = q @ torch.stack(starts, dim=2) + scores @ torch.stack(done, dim=2)
    return _unchunk(out, time), state


def delta_rule_step(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor) -> Tensor:
    """One token: q, k [batch, heads, key], v [batch, heads, value], beta, log_decay [batch, heads]; writes state."""
    if log_decay is not None:
        state.mul_(log_decay.exp()[..., None, None])
    update = (v - read(k, state)) * beta[..., None]
    state.add_(k[..., :, None] * update[..., None, :])
    return read(q, state)


def shared_linear(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None = None, *, chunk: int = 64
) -> tuple[Tensor, Tensor]:
    """Linear attention with a decay per head and keys and queries shared by the heads (Mamba2), and the state after it.

    q, k [batch, time, key]; v [batch, time, heads, value]; log_decay [batch, time, heads].
    """
    time, (heads, value) = q.shape[1], v.shape[2:]
    count, chunk = _split(time, chunk)
    q, k = (_chunks(x[:, :, None], count, chunk)[:, 0] for x in (q, k))  # [batch, count, chunk, key]
    v = _chunks(v, count, chunk)  # [batch, heads, count, chunk, value]
    total = _chunks(log_decay, count, chunk).cumsum(-1)
    between = _between(total)
    out = ((q @ k.mT)[:, None] * between) @ v
    # All heads share k and q, so that what passes between chunks is one wide product over heads x value.
    added = k.mT @ (v * between[..., -1, :, None]).permute(0, 2, 3, 1, 4).flatten(3)
    added = added.unflatten(-1, (heads, value)).movedim(3, 1)  # [batch, heads, count, key, value]
    starts, state = _scan(added, total[..., -1].exp()[..., None, None], state)
    past = q @ starts.movedim(1, 3).flatten(3)
    out = out + past.unflatten(-1, (heads, value)).movedim(3, 1) * total.exp()[..., None]
    return _unchunk(out, time), state


def gated_linear(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None = None, *, chunk: int = 32, sub: int = 8
) -> tuple[Tensor, Tensor]:
    """Linear attention with a decay per key channel (GLA), and the state after it.

    q, k, log_decay [batch, time, heads, key]; v [batch, time, heads, value].
    The decay between two steps does not factor safely, so a chunk is cut into sub-chunks: across them the decay is
    split at the start of the later one, and within one it is formed for every pair of steps.
    """
    time = q.shape[1]
    count, chunk = _split(time, chunk)
    sub = min(sub, chunk)
    subs = math.ceil(chunk / sub)
    chunk = subs * sub
    q, k, v, log_decay = (_chunks(x, count, chunk) for x in (q, k, v, log_decay))
    total = log_decay.cumsum(-2)
    inner = [x.unflatten(3, (subs, sub)) for x in (q, k, total)]  # [batch, heads, count, subs, sub, key]
    q_sub, k_sub, total_sub = inner
    # Across sub-chunks: start_i is the decay accumulated before sub-chunk i.
    start = F.pad(total_sub[..., :-1, -1, :], (0, 0, 1, 0))
    step = torch.arange(chunk, device=q.device)
    not_before = (step >= step[::sub, None])[..., None]  # [subs, chunk, 1]
    to_start = (start[..., None, :] - total[..., None, :, :]).masked_fill(not_before, -math.inf).exp()
    scores = (q_sub * (total_sub - start[..., None, :]).exp()) @ (k[..., None, :, :] * to_start).mT
    out = scores.flatten(3, 4) @ v
    # Within a sub-chunk.
    later = torch.ones(sub, sub, dtype=torch.bool, device=q.device).triu(1)[..., None]
    between = (total_sub[..., :, None, :] - total_sub[..., None, :, :]).masked_fill(later, -math.inf).exp()
    scores = (q_sub[..., :, None, :] * k_sub[..., None, :, :] * between).sum(-1)
    out = out + (scores @ v.unflatten(3, (subs, sub))).flatten(3, 4)
    # From earlier chunks.
    last = total[..., -1:, :]
    starts, state = _scan((k * (last - total).exp()).mT @ v, last.mT.exp(), state)
    return _unchunk(out + (q * total.exp()) @ starts, time), state


def linear_step(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> Tensor:
    """One token of linear attention. q, k [batch, heads or 1, key]; v [batch, heads, value]; log_decay
    [batch, heads, key or 1]. Writes the state."""
    state.mul_(log_decay.exp()[..., None])
    state.add_(k[..., :, None] * v[..., None, :])
    return read(q, state)


def read(q: Tensor, state: Tensor) -> Tensor:
    """S^T q: q [batch, heads, key] and a state to [batch, heads, value]."""
    return (q[..., None, :] @ state)[..., 0, :]


def _scan(added: Tensor, decay: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The states before each chunk, stacked like `added` [batch, heads, count, key, value], and the one at the end."""
    state = torch.zeros_like(added[:, :, 0]) if state is None else state
    starts = []
    for new, kept in zip(added.unbind(2), decay.unbind(2), strict=True):
        starts.append(state)
        state = state * kept + new
    return torch.stack(starts, dim=2), state
