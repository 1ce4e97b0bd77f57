"""Which implementation a linear recurrence runs on: fla-core's kernels on CUDA where they serve, else plain PyTorch.

Inputs arrive in float32 or wider; `like` is the operator's input, whose dtype (or autocast's) says how precise the
products may be.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from nfsearch.ops import recurrence

_SHORTEST = 64  # steps; below one chunk fla's kernels would mostly compute padding
_LARGEST_KEY = 256  # key size of a head that fla's delta-rule kernels take


Kind = Literal["delta_rule", "gated_delta_rule", "shared_linear", "gated_linear"]


class Path(NamedTuple):
    """What computes something, and why: fla-core's kernels, nfsearch's Triton kernels, or plain PyTorch."""

    name: Literal["fla", "triton", "torch"]
    reason: str


def training_path(kind: Kind, q: Tensor, like: Tensor) -> Path:
    """The implementation that `kind` takes for queries q [batch, time, heads, key] of an operator's input `like`."""
    dtype = _product_dtype(like)
    if not like.is_cuda:
        return Path("torch", f"the tensors are on {like.device.type}, not CUDA")
    if kind not in ("delta_rule", "gated_linear"):
        return Path("torch", f"fla-core's {kind} has no dependable backward on this GPU generation")
    if dtype not in (torch.bfloat16, torch.float16):
        return Path("torch", f"fla-core's kernels take bfloat16 and float16, not {dtype}")
    if not torch.is_grad_enabled():
        return Path("torch", "no gradient is asked for, and fla-core's first call tunes itself for a minute and more")
    if q.shape[1] < _SHORTEST:
        return Path("torch", f"{q.shape[1]} steps are fewer than one chunk of {_SHORTEST}")
    if q.shape[-1] > _LARGEST_KEY:
        return Path("torch", f"fla-core's kernels take keys of up to {_LARGEST_KEY}, not {q.shape[-1]}")
    missing = _missing()
    if missing:
        return Path("torch", f"fla-core is not usable: no {missing} (pip install 'nfsearch[fla]')")
    return Path("fla", "CUDA, half precision, fla-core is installed")


@cache
def _missing() -> str:
    """The first package that fla-core's kernels need and that is not installed, or nothing."""
    return next((name for name in ("fla", "einops", "packaging", "triton") if not importlib.util.find_spec(name)), "")


def _product_dtype(like: Tensor) -> torch.dtype:
    kind = like.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else like.dtype


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None, *, like: Tensor
) -> tuple[Tensor, Tensor]:
    """See `recurrence.delta_rule`."""
    kind: Kind = "delta_rule" if log_decay is None else "gated_delta_rule"
    if training_path(kind, q, like).name == "fla":
        from fla.ops.delta_rule import chunk_delta_rule

        dtype = _product_dtype(like)
        q, k, v, beta = (x.to(dtype) for x in (q, k, v, beta))
        out, last = chunk_delta_rule(q=q, k=k, v=v, beta=beta, scale=1.0, initial_state=state, output_final_state=True)
        return out.float(), last
    with torch.autocast(q.device.type, enabled=False):
        return recurrence.delta_rule(q, k, v, beta, log_decay, state)


def gated_linear(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None, *, like: Tensor
) -> tuple[Tensor, Tensor]:
    """See `recurrence.gated_linear`."""
    if training_path("gated_linear", q, like).name == "fla":
        from fla.ops.gla import chunk_gla

        dtype = _product_dtype(like)
        q, k, v = (x.to(dtype) for x in (q, k, v))
        out, last = chunk_gla(q=q, k=k, v=v, g=log_decay, scale=1.0, initial_state=state, output_final_state=True)
        return out.float(), last
    with torch.autocast(q.device.type, enabled=False):
        return recurrence.gated_linear(q, k, v, log_decay, state)


def shared_linear(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None, *, like: Tensor
) -> tuple[Tensor, Tensor]:
    """See `recurrence.shared_linear`; always in PyTorch, in float32 or wider."""
    with torch.autocast(q.device.type, enabled=False):
        return recurrence.shared_linear(q, k, v, log_decay, state)
