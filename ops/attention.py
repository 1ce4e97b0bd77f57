"""Softmax attention with grouped key-value heads, rotary positions, and an optional window."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from nfsearch.ops.layout import Layout
from nfsearch.ops.operator import Operator, RMSNorm, State, linear, wide


def rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """Rotary embedding. x [batch, time, heads, dim], positions [time]: pairs (i, i + dim/2) turn by
    position * base^(-2i/dim). Angles are computed in float32 or wider."""
    half = x.shape[-1] // 2
    kind = wide(x.dtype)
    exponent = torch.arange(half, device=x.device, dtype=kind) / half
    angle = positions.to(kind)[:, None, None] * torch.pow(base, -exponent)  # [time, 1, half]
    cos, sin = angle.cos(), angle.sin()
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


class Attention(Operator):
    """o_t = sum over s of softmax_s(q_t . k_s / sqrt(dim)) v_s, with s <= t, and s > t - window if there is one.

    Rows of `qkv`: `layout`, heads x head_dim of q, kv_heads x head_dim of k and of v; query head h reads key-value head
    h // (heads / kv_heads).

    State: `keys` (after the rotary embedding) and `values` [batch, slots, kv_heads, head_dim], slots being max_length
    or the window if that is smaller; position p lives in slot p % slots. Meta tokens leave the window like any other.
    """

    row_normalised = ("qkv.weight",)
    column_normalised = ("out_proj.weight",)
    fused_step = "nfsearch.ops.kernels.decode.attention:FUSED"

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        kv_heads: int,
        head_dim: int,
        window: int | None,
        qk_norm: bool,
        rope_base: float,
    ) -> None:
        super().__init__(width)
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.window, self.rope_base = window, rope_base
        self.layout = Layout.of(q=heads * head_dim, k=kv_heads * head_dim, v=kv_heads * head_dim)
        self.qkv = linear(width, self.layout.total)
        self.out_proj = linear(heads * head_dim, width)
        self.q_norm = RMSNorm(head_dim) if qk_norm else None
        self.k_norm = RMSNorm(head_dim) if qk_norm else None

    def init_state(self, batch: int, max_length: int, *, device: torch.device | str, dtype: torch.dtype) -> State:
        slots = max_length if self.window is None else min(max_length, self.window)
        shape = (batch, slots, self.kv_heads, self.head_dim)
        return {name: torch.zeros(shape, device=device, dtype=dtype) for name in ("keys", "values")}

    def forward(self, x: Tensor, state: State | None = None, position: int = 0) -> Tensor:
        time = x.shape[1]
        positions = torch.arange(position, position + time, device=x.device)
        q, k, v = self._project(x, positions)
        held = 0
        if state is not None:
            old, held = self._held(state, position, time)
            self._store(state, k, v, positions)
            if held:
                k, v = torch.cat((old[0], k), dim=1), torch.cat((old[1], v), dim=1)
        return self._attend(q, k, v, self._mask(positions, held))

    def step(self, x: Tensor, state: State, position: Tensor) -> Tensor:
        q, k, v = self._project(x[:, None], position[None])
        keys, values = state["keys"], state["values"]
        slots = keys.shape[1]
        slot = position[None] if self.window is None else position[None] % slots
        keys.index_copy_(1, slot, k.to(keys.dtype))
        values.index_copy_(1, slot, v.to(values.dtype))
        # Once the ring has gone round, `position` is past every slot: all of them are in the window.
        mask = (torch.arange(slots, device=x.device) <= position)[None, None, None]
        return self._attend(q, keys, values, mask)[:, 0]

    def _project(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys (both turned) and values of x [batch, time, width], each [batch, time, heads, head_dim]."""
        qk, v = (z.unflatten(-1, (-1, self.head_dim)) for z in self.layout.split(self.qkv(x), "q|k", "v"))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = qk.split((self.heads, self.kv_heads), dim=2)
            qk = torch.cat((self.q_norm(q), self.k_norm(k)), dim=2)
        q, k = rotate(qk, positions, self.rope_base).split((self.heads, self.kv_heads), dim=2)
        return q, k, v

    def _held(self, state: State, position: int, time: int) -> tuple[tuple[Tensor, Tensor], int]:
        """The past keys and values that are still kept, oldest first, and how many positions they are."""
        keys, values = state["keys"], state["values"]
        slots = keys.shape[1]
        if self.window is None and position + time > slots:
            raise ValueError(f"{position} + {time} tokens do not fit a state made for {slots}")
        held = min(position, slots)
        index = torch.arange(position - held, position, device=keys.device) % slots
        return (keys[:, index], values[:, index]), held

    def _store(self, state: State, k: Tensor, v: Tensor, positions: Tensor) -> None:
        for name, new in (("keys", k), ("values", v)):
            slots = state[name].shape[1]
            state[name].index_copy_(1, positions[-slots:] % slots, new[:, -slots:].detach().to(state[name].dtype))

    def _mask(self, positions: Tensor, held: int) -> Tensor | None:
        """What each of `positions` sees of `held` positions before them and of themselves; None if plainly causal."""
        time = positions.shape[0]
        if not held and (self.window is None or time <= self.window):
            return None
        query = torch.arange(held, held + time, device=positions.device)[:, None]
        key = torch.arange(held + time, device=positions.device)
        seen = key <= query
        return seen if self.window is None else seen & (key > query - self.window)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.to(q.dtype).transpose(1, 2),
            v.to(q.dtype).transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=self.heads != self.kv_heads,
        )
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def reference(self, x: Tensor) -> Tensor:
        group = self.heads // self.kv_heads
        pair = torch.arange(0, self.head_dim, 2, device=x.device, dtype=wide(x.dtype))
        frequency = self.rope_base ** (-pair / self.head_dim)
        keys: list[Tensor] = []
        values: list[Tensor] = []
        outputs = []
        for t, row in enumerate(x.unbind(1)):
            parts = self.layout.split(row @ self.qkv.weight.T)
            q, k, v = (z.unflatten(-1, (-1, self.head_dim)) for z in parts)
            if self.q_norm is not None and self.k_norm is not None:
                q = q / (q.square().mean(-1, keepdim=True) + self.q_norm.eps).sqrt() * self.q_norm.weight
                k = k / (k.square().mean(-1, keepdim=True) + self.k_norm.eps).sqrt() * self.k_norm.weight
            turn = torch.polar(torch.ones_like(frequency), t * frequency)  # the pair (i, i + dim/2) as a complex number
            q, k = (turn * torch.complex(*z.chunk(2, dim=-1)) for z in (q, k))
            keys.append(torch.cat((k.real, k.imag), dim=-1))
            values.append(v)
            first = 0 if self.window is None else max(0, t + 1 - self.window)
            past_k = torch.stack(keys[first:], dim=2).repeat_interleave(group, dim=1)  # [batch, heads, past, dim]
            past_v = torch.stack(values[first:], dim=2).repeat_interleave(group, dim=1)
            score = torch.einsum("bhd,bhsd->bhs", torch.cat((q.real, q.imag), dim=-1), past_k)
            weight = (score / math.sqrt(self.head_dim)).softmax(-1)
            outputs.append(torch.einsum("bhs,bhsd->bhd", weight, past_v).flatten(1) @ self.out_proj.weight.T)
        return torch.stack(outputs, dim=1)
