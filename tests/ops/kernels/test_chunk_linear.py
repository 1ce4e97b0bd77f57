"""The chunk kernels of the linear recurrences: compiled for Hopper, and on a CUDA device."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from nfsearch.ops.kernels.training import chunk_gated, chunk_shared

from .chunk_linear_cases import KERNELS, Case, errors, run
from .cross_compile import launches

MODULES = {
    chunk_shared: ("_totals", "_states", "_output", "_gradients", "_values"),
    chunk_gated: ("_accumulate", "_states", "_scores", "_output", "_values", "_gradients"),
}


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton interprets here")
@pytest.mark.parametrize(("kind", "heads", "key", "value"), [("shared", 16, 128, 64), ("gated", 4, 128, 256)])
def test_compiles_without_spills(kind: str, heads: int, key: int, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def call() -> None:
        case = Case(1024, batch=8, heads=heads, key=key, value=value, dtype=torch.bfloat16, state=True)
        inputs = case.inputs(kind, "meta")
        run(KERNELS[kind][0], inputs, case, (inputs[2], inputs[4]))

    found = launches(monkeypatch, MODULES, call)
    assert {usage.kernel for usage in found} == set(MODULES[chunk_shared if kind == "shared" else chunk_gated])
    for usage in found:
        assert usage.stack <= 8, usage.kernel
        assert usage.shared <= 227 * 1024, usage.kernel


def test_refuses_what_does_not_fit() -> None:
    for module, value in ((chunk_shared, 128), (chunk_gated, 512)):
        assert module.refusal(256, value, torch.bfloat16) == ""
        assert module.refusal(module.SMALLEST, module.SMALLEST, torch.bfloat16) == ""
        assert "key" in module.refusal(module.SMALLEST // 2, 64, torch.bfloat16)
        assert "key" in module.refusal(96, 64, torch.bfloat16)
        assert "value" in module.refusal(64, 2 * value, torch.bfloat16)
        assert "float64" in module.refusal(64, 64, torch.float64)


SIZES: dict[str, list[dict[str, Any]]] = {
    "shared": [dict(key=128, value=64), dict(key=128, value=128), dict(key=64, value=32), dict(key=256, value=64)],
    "gated": [dict(key=64, value=128), dict(key=128, value=256), dict(key=256, value=512), dict(key=16, value=16)],
}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("decay", "state"), [(0.5, True), (100.0, False)])
@pytest.mark.parametrize(("kind", "size"), [(kind, size) for kind, sizes in SIZES.items() for size in sizes])
def test_agrees_with_float64_on_a_gpu(kind: str, size: dict[str, int], decay: float, state: bool) -> None:
    case = Case(200, batch=2, heads=4, decay=decay, state=state, dtype=torch.bfloat16, **size)
    found = errors(kind, case, "cuda")
    assert max(found.values()) < 1e-2, found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KERNELS)
def test_float32_is_exact_and_repeats_on_a_gpu(kind: str) -> None:
    case = Case(130, batch=2, heads=4, key=64, value=64, state=True)
    found = errors(kind, case, "cuda")
    assert max(found.values()) < 1e-5, found
    inputs = case.inputs(kind, "cuda")
    grads = torch.randn_like(inputs[2]), torch.randn_like(inputs[4])
    first, second = (run(KERNELS[kind][0], inputs, case, grads) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
