"""Runs the chunk kernels of the delta rule in Triton's interpreter against the float64 recurrence; prints the relative
errors as JSON.

A process of its own, because Triton decides at import whether it interprets.
"""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"

import torch

from nfsearch.ops.kernels.training import chunk_delta
from tests.ops.kernels.chunk_delta_cases import errors

chunk_delta.refusal = lambda *what: ""  # sizes that a compiler gets wrong are interpreted in less time

# name: batch, time, heads, key, value, decay per step or None, whether with states, dtype
CASES = {
    "one step": (2, 1, 1, 16, 32, None, True),
    "short": (1, 17, 2, 16, 16, 1.0, True),
    "whole chunk": (1, 64, 3, 32, 16, None, False),
    "three chunks": (1, 130, 2, 32, 16, None, True),
    "three chunks, decay": (1, 130, 2, 16, 32, 0.1, True),
    "strong decay": (1, 130, 1, 16, 16, 50.0, False),
    "blocks of keys and values": (1, 70, 1, 128, 128, 0.1, True),
    "half precision": (1, 130, 1, 32, 32, None, True, torch.float16),
    "half precision, decay": (1, 70, 1, 128, 128, 0.1, True, torch.float16),
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({name: errors(*case) for name, case in CASES.items()}))
