"""Rows of the embedding, by a kernel that lets its successor start early: torch's own would hold up the first block."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from nfsearch.ops.kernels.launch import begin, dependent, follow


@triton.jit
def _embed(tokens, w, y, stride, vocab, WIDTH: tl.constexpr, WIDTH_P: tl.constexpr, PDL: tl.constexpr):
    begin(PDL, True)
    b = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, WIDTH_P)
    follow(PDL, True)
    token = tl.load(tokens + b * stride).to(tl.int64)
    known = (token >= 0) & (token < vocab)
    row = tl.load(w + token * WIDTH + k, mask=known & (k < WIDTH), other=float("nan"))
    tl.store(y + b * WIDTH + k, row, mask=k < WIDTH)


def embed(tokens: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Rows `tokens` (integers [batch]) of w [vocab, width]: [batch, width]; NaN for a token outside the vocabulary."""
    vocab, width = w.shape
    y = w.new_empty(len(tokens), width)
    _embed[(len(tokens),)](
        tokens, w, y, tokens.stride(0), vocab, WIDTH=width, WIDTH_P=triton.next_power_of_2(width), **dependent(w)
    )
    return y
