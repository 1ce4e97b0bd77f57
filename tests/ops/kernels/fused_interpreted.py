"""Runs the kernels that fuse what lies between products in Triton's interpreter against the plain forms in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nfsearch.ops.checks import disagreement
from nfsearch.ops.kernels.training import add_norm, ffn, rotary

from .fused_cases import activation, stream, turned

BF16, FP32 = torch.bfloat16, torch.float32
CASES = {
    "stream": stream(32, FP32, FP32, FP32),
    "stream, half precision": stream(24, FP32, BF16, BF16),
    "start of the stream": stream(7, FP32, None, FP32),
    "swiglu": activation("swiglu", 40, FP32),
    "swiglu, half precision": activation("swiglu", 7, BF16),
    "relu2": activation("relu2", 24, FP32),
    "rotary": turned(3, 1, 16, 16, 16, FP32),
    "rotary of a quarter": turned(2, 2, 131, 8, 2, FP32),
    "rotary, odd sizes": turned(2, 1, 0, 10, 6, FP32),
}


def draw(*shape: int, dtype: torch.dtype = FP32) -> Tensor:
    return torch.randn(shape).to(dtype)


def report() -> dict[str, float]:
    """The largest relative error of results and gradients."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:  # small tiles, so that a few rows have several
        patch.setattr(add_norm, "VALUES", 64)
        patch.setattr(add_norm, "_PROGRAMS", 3)
        patch.setattr(ffn, "_COLUMNS", 16)
        patch.setattr(rotary, "ROWS", 4)
        found = {}
        for name, case in CASES.items():
            kernel, plain, inputs = case(draw, 2, 9)
            found[name] = disagreement(kernel, plain, inputs, torch.device("cpu"))
        return found
