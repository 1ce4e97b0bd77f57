"""Softmax attention with grouped key-value heads, rotary positions, and an optional window and output gate."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from nfsearch.ops.layout import Layout
from nfsearch.ops.operator import Operator, RMSNorm, State, linear, wide
from nfsearch.ops.rotary import Heads, turn


class Attention(Operator):
    """o_t = sum over s of softmax_s(q_t . k_s / sqrt(dim)) v_s, with s <= t, and s > t - window if there is one.

    Of q and k, RMS-normalised per head (`qk_norm`) or over all heads ("all"), the first `rotary` values of a head turn
    with the position. The gate, if there is one, multiplies o by its sigmoid: Qiu et al., Gated Attention for Large
    Language Models, arXiv 2505.06708, the gate G1 for each value.

    Rows of `qkv`: `layout`, heads x head_dim of q, kv_heads x head_dim of k and of v, heads x head_dim of the gate;
    query head h reads key-value head h // (heads / kv_heads).

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
        qk_norm: bool | str,
        rope_base: float,
        rotary: int | None = None,
        gate: bool = False,
    ) -> None:
        super().__init__(width)
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.window, self.rope_base, self.rotary = window, rope_base, head_dim if rotary is None else rotary
        inner, shared = heads * head_dim, kv_heads * head_dim
        self.layout = Layout.of(q=inner, k=shared, v=shared, **({"gate": inner} if gate else {}))
        self.qkv = linear(width, self.layout.total)
        self.out_proj = linear(inner, width)
        self.q_norm = RMSNorm(inner if qk_norm == "all" else head_dim) if qk_norm else None
        self.k_norm = RMSNorm(shared if qk_norm == "all" else head_dim) if qk_norm else None

    def init_state(self, batch: int, max_length: int, *, device: torch.device | str, dtype: torch.dtype) -> State:
        slots = max_length if self.window is None else min(max_length, self.window)
        shape = (batch, slots, self.kv_heads, self.head_dim)
        return {name: torch.zeros(shape, device=device, dtype=dtype) for name in ("keys", "values")}

    def forward(self, x: Tensor, state: State | None = None, position: int = 0) -> Tensor:
        time = x.shape[1]
        positions = torch.arange(position, position + time, device=x.device)
        q, k, v, gate = self._project(x, positions)
        held = 0
        if state is not None:
            old, held = self._held(state, position, time)
            self._store(state, k, v, positions)
            if held:
                k, v = torch.cat((old[0], k), dim=1), torch.cat((old[1], v), dim=1)
        if not held and self.window is not None and time > self.window:
            return self._out(self._attend_in_chunks(q, k, v, self.window), gate)
        return self._out(self._attend(q, k, v, self._mask(positions, held)), gate)

    def step(self, x: Tensor, state: State, position: Tensor) -> Tensor:
        q, k, v, gate = self._project(x[:, None], position[None])
        keys, values = state["keys"], state["values"]
        slots = keys.shape[1]
        slot = position[None] if self.window is None else position[None] % slots
        keys.index_copy_(1, slot, k.to(keys.dtype))
        values.index_copy_(1, slot, v.to(values.dtype))
        # Once the ring has gone round, `position` is past every slot: all of them are in the window.
        mask = (torch.arange(slots, device=x.device) <= position)[None, None, None]
        return self._out(self._attend(q, keys, values, mask), gate)[:, 0]

    def _project(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Queries, keys (both turned) and values of x [batch, time, width], each [batch, time, heads, head_dim], and
        the gate [batch, time, heads head_dim], if there is one."""
        rows = self.qkv(x)
        heads = Heads(self.heads, self.kv_heads, self.head_dim, self.rotary, self.rope_base)
        if self.q_norm is not None and self.k_norm is not None:
            qk, rest = self.layout.split(rows, "q|k", "|".join(self.layout.names[2:]))
            parts = zip(qk.split(self.layout.sizes[:2], dim=-1), (self.q_norm, self.k_norm), strict=True)
            normed = [norm(z.unflatten(-1, (-1, len(norm.weight)))).flatten(-2) for z, norm in parts]
            q, k, _ = turn(torch.cat(normed, dim=-1).to(rows.dtype), positions, heads)
        else:
            q, k, rest = turn(rows, positions, heads)
        v, *gate = rest.split(self.layout.sizes[2:], dim=-1)
        return q, k, v.unflatten(-1, (-1, self.head_dim)), gate

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
        """What each of `positions` sees of `held` positions before them and of themselves; None if plainly causal, as
        it is where nothing is held: what is longer than the window is attended to in chunks."""
        if not held:
            return None
        time = positions.shape[0]
        query = torch.arange(held, held + time, device=positions.device)[:, None]
        key = torch.arange(held + time, device=positions.device)
        seen = key <= query
        return seen if self.window is None else seen & (key > query - self.window)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """[batch, heads, time, head_dim]."""
        return F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.to(q.dtype).transpose(1, 2),
            v.to(q.dtype).transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=self.heads != self.kv_heads,
        )

    def _attend_in_chunks(self, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        """`_attend` from the first position on, over chunks as long as the window: the first sees itself, each later
        one also the one before it. The query heads of a group are queries of one head, so all share a small mask."""
        time, group = q.shape[1], self.heads // self.kv_heads
        first = self._attend(q[:, :window], k[:, :window], v[:, :window], None)
        q, k, v = (F.pad(z, (0, 0) * 2 + (0, -time % window)).unflatten(1, (-1, window)) for z in (q, k, v))
        q = q[:, 1:].unflatten(3, (self.kv_heads, group)).permute(0, 1, 3, 4, 2, 5).flatten(3, 4).flatten(0, 1)
        k, v = (torch.cat((z[:, :-1], z[:, 1:]), dim=2).flatten(0, 1).transpose(1, 2).to(q.dtype) for z in (k, v))
        back = torch.arange(window, 2 * window, device=q.device)[:, None] - torch.arange(2 * window, device=q.device)
        mask = ((back >= 0) & (back < window)).repeat(group, 1)
        # [batch chunks, kv_heads, group window, head_dim]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out = out.unflatten(2, (group, window)).unflatten(0, (len(first), -1)).permute(0, 2, 3, 1, 4, 5)
        return torch.cat((first, out.flatten(3, 4).flatten(1, 2)), dim=2)[:, :, :time]

    def _out(self, out: Tensor, gate: list[Tensor]) -> Tensor:
        """What attention gives [batch, heads, time, head_dim], gated and projected."""
        out = out.transpose(1, 2).flatten(2)
        return self.out_proj(out * gate[0].sigmoid() if gate else out)

    def reference(self, x: Tensor) -> Tensor:
        group = self.heads // self.kv_heads
        pair = torch.arange(0, self.rotary, 2, device=x.device, dtype=wide(x.dtype))
        frequency = self.rope_base ** (-pair / max(self.rotary, 1))
        keys: list[Tensor] = []
        values: list[Tensor] = []
        outputs = []
        for t, row in enumerate(x.unbind(1)):
            q, k, v, *gate = self.layout.split(row @ self.qkv.weight.T)
            q, k, v = (z.unflatten(-1, (-1, self.head_dim)) for z in (q, k, v))
            if self.q_norm is not None and self.k_norm is not None:
                over = -1 if len(self.q_norm.weight) == self.head_dim else (-2, -1)  # a head, or all of them
                q, k = (
                    z / (z.square().mean(over, keepdim=True) + norm.eps).sqrt() * norm.weight.view(-1, self.head_dim)
                    for z, norm in ((q, self.q_norm), (k, self.k_norm))
                )
            # The pair (i, i + rotary/2) is a complex number.
            turn = torch.polar(torch.ones_like(frequency), t * frequency)
            turned = [turn * torch.complex(*z[..., : self.rotary].chunk(2, dim=-1)) for z in (q, k)]
            rest = [z[..., self.rotary :] for z in (q, k)]
            q, k = (torch.cat((new.real, new.imag, old), dim=-1) for new, old in zip(turned, rest, strict=True))
            keys.append(k)
            values.append(v)
            first = 0 if self.window is None else max(0, t + 1 - self.window)
            past_k = torch.stack(keys[first:], dim=2).repeat_interleave(group, dim=1)  # [batch, heads, past, dim]
            past_v = torch.stack(values[first:], dim=2).repeat_interleave(group, dim=1)
            weight = (torch.einsum("bhd,bhsd->bhs", q, past_k) / math.sqrt(self.head_dim)).softmax(-1)
            out = torch.einsum("bhs,bhsd->bhd", weight, past_v).flatten(1)
            outputs.append((out * gate[0].sigmoid() if gate else out) @ self.out_proj.weight.T)
        return torch.stack(outputs, dim=1)
