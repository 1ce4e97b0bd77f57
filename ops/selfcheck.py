"""Kernels are believed once they have computed the right thing here: on this machine, with this version of Triton.

The first use of a kernel at a kind of sizes computes something small both ways. A kernel that does not compile or is
off is refused loudly, once a process, and the plain form goes on working.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Hashable
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

_verdicts: dict[Hashable, str] = {}  # what was checked -> why it is refused, or nothing

logger = logging.getLogger(__name__)


@cache
def missing() -> str:
    """What Triton's kernels need and this machine lacks, or nothing."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        return "triton needs a C compiler to launch kernels, and there is none"
    return ""


def verdict(key: Hashable, what: str, error: Callable[[], float], tolerance: float) -> str:
    """Why the kernels of `what` are refused, or nothing. `error()`, their relative error, is asked once a `key`."""
    if key not in _verdicts:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return "not checked yet, and a graph is being captured"
        try:
            found = error()
            _verdicts[key] = "" if found <= tolerance else f"they are {found:.1e} off"
        except Exception as problem:
            text = str(problem).strip().splitlines()
            _verdicts[key] = f"{type(problem).__name__}: {text[0] if text else ''}"
        if _verdicts[key]:
            logger.warning("the kernels of %s are not used: %s", what, _verdicts[key])
    return _verdicts[key]


def relative(got: Tensor, expected: Tensor) -> float:
    """|got - expected| / |expected|; infinite where something is not finite."""
    got, expected = got.double(), expected.to(got.device).double()
    error = float((got - expected).norm() / expected.norm().clamp_min(1e-30))
    return error if error == error else float("inf")
