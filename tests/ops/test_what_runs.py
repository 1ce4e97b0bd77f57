"""What is said of an operator's forms is what it does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nfsearch.ops import chooser, parallel, steps
from nfsearch.ops.deltanet import DeltaNet
from nfsearch.ops.forms import Choice, FusedStep
from nfsearch.ops.operator import build_operator
from nfsearch.ops.what_runs import what_runs
from nfsearch.space import Layer, operators


@pytest.mark.parametrize("name", [name for name, spec in operators().items() if spec.module.startswith("nfsearch.")])
def test_training_asks_what_forward_asks(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    asked: list[parallel.Chunks] = []

    def spy(chunks: parallel.Chunks, like: torch.Tensor, **_: object) -> Choice:
        asked.append(chunks)
        return Choice("torch", "spied on")

    monkeypatch.setattr(parallel, "choice", spy)
    operator = build_operator(Layer.of(name), 256)
    x = torch.randn(1, 70, 256)
    said = operator.parallel_choice(x)
    declared, asked = asked, []
    operator(x)
    assert asked == declared
    assert (said.reason == "spied on") == (name not in ("A", "C", "F"))


def test_decoding_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer.of("D", head_dim=32)
    assert what_runs(layer, 64, "cpu").decode == ("torch", "the tensors are on cpu, not CUDA")
    for module in (chooser, steps):
        monkeypatch.setattr(module, "on_cuda", lambda x: True)
    monkeypatch.setattr(chooser, "missing", lambda: "")
    monkeypatch.setattr(chooser, "_verdicts", {})

    def bind(operator: Any, norm: Any, x: torch.Tensor, state: Any) -> Any:
        return lambda x, state, position: x + operator.step(norm(x), state, position)

    monkeypatch.setattr(DeltaNet, "fused_step", FusedStep(bind))
    monkeypatch.setattr(parallel, "choice", lambda *what, **how: Choice("torch", "of no interest"))
    assert what_runs(layer, 64, "cpu").decode == ("triton", "agrees with the plain step here")


def test_settings_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(ValueError, match="width 100 is not a multiple of head_dim 128"):
        what_runs(Layer.of("D"), 100, "cpu")
