"""One decoded token on fused kernels: what is bound for a block, for the embedding and for the head.

What a step needs to know is found out once for the shapes and dtypes that it is called with, and kept: a token then
costs the host little more than its launches.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nfsearch.ops.chooser import available, capturing, choose, on_cuda
from nfsearch.ops.forms import TOLERANCE, Choice, Form, Inputs, State, Step, named
from nfsearch.ops.operator import Operator, RMSNorm

_MANY = 64  # sequences: more run the same kernels, so that a check of so many serves for all (and fits into memory)
_SLOTS = 200  # tokens that the states of a check have room for
_KEPT = 32  # shapes that a module keeps what was bound for
_TOLERANCE = {torch.float32: 1e-4}  # against a plain form that has errors of its own
_EMBED = "nfsearch.ops.kernels.decode.embedding:bind"
_HEAD = "nfsearch.ops.kernels.decode.projection:bind_head"

T = TypeVar("T")


class Bound(dict[Hashable, Any]):
    """What was bound for a module, by `conditions`. A copy of it is empty, because what is bound holds the module's
    weights."""

    def keep(self, key: Hashable, value: T) -> T:
        """Not during a capture, in which kernels that were not checked before are not used."""
        if not capturing():
            if len(self) >= _KEPT:
                self.clear()
            self[key] = value
        return value

    def __reduce__(self) -> tuple[type[Bound], tuple[()]]:
        return Bound, ()


def conditions(x: Tensor) -> tuple[Hashable, ...]:
    """What a choice for inputs such as x depends on."""
    return x.shape, x.dtype, x.device, torch.is_grad_enabled(), torch.is_autocast_enabled("cuda")


def shapes(state: State) -> tuple[Hashable, ...]:
    """What a choice for states such as this depends on."""
    return tuple([(tensor.shape, tensor.dtype) for tensor in state.values()])


# --- a block ---------------------------------------------------------------------------------------------------------


def bind_step(operator: Operator, norm: RMSNorm, x: Tensor, state: State) -> Step | None:
    """x + operator(norm(x)) for inputs such as x [batch, width] and states such as this, on the operator's kernels; or
    None where they do not serve."""
    if step_choice(operator, norm, x, state).runs == "torch":
        return None
    fused = named(operator.fused_step)
    step: Step = fused.bind(operator, norm, x, state, **fused.choices(state))
    return step


def step_choice(operator: Operator, norm: RMSNorm, x: Tensor, state: State) -> Choice:
    """What decodes x [batch, width] on this state, and why."""
    if on_cuda(x) and operator.fused_step is None:
        return Choice("torch", f"no kernels for {type(operator).__name__}")
    return choose(_step_form(operator, norm, x, state), x)


def _step_form(operator: Operator, norm: RMSNorm, x: Tensor, state: State) -> Form:
    name, batch = type(operator).__name__, min(len(x), _MANY)
    choices = named(operator.fused_step).choices(state) if available(x) else {}
    small: list[str] = []  # the names of the state's tensors

    def example(device: torch.device) -> Inputs:
        random = torch.Generator(device).manual_seed(0)
        held = operator.init_state(batch, _SLOTS, device=device, dtype=x.dtype)
        for tensor in filter(Tensor.is_floating_point, held.values()):
            tensor.normal_(generator=random)
        small[:] = held
        probe = x.new_empty(batch, x.shape[1]).normal_(generator=random)
        return [probe, torch.tensor(_SLOTS - 2, device=device), *held.values()]

    def plain(x: Tensor, position: Tensor, *held: Tensor) -> tuple[Tensor, ...]:
        return x + operator.step(norm(x), dict(zip(small, held, strict=True)), position), *held

    def kernel(x: Tensor, position: Tensor, *held: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(small, held, strict=True))
        return named(operator.fused_step).bind(operator, norm, x, given, **choices)(x, given, position), *held

    return Form(
        f"{name}'s step ({x.dtype})",
        x.dtype,
        plain,
        kernel,
        example,
        lambda: named(operator.fused_step).unsupported(operator, x.dtype),
        (
            type(operator),
            _kept(operator),
            *operator.variant,
            tuple(tuple(p.shape) for p in operator.parameters()),
            batch,
            *choices.values(),
        ),
        gradients=False,
        tolerance=_TOLERANCE,
        instead="the plain step",
    )


def _kept(operator: Operator) -> tuple[tuple[str, Hashable], ...]:
    """The settings that an operator keeps, by name, since kernels are compiled for them: such as whether a state may
    change its sign, which no shape tells."""
    kept = ((name, value) for name, value in vars(operator).items() if name != "training" and name[0] != "_")
    return tuple(sorted((name, value) for name, value in kept if value is None or isinstance(value, int | float | str)))


# --- the two ends of a model -----------------------------------------------------------------------------------------


def bind_embedding(embedding: nn.Embedding, tokens: Tensor) -> Callable[[Tensor], Tensor] | None:
    """The embeddings of tokens [batch] such as these by a kernel, or None where it does not serve."""
    if embedding_choice(embedding, tokens).runs == "torch":
        return None
    lookup: Callable[[Tensor], Tensor] = named(_EMBED)(embedding, tokens)
    return lookup


def embedding_choice(embedding: nn.Embedding, tokens: Tensor) -> Choice:
    """What looks up tokens [batch], and why."""
    weight = embedding.weight

    def example(device: torch.device) -> Inputs:
        return [torch.arange(4, device=device) * (len(weight) - 1) // 3]  # the first and last among them

    form = Form(
        f"the embedding ({weight.dtype})",
        weight.dtype,
        lambda probe: nn.functional.embedding(probe, weight),
        lambda probe: named(_EMBED)(embedding, probe)(probe),
        example,
        key=tuple(weight.shape),
        gradients=False,
        tolerance=dict.fromkeys(TOLERANCE, 0.0),
        instead="PyTorch's lookup",
    )
    return choose(form, weight)


def bind_head(
    norm: RMSNorm, embedding: nn.Embedding, unit_rows: bool, plain: Callable[[Tensor], Tensor], x: Tensor
) -> Callable[[Tensor], Tensor] | None:
    """The logits in float32 of x [batch, width] such as this by kernels, or None where they do not serve. `plain` gives
    the logits of the last block's x; `unit_rows` divides each by the length of its row."""
    if head_choice(norm, embedding, unit_rows, plain, x).runs == "torch":
        return None
    head: Callable[[Tensor], Tensor] = named(_HEAD)(norm, embedding, unit_rows, x)
    return head


def head_choice(
    norm: RMSNorm, embedding: nn.Embedding, unit_rows: bool, plain: Callable[[Tensor], Tensor], x: Tensor
) -> Choice:
    """What computes the logits of x, and why; arguments as of `bind_head`."""
    batch, width = min(len(x), _MANY), x.shape[1]

    def example(device: torch.device) -> Inputs:
        return [x.new_empty(batch, width).normal_(generator=torch.Generator(device).manual_seed(0))]

    form = Form(
        f"the head ({x.dtype})",
        x.dtype,
        plain,
        lambda probe: named(_HEAD)(norm, embedding, unit_rows, probe)(probe),
        example,
        lambda: f"{width} values are not a multiple of 8" if width % 8 else "",
        (tuple(embedding.weight.shape), unit_rows, batch),
        gradients=False,
        tolerance=_TOLERANCE,
        instead="the plain norm and head",
    )
    return choose(form, x)
