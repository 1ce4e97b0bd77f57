"""The loss of a model's head in training, with its gradients at once: no logits are kept, none are computed again.

`HybridLM.loss` computes each slice of logits twice, and goes over it about twenty times in float32; here it is one
product, one pass of a kernel, and the two products of the gradients (as in Hsu et al., Liger Kernel, arXiv 2410.10989).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from nfsearch.ops.chooser import run
from nfsearch.ops.forms import Form, Inputs, draws

_LOGITS_AT_ONCE = 1 << 27  # a quarter of a gigabyte in bf16, and their gradient as much


def head_loss(hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """Mean cross-entropy in nats of targets [rows] given hidden [rows, width] through the head `weight` [vocab, width],
    in float32; products and logits are in `dtype`."""
    loss: Tensor = _HeadLoss.apply(hidden.to(dtype), weight, targets)
    return loss


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        half = weight.to(hidden.dtype)
        rows = max(1, _LOGITS_AT_ONCE // len(weight))
        losses, of_hidden, of_weight = [], [], None
        with torch.autocast(hidden.device.type, enabled=False):
            for h, wanted in zip(hidden.split(rows), targets.split(rows), strict=True):
                loss, gradient, part = _slice(h, half, wanted)
                losses.append(loss)
                of_hidden.append(gradient)
                of_weight = part.to(weight.dtype) if of_weight is None else of_weight.add_(part)
        ctx.save_for_backward(torch.cat(of_hidden), of_weight)
        return torch.cat(losses).sum() / len(targets)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor, None]:
        of_hidden, of_weight = ctx.saved_tensors
        each = outer / len(of_hidden)
        return of_hidden * each, of_weight * each, None


def _slice(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The losses of some rows, and the gradients of hidden and of the weight. No tensor as large as the logits
    outlives it: the next slice takes the same memory."""
    losses, gradient = run(_form(hidden.dtype), hidden, hidden @ weight.mT, targets)
    return losses, gradient @ weight, gradient.mT @ hidden


def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """-log softmax(logits)[target] of each row of logits [rows, vocab], float32 [rows]; and its gradient, in the dtype
    and the shape of the logits."""
    wide = logits.float()
    gradient = wide.softmax(dim=-1)
    gradient.scatter_add_(1, targets[:, None], -torch.ones_like(gradient[:, :1]))
    return F.cross_entropy(wide, targets, reduction="none"), gradient.to(logits.dtype)


@cache
def _form(dtype: torch.dtype) -> Form:
    def example(device: torch.device) -> Inputs:
        draw = draws(device)
        logits = (3 * draw(37, 5003)).to(dtype)  # two rounds of the kernel's columns, the second not whole
        return [logits, torch.arange(37, device=device) * 135]

    kernel = "nfsearch.ops.kernels.training.cross_entropy:cross_entropy"
    return Form(f"the loss of the head ({dtype})", dtype, cross_entropy, kernel, example, gradients=False)
