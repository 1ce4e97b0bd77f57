"""The chunk kernels of the shared and the gated linear recurrence against float64 autograd through the recurrence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nfsearch.ops import chunked
from nfsearch.ops.kernels.training.chunk_gated import gated_linear
from nfsearch.ops.kernels.training.chunk_shared import shared_linear

KERNELS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "shared": (shared_linear, chunked.shared_linear),
    "gated": (gated_linear, chunked.gated_linear),
}


@dataclass(frozen=True)
class Case:
    """`decay` is the strongest log decay of a step; heads or channels range from a hundredth of it upwards."""

    time: int
    batch: int = 1
    heads: int = 1
    key: int = 16
    value: int = 32
    decay: float = 0.3
    state: bool = False
    through: tuple[str, ...] = ("out", "last")  # what the gradient arrives at
    dtype: torch.dtype = torch.float32

    def inputs(self, kind: str, device: str) -> list[Tensor]:
        """q, k, v, log decay and, if the case has one, the state."""
        shared = kind == "shared"
        per_key = (self.batch, self.time, self.key) if shared else (self.batch, self.time, self.heads, self.key)
        q, k = (torch.randn(per_key, device=device) / self.key**0.25 for _ in range(2))
        v = torch.randn(self.batch, self.time, self.heads, self.value, device=device)
        channels = self.heads if shared else self.key
        slope = self.decay * torch.logspace(-2, 0, channels, device=device)
        log_decay = -torch.rand(*v.shape[:3], *(() if shared else (self.key,)), device=device) * slope
        state = torch.randn(self.batch, self.heads, self.key, self.value, device=device)
        return [q.to(self.dtype), k.to(self.dtype), v.to(self.dtype), log_decay, *([state] if self.state else [])]


def run(kernel: Callable[..., Any], inputs: list[Tensor], case: Case, grads: tuple[Tensor, Tensor]) -> list[Tensor]:
    """The output, the last state, and the gradients of all inputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    results = kernel(*leaves)
    chosen = [i for i, name in enumerate(("out", "last")) if name in case.through]
    found = torch.autograd.grad(
        [results[i] for i in chosen], leaves, [grads[i].to(results[i].dtype) for i in chosen], materialize_grads=True
    )
    return [*(x.detach() for x in results), *found]


def errors(kind: str, case: Case, device: str = "cpu") -> dict[str, float]:
    """Relative errors by name; those of what should be zero, such as dq without a gradient at `out`, are absolute."""
    torch.manual_seed(0)
    kernel, exact = KERNELS[kind]
    inputs = case.inputs(kind, device)
    grads = torch.randn_like(inputs[2]), torch.randn(case.batch, case.heads, case.key, case.value, device=device)
    got = run(kernel, inputs, case, grads)
    expected = run(exact, [x.double() for x in inputs], case, grads)
    names = ("out", "last", "dq", "dk", "dv", "d_log_decay", "d_state")
    return {
        name: float((a.double() - b).norm() / (b.norm() if b.any() else 1))
        for name, a, b in zip(names, got, expected, strict=False)
    }


CASES = {
    "one step": Case(1, state=True),
    "one chunk and a rest": Case(17, batch=2, heads=3),
    "whole chunks, with a state": Case(64, key=32, value=16, state=True),
    "long": Case(130, state=True),
    "strong decays": Case(70, heads=2, decay=100.0, state=True),
    "wide keys": Case(40, key=128, value=16, state=True),
    "gradient at the output only": Case(33, through=("out",)),
    "gradient at the last state only": Case(33, through=("last",), state=True),
    "half precision": Case(70, dtype=torch.float16, state=True),
}


def report() -> dict[str, dict[str, float]]:
    return {f"{kind}: {name}": errors(kind, case) for kind in KERNELS for name, case in CASES.items()}
