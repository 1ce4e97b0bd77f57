"""Kernels of libraries that tune themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from nfsearch.bench.tuning import tuned_together


@triton.autotune([triton.Config({"SIZE": size}, num_warps=warps) for size in (64, 256) for warps in (2, 4)], key=["n"])
@triton.heuristics({"EVEN": lambda given: given["n"] % 256 == 0})
@triton.jit
def _double(x, y, n, SIZE: tl.constexpr, EVEN: tl.constexpr):
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(y + at, 2 * tl.load(x + at, mask=at < n), mask=at < n)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_all_that_a_tuner_tries_is_compiled_before_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1000, device="cuda")
    y, compiled = torch.empty_like(x), []
    hook = "jit_post_compile_hook"
    monkeypatch.setattr(triton.knobs.runtime, hook, lambda **what: compiled.append(what["is_manual_warmup"]))
    before = triton.runtime.autotuner.Autotuner.prune_configs

    def grid(chosen: Any) -> tuple[int]:
        return (triton.cdiv(len(x), chosen["SIZE"]),)

    with tuned_together(x.device):
        _double[grid](x, y, len(x))
    assert compiled == [True] * 4
    assert torch.equal(y, 2 * x)
    assert triton.runtime.autotuner.Autotuner.prune_configs is before
