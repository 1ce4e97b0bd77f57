"""The cross-entropy of rows of logits and its gradient, which takes the logits' place, in one pass over memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_COLUMNS = 4096  # of a program at a time


@triton.jit
def _cross_entropy(logits, targets, losses, vocab, COLUMNS: tl.constexpr):
    """One row. The loop that writes comes after reductions over the whole program, so nothing is read too late."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * vocab
    target = tl.load(targets + row)
    wanted = tl.load(logits + target).to(tl.float32)
    most, total = -float("inf"), 0.0
    for first in range(0, vocab, COLUMNS):
        at = first + tl.arange(0, COLUMNS)
        x = tl.load(logits + at, mask=at < vocab, other=-float("inf")).to(tl.float32)
        larger = tl.maximum(most, tl.max(x, 0))
        total = total * tl.exp(most - larger) + tl.sum(tl.exp(x - larger), 0)
        most = larger
    tl.store(losses + row, most + tl.log(total) - wanted)
    for first in range(0, vocab, COLUMNS):
        at = first + tl.arange(0, COLUMNS)
        x = tl.load(logits + at, mask=at < vocab, other=-float("inf")).to(tl.float32)
        gradient = tl.exp(x - most) / total - (at == target).to(tl.float32)
        tl.store(logits + at, gradient.to(logits.dtype.element_ty), mask=at < vocab)


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See `nfsearch.ops.head_loss`; the gradient is written over the logits."""
    rows, vocab = logits.shape
    losses = torch.empty(rows, device=logits.device, dtype=torch.float32)
    columns = min(_COLUMNS, triton.next_power_of_2(vocab))
    _cross_entropy[(rows,)](logits, targets, losses, vocab, COLUMNS=columns, num_warps=8)
    return losses, logits
