"""Kernels compile for Hopper without spilled registers, and ask for weights before they wait."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton interprets here", allow_module_level=True)

from nfsearch.ops.kernels.decode import (
    attention,
    deltanet,
    embedding,
    gated_deltanet,
    gated_shortconv,
    gemv,
    gla,
    mamba2,
    prologue,
)
from nfsearch.ops.layout import Layout
from nfsearch.ops.operator import build_operator
from nfsearch.space import Layer

from .cross_compile import Usage, launches

MODULES = {
    gemv: ("_gemv",),
    deltanet: ("_token",),
    gated_deltanet: ("_token",),
    gated_shortconv: ("_token",),
    gla: ("_token",),
    mamba2: ("_token",),
    attention: ("_attention", "_combine"),
    prologue: ("_prologue",),
    embedding: ("_embed",),
}


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*shape, device="meta", dtype=dtype)


def matrix(rows: int, columns: int, batch: int = 1, **how: Any) -> Callable[[], object]:
    return lambda: gemv.gemv(meta(batch, columns), meta(rows, columns), **how)


def token(module: Any, layer: Layer, width: int) -> Callable[[], object]:
    def call() -> None:
        with torch.device("meta"):
            operator = build_operator(layer, width).bfloat16()
        state = operator.init_state(1, 8, device="meta", dtype=torch.bfloat16)
        rows, position = meta(1, operator.layout.total), meta(1, dtype=torch.int64).reshape([])
        module.bind_token(operator, rows, state)(rows, state, position)

    return call


def attend(batch: int = 1, kv_heads: int = 4, dim: int = 128, gates: int = 0, **how: Any) -> None:
    cache, position = meta(batch, 8192, kv_heads, dim), meta(1, dtype=torch.int64).reshape([])
    gate = {"gate": gates * dim} if gates else {}
    layout = Layout.of(q=16 * dim, k=kv_heads * dim, v=kv_heads * dim, **gate)
    rows = meta(batch, layout.total)
    attention.bind_attention(rows, cache, layout, 1e4, **how)(rows, cache, cache, position)


def embed() -> None:
    with torch.device("meta"):
        made = torch.nn.Embedding(131072, 3072, dtype=torch.bfloat16)
    tokens = meta(1, dtype=torch.int64)
    embedding.bind(made, tokens)(tokens)


CALLS = {
    "projection": matrix(8512, 2048, norm=meta(2048), mode="rms", early=False),
    "projection of eight": matrix(8512, 2048, 8, norm=meta(2048), mode="rms", early=False),
    "wide projection": matrix(12640, 3072, norm=meta(3072), mode="rms", early=False),
    "delta output": matrix(2048, 2048, norm=meta(128), mode="heads", residual=meta(1, 2048)),
    "gated delta output": matrix(
        2048, 3072, norm=meta(512), mode="gated_heads", gate=meta(1, 3072), residual=meta(1, 2048)
    ),
    "mamba2 output": matrix(2048, 4096, norm=meta(4096), mode="rms", residual=meta(1, 2048)),
    "mamba2 output in groups": matrix(2688, 4096, norm=meta(4096), groups=8, mode="heads", residual=meta(1, 2688)),
    "gate and up": matrix(2 * 6144, 2048, norm=meta(2048), mode="rms", act="swiglu"),
    "down": matrix(2048, 6144, residual=meta(1, 2048)),
    "wide gate and up": matrix(2 * 9216, 3072, norm=meta(3072), mode="rms", act="swiglu"),
    "wide down": matrix(3072, 9216, residual=meta(1, 3072)),
    "gate and up of two pieces": matrix(2 * 4608, 1536, norm=meta(1536), mode="rms", act="swiglu"),
    "gated output of one padded piece": matrix(
        1792, 3584, norm=meta(512), mode="gated_heads", gate=meta(1, 3584), residual=meta(1, 1792)
    ),
    "head of two pieces": matrix(131072, 2304, norm=meta(2304), mode="rms", unit_rows=True, dtype=torch.float32),
    "head": matrix(131072, 2048, norm=meta(2048), mode="rms", unit_rows=True, dtype=torch.float32),
    "delta": token(deltanet, Layer.of("D"), 2048),
    "delta, negative eigenvalues": token(deltanet, Layer.of("D", neg_eigval=True), 2048),
    "gated short convolution": token(gated_shortconv, Layer.of("C"), 2048),
    "mamba2": token(mamba2, Layer.of("M2"), 2048),
    "mamba2 in groups": token(mamba2, Layer.of("M2", heads=96, head_dim=80, groups=8), 3136),
    "gated delta": token(gated_deltanet, Layer.of("GDN"), 2048),
    "gla": token(gla, Layer.of("GLA"), 2048),
    "attention": attend,
    "attention of eight": lambda: attend(8),
    "attention of many": lambda: attend(64),
    "gated attention of which a quarter turns": lambda: attend(
        1, 4, 256, 16, rotary=64, norms=(lambda: meta(256), lambda: meta(256)), eps=1e-6
    ),
    "attention without positions": lambda: attend(rotary=0),
    "attention with all heads normed": lambda: attend(
        1, 4, 128, norms=(lambda: meta(2048), lambda: meta(512)), eps=1e-6
    ),
    "gated delta, shared keys": token(
        gated_deltanet, Layer.of("GDN", head_dim=128, expand_v=1, heads=16, key_heads=4), 1024
    ),
    "norm of many": lambda: prologue.prologue(meta(64, 3072), norm=meta(3072)),
    "output norm of many": lambda: prologue.prologue(meta(64, 3072), norm=meta(512), gate=meta(64, 3072)),
    "output norm of groups": lambda: prologue.prologue(meta(1, 7680), norm=meta(7680), groups=8),
    "embedding": embed,
    "activation of many": lambda: prologue.prologue(meta(64, 2 * 9216), act="swiglu"),
}


@pytest.mark.parametrize("name", CALLS)
def test_fits_in_registers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for usage in launches(monkeypatch, MODULES, CALLS[name]):
        check(usage)


def check(usage: Usage) -> None:
    # The assembler may trade two registers for one more program on a multiprocessor.
    assert usage.stack <= 8
    assert usage.registers * usage.threads <= 65536 // 2  # at least two programs on a multiprocessor
    before, after = usage.ptx.split("griddepcontrol.wait", 1)
    assert ("ld.global" in before) == (usage.kernel not in ("_combine", "_prologue", "_embed"))
    assert "st.global" not in before
    assert "ld.global" in after


@pytest.mark.parametrize(
    ("slots", "kv_heads", "batch", "splits", "stages", "early"),
    [
        (1025, 4, 1, 16, 2, True),
        (8193, 4, 1, 64, 2, True),
        (8449, 6, 1, 64, 2, True),
        (32769, 2, 1, 64, 3, True),
        (32769, 4, 1, 32, 3, True),
        (8193, 4, 8, 4, 3, False),
        (1025, 4, 32, 1, 3, False),
        (8193, 4, 32, 2, 3, False),
        (32769, 2, 32, 4, 3, False),
        (32769, 8, 32, 1, 3, False),
    ],
)
def test_attention_is_split_as_was_fastest(
    slots: int, kv_heads: int, batch: int, splits: int, stages: int, early: bool
) -> None:
    assert attention.tiling(slots, kv_heads, batch, 256) == (64, splits, 4, stages, early)


def test_attention_leaves_no_wave_of_programs_half_empty() -> None:
    for batch in range(1, 257):
        for kv_heads in (1, 4, 8):
            programs = kv_heads * batch * attention.tiling(32769, kv_heads, batch, 256).splits
            if programs > 2 * 132 and kv_heads * batch >= 25:  # two on each multiprocessor
                assert programs / (-(-programs // 264) * 264) > 0.75
    assert attention.tiling(10, 4, 1, 256).splits == 1  # no more splits than tiles
