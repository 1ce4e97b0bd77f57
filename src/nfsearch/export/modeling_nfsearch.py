"""A language model whose layers are any mix of attention, Mamba2, DeltaNet, Gated DeltaNet, gated linear attention,
gated short convolutions and feed-forward layers, each of them x + mixer(norm(x)).

Found and written by nfsearch; it needs PyTorch and transformers alone. `config.layers` says what each layer is.

Padding, on whichever side, is moved before the first token of its sequence, before the meta tokens too. So no layer
reads any of it: recurrences write nothing for it, convolutions see zeros as before any text, attention masks it.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel, initialization
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple, is_peft_available

# What the cache is called among the outputs, from where `generate` takes it and gives it back: "cache" since 5.24.
CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"


class NFSearchConfig(PretrainedConfig):
    """`layers` names the operator of each residual layer with its sizes: {"operator": "deltanet", "heads": 8, ...};
    `notation` says the same as nfsearch writes it, and is read by nfsearch alone.

    `meta_tokens` learned vectors are read before each text; `head_norm` divides a logit by the length of its row of the
    head, which is the embedding unless `tie_word_embeddings` is false.
    """

    model_type = "nfsearch"
    keys_to_ignore_at_inference = [CACHE]  # noqa: RUF012 (transformers' own form)

    vocab_size: int = 32000
    hidden_size: int = 128
    layers: list | None = None
    notation: str | None = None
    num_hidden_layers: int | None = None
    meta_tokens: int = 0
    head_norm: bool = False
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    use_cache: bool = True
    pad_token_id: int | None = None
    eos_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.layers = self.layers or []
        self.num_hidden_layers = len(self.layers)
        super().__post_init__(**kwargs)


class NFSearchCache(Cache):
    """What the layers keep of the tokens read, each in the layer of transformers' cache that suits it."""

    is_compileable = False  # `generate` then grows it, rather than compiling around it

    def __init__(self, config: NFSearchConfig) -> None:
        super().__init__(layers=[self._layer(**layer) for layer in config.layers or []])
        self.seen = 0  # tokens of text and padding; the meta tokens, which are in the layers too, do not count

    @staticmethod
    def _layer(operator: str, window: int | None = None, **sizes: Any) -> Any:
        if operator == "attention":
            return DynamicLayer() if window is None else DynamicSlidingWindowLayer(sliding_window=window)
        return LinearAttentionLayer()  # in which an FFN keeps nothing

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    def reset(self) -> None:
        super().reset()
        self.seen = 0


# --- recurrences -----------------------------------------------------------------------------------------------------
#
# Each reads a state [batch, heads, key, value] and returns the outputs [batch, time, heads, value] and the next state.
# One token takes a step; more are cut into chunks, products within which are matrix products. Decays are logarithms
# <= 0, and only differences <= 0 are exponentiated, so none overflows.

CHUNK, PART = 64, 16


def wide(x: Tensor) -> torch.dtype:
    """The dtype that recurrences run in: float32, or float64 if x has it."""
    return torch.promote_types(x.dtype, torch.float32)


