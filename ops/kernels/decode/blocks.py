"""One token through a residual block, x + operator(norm(x)), on the fused kernels.

A mixer takes three launches (norm and projection; recurrence; norm, projection and residual), an FFN two. Attention
takes one more where several programs share a head's cache, whose results are added up, and a recurrence whose heads are
no power of two, whose norm goes alone.
With more than MAX_BATCH sequences the projections are cuBLAS's, each with a kernel before it.
Each function takes x [batch, width], the weight and epsilon of the block's norm, the operator's module (which owns the
layout of its weights), its state and the position (int64 tensor []), and returns the new x. States change in place.
Nothing waits for the device, so a whole model's step can be captured in a CUDA graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nfsearch.ops.kernels.decode.attention import Tiling, attention, tiling_of
from nfsearch.ops.kernels.decode.gemv import MAX_BATCH, gemv
from nfsearch.ops.kernels.decode.prologue import prologue
from nfsearch.ops.kernels.decode.recurrence import Gates, recurrence

State = dict[str, Tensor]


def project(x: Tensor, w: Tensor, norm: Tensor, eps: float, act: str = "none", early: bool = False) -> Tensor:
    """act(norm(x) @ w.T): one kernel for a few sequences, cuBLAS between two for many."""
    if len(x) <= MAX_BATCH:
        return gemv(x, w, norm=norm, mode="rms", eps=eps, act=act, early=early)
    y = F.linear(prologue(x, norm=norm, eps=eps), w)
    return y if act == "none" else prologue(y, act=act)


def project_back(
    y: Tensor, w: Tensor, x: Tensor, norm: Any = None, mode: str = "none", gate: Tensor | None = None
) -> Tensor:
    """x + norm(y, gate) @ w.T; `norm` is the operator's output norm (a module with weight and eps) or None."""
    how = {} if norm is None else {"norm": norm.weight, "gate": gate, "eps": norm.eps}
    few = len(y) <= MAX_BATCH
    if how and (not few or (mode != "rms" and not _power_of_two(len(norm.weight)))):
        y, how, mode = prologue(y, **how), {}, "none"
    return gemv(y, w, residual=x, mode=mode, **how) if few else torch.addmm(x, y, w.T)


def _power_of_two(size: int) -> bool:
    return size & (size - 1) == 0


def attention_block(
    x: Tensor, norm: Tensor, eps: float, op: Any, state: State, position: Tensor, tiling: Tiling | None = None
) -> Tensor:
    qkv = project(x, op.qkv.weight, norm, eps)
    normed = op.q_norm is not None
    y = attention(
        qkv,
        state["keys"],
        state["values"],
        position,
        heads=op.heads,
        rope_base=op.rope_base,
        q_norm=op.q_norm.weight if normed else None,
        k_norm=op.k_norm.weight if normed else None,
        eps=op.q_norm.eps if normed else 0.0,
        how=tiling,
    )
    return project_back(y, op.out_proj.weight, x)


def deltanet_block(x: Tensor, norm: Tensor, eps: float, op: Any, state: State, position: Tensor) -> Tensor:
    rows = project(x, op.in_proj.weight, norm, eps)
    y = recurrence("delta", rows, state["state"], position, ring=state["conv"], conv_weight=op.conv)
    return project_back(y, op.out_proj.weight, x, op.norm, "heads")


def gated_deltanet_block(x: Tensor, norm: Tensor, eps: float, op: Any, state: State, position: Tensor) -> Tensor:
    rows = project(x, op.in_proj.weight, norm, eps)
    gates = Gates(a_log=op.A_log, dt_bias=op.dt_bias)
    y = recurrence("gated_delta", rows, state["state"], position, ring=state["conv"], conv_weight=op.conv, gates=gates)
    gate = rows[:, op.channels : op.channels + y.shape[1]]
    return project_back(y, op.out_proj.weight, x, op.norm, "gated_heads", gate)


def gla_block(x: Tensor, norm: Tensor, eps: float, op: Any, state: State, position: Tensor) -> Tensor:
    rows = project(x, op.in_proj.weight, norm, eps)
    gates = Gates(decay_weight=op.decay_proj.weight, decay_bias=op.decay_proj.bias)
    y = recurrence("gla", rows, state["state"], position, gates=gates)
    first = sum(op.rows[:3])
    return project_back(y, op.out_proj.weight, x, op.norm, "gated_heads", rows[:, first : first + y.shape[1]])


def mamba2_block(x: Tensor, norm: Tensor, eps: float, op: Any, state: State, position: Tensor) -> Tensor:
    rows = project(x, op.in_proj.weight, norm, eps)
    gates = Gates(a_log=op.A_log, dt_bias=op.dt_bias, skip=op.D)
    y = recurrence(
        "mamba2",
        rows,
        state["state"],
        position,
        ring=state["conv"],
        conv_weight=op.conv,
        conv_bias=op.conv_bias,
        gates=gates,
    )
    return project_back(y, op.out_proj.weight, x, op.norm, "rms")


def ffn_block(x: Tensor, norm: Tensor, eps: float, op: Any, state: State, position: Tensor) -> Tensor:
    return project_back(project(x, op.gate_up.weight, norm, eps, op.act, True), op.down.weight, x)


def head(x: Tensor, norm: Tensor, eps: float, w: Tensor, unit_rows: bool) -> Tensor:
    """Logits [batch, vocab] in float32 of the last block's x; `unit_rows` divides each by the length of its row."""
    if len(x) <= MAX_BATCH:
        return gemv(x, w, norm=norm, mode="rms", eps=eps, unit_rows=unit_rows, dtype=torch.float32)
    logits = F.linear(prologue(x, norm=norm, eps=eps), w)
    return logits / torch.linalg.vector_norm(w, dim=1, dtype=torch.float32) if unit_rows else logits.float()


BLOCKS = {
    "Attention": attention_block,
    "DeltaNet": deltanet_block,
    "GatedDeltaNet": gated_deltanet_block,
    "GatedLinearAttention": gla_block,
    "Mamba2": mamba2_block,
    "FeedForward": ffn_block,
}


def choices(state: State | None) -> dict[str, Any]:
    """What the size of a state decides about the kernels: arguments of the function of its block."""
    return {"tiling": tiling_of(state["keys"])} if state is not None and "keys" in state else {}


def refusal(op: Any, dtype: torch.dtype) -> str:
    """Why the kernels cannot decode this operator in this dtype, or nothing."""
    name = type(op).__name__
    if name not in BLOCKS:
        return f"no kernels for {name}"
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return f"no kernels for {dtype}"
    for size in (op.width, getattr(op, "inner", 8)):
        if size % 8:
            return f"{size} values are not a multiple of 8"
    if name == "Attention" and (op.head_dim < 32 or not _power_of_two(op.head_dim)):
        return f"head_dim {op.head_dim} is not a power of two from 32"
    group = getattr(op, "head_dim", 8) if name == "DeltaNet" else getattr(op, "value_dim", 8)
    if group % 8:
        return f"the output norm's {group} values are not a multiple of 8"
    return ""
