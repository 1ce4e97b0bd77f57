"""The linear recurrences over chunks, in training and prefill: on Triton kernels where these serve, else in PyTorch.

Inputs may come in any dtype; `like` is the operator's input, whose dtype (or autocast's) says how precise the products
may be.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nfsearch.ops import chunked
from nfsearch.ops.chooser import available, choose
from nfsearch.ops.forms import Choice, Form, Inputs

_TOLERANCE = {torch.float32: 1e-3}  # sums over a chunk, whose products are of TF32's parts


@dataclass(frozen=True, eq=False)
class Recurrence:
    """A linear recurrence: its plain form over chunks, the kernels that may stand in for it (in a module with a
    `refusal` and the SMALLEST size), and which inputs it has besides q, k, v and the state."""

    name: str
    plain: Callable[..., tuple[Tensor, Tensor]]
    kernel: str
    shared: bool = False  # q and k are the same for all heads
    beta: bool = False  # how much is written, per head
    decay: Literal["none", "head", "key"] = "head"  # per head, or per channel of its keys

    @property
    def module(self) -> ModuleType:
        """That of the kernels; imports Triton."""
        return importlib.import_module(self.kernel.split(":")[0])

    def padded(self, *sizes: int) -> tuple[int, ...]:
        """The powers of two from these sizes on, and from the smallest that the kernels take."""
        smallest = self.module.SMALLEST
        return tuple(max(smallest, 1 << (size - 1).bit_length()) for size in sizes)


DELTA_RULE = Recurrence(
    "delta_rule", chunked.delta_rule, "nfsearch.ops.kernels.training.chunk_delta:delta_rule", beta=True, decay="none"
)
GATED_DELTA_RULE = Recurrence(
    "gated_delta_rule", chunked.delta_rule, "nfsearch.ops.kernels.training.chunk_delta:delta_rule", beta=True
)
SHARED_LINEAR = Recurrence(
    "shared_linear", chunked.shared_linear, "nfsearch.ops.kernels.training.chunk_shared:shared_linear", shared=True
)
GATED_LINEAR = Recurrence(
    "gated_linear", chunked.gated_linear, "nfsearch.ops.kernels.training.chunk_gated:gated_linear", decay="key"
)


class Chunks(NamedTuple):
    """The recurrence of an operator's parallel form, and the sizes of its heads' keys and values."""

    recurrence: Recurrence
    key: int
    value: int


def choice(chunks: Chunks, like: Tensor, *, continued: bool = False) -> Choice:
    """What computes these for an operator's input `like`; `continued` from a given state.

    On CUDA, asking compiles and checks the kernels, once a process for all sizes that are padded to the same.
    """
    dtype = product_dtype(like)
    sizes = chunks.key, chunks.value
    padded = chunks.recurrence.padded(*sizes) if available(like) else sizes
    found = choose(_form(chunks.recurrence, *padded, dtype, continued, torch.is_grad_enabled()), like)
    return (
        found if padded == sizes else Choice(found.runs, f"{found.reason} (heads padded to {padded[0]} x {padded[1]})")
    )


def product_dtype(like: Tensor) -> torch.dtype:
    """Of matrix products with an operator's input: its own, or autocast's."""
    kind = like.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else like.dtype


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None, *, like: Tensor
) -> tuple[Tensor, Tensor]:
    """See `chunked.delta_rule`. The output has the dtype of the products where the kernels run."""
    return _run(DELTA_RULE if log_decay is None else GATED_DELTA_RULE, like, q, k, v, (beta, log_decay), state)


def gated_linear(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None, *, like: Tensor
) -> tuple[Tensor, Tensor]:
    """See `chunked.gated_linear`; the output as of `delta_rule`."""
    return _run(GATED_LINEAR, like, q, k, v, (log_decay,), state)


def shared_linear(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None, *, like: Tensor
) -> tuple[Tensor, Tensor]:
    """See `chunked.shared_linear`; the output as of `delta_rule`."""
    return _run(SHARED_LINEAR, like, q, k, v, (log_decay,), state)


def _run(
    what: Recurrence,
    like: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: tuple[Tensor | None, ...],
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """By the plain form, or by the kernels with heads padded with zeros, which is exact: channels of q and k that
    are zero neither write to the state nor read from it, those of v that are zero leave state and output zero."""
    key, value = q.shape[-1], v.shape[-1]
    if choice(Chunks(what, key, value), like, continued=state is not None).runs == "torch":
        return plain(what.plain, like, q, k, v, *gates, state)
    dtype = product_dtype(like)
    keys, values = what.padded(key, value)
    form = _form(what, keys, values, dtype, state is not None, torch.is_grad_enabled())
    if what.decay == "key":  # whose decays are those of the keys' channels
        gates = tuple(_pad(x, keys) for x in gates)
    q, k, v = (x.to(dtype) for x in (q, k, v))
    out, last = form.run_kernel(_pad(q, keys), _pad(k, keys), _pad(v, values), *gates, _pad(state, keys, values))
    return out[..., :value], last[..., :key, :value]


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


# --- the record ------------------------------------------------------------------------------------------------------

_TIME, _HEADS = 150, 2  # of the example: more than two chunks, the last one short


@cache
def _form(what: Recurrence, key: int, value: int, dtype: torch.dtype, continued: bool, gradients: bool) -> Form:
    """Heads of these sizes in products of `dtype`."""

    def example(device: torch.device) -> Inputs:
        inputs = _example(what, key, value, dtype)
        return inputs if continued else [*inputs[:-1], None]

    how = ", from a state" * continued + ", without gradients" * (not gradients)
    return Form(
        f"{what.name} ({key} x {value}, {dtype}{how})",
        dtype,
        what.plain,
        what.kernel,
        example,
        lambda: what.module.refusal(key, value, dtype),
        tolerance=_TOLERANCE,
        compared=1 if gradients and not continued else None,  # no gradient comes through the last state in training
    )


def _example(what: Recurrence, key: int, value: int, dtype: torch.dtype) -> Inputs:
    """Random inputs on the CPU, q and k of length one."""
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(1, *shape, generator=random)

    def unit(*shape: int) -> Tensor:
        return torch.nn.functional.normalize(draw(*shape), dim=-1).to(dtype)

    heads = () if what.shared else (_HEADS,)
    q, k, v = unit(_TIME, *heads, key), unit(_TIME, *heads, key), draw(_TIME, _HEADS, value).to(dtype)
    state = draw(_HEADS, key, value)
    # Weak and strong decays, which kernels may treat differently; the first chunk has weak ones only.
    strength = torch.where(torch.arange(_TIME) < _TIME // 2, 0.1, 10.0).view(
        1, _TIME, *[1] * (1 + (what.decay == "key"))
    )
    decay = -draw(_TIME, _HEADS, *((key,) if what.decay == "key" else ())).square() * strength
    if not what.beta:
        return [q, k, v, decay, state]
    return [q, k, v, draw(_TIME, _HEADS).sigmoid(), None if what.decay == "none" else decay, state]
