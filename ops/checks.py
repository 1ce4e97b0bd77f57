"""How far kernels are off here: on this machine, with this version of Triton."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from nfsearch.ops.forms import Form, Inputs

Function = Callable[..., Tensor | Sequence[Tensor]]

_dry = Lock()  # of Triton's hook, which all threads share

logger = logging.getLogger(__name__)


@cache
def missing() -> str:
    """What Triton's kernels need and this machine lacks, or nothing."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        return "triton needs a C compiler to launch kernels, and there is none"
    return ""


def error_of(form: Form, device: torch.device) -> float:
    """The largest relative error of the kernels of `form` on its example."""
    inputs = form.example(device)

    def kernel(*inputs: Tensor | None) -> list[Tensor]:
        return _listed(form.run_kernel(*inputs))[: form.compared]

    def plain(*inputs: Tensor | None) -> list[Tensor]:
        return _listed(form.plain(*inputs))[: form.compared]

    if form.gradients:
        return disagreement(kernel, plain, inputs, device)
    with torch.no_grad():
        compile_together(lambda: kernel(*_copies(inputs)), device)
        expected = plain(*_copies(inputs))
        return max(map(relative, kernel(*_copies(inputs)), expected))


def _copies(inputs: Inputs) -> Inputs:
    """So that what one form writes, the other does not read."""
    return [z if z is None else z.clone() for z in inputs]


def _listed(results: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results)


def disagreement(kernel: Function, plain: Function, inputs: Inputs, device: torch.device) -> float:
    """The largest relative error of the results of `kernel` on `device` and, where gradients are enabled, of every
    input's gradient, against `plain` in float64 where the inputs are."""
    # What the check saves for its gradients is its own, also where a checkpoint would keep nothing.
    with torch.autocast(device.type, enabled=False), saved_tensors_hooks(lambda z: z, lambda z: z):
        exact = _results(plain, [z if z is None else z.double() for z in inputs])
        there = [z if z is None else z.to(device) for z in inputs]
        compile_together(lambda: _results(kernel, there), device)
        return max(map(relative, _results(kernel, there), exact))


def compile_together(run: Callable[[], object], device: torch.device) -> None:
    """Compiles side by side the kernels of nfsearch that `run` would have Triton compile one after the other, and
    launches none of these. What `run` computes or raises is rubbish; a kernel that does not compile says so when it is
    used. Meanwhile no other thread of the process may launch kernels of nfsearch for the first time."""
    if device.type != "cuda":
        return
    from triton import knobs

    wanted: list[tuple[Any, str]] = []

    def note(*, fn: Any, compile: dict[str, Any], **_: object) -> bool:
        if not fn.module.startswith("nfsearch."):
            return False
        wanted.append((fn.jit_function, compile["specialization_data"]))
        return True  # neither compiled nor launched

    with _dry:
        before, knobs.runtime.jit_cache_hook = knobs.runtime.jit_cache_hook, note
        try:
            with suppress(Exception):
                run()
        finally:
            knobs.runtime.jit_cache_hook = before

    def make(kernel: Any, how: str) -> None:
        with torch.cuda.device(device):
            _ = kernel.preload(how).run  # which builds its launcher and loads it

    with ThreadPoolExecutor() as threads:
        made = [threads.submit(make, kernel, how) for kernel, how in wanted]
    for problem in filter(None, (future.exception() for future in made)):
        logger.debug("a kernel was not compiled ahead: %s", problem)


def _results(function: Function, inputs: Inputs) -> list[Tensor]:
    """What `function` gives, and with gradients enabled those of all inputs for some gradients of the results."""
    gradients = torch.is_grad_enabled()
    leaves = [z if z is None else z.detach().requires_grad_(gradients) for z in inputs]
    results = _listed(function(*leaves))
    if not gradients:
        return results
    weights = [torch.linspace(-1, 1, y.numel(), device=y.device).view_as(y).to(y.dtype) for y in results]
    found = torch.autograd.grad(results, [z for z in leaves if z is not None], weights)
    return [*(y.detach() for y in results), *found]


def relative(got: Tensor, expected: Tensor) -> float:
    """|got - expected| / |expected|; infinite where something is not finite."""
    got, expected = got.double(), expected.to(got.device).double()
    error = float((got - expected).norm() / expected.norm().clamp_min(1e-30))
    return error if error == error else float("inf")
