"""Whether a fused kernel computes what surrounds a recurrence in training and prefill, or the PyTorch form does."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from nfsearch.ops.selfcheck import missing, relative, verdict

_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}  # relative, of results and gradients

Inputs = list[Tensor | None]
Form = Callable[..., Tensor | tuple[Tensor, ...]]


def kernels_serve(
    what: str,
    key: Hashable,
    dtype: torch.dtype,
    x: Tensor,
    kernel: Form,
    plain: Form,
    example: Callable[[Callable[..., Tensor]], Inputs],
) -> bool:
    """Whether `kernel` may stand in for `plain` where x is and with results of `dtype`: on CUDA, once it has agreed
    with the plain form in float64 on an `example` (made with the function that it is given to draw tensors with).

    `key`: what else tells one compilation of the kernel from another.
    """
    if not _suitable(x) or dtype not in _TOLERANCE:
        return False
    gradients = torch.is_grad_enabled()

    def error() -> float:
        random = torch.Generator(x.device).manual_seed(0)
        # What the check saves for its gradients is its own, also where a checkpoint would keep nothing.
        with torch.autocast(x.device.type, enabled=False), saved_tensors_hooks(lambda z: z, lambda z: z):
            inputs = example(lambda *shape: torch.randn(shape, device=x.device, generator=random))
            exact = _results(plain, [z if z is None else z.double() for z in inputs], gradients)
            return max(map(relative, _results(kernel, inputs, gradients), exact))

    return not verdict((what, key, dtype, gradients), f"{what} ({dtype})", error, _TOLERANCE[dtype])


def _suitable(x: Tensor) -> bool:
    return x.is_cuda and not missing()


def _results(form: Form, inputs: Inputs, gradients: bool) -> list[Tensor]:
    """What `form` gives, and with `gradients` those of all inputs for some gradients of the results."""
    leaves = [z if z is None else z.detach().requires_grad_(gradients) for z in inputs]
    results = form(*leaves)
    results = (results,) if isinstance(results, Tensor) else results
    if not gradients:
        return list(results)
    weights = [torch.linspace(-1, 1, y.numel(), device=y.device).view_as(y).to(y.dtype) for y in results]
    found = torch.autograd.grad(results, [z for z in leaves if z is not None], weights)
    return [*(y.detach() for y in results), *found]