def in_full(recurrence: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Runs a recurrence in `wide`, whatever autocast says; without a state it begins with zeros."""

    @wraps(recurrence)
    def run(q: Tensor, k: Tensor, v: Tensor, *gates: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        with torch.autocast(q.device.type, enabled=False):
            q, k, v, *gates = (x.to(wide(x)) for x in (q, k, v, *gates))  # type: ignore[assignment]
            if state is None:
                state = v.new_zeros(v.shape[0], v.shape[2], k.shape[-1], v.shape[-1])
            return recurrence(q, k, v, *gates, state)

    return run


def chunked(x: Tensor) -> Tensor:
    """[batch, time, heads, ...] to [batch, heads, chunks, CHUNK, ...], with zeros after the end."""
    x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, -x.shape[1] % CHUNK))
    return x.unflatten(1, (-1, CHUNK)).movedim(3, 1)


def joined(x: Tensor, time: int) -> Tensor:
    """[batch, heads, chunks, CHUNK, dim] back to [batch, time, heads, dim]."""
    return x.movedim(1, 3).flatten(1, 2)[:, :time]


def causal(difference: Tensor) -> Tensor:
    """exp of [..., later, earlier], and 0 where the column is the later one."""
    time = difference.shape[-1]
    above = torch.ones(time, time, dtype=torch.bool, device=difference.device).triu(1)
    return difference.masked_fill(above, -math.inf).exp()


def carried(added: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The states before each chunk [batch, heads, chunks, key, value] and after the last: S = decay S + added."""
    before = []
    for new, kept in zip(added.unbind(2), decay.unbind(2), strict=True):
        before.append(state)
        state = state * kept + new
    return torch.stack(before, dim=2), state


@in_full
def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """S' = a_t S;  S = S' + k_t (beta_t (v_t - S'^T k_t))^T;  o_t = S^T q_t.  beta, log a [batch, time, heads]."""
    time = q.shape[1]
    if time == 1:
        q, k, v, beta = q[:, 0, :, None], k[:, 0, :, None], v[:, 0, :, None], beta[:, 0, :, None, None]
        state = state * log_decay[:, 0, :, None, None].exp()
        state = state + k.mT @ (beta * (v - k @ state))
        return (q @ state).transpose(1, 2), state
    q, k, v, beta, log_decay = (chunked(x) for x in (q, k, v, beta, log_decay))
    total = log_decay.cumsum(-1)
    decay = causal(total[..., :, None] - total[..., None, :])
    weighted = k * beta[..., None]
    # What is written in a chunk, u, depends on what was written before in it: (1 + lower(beta k k^T)) u = beta (v - .).
    right = torch.cat((v * beta[..., None], weighted * total.exp()[..., None]), dim=-1)
    solved = torch.linalg.solve_triangular(weighted @ k.mT * decay, right, upper=False, unitriangular=True)
    values, known = solved.split((v.shape[-1], k.shape[-1]), dim=-1)
    to_end, whole = k * decay[..., -1, :, None], total[..., -1, None, None].exp()
    before, written = [], []
    for value, key, last, kept in zip(*(x.unbind(2) for x in (values, known, to_end, whole)), strict=True):
        before.append(state)
        written.append(value - key @ state)
        state = state * kept + last.mT @ written[-1]
    out = q * total.exp()[..., None] @ torch.stack(before, 2) + q @ k.mT * decay @ torch.stack(written, 2)
    return joined(out, time), state


@in_full
def shared_linear(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """S = a_t S + k_t v_t^T;  o_t = S^T q_t, with q, k [batch, time, groups, key] of as many heads each, which follow
    one another; log a [batch, time, heads]."""
    time, groups = q.shape[1:3]

    def grouped(x: Tensor) -> Tensor:
        """[batch, heads, ...] to [batch, groups, heads of each, ...]."""
        return x.unflatten(1, (groups, -1))

    if time == 1:
        written = k[:, 0, :, None, :, None] * grouped(v[:, 0])[..., None, :]
        state = state * log_decay[:, 0, :, None, None].exp() + written.flatten(1, 2)
        return (q[:, 0, :, None, None] @ grouped(state)).flatten(1, 2).transpose(1, 2), state
    q, k = chunked(q), chunked(k)  # [batch, groups, chunks, CHUNK, key]
    v, total = chunked(v), chunked(log_decay).cumsum(-1)
    decay = causal(total[..., :, None] - total[..., None, :])
    added = torch.einsum("bgnck,bghncv->bghnkv", k, grouped(v * decay[..., -1, :, None])).flatten(1, 2)
    before, state = carried(added, total[..., -1, None, None].exp(), state)
    past = torch.einsum("bgnck,bghnkv->bghncv", q, grouped(before)).flatten(1, 2) * total.exp()[..., None]
    scores = ((q @ k.mT)[:, :, None] * grouped(decay)).flatten(1, 2)
    return joined(scores @ v + past, time), state


@in_full
def gated_linear(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """S = diag(a_t) S + k_t v_t^T;  o_t = S^T q_t.  log a [batch, time, heads, key]."""
    time = q.shape[1]
    if time == 1:
        q, k, v = q[:, 0, :, None], k[:, 0, :, None], v[:, 0, :, None]
        state = state * log_decay[:, 0, ..., None].exp() + k.mT @ v
        return (q @ state).transpose(1, 2), state
    q, k, v, log_decay = (chunked(x) for x in (q, k, v, log_decay))
    total = log_decay.cumsum(-2)
    end = total[..., -1:, :]
    before, state = carried((k * (end - total).exp()).mT @ v, end.mT.exp(), state)
    parts = []
    # A part of a chunk reads what is before it as of the part's start, and itself by the decay between any two tokens.
    for at in range(0, CHUNK, PART):
        now, past = slice(at, at + PART), slice(0, at)
        q_now, k_now, total_now = q[..., now, :], k[..., now, :], total[..., now, :]
        between = causal((total_now[..., :, None, :] - total_now[..., None, :, :]).movedim(-1, -3)).movedim(-3, -1)
        out = (q_now[..., :, None, :] * k_now[..., None, :, :] * between).sum(-1) @ v[..., now, :]
        if at:
            start = total[..., at - 1 : at, :]
            scores = (q_now * (total_now - start).exp()) @ (k[..., past, :] * (start - total[..., past, :]).exp()).mT
            out = out + scores @ v[..., past, :]
        parts.append(out)
    return joined(torch.cat(parts, -2) + (q * total.exp()) @ before, time), state


# --- layers ----------------------------------------------------------------------------------------------------------
#
# A mixer maps x [batch, time, width] to the same.


class Places(NamedTuple):
    """Where the tokens stand. `pads` and `real` are None without padding, `real` also where a sequence is continued."""

    positions: Tensor  # of the rotary embedding [batch or 1, time]
    pads: Tensor | None = (
        None  # how many places at the front of each sequence, as the cache holds it, are padding [batch]
    )
    real: Tensor | None = None  # which places are not padding [batch, time]


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, or over each of so many groups of it."""

    def __init__(self, size: int, eps: float, groups: int = 1) -> None:
        super().__init__()
        self.eps, self.groups = eps, groups
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        if self.groups == 1:
            return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)
        parts = x.unflatten(-1, (self.groups, -1))
        return F.rms_norm(parts, parts.shape[-1:], eps=self.eps).flatten(-2) * self.weight.to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention over all that came before or the last `window` of it. The first `rotary` values of each
    head, or all, turn with the position; queries and keys may be normalised, per head or all heads together, and the
    output gated."""

    def __init__(
        self, width: int, index: int, *, heads: int, kv_heads: int, head_dim: int, window: int | None,
        qk_norm: bool | str, rope_base: float, rotary: int | None = None, gate: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.index, self.heads, self.kv_heads, self.head_dim = index, heads, kv_heads, head_dim
        self.window, self.rope_base, self.rotary = window, rope_base, head_dim if rotary is None else rotary
        self.gate = gate
        inner, shared = heads * head_dim, kv_heads * head_dim
        self.qkv = nn.Linear(width, (2 if gate else 1) * inner + 2 * shared, bias=False)  # the gate comes last
        self.out_proj = nn.Linear(inner, width, bias=False)
        self.q_norm = RMSNorm(inner if qk_norm == "all" else head_dim, 1e-6) if qk_norm else None
        self.k_norm = RMSNorm(shared if qk_norm == "all" else head_dim, 1e-6) if qk_norm else None

    def forward(self, x: Tensor, places: Places, cache: Cache | None) -> Tensor:
        inner, shared = self.heads * self.head_dim, self.kv_heads * self.head_dim
        q, k, v, *gate = self.qkv(x).split((inner, shared, shared) + (inner,) * self.gate, dim=-1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = (
                norm(z.unflatten(-1, (-1, norm.weight.shape[0]))).flatten(-2)
                for z, norm in ((q, self.q_norm), (k, self.k_norm))
            )
        q, k, v = (z.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for z in (q, k, v))  # [batch, heads, time, dim]
        q, k = self._turned(q, places.positions), self._turned(k, places.positions)
        held = 0
        if cache is not None:
            held = cast(DynamicLayer, cache.layers[self.index]).get_seq_length()
            k, v = cache.update(k, v, self.index)
        mask = self._mask(x, held, k.shape[2], places.pads)
        out = F.scaled_dot_product_attention(
            q,
            k.to(q.dtype),
            v.to(q.dtype),
            mask,
            is_causal=mask is None and x.shape[1] > 1,
            enable_gqa=self.heads != self.kv_heads,
        )
        out = out.transpose(1, 2).flatten(2)
        return self.out_proj(out * gate[0].sigmoid() if gate else out)

    def _turned(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotary embedding: pairs (i, i + rotary / 2) turn by position * base^(-2i / rotary)."""
        if not self.rotary:
            return x
        half = self.rotary // 2
        exponent = torch.arange(half, device=x.device, dtype=wide(x)) / half
        angle = positions[:, None, :, None] * self.rope_base**-exponent
        cos, sin = angle.cos(), angle.sin()
        a, b, rest = x.split((half, half, self.head_dim - 2 * half), dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1).to(x.dtype)

    def _mask(self, x: Tensor, held: int, kept: int, pads: Tensor | None) -> Tensor | None:
        """Which of the last `kept` places each new one sees, `held` being before it; None where that is plainly all."""
        time = x.shape[1]
        if pads is None and time in (1, kept) and (self.window is None or kept <= self.window):
            return None
        query = torch.arange(held, held + time, device=x.device)[:, None]
        key = torch.arange(held + time - kept, held + time, device=x.device)
        seen = key <= query
        if self.window is not None:
            seen = seen & (key > query - self.window)
        if pads is None:
            return seen
        # Padding sees itself: a row of a mask that is all false has no softmax.
        return ((seen & (key >= pads[:, None, None])) | (key == query))[:, None]


class Recurrent(nn.Module):
    """A mixer with a state: a projection to all that it reads, in rows of the given sizes, maybe through a short causal
    convolution [channels, taps]; maybe a recurrence and a norm; a projection."""

    def __init__(self, width: int, index: int, rows: tuple[int, ...], inner: int, channels: int = 0, taps: int = 1):
        super().__init__()
        self.index, self.rows = index, rows
        self.in_proj = nn.Linear(width, sum(rows), bias=False)
        self.conv = nn.Parameter(torch.empty(channels, taps)) if channels else None
        self.conv_bias: nn.Parameter | None = None
        self.out_proj = nn.Linear(inner, width, bias=False)

    def convolution(self, x: Tensor, real: Tensor | None, cache: Cache | None) -> Tensor:
        """The convolution of x [batch, time, channels]."""
        assert self.conv is not None
        if real is not None:
            x = x * real[..., None]
        time, taps = x.shape[1], self.conv.shape[1]
        past = max(taps - 1, 1)  # inputs kept; a cache keeps one at least
        if cache is None or not cache.has_previous_state(self.index):
            x = F.pad(x, (0, 0, past, 0))
        if cache is not None:  # which puts those that it has before the new ones
            x = cache.update_conv_state(x.mT, self.index, conv_kernel_size=past).mT
        x = x[:, past + 1 - taps :]
        y = x[:, :time] * self.conv[:, 0].to(x.dtype)
        for j in range(1, taps):
            y = y + x[:, j : j + time] * self.conv[:, j].to(x.dtype)
        return y if self.conv_bias is None else y + self.conv_bias.to(x.dtype)

    def convolved(self, x: Tensor, real: Tensor | None, cache: Cache | None) -> Tensor:
        """silu of it, in `wide`."""
        y = self.convolution(x, real, cache)
        return F.silu(y.to(wide(y)))

    def recur(self, recurrence: Callable[..., tuple[Tensor, Tensor]], *inputs: Tensor, cache: Cache | None) -> Tensor:
        """Runs a recurrence on from the cache's state."""
        held = None if cache is None else cast(LinearAttentionLayer, cache.layers[self.index]).recurrent_states[0]
        out, state = recurrence(*inputs, state=held)
        if cache is not None:
            cache.update_recurrent_state(state, self.index)
        return out

    def heads_normed(self, y: Tensor, norm: RMSNorm, gate: Tensor | None) -> Tensor:
        """The norm of each head of y [batch, time, heads, value], times silu(gate [batch, time, heads value])."""
        y = norm(y).flatten(-2)
        return y if gate is None else y * F.silu(gate.to(y.dtype))


class DeltaNet(Recurrent):
    """The delta rule; `gated`, with a decay for each head and an output gate; `neg_eigval`, with beta in (0, 2). Heads
    may share queries and keys."""

    def __init__(
        self, width: int, index: int, *, heads: int, key_dim: int, value_dim: int, conv: int,
        key_heads: int | None = None, gated: bool = True, neg_eigval: bool = False,
    ) -> None:  # fmt: skip
        keys, values = (key_heads or heads) * key_dim, heads * value_dim
        rows = (keys, keys, values, values, heads, heads) if gated else (keys, keys, values, heads)
        super().__init__(width, index, rows, values, 2 * keys + values, conv)
        self.heads, self.key_heads = heads, key_heads or heads
        self.gated, self.most = gated, 2.0 if neg_eigval else 1.0
        self.norm = RMSNorm(value_dim, 1e-5)
        if gated:
            self.A_log, self.dt_bias = (nn.Parameter(torch.empty(heads)) for _ in range(2))

    def forward(self, x: Tensor, places: Places, cache: Cache | None) -> Tensor:
        qkv, *gates = self.in_proj(x).split((sum(self.rows[:3]), *self.rows[3:]), dim=-1)
        q, k, v = self.convolved(qkv, places.real, cache).split(self.rows[:3], dim=-1)
        q, k = (z.unflatten(-1, (self.key_heads, -1)) for z in (q, k))
        q, k = (z * (z.square().sum(-1, keepdim=True) + 1e-6).rsqrt() for z in (q, k))
        q, k = (z.repeat_interleave(self.heads // self.key_heads, dim=2) for z in (q, k))
        v = v.unflatten(-1, (self.heads, -1))
        gate, beta, decay = gates if self.gated else (None, gates[0], None)
        beta = beta.to(q.dtype).sigmoid() * self.most
        if places.real is not None:
            beta = beta * places.real[..., None]
        if decay is None:
            log_decay = torch.zeros_like(beta)
        else:
            log_decay = -self.A_log.to(q.dtype).exp() * F.softplus(decay.to(q.dtype) + self.dt_bias.to(q.dtype))
        y = self.recur(delta_rule, q * q.shape[-1] ** -0.5, k, v, beta, log_decay, cache=cache)
        return self.out_proj(self.heads_normed(y, self.norm, gate).to(x.dtype))


class Mamba2(Recurrent):
    """State space duality: the heads of a group share B and C, which are key and query, and a norm."""

    def __init__(
        self, width: int, index: int, *, heads: int, head_dim: int, state: int, conv: int, groups: int = 1
    ) -> None:
        inner, keys = heads * head_dim, groups * state
        super().__init__(width, index, (inner, inner + 2 * keys, heads), inner, inner + 2 * keys, conv)
        self.heads, self.groups, self.parts = heads, groups, (inner, keys, keys)
        self.conv_bias = nn.Parameter(torch.empty(inner + 2 * keys))
        self.A_log, self.dt_bias, self.D = (nn.Parameter(torch.empty(heads)) for _ in range(3))
        self.norm = RMSNorm(inner, 1e-5, groups)

    def forward(self, x: Tensor, places: Places, cache: Cache | None) -> Tensor:
        z, xbc, dt = self.in_proj(x).split(self.rows, dim=-1)
        u, b, c = self.convolved(xbc, places.real, cache).split(self.parts, dim=-1)
        u = u.unflatten(-1, (self.heads, -1))
        b, c = (z.unflatten(-1, (self.groups, -1)) for z in (b, c))
        delta = F.softplus(dt.to(u.dtype) + self.dt_bias.to(u.dtype))
        if places.real is not None:
            delta = delta * places.real[..., None]
        log_decay = -delta * self.A_log.to(u.dtype).exp()
        y = self.recur(shared_linear, c, b, u * delta[..., None], log_decay, cache=cache)
        y = (y + u * self.D.to(u.dtype)[:, None]).flatten(-2) * F.silu(z.to(u.dtype))
        return self.out_proj(self.norm(y).to(x.dtype))


class GatedLinearAttention(Recurrent):
    """Linear attention with a decay for each channel of the keys, sigmoid(low rank)^(1/16), and an output gate."""

    def __init__(self, width: int, index: int, *, heads: int, key_dim: int, value_dim: int, rank: int) -> None:
        keys, values = heads * key_dim, heads * value_dim
        super().__init__(width, index, (keys, keys, values, values, rank), values)
        self.heads = heads
        self.decay_proj = nn.Linear(rank, keys)
        self.norm = RMSNorm(value_dim, 1e-5)

    def forward(self, x: Tensor, places: Places, cache: Cache | None) -> Tensor:
        *qkv, gate, low = self.in_proj(x).split(self.rows, dim=-1)
        q, k, v, decay = (z.unflatten(-1, (self.heads, -1)) for z in (*qkv, self.decay_proj(low)))
        if places.real is not None:
            k = k * places.real[..., None, None]
        log_decay = F.logsigmoid(decay.to(wide(decay))) / 16
        y = self.recur(gated_linear, q.to(wide(q)) * q.shape[-1] ** -0.5, k, v, log_decay, cache=cache)
        return self.out_proj(self.heads_normed(y, self.norm, gate).to(x.dtype))


class GatedShortConv(Recurrent):
    """LFM2's: c times the short convolution of b u, without an activation."""

    def __init__(self, width: int, index: int, *, conv: int) -> None:
        super().__init__(width, index, (width, width, width), width, width, conv)

    def forward(self, x: Tensor, places: Places, cache: Cache | None) -> Tensor:
        b, c, u = self.in_proj(x).split(self.rows, dim=-1)
        return self.out_proj(c * self.convolution(b * u, places.real, cache))


class FeedForward(nn.Module):
    """SwiGLU, or squared ReLU."""

    def __init__(self, width: int, index: int, *, inner: int, act: str) -> None:
        super().__init__()
        self.act = act
        self.gate_up = nn.Linear(width, inner * (2 if act == "swiglu" else 1), bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, places: Places, cache: Cache | None) -> Tensor:
        hidden = self.gate_up(x)
        if self.act != "swiglu":
            return self.down(F.relu(hidden).square())
        gate, up = hidden.chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Foreign(nn.Module):
    """A layer of another package, which is imported for it: it is trained and run over whole texts, without a cache."""

    def __init__(self, width: int, index: int, *, package: str, module: str, name: str, arguments: dict[str, Any]):
        super().__init__()
        self.name = f"{name} of {package}"
        try:
            kind = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ImportError(f"layer {index} is {self.name} ({error}): pip install {package}") from error
        told = {"layer_idx": 0, "num_hidden_layers": 2}  # each is on its own, and the first of its kind
        taken = inspect.signature(kind).parameters
        self.layer = kind(**{key: value for key, value in told.items() if key in taken} | arguments)
        saved = self.layer.state_dict()
        for path, buffer in list(self.layer.named_buffers()):
            if path not in saved:  # it would be lost where weights are loaded into a model without memory
                owner, _, leaf = path.rpartition(".")
                self.layer.get_submodule(owner).register_buffer(leaf, buffer)

    def forward(self, x: Tensor, places: Places, cache: Cache | None) -> Tensor:
        if cache is not None:
            raise ValueError(f"{self.name} cannot be continued from a cache here: give use_cache=False")
        mask = None if places.real is None else places.real.long()
        out = self.layer(x, attention_mask=mask, past_key_values=None, use_cache=False)
        return out[0] if isinstance(out, tuple) else out


MIXERS: dict[str, Callable[..., nn.Module]] = {
    "attention": Attention,
    "deltanet": lambda *at, head_dim, **rest: DeltaNet(*at, key_dim=head_dim, value_dim=head_dim, gated=False, **rest),
    "gated_deltanet": DeltaNet,
    "gated_linear_attention": GatedLinearAttention,
    "gated_short_convolution": GatedShortConv,
    "mamba2": Mamba2,
    "ffn": FeedForward,
    "foreign": Foreign,
}


class NFSearchLayer(GradientCheckpointingLayer):
    """x + mixer(norm(x))."""

    def __init__(self, config: NFSearchConfig, index: int, operator: str, **sizes: Any) -> None:
        super().__init__()
        if operator not in MIXERS:
            raise ValueError(f"layer {index} is {operator!r}, but this model knows {', '.join(MIXERS)}")
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mixer = MIXERS[operator](config.hidden_size, index, **sizes)

    def forward(self, x: Tensor, places: Places, cache: Cache | None = None) -> Tensor:
        return x + self.mixer(self.norm(x), places, cache)


# --- the model -------------------------------------------------------------------------------------------------------


class NFSearchPreTrainedModel(PreTrainedModel):
    """Attention runs in PyTorch's own, and in no other library's."""

    config: NFSearchConfig
    config_class = NFSearchConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["NFSearchLayer"]  # noqa: RUF012 (transformers' own form)
    _skip_keys_device_placement = ["past_key_values", "cache"]  # noqa: RUF012
    _supports_sdpa = True
    _can_compile_fullgraph = True
    _is_stateful = True  # recurrent states cannot be wound back: no assisted generation

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        if is_peft_available():  # it knows which layers to adapt by the type of the model
            constants = importlib.import_module("peft.utils.constants")
            known = getattr(constants, "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING", {})
            known.setdefault(NFSearchConfig.model_type, ["qkv", "in_proj", "out_proj", "gate_up", "down"])

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As the search drew them."""
        if isinstance(module, Foreign):
            return
        super()._init_weights(module)
        if isinstance(module, NFSearchModel) and module.meta_tokens is not None:
            initialization.normal_(module.meta_tokens)
        if not isinstance(module, Recurrent):
            return
        for weight in (module.conv, module.conv_bias):
            if weight is not None and module.conv is not None:
                bound = module.conv.shape[1] ** -0.5
                initialization.uniform_(weight, -bound, bound)
        if isinstance(module, DeltaNet):
            for linear, rows in ((module.in_proj, module.rows), (module.out_proj, module.out_proj.weight.shape[:1])):
                drawn = [nn.init.xavier_uniform_(part, 2**-2.5) for part in linear.weight.clone().split(rows)]
                initialization.copy_(linear.weight, torch.cat(drawn))
        if isinstance(module, Mamba2) or (isinstance(module, DeltaNet) and module.gated):
            heads, least = module.A_log, 1 if isinstance(module, Mamba2) else 1e-4
            initialization.copy_(module.A_log, torch.empty_like(heads).uniform_(least, 16).log())
            step = torch.empty_like(heads).uniform_(math.log(1e-3), math.log(1e-1)).exp()
            initialization.copy_(module.dt_bias, step + torch.log(-torch.expm1(-step)))  # softplus of it is the step
        if isinstance(module, Mamba2):
            initialization.ones_(module.D)


def taken(x: Tensor, places: Tensor) -> Tensor:
    """Of each row of x [batch, time, width] what is at its places [batch, n]."""
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))


class NFSearchModel(NFSearchPreTrainedModel):
    """Embedding, meta tokens, layers, final norm."""

    def __init__(self, config: NFSearchConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        self.meta_tokens = nn.Parameter(torch.empty(config.meta_tokens, width)) if config.meta_tokens else None
        self.layers = nn.ModuleList(NFSearchLayer(config, i, **layer) for i, layer in enumerate(config.layers or []))
        self.norm = RMSNorm(width, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """The features [batch, time, width] of tokens [batch, time], continuing those in the cache, if there are any.
        `past_key_values` is the cache's name before transformers 5.24; all of them take either.

        `attention_mask` [batch, time read so far] is 0 for padding, and then decides the positions too, which count
        each text from 0. Raises ValueError for padding among tokens that continue others, and for several texts in one
        row.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        time = x.shape[1]
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        cache = past_key_values if cache is None else cache
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            cache = None  # layers run once more for the backward pass, and would write to it twice
        elif cache is None and use_cache:
            cache = NFSearchCache(self.config)
        if cache is not None and not isinstance(cache, NFSearchCache):
            raise ValueError(f"the cache must be an NFSearchCache, not a {type(cache).__name__}")
        seen = 0 if cache is None else cache.seen
        mask = self._checked(attention_mask, position_ids, x, seen)
        x, places, latest = self._placed(x, mask, position_ids, seen)

        def in_order(x: Tensor) -> Tensor:
            """As the tokens were given, without the meta tokens."""
            return x[:, -time:] if latest is None else taken(x, latest)

        every = []
        for layer in self.layers:
            every.append(x)
            x = layer(x, places, cache=cache)
        if cache is not None:
            cache.seen += time
        x = in_order(self.norm(x))
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden = (*map(in_order, every), x) if output_hidden_states else None
        kept: dict[str, Any] = {CACHE: cache}
        return BaseModelOutputWithPast(last_hidden_state=x, hidden_states=hidden, **kept)

    @staticmethod
    def _checked(mask: Tensor | None, positions: Tensor | None, x: Tensor, seen: int) -> Tensor | None:
        """The attention mask as truth values, or None if there is no padding."""
        time, tracing = x.shape[1], torch.compiler.is_compiling()
        if mask is not None and (mask.dim() != 2 or mask.shape[1] != seen + time):
            raise ValueError(f"attention_mask must be [batch, {seen + time}], not {list(mask.shape)}")
        if mask is not None and (tracing or not mask.all()):
            if seen and not tracing and not mask[:, -time:].all():
                raise ValueError("padding is read at the start alone, not in tokens that continue others")
            return mask.bool()
        if positions is not None and time > 1 and not tracing and (positions.diff(dim=-1) <= 0).any():
            raise ValueError("positions that start anew are several texts in a row, which recurrent layers would mix")
        return None

    def _placed(
        self, x: Tensor, mask: Tensor | None, positions: Tensor | None, seen: int
    ) -> tuple[Tensor, Places, Tensor | None]:
        """x with meta tokens where a text begins and padding moved before them; where all stand; where in it the latest
        token is that was read at each place given, its own but for padding: so right padding ends with what the text's
        last token gives, from where `generate` goes on."""
        time, meta = x.shape[1], self.meta_tokens
        pads = None
        if mask is not None:  # it says where tokens stand; of those after padding `generate` has a wrong idea
            positions, pads = (mask.cumsum(1) - 1).clamp(min=0)[:, -time:], mask.shape[1] - mask.sum(1)
        elif positions is None:
            positions = torch.arange(seen, seen + time, device=x.device)[None]
        positions = positions + self.config.meta_tokens
        if seen:
            return x, Places(positions, pads), None
        if meta is not None:
            x = torch.cat((meta.to(x.dtype).expand(x.shape[0], -1, -1), x), dim=1)
            positions = torch.cat(
                (torch.arange(len(meta), device=x.device).expand(positions.shape[0], -1), positions), 1
            )
        if mask is None or pads is None:
            return x, Places(positions), None
        real = F.pad(mask, (self.config.meta_tokens, 0), value=True)
        latest = (pads[:, None] + real.cumsum(1) - 1).clamp(min=0)[:, -time:]
        order = real.long().argsort(dim=1, stable=True)
        x, real = taken(x, order), real.gather(1, order)
        return x, Places(positions.expand(x.shape[0], -1).gather(1, order), pads, real), latest


class NFSearchForCausalLM(NFSearchPreTrainedModel, GenerationMixin):
    """Logits of the next token."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: NFSearchConfig) -> None:
        super().__init__(config)
        self.model = NFSearchModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """`forward` makes the cache: a DynamicCache has no length without attention, and counts meta tokens."""
        return False

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [batch, time, vocab] in float32 or wider, of the last `logits_to_keep` tokens if given, or of those at
        these indices; see `NFSearchModel.forward`. With labels also the loss of each next token, -100 being none."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=past_key_values if cache is None else cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=kwargs.pop("output_hidden_states", None),
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep  # -0: all of them
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        logits = logits.to(wide(logits))
        if self.config.head_norm:
            logits = logits / self.lm_head.weight.to(logits.dtype).norm(dim=-1)
        loss = None
        if labels is not None:
            if attention_mask is not None:  # the first token after padding is a text's first, which nothing predicts
                labels = labels.masked_fill(F.pad(attention_mask, (1, 0), value=1)[:, :-1] == 0, -100)
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        held: dict[str, Any] = {CACHE: getattr(outputs, CACHE)}
        return CausalLMOutputWithPast(loss=loss, logits=logits, hidden_states=outputs.hidden_states, **held)
