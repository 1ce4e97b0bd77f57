"""One decode step of a residual block, put together from the best public parts: cuBLAS projections, fla-core's and
mamba-ssm's recurrence kernels with the state updated in place, PyTorch's attention kernels.

They are stronger than the libraries' own layers: projections are stacked into one product, nothing is allocated for the
state, whatever does not change from token to token is computed beforehand, and lengths are known (SDPA takes no length
from device memory, so that a real decode loop would need a graph for every length).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from nfsearch.bench.race import Absent, Setup
from nfsearch.ops import Block, Operator, State
from nfsearch.ops.attention import Attention
from nfsearch.ops.deltanet import DeltaNet
from nfsearch.ops.ffn import FeedForward
from nfsearch.ops.gated_deltanet import GatedDeltaNet
from nfsearch.ops.gla import GatedLinearAttention
from nfsearch.ops.mamba2 import Mamba2
from nfsearch.ops.norms import norm_groups

Weights = dict[str, Tensor]
Step = Callable[[Tensor, Weights, State], Tensor]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

FLA_MODULES = ("fla", "einops", "packaging", "triton")


class Parts(NamedTuple):
    """A step, and what it keeps instead of the operator's own state (sharing what it can)."""

    step: Step
    held: Callable[[Operator, State], State]
    path: str
    own: frozenset[str] = frozenset()  # parts of the state that it keeps in a layout of its own


def weights(block: Block) -> Weights:
    """The operator's by name, and `pre_norm`, that of the block's norm."""
    return {name: p.detach() for name, p in block.operator.named_parameters()} | {
        "pre_norm": block.norm.weight.detach()
    }


def library_parts(block: Block, position: int, setup: Setup) -> dict[str, Callable[[], Parts]]:
    """What there is for the block's operator after `position` tokens, by name, the strongest first. Each raises Absent
    where it cannot run."""
    operator, eps = block.operator, block.norm.eps
    if isinstance(operator, Attention):
        return {
            "SDPA, default": partial(_sdpa, operator, eps, position, None),
            "SDPA, cuDNN": partial(_sdpa, operator, eps, position, SDPBackend.CUDNN_ATTENTION),
            "SDPA, FA2": partial(_sdpa, operator, eps, position, SDPBackend.FLASH_ATTENTION),
            "flex-decoding": partial(_flex, operator, eps, position, setup),
        }
    if isinstance(operator, FeedForward):
        return {"F.linear": lambda: Parts(_ffn(operator, eps), _same, "cuBLAS and PyTorch")}
    found: dict[str, Callable[[], Parts]] = {}
    for kind, make in _RECURRENT.items():
        if isinstance(operator, kind):
            found["fla-core"] = partial(_fla, make, operator, eps, position, setup.kind)
    if isinstance(operator, Mamba2):
        found["mamba-ssm"] = partial(_mamba_ssm, operator, eps, position, setup.kind)
    return found


def _same(operator: Operator, state: State) -> State:
    return state


def _norm(x: Tensor, w: Weights, eps: float) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), w["pre_norm"], eps)


def _ffn(op: FeedForward, eps: float) -> Step:
    act = op.act

    def step(x: Tensor, w: Weights, state: State) -> Tensor:
        hidden = F.linear(_norm(x, w, eps), w["gate_up.weight"])
        if act == "swiglu":
            gate, up = hidden.chunk(2, dim=-1)
            hidden = F.silu(gate) * up
        else:
            hidden = F.relu(hidden).square()
        return x + F.linear(hidden, w["down.weight"])

    return step


# --- recurrences -----------------------------------------------------------------------------------------------------


def need(library: str, kind: str, *modules: str) -> None:
    """Raises Absent unless the device is a GPU and the library's modules are here."""
    if kind != "cuda":
        raise Absent(f"{library}'s kernels need CUDA")
    if missing := [name for name in modules if not find_spec(name)]:
        raise Absent(f"{library} is not usable: no module {missing[0]}")


def _fla(make: Callable[[Any, float], Step], operator: Operator, eps: float, position: int, kind: str) -> Parts:
    need("fla-core", kind, *FLA_MODULES)
    return Parts(
        make(operator, eps),
        lambda op, state: _shifted(state, position),
        "cuBLAS, fla-core's short convolution, in-place recurrence and gated norm",
        frozenset({"conv"}),
    )


def _shifted(state: State, position: int) -> State:
    """The ring of the short convolution as the libraries keep it, [batch, channels, taps] with the oldest input first;
    the recurrent state is the operator's own."""
    if "conv" not in state:
        return state
    taps = state["conv"].shape[1]
    order = [(position + j) % taps for j in range(taps)]
    return {"conv": state["conv"][:, order].transpose(1, 2).contiguous(), "state": state["state"]}


