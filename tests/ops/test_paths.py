"""What is said of an operator's paths is what it does."""

from __future__ import annotations

import pytest
import torch

from nfsearch.ops import deltanet, dispatch, fused, gated_deltanet, gla, mamba2, selfcheck
from nfsearch.ops.kernels.decode import blocks as decode
from nfsearch.ops.operator import build_operator
from nfsearch.ops.paths import paths
from nfsearch.space import Layer, operators


@pytest.mark.parametrize("name", [name for name, spec in operators().items() if spec.module.startswith("nfsearch.")])
def test_training_asks_what_forward_asks(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    asked: list[tuple[str, int, int]] = []

    def spy(kind: dispatch.Kind, key: int, value: int, like: torch.Tensor, **_: object) -> dispatch.Path:
        asked.append((kind, key, value))
        return dispatch.Path("torch", "spied on")

    for module in (dispatch, deltanet, gated_deltanet, gla, mamba2):
        monkeypatch.setattr(module, "training_path", spy)
    operator = build_operator(Layer.of(name), 256)
    x = torch.randn(1, 70, 256)
    said = operator.training_path(x)
    declared, asked = asked, []
    operator(x)
    assert asked == declared
    assert (said.reason == "spied on") == (name not in ("A", "F"))


def test_decoding_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer.of("D", head_dim=32)
    assert paths(layer, 64, "cpu").decode == ("torch", "the tensors are on cpu, not CUDA")
    monkeypatch.setattr(fused, "_unsuitable", lambda x: "")
    monkeypatch.setattr(selfcheck, "_verdicts", {})
    monkeypatch.setitem(
        decode.BLOCKS,
        "DeltaNet",
        lambda x, norm, eps, op, state, position: (
            x + op.step(torch.nn.functional.rms_norm(x, (64,), norm, eps), state, position)
        ),
    )
    assert paths(layer, 64, "cpu").decode.name == "triton"


def test_settings_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(ValueError, match="width 100 is not a multiple of head_dim 128"):
        paths(Layer.of("D"), 100, "cpu")
