"""The delta rule, with or without a decay per head, in Triton kernels over chunks of steps, with its gradients.

The configurations are fixed: chosen on an H200 and never tuned at run time, because a search that varies shapes would
tune for each anew.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nfsearch.ops.kernels.training import chunk_delta_backward, chunk_delta_forward
from nfsearch.ops.kernels.training.chunk_delta_forward import Kept

SMALLEST = 64  # size of a head's keys and of its values
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def refusal(key: int, value: int, dtype: torch.dtype) -> str:
    """Why the kernels cannot serve heads of these sizes, or "".

    Triton 3.6 compiles narrower tiles to code that reads shared memory where nothing was written, or past its end.
    """
    for name, size, largest in (("key", key, 256), ("value", value, 512)):
        if size < SMALLEST or size > largest or size & (size - 1):
            return f"the kernels take a {name} size that is a power of two from {SMALLEST} to {largest}, not {size}"
    if dtype not in _DTYPES:
        return f"the kernels take bfloat16, float16 and float32, not {dtype}"
    return ""


class _DeltaRule(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None,
                state: Tensor | None) -> tuple[Tensor, Tensor]:  # fmt: skip
        q, k, v, beta = (x.contiguous() for x in (q, k, v, beta))
        log_decay, state = (None if x is None else x.contiguous() for x in (log_decay, state))
        keep = any(ctx.needs_input_grad)
        out, last, kept = chunk_delta_forward.forward(q, k, v, beta, log_decay, state, keep)
        if keep:
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(q, k, v, beta, log_decay, state, *kept)
        return out, last

    @staticmethod
    def backward(ctx: Any, d_out: Tensor | None, d_last: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, beta, log_decay, state, *kept = ctx.saved_tensors
        d_out = torch.zeros_like(v) if d_out is None else d_out.contiguous()
        d_last = None if d_last is None else d_last.contiguous()
        return chunk_delta_backward.backward(q, k, v, beta, log_decay, state, Kept(*kept), d_out, d_last)


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None = None, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See `chunked.delta_rule`: the output in the dtype of q, which is that of the products, and the last state in
    float32.

    q (scaled), k (both of length one) [batch, time, heads, key] and v [batch, time, heads, value] of one dtype; beta,
    log_decay [batch, time, heads] of any; state [batch, heads, key, value] in float32. The gradient of a beta of
    exactly 0, which is otherwise derived from beta's own update, is given as 0. Raises ValueError where `refusal`
    gives a reason.
    """
    if reason := refusal(q.shape[-1], v.shape[-1], q.dtype):
        raise ValueError(reason)
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k and v must be of one dtype, not {q.dtype}, {k.dtype}, {v.dtype}")
    return _DeltaRule.apply(q, k, v, beta, log_decay, state)
