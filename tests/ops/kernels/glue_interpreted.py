"""Runs the kernels around the recurrences in Triton's interpreter against the PyTorch forms in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nfsearch.ops import chooser, norms, parallel, shortconv
from nfsearch.ops.forms import Choice
from nfsearch.ops.kernels.training import norms as norm_kernels
from nfsearch.ops.kernels.training import shortconv as conv_kernels
from nfsearch.ops.operator import build_operator
from nfsearch.ops.shortconv import Parts
from nfsearch.space import Layer

# name: (parts, taps, bias, past, gain, batch, time, channels of the rows before and after)
CONVOLUTIONS: dict[str, tuple[Parts, int, bool, bool, bool, int, int, int]] = {
    "unit heads": (Parts((8, 8, 4), 8, 0.3), 4, False, False, False, 1, 19, 3),
    "odd heads, bias": (Parts((12, 12, 15), 12, 0.5), 3, True, False, False, 1, 9, 8),
    "continued": (Parts((4, 4, 4), 4, 0.3), 4, False, True, False, 2, 9, 0),
    "gain, bias": (Parts((8, 3, 3), 4), 4, True, False, True, 1, 33, 4),
    "eight taps": (Parts((3, 2, 3), 3), 8, True, True, True, 1, 11, 1),
    "two taps": (Parts((8, 8, 8), 8), 2, False, True, False, 1, 1, 0),
}
# name: (order, channels, group, batch, time, channels of the gate's rows before and after)
NORMS: dict[str, tuple[Any, int, int, int, int, int]] = {
    "heads": ("none", 96, 32, 2, 5, 0),
    "heads, then gate": ("after", 72, 24, 2, 5, 5),
    "many heads": ("after", 6, 3, 1, 70, 1),
    "gate, then norm": ("before", 80, 80, 2, 9, 3),
    "gate, then norm of groups": ("before", 72, 24, 2, 9, 3),
}
LAYERS = (
    Layer.of("D", head_dim=16),
    Layer.of("C"),
    Layer.of("M2", head_dim=16, state=8),
    Layer.of("M2", head_dim=8, state=8, groups=2),
    Layer.of("GLA", heads=2),
    Layer.of("A", head_dim=8, kv_heads=1, rope=0.5, gate=True),
    Layer.of("A", head_dim=8, qk_norm=True),
    Layer.of("F", ratio=1.5),
)


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got.detach().double() - expected.detach()).norm() / expected.detach().norm())


def errors(kernel: Any, plain: Any, inputs: list[Tensor | None]) -> float:
    """The largest one, of results and gradients."""
    leaves = [z if z is None else z.requires_grad_() for z in inputs]
    exact = [z if z is None else z.detach().double().requires_grad_() for z in inputs]
    results, expected = kernel(*leaves), plain(*exact)
    weights = [torch.randn_like(y) for y in results]
    got = torch.autograd.grad(results, [z for z in leaves if z is not None], weights)
    wanted = torch.autograd.grad(expected, [z for z in exact if z is not None], [w.double() for w in weights])
    return max(map(relative, (*results, *got), (*expected, *wanted)))


def convolution(
    parts: Parts, taps: int, bias: bool, past: bool, gain: bool, batch: int, time: int, around: int
) -> float:
    channels = sum(parts.sizes)
    before = torch.randn(batch, taps - 1, channels) if past else None

    def own(rows: Tensor) -> Tensor:
        return rows[..., around : around + channels]

    def kernel(rows: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor | None) -> Any:
        return conv_kernels.conv_silu(own(rows), weight, bias, before, gain, **parts._asdict())

    def plain(rows: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor | None) -> Any:
        return shortconv.activate(shortconv.causal_conv(own(rows), weight, bias, before), parts, gain)

    inputs = [
        torch.randn(batch, time, channels + 2 * around),
        torch.randn(channels, taps),
        torch.randn(channels) if bias else None,
        torch.rand(batch, time, parts.sizes[0] // parts.group) if gain else None,
    ]
    return errors(kernel, plain, inputs)


def norm(order: Any, channels: int, group: int, batch: int, time: int, around: int) -> float:
    heads = channels // group
    u, skip, groups = None, None, 1
    if order == "before":
        u, skip, groups = torch.randn(batch, time, channels), torch.randn(channels), heads

    def own(rows: Tensor) -> Tensor:
        return rows[..., around : around + channels]

    def kernel(y: Tensor, weight: Tensor, rows: Tensor, u: Tensor | None, skip: Tensor | None) -> Any:
        gate = None if order == "none" else own(rows)
        how = dict(groups=groups, eps=1e-3, order=order, dtype=y.dtype)
        return [norm_kernels.gated_norm(y, weight, gate, u, skip, **how)]

    def plain(y: Tensor, weight: Tensor, rows: Tensor, u: Tensor | None, skip: Tensor | None) -> Any:
        if u is not None and skip is not None:
            lone = [z[..., None] for z in (y, u)]  # heads of one value, so that each has a skip of its own
            return [norms.norm_gated(*lone, skip, own(rows), weight, 1e-3, y.dtype, groups)]
        gate = None if order == "none" else own(rows)
        return [norms.norm_heads(y.unflatten(-1, (heads, group)), weight, 1e-3, gate, y.dtype)]

    rows = None if order == "none" else torch.randn(batch, time, channels + 2 * around)
    return errors(kernel, plain, [torch.randn(batch, time, channels), torch.randn(group * groups), rows, u, skip])


def operator(layer: Layer) -> float:
    """The whole operator in two pieces with its state, against its reference; and its gradients."""
    made = build_operator(layer, 16)
    for p in made.parameters():
        p.data.add_(0.2 * torch.randn_like(p))
    exact = build_operator(layer, 16).double()
    exact.load_state_dict(made.state_dict())
    x = torch.randn(1, 11, 16)
    with torch.no_grad():
        state = made.init_state(1, 11, device="cpu", dtype=x.dtype)
        pieces = torch.cat((made(x[:, :2], state), made(x[:, 2:], state, 2)), dim=1)
    expected = exact.reference(x.double())
    weight = torch.randn_like(x)
    got = torch.autograd.grad((made(x) * weight).sum(), tuple(made.parameters()))
    wanted = torch.autograd.grad((expected * weight).sum(), tuple(exact.parameters()))
    return max(map(relative, (pieces, *got), (expected, *wanted)))


def bare_convolution(taps: int, past: bool, batch: int, time: int, channels: int) -> float:
    """Without an activation."""
    before = torch.randn(batch, taps - 1, channels) if past else None
    return errors(
        lambda x, weight: [conv_kernels.conv(x, weight, None, before)],
        lambda x, weight: [shortconv.causal_conv(x, weight, None, before)],
        [torch.randn(batch, time, channels), torch.randn(channels, taps)],
    )


def report() -> dict[str, Any]:
    """The relative errors of results and gradients, and what the checks at first use said."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:  # small tiles, so that a short sequence has several
        patch.setattr(conv_kernels, "FORWARD_VALUES", 16)
        patch.setattr(conv_kernels, "BACKWARD_VALUES", 16)
        patch.setattr(norm_kernels, "VALUES", 64)
        found = {name: convolution(*case) for name, case in CONVOLUTIONS.items()}
        found["no activation"] = bare_convolution(3, False, 2, 19, 70)
        found["no activation, continued"] = bare_convolution(2, True, 1, 5, 12)
        found |= {name: norm(*case) for name, case in NORMS.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chooser, "on_cuda", lambda x: True)
        patch.setattr(chooser, "missing", lambda: "")
        patch.setattr(parallel, "choice", lambda *what, **how: Choice("torch", "only what is around it is tested"))
        for layer in LAYERS:
            found[str(layer)] = operator(layer)
            patch.setattr(chooser, "_verdict", lambda *check: "")  # the first check will do
    return {"errors": found, "verdicts": list(chooser._verdicts.values())}
