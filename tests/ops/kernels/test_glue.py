"""The kernels around the recurrences: compiled for Hopper, and on a CUDA device."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton interprets here", allow_module_level=True)


from nfsearch.ops import norms, shortconv
from nfsearch.ops.kernels.training import norms as norm_kernels
from nfsearch.ops.kernels.training import shortconv as conv_kernels
from nfsearch.ops.kernels.training import shortconv_kernels
from nfsearch.ops.shortconv import Parts

from .cross_compile import launches

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


# --- cases: a form of the tensors given, and these -----------------------------------------------------------------

Draw = Callable[..., Tensor]  # shape, dtype
Case = tuple[Callable[..., Any], Callable[..., Any], list[Tensor | None]]


def convolution(parts: Parts, row: int, first: int, mamba: bool) -> Callable[..., Case]:
    """The kernel, the PyTorch form, and rows [batch, time, row], weight, bias, gain: channels start at `first`."""
    own = slice(first, first + sum(parts.sizes))

    def kernel(rows: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor | None) -> Any:
        return conv_kernels.conv_silu(rows[..., own], weight, bias, None, gain, **parts._asdict())

    def plain(rows: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor | None) -> Any:
        return shortconv.activate(shortconv.causal_conv(rows[..., own], weight, bias), parts, gain)

    def make(draw: Draw, batch: int, time: int, dtype: torch.dtype) -> Case:
        channels, heads = sum(parts.sizes), parts.sizes[0] // parts.group
        vectors = [draw(channels), draw(batch, time, heads)] if mamba else [None, None]
        return kernel, plain, [draw(batch, time, row, dtype=dtype), draw(channels, 4), *vectors]

    return make


def bare_convolution(channels: int) -> Callable[..., Case]:
    """The same without an activation, of rows that are all channels."""

    def kernel(x: Tensor, weight: Tensor) -> list[Tensor]:
        return [conv_kernels.conv(x, weight, None, None)]

    def plain(x: Tensor, weight: Tensor) -> list[Tensor]:
        return [shortconv.causal_conv(x, weight)]

    def make(draw: Draw, batch: int, time: int, dtype: torch.dtype) -> Case:
        return kernel, plain, [draw(batch, time, channels, dtype=dtype), draw(channels, 3)]

    return make


def norm(order: norm_kernels.Order, heads: int, dim: int, row: int, groups: int = 1) -> Callable[..., Case]:
    """The same for a norm of y, weight, rows, u, skip: the gate starts the rows."""
    own = slice(0, heads * dim)

    def kernel(y: Tensor, weight: Tensor, rows: Tensor, u: Tensor | None, skip: Tensor | None) -> Any:
        through = (None, None) if u is None or skip is None else (u.flatten(-2), skip.repeat_interleave(dim))
        gate = None if order == "none" else rows[..., own]
        how = dict(groups=groups, eps=1e-5, order=order, dtype=y.dtype)
        return [norm_kernels.gated_norm(y.flatten(-2), weight, gate, *through, **how)]

    def plain(y: Tensor, weight: Tensor, rows: Tensor, u: Tensor | None, skip: Tensor | None) -> Any:
        if u is not None and skip is not None:
            return [norms.norm_gated(y, u, skip, rows[..., own], weight, 1e-5, y.dtype, groups)]
        return [norms.norm_heads(y, weight, 1e-5, None if order == "none" else rows[..., own], y.dtype)]

    def make(draw: Draw, batch: int, time: int, dtype: torch.dtype) -> Case:
        y, rows = draw(batch, time, heads, dim, dtype=dtype), draw(batch, time, row, dtype=dtype)
        if order == "before":
            return kernel, plain, [y, draw(heads * dim), rows, draw(*y.shape, dtype=dtype), draw(heads)]
        return kernel, plain, [y, draw(dim), rows if order == "after" else None, None, None]

    return make


CASES = {
    "delta": convolution(Parts((1024, 1024, 1024), 128, 128**-0.5), 3080, 0, False),
    "gated delta": convolution(Parts((768, 768, 1536), 256, 1 / 16), 4614, 0, False),
    "mamba2": convolution(Parts((2048, 128, 128), 64), 4384, 2048, True),
    "convolution alone": bare_convolution(2048),
    "norm of heads": norm("none", 8, 128, 8),
    "norm, then gate": norm("after", 3, 512, 4614),
    "gate, then norm": norm("before", 32, 64, 4384),
    "gate, then wide norm": norm("before", 80, 64, 5200),
    "gate, then norm of groups": norm("before", 96, 80, 17504, groups=8),
}


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("gated delta", "norm of heads")])
def test_compiles_for_hopper(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, device="meta", dtype=dtype)

    kernel, _, inputs = CASES[name](draw, 8, 4096, torch.bfloat16)
    modules = {shortconv_kernels: ("forward", "backward"), norm_kernels: ("_forward", "_backward")}
    found = launches(monkeypatch, modules, lambda: with_gradients(kernel, inputs))
    assert [usage.kernel.strip("_") for usage in found] == ["forward", "backward"]
    for usage in found:
        # A row of more than 4096 values does not fit the registers in the backward pass.
        assert usage.stack == 0 or (name, usage.kernel) == ("gate, then wide norm", "_backward")
        assert usage.registers * usage.threads <= 65536 // (1 if usage.threads == 512 else 2)
        assert "ld.global.v4" in usage.ptx or "ld.global.v2" in usage.ptx


def with_gradients(form: Callable[..., Any], inputs: list[Tensor | None]) -> list[Tensor]:
    leaves = [z if z is None else z.detach().requires_grad_() for z in inputs]
    results = list(form(*leaves))
    weights = [torch.linspace(-1, 1, y.numel(), device=y.device, dtype=y.dtype).view_as(y) for y in results]
    return [*results, *torch.autograd.grad(results, [z for z in leaves if z is not None], weights)]


@pytest.mark.gpu
@on_cuda
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("name", CASES)
def test_on_the_device(name: str, dtype: torch.dtype, bound: float) -> None:
    """Agrees with float64; repeats bit for bit, also when the forward pass is computed again."""
    random = torch.Generator("cuda").manual_seed(0)

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, device="cuda", generator=random).to(dtype)

    kernel, plain, inputs = CASES[name](draw, 3, 333, dtype)
    got = with_gradients(kernel, inputs)
    for a, b in zip(got, with_gradients(plain, [z if z is None else z.double() for z in inputs]), strict=True):
        assert (a.double() - b).norm() / b.norm() < bound
    for form in (kernel, lambda *given: checkpoint(kernel, *given, use_reentrant=False)):
        assert all(map(torch.equal, got, with_gradients(form, inputs)))
