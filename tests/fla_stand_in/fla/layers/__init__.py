"""Stands in for flash-linear-attention where there is no GPU: layers with its interface, in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GatedMemory(nn.Module):
    """S_t = a_t S_{t-1} + k_t v_t^T, o_t = S_t^T q_t per head, on values that pass a short convolution.

    Keeps, as fla's layers do, `recurrent_state` [batch, heads, key, value] in float32 or wider, replaced in each call,
    and `conv_state`, a tuple of [batch, channels, taps], written in place for a single token.
    """

    def __init__(
        self,
        mode: str = "chunk",
        hidden_size: int = 1024,
        num_heads: int = 4,
        expand_v: float = 1.0,
        use_position: bool = False,
        conv_size: int = 4,
        layer_idx: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        assert mode == "chunk", f"Not supported mode `{mode}`."
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size={hidden_size} must be divisible by num_heads={num_heads}.")
        self.num_heads, self.use_position, self.layer_idx = num_heads, use_position, layer_idx
        values = int(hidden_size * expand_v)
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, values, bias=False)
        self.a_proj = nn.Linear(hidden_size, num_heads)
        self.conv = nn.Parameter(torch.randn(values, conv_size) / conv_size)
        self.g_proj = nn.Sequential(nn.Linear(hidden_size, 8, bias=False), nn.Linear(8, values))
        self.o_proj = nn.Linear(values, hidden_size, bias=False)
        self.register_buffer("scale", torch.tensor((hidden_size // num_heads) ** -0.5), persistent=False)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        **kwargs: Any,
    ) -> tuple[Tensor, None, Any]:
        held = None
        if past_key_values is not None and len(past_key_values) > self.layer_idx:
            held = past_key_values[self.layer_idx]
        x = hidden_states
        values, taps = self._convolve(self.v_proj(x), held["conv_state"][0] if held else None)
        if self.use_position and past_key_values is not None:
            first = past_key_values.get_seq_length(self.layer_idx)
        else:
            first = 0
        if self.use_position:
            values = values + torch.arange(first, first + x.shape[1], device=x.device)[:, None].cos().to(values)
        q, k, v = (
            z.unflatten(-1, (self.num_heads, -1)).transpose(1, 2).to(torch.promote_types(x.dtype, torch.float32))
            for z in (self.q_proj(x), self.k_proj(x), values)
        )  # [batch, heads, time, dim]
        q, k = q * self.scale.to(q.dtype), F.normalize(k, dim=-1)
        total = F.logsigmoid(self.a_proj(x).to(q.dtype)).transpose(1, 2).cumsum(-1)  # [batch, heads, time]
        if x.shape[1] == 1:
            before = held["recurrent_state"] if held else q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
            state = total[..., None].exp() * before + k.transpose(2, 3) @ v
            out = q @ state
        else:
            above = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
            decay = (total[..., :, None] - total[..., None, :]).masked_fill(above, -torch.inf).exp()
            out = (q @ k.transpose(2, 3) * decay) @ v
            state = (k * (total[..., -1:] - total).exp()[..., None]).transpose(2, 3) @ v
            if held:
                out = out + total.exp()[..., None] * (q @ held["recurrent_state"])
                state = state + total[..., -1, None, None].exp() * held["recurrent_state"]
        if past_key_values is not None:
            past_key_values.update(
                recurrent_state=state if use_cache else None,
                conv_state=(taps, None),
                layer_idx=self.layer_idx,
                offset=x.shape[1],
            )
        out = out.transpose(1, 2).flatten(2).to(x.dtype) * F.silu(self.g_proj(x))
        return self.o_proj(out), None, past_key_values

    def _convolve(self, x: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        """x [batch, time, channels] through a causal convolution, and its last inputs [batch, channels, taps]."""
        size = self.conv.shape[1]
        x = x.transpose(1, 2)
        if kept is None:
            kept = x.new_zeros(*x.shape[:2], size)
        elif x.shape[2] == 1 and not torch.is_grad_enabled():
            kept.copy_(torch.cat((kept[..., 1:], x), dim=2))
            return F.silu((kept * self.conv.to(x.dtype)).sum(-1))[:, None], kept
        row = torch.cat((kept, x), dim=2)
        out = F.conv1d(row[..., 1:], self.conv[:, None].to(x.dtype), groups=len(self.conv))
        return F.silu(out).transpose(1, 2), row[..., -size:].clone()


class KeysAndValues(nn.Module):
    """Attention: what it keeps grows with the sequence."""

    def __init__(self, hidden_size: int = 1024, layer_idx: int | None = None) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.qkv_proj = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, past_key_values: Any = None, **kwargs: Any
    ) -> tuple[Tensor, None, Any]:
        q, k, v = self.qkv_proj(hidden_states).chunk(3, dim=-1)
        if past_key_values is not None:
            past_key_values.update(attn_state=(k, v), layer_idx=self.layer_idx, offset=k.shape[1])
        return self.o_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True)), None, past_key_values


class WholeSequences(nn.Module):
    """A causal mean, with the short signature that some layers have."""

    def __init__(self, hidden_size: int, eps: float = 1e-12) -> None:
        super().__init__()
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        count = torch.arange(1, hidden_states.shape[1] + 1, device=hidden_states.device)
        return self.proj(hidden_states.cumsum(1) / count[:, None])