def _conv(x: Tensor, state: State, w: Weights) -> Tensor:
    """silu of the short convolution; x [batch, channels]."""
    from fla.modules.causal_conv1d import causal_conv1d_update

    y, _ = causal_conv1d_update(x, state["conv"], weight=w["conv"], bias=w.get("conv_bias"), activation="silu")
    return y


def _gated_norm(out: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """rms_norm(out) * weight * silu(gate), per head."""
    from fla.modules.norm.fused_norm_gate import rms_norm_gated

    return rms_norm_gated(out, gate, weight, None, activation="swish", eps=eps)


def _delta_kernel(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor, neg_eigval: bool = False, **gate: Tensor
) -> Tensor:
    """fla-core's recurrence with its output state laid over its input state (each program reads its tile before it
    writes it). It scales q and k to length one, takes beta before its sigmoid, and computes the gate, if there is one.
    q, k [batch, heads, key], v [batch, heads, value], beta [batch, heads]."""
    import triton
    from fla.ops.gated_delta_rule.fused_recurrent import fused_recurrent_gated_delta_rule_fwd_kernel

    batch, heads, key = q.shape
    value = v.shape[-1]
    tile = min(8, triton.next_power_of_2(value))
    out = torch.empty_like(v, memory_format=torch.contiguous_format)
    fused_recurrent_gated_delta_rule_fwd_kernel[(triton.cdiv(value, tile) * batch * heads,)](
        q=q.contiguous(), k=k.contiguous(), v=v.contiguous(), g=gate.get("g"), gk=None, gv=None,
        beta=beta.contiguous(), A_log=gate.get("A_log"), dt_bias=gate.get("dt_bias"), o=out, h0=state, ht=state,
        cu_seqlens=None, scale=key**-0.5, T=1, H=heads, HV=heads, K=key, V=value, BK=triton.next_power_of_2(key),
        BV=tile, IS_BETA_HEADWISE=True, USE_QK_L2NORM_IN_KERNEL=True, APPLY_BETA_SIGMOID=True,
        ALLOW_NEG_EIGVAL=neg_eigval, STATE_V_FIRST=False, num_warps=1, num_stages=3,
    )  # fmt: skip
    return out


def _linear_kernel(q: Tensor, k: Tensor, v: Tensor, scale: float, state: Tensor, **decay: Tensor) -> Tensor:
    """fla-core's gated linear recurrence, in place likewise; float32 `g` [batch, heads] or `gk` [batch, heads, key]."""
    import triton
    from fla.ops.common.fused_recurrent import fused_recurrent_fwd_kernel

    batch, heads, key = q.shape
    value = v.shape[-1]
    key_tile, tile = triton.next_power_of_2(key), min(32, triton.next_power_of_2(value))
    out = torch.empty_like(v, memory_format=torch.contiguous_format)
    fused_recurrent_fwd_kernel[(triton.cdiv(value, tile) * batch * heads,)](
        q=q.contiguous(), k=k.contiguous(), v=v.contiguous(), g=decay.get("g"), g_gamma=None, gk=decay.get("gk"),
        gv=None, o=out, h0=state, ht=state, cu_seqlens=None, scale=scale, B=batch, T=1, H=heads, K=key, V=value,
        BK=key_tile, BV=tile, REVERSE=False, USE_G="g" in decay, USE_G_GAMMA=False, USE_GK="gk" in decay, USE_GV=False,
        STATE_V_FIRST=False,
    )  # fmt: skip
    return out


def _deltanet(op: DeltaNet, eps: float) -> Step:
    heads, dim, layout, norm_eps = op.heads, op.head_dim, op.layout, op.norm.eps

    def step(x: Tensor, w: Weights, state: State) -> Tensor:
        qkv, beta = layout.split(F.linear(_norm(x, w, eps), w["in_proj.weight"]), "q|k|v", "beta")
        q, k, v = _conv(qkv, state, w).unflatten(1, (3, heads, dim)).unbind(1)
        out = _delta_kernel(q, k, v, beta, state["state"], op.neg_eigval)
        out = F.rms_norm(out, (dim,), w["norm.weight"], norm_eps)
        return x + F.linear(out.flatten(1), w["out_proj.weight"])

    return step


def _gated_deltanet(op: GatedDeltaNet, eps: float) -> Step:
    heads, layout, norm_eps = op.heads, op.layout, op.norm.eps

    def step(x: Tensor, w: Weights, state: State) -> Tensor:
        rows = F.linear(_norm(x, w, eps), w["in_proj.weight"])
        qkv, gate, beta, decay = layout.split(rows, "q|k|v", "gate", "beta", "decay")
        parts = _conv(qkv, state, w).split(layout.sizes[:3], dim=-1)
        q, k, v = (z.unflatten(1, (-1, dim)) for z, dim in zip(parts, op.dims, strict=True))
        q, k = (z.repeat_interleave(heads // op.key_heads, dim=1) for z in (q, k))
        decay = decay.contiguous()
        out = _delta_kernel(q, k, v, beta, state["state"], g=decay, A_log=w["A_log"], dt_bias=w["dt_bias"])
        out = _gated_norm(out, gate.unflatten(1, (heads, -1)).contiguous(), w["norm.weight"], norm_eps)
        return x + F.linear(out.flatten(1), w["out_proj.weight"])

    return step


def _gla(op: GatedLinearAttention, eps: float) -> Step:
    heads, layout, scale, norm_eps = op.heads, op.layout, op.key_dim**-0.5, op.norm.eps

    def step(x: Tensor, w: Weights, state: State) -> Tensor:
        *qkvg, low = layout.split(F.linear(_norm(x, w, eps), w["in_proj.weight"]))
        q, k, v, gate = (z.unflatten(1, (heads, -1)) for z in qkvg)
        decay = F.linear(low, w["decay_proj.weight"], w["decay_proj.bias"]).float()
        decay = (F.logsigmoid(decay) / 16).unflatten(1, (heads, -1))
        out = _linear_kernel(q, k, v, scale, state["state"], gk=decay)
        out = _gated_norm(out, gate.contiguous(), w["norm.weight"], norm_eps)
        return x + F.linear(out.flatten(1), w["out_proj.weight"])

    return step


def _mamba2_fla(op: Mamba2, eps: float) -> Step:
    heads, layout, norm_eps = op.heads, op.layout, op.norm.eps

    def step(x: Tensor, w: Weights, state: State) -> Tensor:
        z, xbc, dt = layout.split(F.linear(_norm(x, w, eps), w["in_proj.weight"]), "z", "x|b|c", "dt")
        u, b, c = _conv(xbc, state, w).split(op.parts.sizes, dim=-1)
        u = u.unflatten(1, (heads, -1))
        delta = F.softplus(dt.float() + w["dt_bias"])
        b, c = (op.per_head(s) for s in (b, c))
        v = (u * delta[..., None]).to(x.dtype)
        y = _linear_kernel(c, b, v, 1.0, state["state"], g=-delta * w["A_log"].float().exp())
        y = (y + u * w["D"][:, None]).flatten(1) * F.silu(z)
        return x + F.linear(norm_groups(y, w["norm.weight"], norm_eps, op.groups), w["out_proj.weight"])

    return step


_RECURRENT: dict[type[Operator], Callable[[Any, float], Step]] = {
    DeltaNet: _deltanet,
    GatedDeltaNet: _gated_deltanet,
    GatedLinearAttention: _gla,
    Mamba2: _mamba2_fla,
}


def _mamba_ssm(op: Mamba2, eps: float, position: int, kind: str) -> Parts:
    """With mamba-ssm's selective_state_update, which keeps its state as [batch, heads, head_dim, state]."""
    need("mamba-ssm", kind, "mamba_ssm", *FLA_MODULES)
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update

    heads, dim, size, layout, norm_eps = op.heads, op.head_dim, op.state_size, op.layout, op.norm.eps

    def held(op: Operator, state: State) -> State:
        assert isinstance(op, Mamba2)
        rate = -op.A_log.detach().float().exp()
        kept = _shifted(state, position)
        return {
            "conv": kept["conv"],
            "ssm": state["state"].transpose(2, 3).contiguous(),
            "rate": rate[:, None, None].expand(heads, dim, size),
        }

    def step(x: Tensor, w: Weights, state: State) -> Tensor:
        z, xbc, dt = layout.split(F.linear(_norm(x, w, eps), w["in_proj.weight"]), "z", "x|b|c", "dt")
        u, b, c = _conv(xbc, state, w).split(op.parts.sizes, dim=-1)
        y = selective_state_update(
            state["ssm"],
            u.unflatten(1, (heads, dim)),
            dt[..., None].expand(-1, heads, dim),
            state["rate"],
            b.unflatten(1, (op.groups, -1)),
            c.unflatten(1, (op.groups, -1)),
            w["D"][:, None].expand(heads, dim),
            dt_bias=w["dt_bias"][:, None].expand(heads, dim),
            dt_softplus=True,
        )
        y = y.flatten(1) * F.silu(z)
        return x + F.linear(norm_groups(y, w["norm.weight"], norm_eps, op.groups), w["out_proj.weight"])

    path = "cuBLAS, fla-core's short convolution, mamba-ssm's selective_state_update"
    return Parts(step, held, path, frozenset({"conv", "state"}))


# --- attention -------------------------------------------------------------------------------------------------------


def sdpa(backend: SDPBackend | None) -> Attend:
    """q [batch, heads, 1, dim], k and v [batch, kv_heads, length, dim]; no mask, so that every backend may serve."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        chosen: AbstractContextManager[Any] = nullcontext() if backend is None else sdpa_kernel(backend)
        with chosen:
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])

    return attend


def flex(setup: Setup) -> Attend:
    """flex-decoding, as torch.compile makes it for one query."""
    from torch.nn.attention.flex_attention import flex_attention

    run = setup.compiled(flex_attention, "torch.compile, which flex-decoding needs,")
    return lambda q, k, v: run(q, k, v, enable_gqa=q.shape[1] != k.shape[1])


def backend_name(op: Attention, batch: int, length: int, kind: str, dtype: torch.dtype) -> str:
    """The kernel that SDPA chooses by itself for one query over `length` keys."""
    q = torch.empty(batch, op.heads, 1, op.head_dim, device=kind, dtype=dtype)
    k = torch.empty(batch, length, op.kv_heads, op.head_dim, device=kind, dtype=dtype).transpose(1, 2)
    try:
        choice = torch._fused_sdp_choice(q, k, k, None, 0.0, False, enable_gqa=op.heads != op.kv_heads)
    except (AttributeError, TypeError, RuntimeError):  # not a public function
        return "a backend that PyTorch does not name"
    return str(SDPBackend(choice)).removeprefix("SDPBackend.")


def _sdpa(op: Attention, eps: float, position: int, backend: SDPBackend | None) -> Parts:
    weight = op.qkv.weight
    length = position + 1 if op.window is None else min(position + 1, op.window)
    name = backend_name(op, 1, length, weight.device.type, weight.dtype) if backend is None else backend.name
    return _attention(op, eps, position, sdpa(backend), f"cuBLAS and SDPA: {name}")


def _flex(op: Attention, eps: float, position: int, setup: Setup) -> Parts:
    return _attention(op, eps, position, flex(setup), "cuBLAS and flex-decoding under torch.compile")


def _attention(op: Attention, eps: float, position: int, attend: Attend, path: str) -> Parts:
    dim, half, layout = op.head_dim, op.rotary // 2, op.layout

    def held(op: Operator, state: State) -> State:
        assert isinstance(op, Attention)
        exponent = torch.arange(half, device=state["keys"].device) / max(half, 1)
        angle = position * torch.pow(op.rope_base, -exponent.double())
        turn = {"cos": angle.cos().to(state["keys"].dtype), "sin": angle.sin().to(state["keys"].dtype)}
        return {**state, **turn}

    def normed(z: Tensor, weight: Tensor, eps: float) -> Tensor:
        return F.rms_norm(z.unflatten(-1, (-1, len(weight))), weight.shape, weight, eps).flatten(-2)

    def step(x: Tensor, w: Weights, state: State) -> Tensor:
        keys, values = state["keys"], state["values"]
        slots = keys.shape[1]
        slot, length = position % slots, min(position + 1, slots)
        q, k, v, *gate = layout.split(F.linear(_norm(x, w, eps), w["qkv.weight"]))
        if op.q_norm and op.k_norm:
            q, k = (normed(z, w[f"{name}_norm.weight"], op.q_norm.eps) for z, name in ((q, "q"), (k, "k")))
        q, k, v = (z.unflatten(-1, (-1, dim)) for z in (q, k, v))
        a, b, rest = torch.cat((q, k), dim=1).split((half, half, dim - 2 * half), dim=-1)
        cos, sin = state["cos"], state["sin"]
        turned = torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)
        q, k = turned.split((op.heads, op.kv_heads), dim=1)
        keys[:, slot] = k
        values[:, slot] = v
        out = attend(q[:, :, None], keys[:, :length].transpose(1, 2), values[:, :length].transpose(1, 2))
        out = out.flatten(1)
        return x + F.linear(out * gate[0].sigmoid() if gate else out, w["out_proj.weight"])

    return Parts(step, held, path)
