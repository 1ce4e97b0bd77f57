"""How kernels follow each other: programmatic dependent launch, so that a kernel fetches its weights while its
predecessor still runs.

Every kernel here is written in three parts. Before `follow()` it may read only what no kernel of the step writes late:
weights, and state last written two launches ago or earlier. `follow()` waits until all launches before it have
finished, then lets the next one start. After it come activations. Because each kernel lets its successor start only
after its own wait, whoever runs before its `follow()` knows that everything but its direct predecessor is complete.
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
def follow(PDL: tl.constexpr):
    """Wait for the preceding launches and allow the next one."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()


def dependent(x: torch.Tensor) -> dict[str, Any]:
    """Launch options (and the `PDL` switch) for a kernel on the device of `x`: Hopper and later overlap launches."""
    if INTERPRETED or not x.is_cuda or torch.cuda.get_device_capability(x.device) < (9, 0):
        return {"PDL": False}
    return {"PDL": True, "launch_pdl": True}
