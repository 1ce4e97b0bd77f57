"""Which implementation a linear recurrence runs on: nfsearch's Triton kernels on CUDA where they serve and have been
checked, else plain PyTorch.

Inputs may come in any dtype; `like` is the operator's input, whose dtype (or autocast's) says how precise the products
may be.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nfsearch.ops import recurrence
from nfsearch.ops.selfcheck import Inputs, disagreement, missing, verdict

Kind = Literal["delta_rule", "gated_delta_rule", "shared_linear", "gated_linear"]

_KERNELS: dict[Kind, str] = {  # modules with a `refusal`, the SMALLEST size and the function of the recurrence's name
    "delta_rule": "nfsearch.ops.kernels.training.chunk_delta",
    "gated_delta_rule": "nfsearch.ops.kernels.training.chunk_delta",
    "shared_linear": "nfsearch.ops.kernels.training.chunk_shared",
    "gated_linear": "nfsearch.ops.kernels.training.chunk_gated",
}
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 5e-3}  # relative, of results and gradients


class Path(NamedTuple):
    """What computes something, and why: nfsearch's Triton kernels, or PyTorch."""

    name: Literal["triton", "torch"]
    reason: str


def training_path(kind: Kind, key: int, value: int, like: Tensor, *, continued: bool = False) -> Path:
    """The implementation that `kind` takes with heads of these key and value sizes, for an operator's input `like`;
    `continued` from a given state.

    On CUDA, asking compiles and checks the kernels, once a process for all sizes that are padded to the same.
    """
    dtype = product_dtype(like)
    if not like.is_cuda:
        return Path("torch", f"the tensors are on {like.device.type}, not CUDA")
    if dtype not in _TOLERANCE:
        return Path("torch", f"no kernels for {dtype}")
    if reason := missing():
        return Path("torch", reason)
    module = _kernels(kind)
    keys, values = _padded(module, key, value)
    padded = "" if (keys, values) == (key, value) else f" (heads padded to {keys} x {values})"
    if reason := module.refusal(keys, values, dtype):
        return Path("torch", reason + padded)
    gradients = torch.is_grad_enabled()
    name = f"{kind} ({keys} x {values}, {dtype}{', from a state' * continued}{', without gradients' * (not gradients)})"
    what = (kind, keys, values, dtype, continued)
    reason = verdict((*what, gradients), name, lambda: _kernel_error(*what, like.device), _TOLERANCE[dtype])
    return Path("torch", reason + padded) if reason else Path("triton", "agrees with float64 here" + padded)


def product_dtype(like: Tensor) -> torch.dtype:
    """Of matrix products with an operator's input: its own, or autocast's."""
    kind = like.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else like.dtype


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None, *, like: Tensor
) -> tuple[Tensor, Tensor]:
    """See `recurrence.delta_rule`. The output has the dtype of the products where the kernels run."""
    return _run("delta_rule" if log_decay is None else "gated_delta_rule", like, q, k, v, (beta, log_decay), state)


def gated_linear(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None, *, like: Tensor
) -> tuple[Tensor, Tensor]:
    """See `recurrence.gated_linear`; the output as of `delta_rule`."""
    return _run("gated_linear", like, q, k, v, (log_decay,), state)


def shared_linear(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None, *, like: Tensor
) -> tuple[Tensor, Tensor]:
    """See `recurrence.shared_linear`; the output as of `delta_rule`."""
    return _run("shared_linear", like, q, k, v, (log_decay,), state)


def _run(
    kind: Kind, like: Tensor, q: Tensor, k: Tensor, v: Tensor, gates: tuple[Tensor | None, ...], state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """By the plain form, or by the kernels with heads padded with zeros, which is exact: channels of q and k that
    are zero neither write to the state nor read from it, those of v that are zero leave state and output zero."""
    key, value = q.shape[-1], v.shape[-1]
    if training_path(kind, key, value, like, continued=state is not None).name == "torch":
        return plain(_function(recurrence, kind), like, q, k, v, *gates, state)
    module, dtype = _kernels(kind), product_dtype(like)
    keys, values = _padded(module, key, value)
    if kind == "gated_linear":  # whose decays are those of the keys' channels
        gates = tuple(_pad(x, keys) for x in gates)
    q, k, v = (x.to(dtype) for x in (q, k, v))
    out, last = _function(module, kind)(
        _pad(q, keys), _pad(k, keys), _pad(v, values), *gates, _pad(state, keys, values)
    )
    return out[..., :value], last[..., :key, :value]


def _kernels(kind: Kind) -> ModuleType:
    """Imports Triton."""
    return importlib.import_module(_KERNELS[kind])


def _function(module: ModuleType, kind: Kind) -> Any:
    return getattr(module, "delta_rule" if kind == "gated_delta_rule" else kind)


def _padded(module: ModuleType, *sizes: int) -> tuple[int, ...]:
    """The powers of two from these sizes on, and from the smallest that the kernels take."""
    return tuple(max(module.SMALLEST, 1 << (size - 1).bit_length()) for size in sizes)


def _pad(x: Tensor | None, *sizes: int) -> Tensor | None:
    """Zeros after the end of the last dimensions, which become of these sizes; x itself where they are."""
    if x is None or x.shape[-len(sizes) :] == sizes:
        return x
    lacking = [size - have for size, have in zip(sizes, x.shape[-len(sizes) :], strict=True)]
    return F.pad(x, [count for after in reversed(lacking) for count in (0, after)])


def plain(form: Callable[..., tuple[Tensor, Tensor]], like: Tensor, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
    """In float32 or wider."""
    wide = [x if x is None else x.to(torch.promote_types(x.dtype, torch.float32)) for x in inputs]
    with torch.autocast(like.device.type, enabled=False):
        return form(*wide)


# --- the check -------------------------------------------------------------------------------------------------------

_TIME, _HEADS = 150, 2  # more than two chunks, the last one short


def _kernel_error(kind: Kind, key: int, value: int, dtype: torch.dtype, continued: bool, device: torch.device) -> float:
    kernel, reference = _function(_kernels(kind), kind), _function(recurrence, kind)
    inputs = _example(kind, key, value, dtype)
    if not continued:
        inputs[-1] = None
        if torch.is_grad_enabled():  # as in training, where no gradient comes through the last state
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
