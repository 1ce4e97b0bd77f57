"""Which of a form's two implementations runs: the one place that decides it, in training, prefill and decode.

Kernels run on CUDA where they support what is asked, once they have computed the right thing here: on this machine,
with this version of Triton. The first use of a form computes something small both ways. Whatever is decided against
kernels is said (`nfsearch.support.notes`) each time that it is decided, and the plain form goes on working.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from nfsearch.ops.checks import error_of, missing
from nfsearch.ops.forms import TOLERANCE, Choice, Form
from nfsearch.support.errors import typed_line
from nfsearch.support.notes import note

_verdicts: dict[Hashable, str] = {}  # what was checked -> what is wrong with it, or nothing


def choose(form: Form, like: Tensor) -> Choice:
    """What computes `form` for inputs where `like` is.

    On CUDA, asking compiles and checks the kernels, once a process.
    """
    if not on_cuda(like):
        return Choice("torch", f"the tensors are on {like.device.type}, not CUDA")
    if form.dtype not in TOLERANCE:  # float64, which nobody expects kernels of
        return Choice("torch", f"no kernels for {form.dtype}")
    if reason := _against(form, like.device):
        note(f"the kernels of {form.name} are not used: {reason}; {form.instead} runs instead")
        return Choice("torch", reason)
    return Choice("triton", f"agrees with {'float64' if form.gradients else form.instead} here")


def run(form: Form, like: Tensor, *inputs: Any) -> Any:
    """What the chosen implementation gives of the inputs."""
    kernels = choose(form, like).runs == "triton"
    return (form.run_kernel if kernels else form.plain)(*inputs)


def on_cuda(x: Tensor) -> bool:
    """Whether kernels are to be thought of at all."""
    return x.is_cuda


def available(x: Tensor) -> bool:
    """Whether kernels could run where x is."""
    return on_cuda(x) and not missing()


def capturing() -> bool:
    """Whether a CUDA graph is being captured, in which nothing can be checked."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _against(form: Form, device: torch.device) -> str:
    """What speaks against the kernels, or nothing."""
    if reason := missing():
        return reason
    if not form.gradients and torch.is_grad_enabled():
        return "they compute no gradients"
    if not form.gradients and torch.is_autocast_enabled("cuda"):
        return "autocast chooses other dtypes"
    return form.unsupported() or _verdict(form, device)


def _verdict(form: Form, device: torch.device) -> str:
    """What is wrong with the results of the kernels, or nothing; asked once a form."""
    key = (form.name, form.key, form.gradients and torch.is_grad_enabled())
    if key not in _verdicts:
        if capturing():
            return "not checked yet, and a graph is being captured"
        try:
            error = error_of(form, device)
            _verdicts[key] = "" if error <= form.allowed else f"they are {error:.1e} off"
        except Exception as problem:
            _verdicts[key] = typed_line(problem)
    return _verdicts[key]
