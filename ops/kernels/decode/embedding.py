"""Rows of the embedding, by a kernel that lets its successor start early: torch's own would hold up the first block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

from nfsearch.ops.kernels.decode.weights import held
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


def bind(embedding: Any, tokens: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function of tokens (integers [batch], as many as these): their rows of the module's weight [vocab, width], and
    NaN for a token outside the vocabulary."""
    weight = held(embedding)
    vocab, width = weight().shape
    shape, device, dtype = (len(tokens), width), weight().device, weight().dtype
    kernel = _embed[(len(tokens),)]
    constants = dict(WIDTH=width, WIDTH_P=triton.next_power_of_2(width), **dependent(weight()))

    def lookup(tokens: torch.Tensor) -> torch.Tensor:
        y = torch.empty(shape, device=device, dtype=dtype)
        kernel(tokens, weight(), y, tokens.stride(0), vocab, **constants)
        return y

    return lookup
