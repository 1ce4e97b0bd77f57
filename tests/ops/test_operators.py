"""Every operator: parallel form = step form = recurrence, gradients, cost."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from nfsearch.ops.operator import Operator, build_operator
from nfsearch.space import Layer, operators

WIDTH = 32
LAYERS = [
    Layer.of("A", head_dim=8),
    Layer.of("A", head_dim=16, kv_heads=2, qk_norm=True),
    Layer.of("A", head_dim=8, kv_heads=1, window=7, rope_base=500.0),
    Layer.of("A", head_dim=8, window=64),
    Layer.of("D", head_dim=8),
    Layer.of("D", head_dim=16, conv=2),
    Layer.of("GDN", head_dim=8),
    Layer.of("GDN", head_dim=16, expand_v=1, conv=3),
    Layer.of("GLA"),
    Layer.of("GLA", heads=2, expand_k=1.0, expand_v=0.5),
    Layer.of("M2", head_dim=16, state=8),
    Layer.of("M2", expand=1, head_dim=8, state=24, conv=1),
    Layer.of("F"),
    Layer.of("F", ratio=1.5, act="relu2"),
]
every_layer = pytest.mark.parametrize("layer", LAYERS, ids=str)


def make(layer: Layer, dtype: torch.dtype, seed: int = 0) -> Operator:
    """An operator whose every parameter matters: nothing is left at zero or one."""
    torch.manual_seed(seed)
    operator = build_operator(layer, WIDTH).double()
    with torch.no_grad():
        for name, parameter in operator.named_parameters():
            if name.endswith("proj.weight") or "qkv" in name or "gate_up" in name or "down" in name:
                parameter.normal_(std=0.3)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return operator.to(dtype)


def inputs(time: int, dtype: torch.dtype = torch.float64, batch: int = 2) -> Tensor:
    return torch.randn(batch, time, WIDTH, dtype=dtype, generator=torch.Generator().manual_seed(time))


def error(got: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the scale of what is expected."""
    assert got.shape == expected.shape
    assert got.isfinite().all()
    return ((got - expected).abs().max() / expected.abs().max()).item()


def stepped(operator: Operator, x: Tensor, state: dict[str, Tensor], first: int = 0) -> Tensor:
    rows = [operator.step(row, state, torch.tensor(first + t)) for t, row in enumerate(x.unbind(1))]
    return torch.stack(rows, dim=1)


def empty(operator: Operator, x: Tensor) -> dict[str, Tensor]:
    return operator.init_state(len(x), x.shape[1], device=x.device, dtype=x.dtype)


def test_every_operator_is_tested() -> None:
    built_in = {name for name, spec in operators().items() if spec.module.startswith("nfsearch.ops.")}
    assert {layer.op for layer in LAYERS} == built_in


@every_layer
@torch.no_grad()
def test_parallel_and_step_follow_the_recurrence(layer: Layer) -> None:
    operator = make(layer, torch.float64)
    single = make(layer, torch.float32)
    for time in (1, 2, 7, 31, 63, 64, 65, 130):
        x = inputs(time)
        expected = operator.recurrence(x)
        assert error(operator(x), expected) < 1e-10
        assert error(single(x.float()).double(), expected) < 1e-4
        assert error(single.recurrence(x.float()).double(), expected) < 1e-4
    assert error(stepped(operator, x, empty(operator, x)), expected) < 1e-10
    assert error(stepped(single, x.float(), empty(single, x.float())).double(), expected) < 1e-4


@every_layer
@torch.no_grad()
def test_state_is_carried_across_splits(layer: Layer) -> None:
    operator = make(layer, torch.float64)
    x = inputs(97)
    whole = empty(operator, x)
    expected = operator(x, whole)
    assert error(expected, operator.recurrence(x)) < 1e-10
    for cuts in ((1,), (2, 3), (5, 12), (33, 34), (63, 64, 65), (96,), (3, 70)):
        state, parts, bounds = empty(operator, x), [], (0, *cuts, 97)
        for i, (first, last) in enumerate(itertools.pairwise(bounds)):
            piece = x[:, first:last]
            # The two forms take turns, so that each continues what the other left.
            parts.append(stepped(operator, piece, state, first) if i % 2 else operator(piece, state, first))
        assert error(torch.cat(parts, dim=1), expected) < 1e-10
        for name, tensor in whole.items():
            assert error(state[name], tensor) < 1e-10, name


@every_layer
@pytest.mark.parametrize("time", [13, 67])
def test_gradients(layer: Layer, time: int) -> None:
    operator = make(layer, torch.float64)
    x = inputs(time).requires_grad_()
    weight = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    names, parameters = zip(*operator.named_parameters(), strict=True)
    got = torch.autograd.grad((operator(x) * weight).sum(), (x, *parameters))
    expected = torch.autograd.grad((operator.recurrence(x) * weight).sum(), (x, *parameters))
    for name, a, b in zip(("x", *names), got, expected, strict=True):
        assert b.abs().max() > 0, name
        assert error(a, b) < 1e-9, name


@every_layer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_cost_is_what_is_allocated(layer: Layer, dtype: torch.dtype) -> None:
    for width in (32, 96):
        operator = build_operator(layer, width).to(dtype)
        cost = layer.cost(width)
        assert sum(p.numel() for p in operator.parameters()) == cost.parameters
        for length in (5, 300):
            state = operator.init_state(3, length, device="cpu", dtype=dtype)
            assert sum(s.numel() * s.element_size() for s in state.values()) == cost.state_bytes(
                3, length, dtype.itemsize
            )


@every_layer
@torch.no_grad()
def test_half_precision_runs_and_agrees(layer: Layer) -> None:
    operator = make(layer, torch.float64)
    x = inputs(70)
    expected = operator.recurrence(x)
    half = make(layer, torch.bfloat16)
    small = x.to(torch.bfloat16)
    state = empty(half, small)
    got = torch.cat((half(small[:, :66], state), stepped(half, small[:, 66:], state, 66)), dim=1)
    assert got.dtype == torch.bfloat16
    assert error(got.double(), expected) < 0.15


@every_layer
def test_autocast_trains(layer: Layer) -> None:
    operator = make(layer, torch.float32)
    x = inputs(20, torch.float32).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = operator(x)
    y.float().square().mean().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert error(y.double(), make(layer, torch.float64).recurrence(x.double())) < 0.15


@every_layer
def test_declared_normalisation_is_along_the_width(layer: Layer) -> None:
    operator = build_operator(layer, WIDTH)
    parameters = dict(operator.named_parameters())
    assert operator.row_normalised
    assert operator.column_normalised
    for name in operator.row_normalised:
        assert parameters[name].shape[1] == WIDTH
    for name in operator.column_normalised:
        assert parameters[name].shape[0] == WIDTH


def test_window_hides_what_is_older() -> None:
    operator = make(Layer.of("A", head_dim=8, window=7), torch.float64)
    x = inputs(20)
    changed = x.clone()
    changed[:, 12] += 1
    with torch.no_grad():
        seen = (operator(changed) - operator(x)).abs().amax(dim=(0, 2)) > 0
    assert seen.nonzero().flatten().tolist() == list(range(12, 19))


def test_attention_refuses_more_than_its_state_holds() -> None:
    operator = make(Layer.of("A", head_dim=8), torch.float32)
    x = inputs(6, torch.float32)
    state = operator.init_state(2, 5, device="cpu", dtype=torch.float32)
    with pytest.raises(ValueError, match="6 tokens do not fit a state made for 5"):
        operator(x, state)
