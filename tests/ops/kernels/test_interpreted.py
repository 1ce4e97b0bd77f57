"""The kernels compute what the references say, in Triton's interpreter on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from .interpreter import interprets

pytestmark = interprets

CASES = (
    "swiglu", "relu2", "many sequences", "delta", "delta, three heads", "delta, many sequences", "mamba2",
    "gated delta", "gla", "gla, heads of 24", "attention", "attention, window", "attention, shared cache", "head",
    "head, unit rows", "gated delta, many sequences", "gla, many sequences", "mamba2, many sequences",
    "relu2, many sequences", "head, many sequences", "embedding",
    "model",
)  # fmt: skip


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    script = Path(__file__).with_name("interpreted.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert set(found["errors"]) == set(CASES)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_float64(report: dict[str, Any], case: str) -> None:
    assert report["errors"][case] < 1e-5


def test_a_bfloat16_state_costs_little(report: dict[str, Any]) -> None:
    assert 0 < report["narrow state"] < 2e-2
