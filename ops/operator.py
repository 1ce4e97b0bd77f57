"""What every operator offers, and how one is built from a layer."""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfsearch.ops import chooser, parallel
from nfsearch.ops.forms import Choice, FusedStep, State
from nfsearch.space import Layer

__all__ = [
    "Operator",
    "RMSNorm",
    "State",
    "build_operator",
    "initial_step_bias",
    "linear",
    "project",
    "wide",
    "xavier_rows_",
]

_ALIGNED = 8  # 16 bytes of half precision


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype recurrences are computed and kept in: float32, or float64 for a float64 model."""
    return torch.promote_types(dtype, torch.float32)


class Operator(nn.Module, ABC):
    """One residual sub-layer without its norm and its residual: [batch, time, width] to the same.

    A subclass takes the width and, as keywords, exactly the sizes of `Layer.shape(width)`. It owns as many parameters,
    and `init_state` as many bytes, as `Layer.cost(width)` says.

    Weight normalization projects each row (`row_normalised`) or each column (`column_normalised`) of the named
    parameters to length one: the axis of the model's width in both cases.

    An operator may declare faster forms, which run on CUDA once they have been checked against the plain ones:
    `fused_step`, a record or its "module:name", for the step of a block around it; `chunks`, the recurrence of its
    parallel form, which `nfsearch.ops.parallel` then computes.
    """

    row_normalised: tuple[str, ...] = ()
    column_normalised: tuple[str, ...] = ()
    fused_step: ClassVar[str | FusedStep | None] = None
    # What tells its step from others', besides the shapes of its parameters and the numbers and words that it keeps.
    variant: tuple[Hashable, ...] = ()

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    @abstractmethod
    def forward(self, x: Tensor, state: State | None = None, position: int = 0) -> Tensor:
        """The parallel form. x [batch, time, width], the result likewise. Under autocast on CUDA, x may have its dtype,
        in which products with x are computed anyway.

        With a state, continues after the `position` tokens it holds and writes the new ones into it, in place and
        outside autograd (a continued sequence is for inference).

        In training, calls after the first few may be replays of a CUDA graph: nothing may depend on the host's state
        that changes between them. One that waits for the device is never replayed, and so is slower.
        """

    @abstractmethod
    def step(self, x: Tensor, state: State, position: Tensor) -> Tensor:
        """One token. x [batch, width]; `position` int64 [] on x's device: how many tokens the state holds.

        Writes the state in place, never waits for the device and has no shape that depends on data: it can be
        captured in a CUDA graph.
        """

    @abstractmethod
    def reference(self, x: Tensor) -> Tensor:
        """The specification: a plain loop over time from an empty state, which every faster form is tested against."""

    def init_state(self, batch: int, max_length: int, *, device: torch.device | str, dtype: torch.dtype) -> State:
        """The empty state for up to `max_length` tokens, activations being of `dtype`."""
        return {}

    @property
    def chunks(self) -> parallel.Chunks | None:
        """The recurrence of the parallel form with the sizes of its heads, or None where there is none."""
        return None

    def parallel_choice(self, like: Tensor) -> Choice:
        """What computes the parallel form for an input such as `like`, and why."""
        if self.chunks is None:
            return Choice("torch", "its own forward: there is no recurrence to choose kernels for")
        return parallel.choice(self.chunks, like)

    def step_choice(self, like: Tensor) -> Choice | None:
        """What computes `step` for an input such as `like`, and why, where no fused step is to be thought of."""
        return None

    def prevents_capture(self, like: Tensor) -> str:
        """Why `step` cannot be captured in a CUDA graph for an input such as `like`, or nothing."""
        return ""

    def reset_parameters(self) -> None:
        """Draws the initial weights: linear layers normal with standard deviation 0.02, unless a subclass says more."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, computed in float32 or wider."""

    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A projection without bias."""
    return nn.Linear(inputs, outputs, bias=False)


def project(layer: nn.Linear, x: Tensor) -> Tensor:
    """`layer(x)` without its bias; on CUDA followed by zeros up to a multiple of eight values, as tensor cores run
    products with other rows several times slower, and all kernels read them one value at a time."""
    lacking = -layer.out_features % _ALIGNED
    if not lacking or not chooser.on_cuda(x):
        return F.linear(x, layer.weight)
    return F.linear(x, F.pad(layer.weight.to(parallel.product_dtype(x)), (0, 0, 0, lacking)))


def xavier_rows_(weight: Tensor, rows: tuple[int, ...], gain: float = 2**-2.5) -> None:
    """Xavier-uniform initialisation of several projections stacked in one matrix, each with its own fan-out."""
    with torch.no_grad():
        for part in weight.split(rows):
            nn.init.xavier_uniform_(part, gain=gain)


def initial_step_bias(heads: int, device: torch.device) -> Tensor:
    """dt_bias of Mamba2 and Gated DeltaNet: softplus of it is log-uniform in [1e-3, 1e-1]. [heads]"""
    low, high = math.log(1e-3), math.log(1e-1)
    dt = torch.exp(torch.rand(heads, device=device) * (high - low) + low)
    return dt + torch.log(-torch.expm1(-dt))  # the inverse of softplus


def build_operator(layer: Layer, width: int) -> Operator:
    """The module a layer stands for. Raises ValueError where its settings do not fit the width."""
    module, name = layer.spec.module.split(":")
    kind: type[Operator] = getattr(importlib.import_module(module), name)
    operator = kind(width, **layer.shape(width))
    if torch.get_default_device().type != "meta":  # where nothing is drawn, yet normal_ imports torch's compiler: 2 s
        operator.reset_parameters()
    return operator
