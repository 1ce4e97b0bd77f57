"""Runs the chunk kernels of the delta rule in Triton's interpreter against the float64 recurrence."""

from __future__ import annotations

from unittest import mock

import torch

from nfsearch.ops.kernels.training import chunk_delta
from tests.ops.kernels.chunk_delta_cases import errors

# name: batch, time, heads, key, value, decay per step or None, whether with states, dtype
CASES = {
    "one step": (2, 1, 1, 16, 32, None, True),
    "short": (1, 17, 2, 16, 16, 1.0, True),
    "whole chunk": (1, 64, 3, 32, 16, None, False),
    "three chunks": (1, 130, 2, 32, 16, None, True),
    "three chunks, decay": (1, 130, 2, 16, 32, 0.1, True),
    "three chunks, negative eigenvalues": (1, 130, 2, 32, 16, None, True, torch.float32, "cpu", 2.0),
    "strong decay": (1, 130, 1, 16, 16, 50.0, False),
    "blocks of keys and values": (1, 70, 1, 128, 128, 0.1, True),
    "half precision": (1, 130, 1, 32, 32, None, True, torch.float16),
    "half precision, decay": (1, 70, 1, 128, 128, 0.1, True, torch.float16),
}


def report() -> dict[str, dict[str, float]]:
    # Sizes that a compiler gets wrong are interpreted in less time.
    with mock.patch.object(chunk_delta, "refusal", return_value=""):
        return {name: errors(*case) for name, case in CASES.items()}
