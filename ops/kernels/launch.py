"""How kernels follow each other: programmatic dependent launch, so that a kernel fetches its weights while its
predecessor still runs.

Before `follow()` a kernel reads only weights and state; `follow()` returns when all launches before it are complete,
and after it come the activations. A kernel that is EARLY lets its successor start at once. One that is not lets it
start after its own wait, or later (`begin` may stand there): then the successor knows, before its own, that all
launches but the last are complete, and may read state that the same operator wrote in the step before. So whatever
comes before a kernel with a state (here: the projection into it) must not be EARLY.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@triton.jit
def begin(PDL: tl.constexpr, EARLY: tl.constexpr):
    """First statement of a kernel."""
    if PDL and EARLY:
        gdc_launch_dependents()


@triton.jit
def follow(PDL: tl.constexpr, EARLY: tl.constexpr):
    """Wait for all launches before this one."""
    if PDL:
        gdc_wait()
        if not EARLY:
            gdc_launch_dependents()


def dependent(x: torch.Tensor) -> dict[str, Any]:
    """Launch options (and the `PDL` switch) for a kernel on the device of `x`: Hopper and later overlap launches."""
    if INTERPRETED or not x.is_cuda or torch.cuda.get_device_capability(x.device) < (9, 0):
        return {"PDL": False}
    return {"PDL": True, "launch_pdl": True}
