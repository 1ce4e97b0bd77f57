"""Which implementation a linear recurrence runs on: nfsearch's Triton kernels on CUDA where they serve and have been
checked, else plain PyTorch.

Inputs may come in any dtype; `like` is the operator's input, whose dtype (or autocast's) says how precise the products
may be.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from nfsearch.ops import recurrence
from nfsearch.ops.selfcheck import Inputs, disagreement, missing, verdict

Kind = Literal["delta_rule", "gated_delta_rule", "shared_linear", "gated_linear"]

_KERNELS: dict[Kind, str] = {  # modules with a `refusal` and the function of the recurrence's name
    "delta_rule": "nfsearch.ops.kernels.chunk_delta",
    "gated_delta_rule": "nfsearch.ops.kernels.chunk_delta",
    "shared_linear": "nfsearch.ops.kernels.chunk_shared",
    "gated_linear": "nfsearch.ops.kernels.chunk_gated",
}
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 5e-3}  # relative, of results and gradients


class Path(NamedTuple):
    """What computes something, and why: nfsearch's Triton kernels, or PyTorch."""

    name: Literal["triton", "torch"]
    reason: str


def training_path(kind: Kind, key: int, value: int, like: Tensor) -> Path:
    """The implementation that `kind` takes with heads of these key and value sizes, for an operator's input `like`.

    On CUDA, asking compiles and checks the kernels, once a process: with gradients enabled what training uses, from no
    state on, otherwise what prefill uses, which goes on from a state.
    """
    dtype = product_dtype(like)
    if not like.is_cuda:
        return Path("torch", f"the tensors are on {like.device.type}, not CUDA")
    if dtype not in _TOLERANCE:
        return Path("torch", f"no kernels for {dtype}")
    if reason := missing():
        return Path("torch", reason)
    if reason := importlib.import_module(_KERNELS[kind]).refusal(key, value, dtype):
        return Path("torch", reason)
    gradients = torch.is_grad_enabled()
    name = f"{kind} ({key} x {value}, {dtype}{'' if gradients else ', without gradients'})"
    what, error = (kind, key, value, dtype, gradients), partial(_kernel_error, kind, key, value, dtype, like.device)
    reason = verdict(what, name, error, _TOLERANCE[dtype])
    return Path("torch", reason) if reason else Path("triton", "agrees with float64 here")


def product_dtype(like: Tensor) -> torch.dtype:
    """Of matrix products with an operator's input: its own, or autocast's."""
    kind = like.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else like.dtype


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None, *, like: Tensor
) -> tuple[Tensor, Tensor]:
    """See `recurrence.delta_rule`. The output has the dtype of the products where the kernels run."""
    kind: Kind = "delta_rule" if log_decay is None else "gated_delta_rule"
    if training_path(kind, q.shape[-1], v.shape[-1], like).name == "torch":
        return plain(recurrence.delta_rule, like, q, k, v, beta, log_decay, state)
    from nfsearch.ops.kernels.chunk_delta import delta_rule as kernel

    dtype = product_dtype(like)
    return kernel(q.to(dtype), k.to(dtype), v.to(dtype), beta, log_decay, state)


def gated_linear(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None, *, like: Tensor
) -> tuple[Tensor, Tensor]:
    """See `recurrence.gated_linear`; the output as of `delta_rule`."""
    if training_path("gated_linear", q.shape[-1], v.shape[-1], like).name == "torch":
        return plain(recurrence.gated_linear, like, q, k, v, log_decay, state)
    from nfsearch.ops.kernels.chunk_gated import gated_linear as kernel

    dtype = product_dtype(like)
    return kernel(q.to(dtype), k.to(dtype), v.to(dtype), log_decay, state)


def shared_linear(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None, *, like: Tensor
) -> tuple[Tensor, Tensor]:
    """See `recurrence.shared_linear`; the output as of `delta_rule`."""
    if training_path("shared_linear", q.shape[-1], v.shape[-1], like).name == "torch":
        return plain(recurrence.shared_linear, like, q, k, v, log_decay, state)
    from nfsearch.ops.kernels.chunk_shared import shared_linear as kernel

    dtype = product_dtype(like)
    return kernel(q.to(dtype), k.to(dtype), v.to(dtype), log_decay, state)


def plain(form: Callable[..., tuple[Tensor, Tensor]], like: Tensor, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
    """In float32 or wider."""
    wide = [x if x is None else x.to(torch.promote_types(x.dtype, torch.float32)) for x in inputs]
    with torch.autocast(like.device.type, enabled=False):
        return form(*wide)


# --- the check -------------------------------------------------------------------------------------------------------

_TIME, _HEADS = 150, 2  # more than two chunks, the last one short


def _kernel_error(kind: Kind, key: int, value: int, dtype: torch.dtype, device: torch.device) -> float:
    name = "delta_rule" if kind == "gated_delta_rule" else kind
    kernel, reference = getattr(importlib.import_module(_KERNELS[kind]), name), getattr(recurrence, name)
    inputs = _example(kind, key, value, dtype)
    if torch.is_grad_enabled():  # as in training: from no state, and the last one does not matter
        inputs[-1] = None
        kernel, reference = partial(_output, kernel), partial(_output, reference)
    return disagreement(kernel, reference, inputs, device)


def _output(form: Callable[..., tuple[Tensor, Tensor]], *inputs: Tensor | None) -> Tensor:
    return form(*inputs)[0]


def _example(kind: Kind, key: int, value: int, dtype: torch.dtype) -> Inputs:
    """Random inputs on the CPU, q and k of length one."""
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(1, *shape, generator=random)

    def unit(*shape: int) -> Tensor:
        return torch.nn.functional.normalize(draw(*shape), dim=-1).to(dtype)

    heads = () if kind == "shared_linear" else (_HEADS,)
    q, k, v = unit(_TIME, *heads, key), unit(_TIME, *heads, key), draw(_TIME, _HEADS, value).to(dtype)
    state = draw(_HEADS, key, value)
    # Weak and strong decays, which kernels may treat differently; the first chunk has weak ones only.
    strength = torch.where(torch.arange(_TIME) < _TIME // 2, 0.1, 10.0).view(
        1, _TIME, *[1] * (1 + (kind == "gated_linear"))
    )
    decay = -draw(_TIME, _HEADS, *((key,) if kind == "gated_linear" else ())).square() * strength
    if kind in ("shared_linear", "gated_linear"):
        return [q, k, v, decay, state]
    return [q, k, v, draw(_TIME, _HEADS).sigmoid(), None if kind == "delta_rule" else decay, state]
