"""Whether a fused kernel computes what surrounds a recurrence in training and prefill, or the PyTorch form does."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from nfsearch.ops.selfcheck import Form, Inputs, disagreement, missing, verdict

_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}  # relative, of results and gradients


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

    def error() -> float:
        random = torch.Generator(x.device).manual_seed(0)
        inputs = example(lambda *shape: torch.randn(shape, device=x.device, generator=random))
        return disagreement(kernel, plain, inputs, x.device)

    return not verdict((what, key, dtype, torch.is_grad_enabled()), f"{what} ({dtype})", error, _TOLERANCE[dtype])


def _suitable(x: Tensor) -> bool:
    return x.is_cuda and not missing()
