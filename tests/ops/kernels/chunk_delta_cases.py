"""The chunk kernels of the delta rule against autograd through the recurrence in float64."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from nfsearch.ops import chunked
from nfsearch.ops.kernels.training.chunk_delta import delta_rule


def errors(
    batch: int,
    time: int,
    heads: int,
    key: int,
    value: int,
    decay: float | None,
    states: bool,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    most: float = 1.0,
) -> dict[str, float]:
    """Relative errors of the output, the last state and each gradient; `decay`: the largest of one step, as -log;
    `states`: an initial state is given, and a gradient arrives at the last one; `most`: what beta is less than."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    # Keys of all steps resemble each other, so that the triangular system is far from the identity.
    q = F.normalize(normal(batch, time, heads, key), dim=-1) * key**-0.5
    k = F.normalize(normal(batch, time, heads, key) + normal(key), dim=-1)
    v = normal(batch, time, heads, value)
    inputs = {"q": q.to(dtype), "k": k.to(dtype), "v": v.to(dtype), "beta": most * normal(batch, time, heads).sigmoid()}
    if decay is not None:
        inputs["log_decay"] = -decay * torch.rand(batch, time, heads, generator=draw)
    if states:
        inputs["state"] = normal(batch, heads, key, value)
    weights = [normal(batch, time, heads, value).to(dtype), normal(batch, heads, key, value) if states else None]
    found = _run(delta_rule, inputs, weights, torch.device(device), None)
    expected = _run(chunked.delta_rule, inputs, weights, torch.device(device), torch.float64)
    return {name: float((found[name].double() - x).norm() / x.norm()) for name, x in expected.items()}


def _run(rule, inputs, weights, device, dtype):  # type: ignore[no-untyped-def]
    held = {name: x.to(device, dtype, copy=True).requires_grad_() for name, x in inputs.items()}
    out, last = rule(**held)
    results = [x for x, w in zip((out, last), weights, strict=True) if w is not None]
    torch.autograd.backward(results, [w.to(device, x.dtype) for x, w in zip(results, weights, strict=False)])
    return {"out": out.detach(), "last": last.detach()} | {name: x.grad for name, x in held.items()}
