"""A hybrid language model trained on the best public parts: fla-core's chunked recurrences, short convolutions and
gated norms, PyTorch's attention, norms and cross-entropy. The weights are those of a HybridLM, so that results compare.

As in `nfsearch.bench.baselines`, projections are stacked into one product, which the libraries' own layers do not do.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfsearch.bench.baselines import FLA_MODULES, need
from nfsearch.bench.race import Absent
from nfsearch.bench.training import ask_fla_for_gated_gradients
from nfsearch.ops import Block, HybridLM
from nfsearch.ops.attention import Attention
from nfsearch.ops.deltanet import DeltaNet
from nfsearch.ops.ffn import FeedForward
from nfsearch.ops.gated_deltanet import GatedDeltaNet
from nfsearch.ops.gla import GatedLinearAttention
from nfsearch.ops.mamba2 import Mamba2
from nfsearch.ops.norms import norm_groups
from nfsearch.ops.rotary import rotate

Forward = Callable[[Any, Tensor], Tensor]


class LibraryLM(nn.Module):
    """Loss of tokens [batch, time] and targets like them, by the weights of `model`, which it shares.

    Raises Absent where a library that an operator needs is not here.
    """

    def __init__(self, model: HybridLM, kind: str) -> None:
        super().__init__()
        architecture = model.architecture
        if architecture.meta_tokens or architecture.head_norm:
            raise Absent("models with meta tokens or a normalised head are not built from library parts")
        self.model = model
        made = {type(operator): _forward_of(type(operator), kind) for operator in model.operators()}
        self.forwards = [made[type(operator)] for operator in model.operators()]

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        model = self.model
        x = F.embedding(tokens, model.embedding.weight)
        for block, forward in zip(model.blocks, self.forwards, strict=True):
            assert isinstance(block, Block)
            x = x + forward(block.operator, _norm(x, block.norm.weight, block.norm.eps))
        logits = F.linear(_norm(x, model.norm.weight, model.norm.eps), model.output.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    @property
    def path(self) -> str:
        """What computes it."""
        by_fla = {forward.__name__ for forward in self.forwards if forward not in _IN_TORCH.values()}
        return ", ".join(["cuBLAS, PyTorch", *sorted(by_fla)])


def _forward_of(operator: type, kind: str) -> Forward:
    if operator in _IN_TORCH:
        return _IN_TORCH[operator]
    if operator not in _IN_FLA:
        raise Absent(f"no library serves {operator.__name__}")
    need("fla-core", kind, *FLA_MODULES)
    return _IN_FLA[operator]()


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)


def _attention(op: Attention, x: Tensor) -> Tensor:
    q, k, v, *gate = op.layout.split(F.linear(x, op.qkv.weight))
    if op.q_norm is not None and op.k_norm is not None:
        q, k = (
            _norm(z.unflatten(-1, (-1, len(norm.weight))), norm.weight, norm.eps).flatten(-2)
            for z, norm in ((q, op.q_norm), (k, op.k_norm))
        )
    q, k, v = (z.unflatten(-1, (-1, op.head_dim)) for z in (q, k, v))
    positions = torch.arange(x.shape[1], device=x.device)
    q, k = (rotate(z, positions, op.rope_base, op.rotary) for z in (q, k))
    q, k, v = (z.transpose(1, 2) for z in (q, k, v))
    mask = None
    if op.window is not None and op.window < x.shape[1]:
        back = positions[:, None] - positions
        mask = (back >= 0) & (back < op.window)
    grouped = op.heads != op.kv_heads
    out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=grouped)
    out = out.transpose(1, 2).flatten(2)
    return F.linear(out * gate[0].sigmoid() if gate else out, op.out_proj.weight)


def _feed_forward(op: FeedForward, x: Tensor) -> Tensor:
    hidden = F.linear(x, op.gate_up.weight)
    if op.act == "swiglu":
        gate, up = hidden.chunk(2, dim=-1)
        hidden = F.silu(gate) * up
    else:
        hidden = F.relu(hidden).square()
    return F.linear(hidden, op.down.weight)


_IN_TORCH: dict[type, Forward] = {Attention: _attention, FeedForward: _feed_forward}


# --- by fla-core -----------------------------------------------------------------------------------------------------

# What a factory gives is named after the kernel that the recurrence runs on.


def _deltanet() -> Forward:
    from fla.ops.delta_rule import chunk_delta_rule

    convolved = _convolution()

    def chunk_delta(op: DeltaNet, x: Tensor) -> Tensor:
        *qkv, beta = op.layout.split(F.linear(x, op.in_proj.weight))
        q, k, v = (z.unflatten(-1, (op.heads, -1)) for z in convolved(qkv, op.conv, None))
        out, _ = chunk_delta_rule(q, k, v, op.betas(beta).to(x.dtype), use_qk_l2norm_in_kernel=True)
        return F.linear(_norm(out, op.norm.weight, op.norm.eps).flatten(2), op.out_proj.weight)

    return chunk_delta


def _gated_deltanet() -> Forward:
    from fla.modules.norm.fused_norm_gate import rms_norm_gated
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    ask_fla_for_gated_gradients()
    convolved = _convolution()

    def chunk_gated_delta(op: GatedDeltaNet, x: Tensor) -> Tensor:
        *qkv, gate, beta, decay = op.layout.split(F.linear(x, op.in_proj.weight))
        q, k, v = (z.unflatten(-1, (-1, dim)) for z, dim in zip(convolved(qkv, op.conv, None), op.dims, strict=True))
        q, k = (z.repeat_interleave(op.heads // op.key_heads, dim=2) for z in (q, k))
        log_decay = -op.A_log.exp() * F.softplus(decay.float() + op.dt_bias)
        out, _ = chunk_gated_delta_rule(q, k, v, log_decay, beta.sigmoid(), use_qk_l2norm_in_kernel=True)
        out = rms_norm_gated(out, gate.unflatten(-1, (op.heads, -1)), op.norm.weight, None, eps=op.norm.eps)
        return F.linear(out.flatten(2), op.out_proj.weight)

    return chunk_gated_delta


def _gla() -> Forward:
    from fla.modules.norm.fused_norm_gate import rms_norm_gated
    from fla.ops.gla import chunk_gla

    def chunk_gla_(op: GatedLinearAttention, x: Tensor) -> Tensor:
        *qkvg, low = op.layout.split(F.linear(x, op.in_proj.weight))
        q, k, v, gate = (z.unflatten(-1, (op.heads, -1)) for z in qkvg)
        decay = F.linear(low, op.decay_proj.weight, op.decay_proj.bias).float()
        log_decay = (F.logsigmoid(decay) / 16).unflatten(-1, (op.heads, -1))
        out, _ = chunk_gla(q, k, v, log_decay)
        out = rms_norm_gated(out, gate, op.norm.weight, None, eps=op.norm.eps)
        return F.linear(out.flatten(2), op.out_proj.weight)

    return chunk_gla_


def _mamba2() -> Forward:
    """With mamba-ssm's scan, else fla-core's kernel of one decay a head, else, where that computes no right gradients,
    its kernel of one decay a key channel, all of them the same."""
    scan = _scan_of_mamba_ssm() if find_spec("mamba_ssm") else _scan_of_fla()
    convolved = _convolution()

    def forward(op: Mamba2, x: Tensor) -> Tensor:
        z, *xbc, dt = op.layout.split(F.linear(x, op.in_proj.weight))
        u, b, c = convolved(xbc, op.conv, op.conv_bias)
        u = u.unflatten(-1, (op.heads, -1))
        b, c = (z.unflatten(-1, (op.groups, -1)) for z in (b, c))
        delta = F.softplus(dt.float() + op.dt_bias)
        y = scan(u, delta, -op.A_log.exp(), b, c) + u * op.D[:, None]
        y = norm_groups(y.flatten(2) * F.silu(z), op.norm.weight.to(y.dtype), op.norm.eps, op.groups)
        return F.linear(y, op.out_proj.weight)

    forward.__name__ = scan.__name__
    return forward


def _scan_of_mamba_ssm() -> Callable[..., Tensor]:
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    def mamba_chunk_scan(u: Tensor, delta: Tensor, rate: Tensor, b: Tensor, c: Tensor) -> Tensor:
        out: Tensor = mamba_chunk_scan_combined(u, delta, rate, b, c, chunk_size=256)
        return out

    return mamba_chunk_scan


def _scan_of_fla() -> Callable[..., Tensor]:
    from fla.ops.gla import chunk_gla
    from fla.ops.simple_gla import chunk_simple_gla

    try:
        ask_fla_for_gated_gradients()
        refused = False
    except RuntimeError:
        refused = True

    def chunk_simple(u: Tensor, delta: Tensor, rate: Tensor, b: Tensor, c: Tensor) -> Tensor:
        q, k = (_per_head(z, u.shape[2]) for z in (c, b))
        v = (u * delta[..., None]).to(u.dtype)
        out: Tensor = chunk_simple_gla(q, k, v, delta * rate, scale=1.0)[0]
        return out

    def chunk_gla_of_equal_decays(u: Tensor, delta: Tensor, rate: Tensor, b: Tensor, c: Tensor) -> Tensor:
        q, k = (_per_head(z, u.shape[2]) for z in (c, b))
        v = (u * delta[..., None]).to(u.dtype)
        out: Tensor = chunk_gla(q, k, v, (delta * rate)[..., None].expand(q.shape), scale=1.0)[0]
        return out

    return chunk_gla_of_equal_decays if refused else chunk_simple


def _per_head(x: Tensor, heads: int) -> Tensor:
    """[batch, time, groups, dim] to [batch, time, heads, dim]."""
    return x[:, :, :, None].expand(-1, -1, -1, heads // x.shape[2], -1).flatten(2, 3)


def _convolution() -> Callable[[list[Tensor], Tensor, Tensor | None], list[Tensor]]:
    """silu of the short convolution of each part [batch, time, channels], whose weights lie one after the other."""
    from fla.modules.causal_conv1d import causal_conv1d

    def convolved(parts: list[Tensor], weight: Tensor, bias: Tensor | None) -> list[Tensor]:
        sizes = [part.shape[-1] for part in parts]
        weights = weight.split(sizes)
        biases = [None] * len(parts) if bias is None else bias.split(sizes)
        return [
            causal_conv1d(part, w, b, activation="silu")[0] for part, w, b in zip(parts, weights, biases, strict=True)
        ]

    return convolved


_IN_FLA: dict[type, Callable[[], Forward]] = {
    DeltaNet: _deltanet,
    GatedDeltaNet: _gated_deltanet,
    GatedLinearAttention: _gla,
    Mamba2: _mamba2,
}
