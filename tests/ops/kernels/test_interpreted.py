"""The kernels compute what the recurrences say, in Triton's interpreter on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

CASES = (
    "swiglu", "relu2", "many sequences", "delta", "delta, three heads", "delta, many sequences", "mamba2",
    "gated delta", "gla", "attention", "attention, window", "head", "head, unit rows",
)  # fmt: skip


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    script = Path(__file__).with_name("interpreted.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == set(CASES)
    return found


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_float64(errors: dict[str, float], case: str) -> None:
    assert errors[case] < 1e-5
