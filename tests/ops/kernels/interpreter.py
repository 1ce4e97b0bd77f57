"""Whether Triton's interpreter can run the kernels here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import triton


def _version(module: Any) -> tuple[int, ...]:
    return tuple(map(int, module.__version__.split(".")[:2]))


interprets = pytest.mark.skipif(
    _version(triton) < (3, 7) and _version(np) >= (2, 4),
    reason="before 3.7, Triton's interpreter cannot loop to a bound given at run time with NumPy 2.4 or newer",
)
