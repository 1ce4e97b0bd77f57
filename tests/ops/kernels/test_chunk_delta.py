"""The chunk kernels of the delta rule: compiled for Hopper, and on a CUDA device."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton interprets here", allow_module_level=True)

from nfsearch.ops.kernels.training import chunk_delta, chunk_delta_backward, chunk_delta_forward
from tests.ops.kernels.chunk_delta_cases import errors

from .cross_compile import launches

MODULES = {
    chunk_delta_forward: ("_solve", "_scan", "_read"),
    chunk_delta_backward: ("_pull", "_scan_back", "_gradients"),
}
SHARED = 227 * 1024  # bytes that a program may have on Hopper


@pytest.mark.parametrize(("key", "value"), [(64, 64), (256, 512)])  # 128 takes 5 s more and is between the two
def test_fits_in_registers_and_shared_memory(key: int, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(*shape, device="meta", dtype=dtype)

    def call() -> None:
        q, v, state = meta(2, 999, 7, key), meta(2, 999, 7, value), meta(2, 7, key, value, dtype=torch.float32)
        beta = meta(2, 999, 7, dtype=torch.float32)
        out, last, kept = chunk_delta_forward.forward(q, q, v, beta, beta, state, keep=True)
        chunk_delta_backward.backward(q, q, v, beta, beta, state, kept, out, last)

    found = launches(monkeypatch, MODULES, call)
    assert {usage.kernel for usage in found} == {name for names in MODULES.values() for name in names}
    for usage in found:
        # `_gradients` spills 38 registers: with twice the threads it spills none, and was slower on an H200.
        assert usage.stack <= (152 if usage.kernel == "_gradients" else 8), usage.kernel
        assert usage.shared <= SHARED, usage.kernel


@pytest.mark.parametrize(
    ("key", "value", "dtype", "reason"),
    [
        (chunk_delta.SMALLEST, chunk_delta.SMALLEST, torch.bfloat16, ""),
        (256, 512, torch.float32, ""),
        (48, 64, torch.bfloat16, "key size that is a power of two from 64 to 256, not 48"),
        (512, 64, torch.bfloat16, "key size that is a power of two from 64 to 256, not 512"),
        (64, 32, torch.bfloat16, "value size that is a power of two from 64 to 512, not 32"),
        (64, 64, torch.float64, "not torch.float64"),
    ],
)
def test_refuses_what_it_cannot_serve(key: int, value: int, dtype: torch.dtype, reason: str) -> None:
    found = chunk_delta.refusal(key, value, dtype)
    assert found.endswith(reason)
    assert bool(found) == bool(reason)
    if reason:
        q, v, beta = (torch.zeros(1, 2, 1, *size, dtype=dtype) for size in ((key,), (value,), ()))
        with pytest.raises(ValueError, match=found):
            chunk_delta.delta_rule(q, q, v, beta)


SIZES = [(64, 64), (64, 128), (128, 64), (128, 128), (256, 256), (256, 512)]
HALF_AND_FULL = [(*size, torch.bfloat16) for size in SIZES] + [(*size, torch.float32) for size in SIZES[:5]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("key", "value", "dtype"), HALF_AND_FULL)
@pytest.mark.parametrize("decay", [None, 0.1, 5.0])
@pytest.mark.parametrize("time", [1, 330])
def test_agrees_with_float64(time: int, decay: float | None, key: int, value: int, dtype: torch.dtype) -> None:
    found = errors(2, time, 3, key, value, decay, True, dtype, "cuda")
    bound = 1e-2 if dtype == torch.bfloat16 else 1e-4
    assert {name: x for name, x in found.items() if not x < bound} == {}
