"""The kernels compute what the references and the plain forms say, in Triton's interpreter on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from .chunk_linear_cases import CASES as LINEAR
from .chunk_linear_cases import KERNELS
from .interpreter import interprets

pytestmark = [interprets, pytest.mark.slow]

BLOCKS = (
    "swiglu", "relu2", "many sequences", "delta", "delta, three heads", "delta, many sequences", "mamba2",
    "delta, negative eigenvalues", "gated short convolution", "gated short convolution, many sequences",
    "mamba2, groups", "mamba2, groups of 24", "mamba2, groups, many sequences",
    "gated delta", "gla", "gla, heads of 24", "attention", "attention, window", "attention, shared cache",
    "attention, shared cache, gate", "attention, partial rotation", "attention, a quarter turns",
    "attention, no positions", "attention, a million tokens on", "gated delta, shared keys", "head",
    "head, unit rows", "gated delta, many sequences", "gla, many sequences", "mamba2, many sequences",
    "relu2, many sequences", "head, many sequences", "embedding",
    "model",
)  # fmt: skip
DELTA = (
    "one step", "short", "whole chunk", "three chunks", "three chunks, decay", "three chunks, negative eigenvalues",
    "strong decay", "blocks of keys and values", "half precision", "half precision, decay",
)  # fmt: skip


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """What one process found that runs all groups: it takes seconds to start."""
    command = [sys.executable, "-m", "tests.ops.kernels.run_interpreted"]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert set(found["blocks"]["errors"]) == set(BLOCKS)
    assert set(found["delta"]) == set(DELTA)
    return found


@pytest.mark.parametrize("case", BLOCKS)
def test_blocks_agree_with_float64(report: dict[str, Any], case: str) -> None:
    assert report["blocks"]["errors"][case] < 1e-5


def test_a_bfloat16_state_costs_little(report: dict[str, Any]) -> None:
    assert 0 < report["blocks"]["narrow state"] < 2e-2


@pytest.mark.parametrize("case", DELTA)
def test_the_delta_rule_agrees_with_float64(report: dict[str, Any], case: str) -> None:
    # Strong decays add up to thousands within a chunk, and float32 holds their differences to 1e-4.
    bound = 2e-3 if case.startswith("half") else 1e-4 if case == "strong decay" else 5e-6
    found = report["delta"][case]
    assert {"out", "last", "q", "k", "v", "beta"} <= set(found)
    assert {name: x for name, x in found.items() if not x < bound} == {}


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("kind", KERNELS)
def test_linear_recurrences_agree_with_float64(report: dict[str, Any], kind: str, name: str) -> None:
    found = report["linear"][f"{kind}: {name}"]
    assert len(found) == (7 if LINEAR[name].state else 6)
    bound = 2e-3 if LINEAR[name].dtype == torch.float16 else 2e-5
    assert max(found.values()) < bound, found


def test_what_is_around_the_recurrences_agrees_with_float64(report: dict[str, Any]) -> None:
    """Results and gradients of the kernels, and of whole operators that run on them."""
    found = report["glue"]
    assert found["verdicts"]
    assert not any(found["verdicts"])
    assert len(found["errors"]) == 21
    assert {name: error for name, error in found["errors"].items() if not error < 1e-5} == {}


def test_what_is_between_products_agrees_with_float64(report: dict[str, Any]) -> None:
    found = report["fused"]
    assert len(found) == 9
    assert {name: x for name, x in found.items() if not x < (1e-2 if "half" in name else 1e-5)} == {}
