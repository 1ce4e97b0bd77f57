"""The feed-forward operator's step: two projections, the first with its activation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nfsearch.ops.forms import FusedStep, State, Step
from nfsearch.ops.kernels.decode.projection import odd_size, project, project_back


def bind(op: Any, norm: Any, x: Tensor, state: State) -> Step:
    """See `FusedStep`."""
    into, out = project(op.gate_up, norm, x, op.act, early=True), project_back(op.down, x)
    return lambda x, state, position: out(into(x), x)


def unsupported(op: Any, dtype: torch.dtype) -> str:
    """Why the kernels cannot serve, or nothing."""
    return odd_size(op.width, op.inner)


FUSED = FusedStep(bind, unsupported)
