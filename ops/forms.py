"""The records about kernels: what two forms of one computation are, what an operator declares, what was chosen.

What is imported only where kernels are wanted is named as "module:name", so that nothing here needs Triton.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

State = dict[str, Tensor]
Inputs = list[Tensor | None]
Step = Callable[[Tensor, State, Tensor], Tensor]  # of x [batch, width], the state (written in place) and the position

# Relative errors that kernels may have. A form whose error is of another kind has its own for that dtype.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}


def nothing(*_: object) -> str:
    """The answer of what is always supported."""
    return ""


def no_choices(state: State) -> Mapping[str, Hashable]:
    """The answer of kernels that are laid out by the shapes of their inputs alone."""
    return {}


@dataclass(frozen=True, eq=False)
class Form:
    """One computation, by PyTorch and by kernels that may stand in for it once they have agreed with it.

    Both functions take the same tensors. `kernel` may be given as "module:name"; `how` are further arguments of it.
    With `gradients` the kernels are compared with the plain form in float64, in results and gradients; without, with
    the plain form in its own dtype, and only results, among which are all tensors that they write.
    """

    name: str  # in words, with what else tells the user which one it is
    dtype: torch.dtype  # of the products or the results
    plain: Callable[..., Any]
    kernel: str | Callable[..., Any]
    example: Callable[[torch.device], Inputs]  # small inputs for the check
    unsupported: Callable[[], str] = nothing  # why the kernels cannot compute this, or nothing
    key: Hashable = None  # what tells this form from others of the same name
    how: Mapping[str, Any] = field(default_factory=dict)
    gradients: bool = True
    tolerance: Mapping[torch.dtype, float] = field(default_factory=dict)  # where it is not TOLERANCE's
    instead: str = "the plain form"
    compared: int | None = None  # how many of the results, if not all

    def run_kernel(self, *inputs: Any) -> Any:
        """What the kernels give; imports them."""
        return named(self.kernel)(*inputs, **self.how)

    @property
    def allowed(self) -> float:
        """The relative error that the kernels may have."""
        return self.tolerance.get(self.dtype, TOLERANCE[self.dtype])


def draws(device: torch.device) -> Callable[..., Tensor]:
    """A function that draws tensors of a given shape for an example, always the same ones."""
    random = torch.Generator(device).manual_seed(0)
    return lambda *shape: torch.randn(shape, device=device, generator=random)


class Choice(NamedTuple):
    """What computes something, and why: kernels ("triton"), or PyTorch."""

    runs: Literal["triton", "torch"]
    reason: str


@dataclass(frozen=True)
class FusedStep:
    """A block's step, x + operator(norm(x)) for one token of each sequence, on kernels of the operator's.

    `bind(operator, norm, x, state, **choices)` gives a function of x, the state and the position (int64 []) that
    computes it for all inputs of these shapes and dtypes, and writes the state in place. What does not change from
    token to token is found out when it is bound. Weights are to be read at each call: they may have been replaced.

    `unsupported(operator, dtype)` says why the kernels cannot serve, or nothing. `choices(state)` are arguments of
    `bind` that depend on the size of a state: the check, whose state is small, is made with those of the one in use.
    """

    bind: Callable[..., Step]
    unsupported: Callable[[Any, torch.dtype], str] = nothing
    choices: Callable[[State], Mapping[str, Hashable]] = no_choices


def named(what: str | Any) -> Any:
    """What "module:name" names, or the thing itself."""
    if not isinstance(what, str):
        return what
    module, name = what.split(":")
    return getattr(importlib.import_module(module), name)
