"""Residual stream and norm, the activation of the FFN, rotary embedding: compiled for Hopper, and on a CUDA device."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton interprets here", allow_module_level=True)

from nfsearch.ops.kernels.training import add_norm, ffn, rotary

from .cross_compile import launches
from .fused_cases import Case, activation, stream, turned
from .test_glue import on_cuda, with_gradients

BF16, FP32 = torch.bfloat16, torch.float32
MODULES = {add_norm: ("_forward", "_backward"), ffn: ("_forward", "_backward"), rotary: ("_turn",)}
CASES: dict[str, Callable[..., Case]] = {
    "stream": stream(512, FP32, BF16, BF16),
    "narrow stream": stream(384, FP32, BF16, BF16),
    "wide stream": stream(2304, BF16, BF16, BF16),
    "start of the stream": stream(768, FP32, None, BF16),
    "exact stream": stream(640, FP32, FP32, FP32),
    "swiglu": activation("swiglu", 1536, BF16),
    "swiglu, odd size": activation("swiglu", 1100, BF16),
    "relu2": activation("relu2", 1152, FP32),
    "rotary": turned(4, 1, 128, 128, 128, BF16),
    "rotary of a quarter": turned(6, 2, 520, 64, 16, BF16),
    "rotary alone": turned(3, 3, 0, 80, 80, FP32),
}


@pytest.mark.parametrize("name", ["stream", "narrow stream", "wide stream", "swiglu", "relu2", "rotary"])
def test_compiles_for_hopper(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(*shape: int, dtype: torch.dtype = FP32) -> Tensor:
        return torch.empty(shape, device="meta", dtype=dtype)

    kernel, _, inputs = CASES[name](draw, 16, 512)
    found = launches(monkeypatch, MODULES, lambda: with_gradients(kernel, inputs))
    assert len(found) == 2
    for usage in found:
        # The angles of large positions are reduced in a few words of local memory.
        assert usage.stack <= (32 if usage.kernel == "_turn" else 0), usage
        assert usage.registers * usage.threads <= 65536 // 2
        assert "ld.global.v4" in usage.ptx or "ld.global.v2" in usage.ptx


@pytest.mark.gpu
@on_cuda
@pytest.mark.parametrize("name", CASES)
def test_on_the_device(name: str) -> None:
    """Agrees with float64, and repeats bit for bit."""
    random = torch.Generator("cuda").manual_seed(0)

    def draw(*shape: int, dtype: torch.dtype = FP32) -> Tensor:
        return torch.randn(shape, device="cuda", generator=random).to(dtype)

    kernel, plain, inputs = CASES[name](draw, 3, 1777)
    got = with_gradients(kernel, inputs)
    # In float32 the angle of position 1777 is exact to 1e-4.
    bound = 1e-2 if any(z is not None and z.dtype == BF16 for z in got) else 3e-5
    for a, b in zip(got, with_gradients(plain, [z if z is None else z.double() for z in inputs]), strict=True):
        assert (a.double() - b).norm() <= bound * b.norm()
    assert all(map(torch.equal, got, with_gradients(kernel, inputs)))
