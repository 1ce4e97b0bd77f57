"""The conformance suite refuses operators that break what it promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nfsearch.ops.deltanet import DeltaNet
from nfsearch.space import Layer
from nfsearch.testing.operators import OperatorSuite

LAYER = Layer.of("D", head_dim=16)
Method = Callable[..., Any]


class Suite(OperatorSuite):
    layers = (LAYER,)
    widths = (32,)
    lengths = (3,)
    splits = ((1, 3),)


def off(method: Method) -> Method:
    return lambda self, *rest: method(self, *rest) * (1 + 1e-8)


def forgetful(forward: Method) -> Method:
    def run(self: DeltaNet, x: Tensor, state: dict[str, Tensor] | None = None, position: int = 0) -> Tensor:
        if state is not None:
            state["state"].zero_()
        return forward(self, x, state, position)

    return run


def replacing(step: Method) -> Method:
    def run(self: DeltaNet, x: Tensor, state: dict[str, Tensor], position: Tensor) -> Tensor:
        state["conv"] = state["conv"].clone()
        return step(self, x, state, position)

    return run


def counting(step: Method) -> Method:
    def run(self: DeltaNet, x: Tensor, state: dict[str, Tensor], position: Tensor) -> Tensor:
        y = step(self, x, state, position)
        position += 1
        return y

    return run


def waiting(step: Method) -> Method:
    return lambda self, x, state, position: step(self, x, state, torch.full_like(position, position.item()))


def greedy(init_state: Method) -> Method:
    return lambda self, *rest, **how: {**init_state(self, *rest, **how), "more": torch.zeros(1)}


BROKEN = [
    ("forward", off, "test_parallel_and_step_follow_the_reference", ("cpu",), "of 3 steps in torch.float64: 1"),
    ("step", off, "test_parallel_and_step_follow_the_reference", ("cpu",), "steps in torch.float64: 1.0e-08 off"),
    ("forward", forgetful, "test_state_is_carried_across_splits", ("cpu",), r"4 steps cut at \(1, 3\)"),
    ("step", replacing, "test_state_is_written_in_place", (), "state 'conv' was replaced"),
    ("step", counting, "test_state_is_written_in_place", (), "step changed the position"),
    ("forward", lambda f: lambda self, x, *rest: f(self, x.detach() + 0 * x, *rest), "test_gradients", ("cpu", 3),
     "the gradient of x"),
    ("forward", lambda f: lambda self, x, *rest: f(self, x, *rest).detach(), "test_autocast_trains", ("cpu",), "grad"),
    ("forward", lambda f: lambda self, x, *rest: f(self, x, *rest) + x.mean(0), "test_sequences_of_a_batch_do_not_meet",
     (), "a sequence alone"),
    ("forward", lambda f: lambda self, x, *rest: f(self, x, *rest).float(), "test_half_precision_runs_and_agrees",
     ("cpu",), "torch.float32 of a bfloat16 operator"),
    ("step", waiting, "test_step_needs_no_value_from_the_device", (), "item"),
    ("init_state", greedy, "test_cost_is_what_is_allocated", (32, torch.float32), "the cost says"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "breakage", "test", "rest", "message"), BROKEN)
def test_a_broken_operator_fails(
    monkeypatch: pytest.MonkeyPatch, name: str, breakage: Method, test: str, rest: tuple[Any, ...], message: str
) -> None:
    check = getattr(Suite(), test)
    check(LAYER, *rest)
    monkeypatch.setattr(DeltaNet, name, breakage(getattr(DeltaNet, name)))
    with pytest.raises((AssertionError, RuntimeError), match=message):
        check(LAYER, *rest)


def test_slopes_serve_where_the_reference_has_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeltaNet, "reference", torch.no_grad()(DeltaNet.reference))
    Suite().test_gradients(LAYER, "cpu", 3)
    forward = DeltaNet.forward

    def steeper(self: DeltaNet, x: Tensor) -> Tensor:
        y = forward(self, x)
        return y + 1e-3 * (y - y.detach())

    monkeypatch.setattr(DeltaNet, "forward", steeper)
    with pytest.raises(AssertionError, match=r"the gradient of x, 3 steps: 1\.0e-03 off"):
        Suite().test_gradients(LAYER, "cpu", 3)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"row_normalised": ("q.weight",)}, "q.weight is declared normalised, but is not among"),
        ({"row_normalised": ("conv",)}, "axis 1 is not the width 32"),
        ({"row_normalised": ("out_proj.weight",)}, "does not read channel 0"),
        ({"column_normalised": ("in_proj.weight",)}, "axis 0 is not the width 32"),
        ({"column_normalised": ("norm.weight",)}, "is not a matrix"),
    ],
)
def test_a_wrong_declaration_fails(monkeypatch: pytest.MonkeyPatch, declared: dict[str, Any], message: str) -> None:
    for name, value in declared.items():
        monkeypatch.setattr(DeltaNet, name, value)
    with pytest.raises(AssertionError, match=message):
        Suite().test_declared_normalisation_is_along_the_width(LAYER)
