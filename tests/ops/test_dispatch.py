"""The choice between the chunk kernels and plain PyTorch; the kernels themselves are tested in tests/ops/kernels."""

from __future__ import annotations

import logging
import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from nfsearch.ops import dispatch, recurrence, selfcheck

KINDS: tuple[dispatch.Kind, ...] = ("delta_rule", "gated_delta_rule", "shared_linear", "gated_linear")


class Gpu(Tensor):
    """A tensor that says that it is on a GPU."""

    is_cuda = True  # type: ignore[assignment]


LIKE = torch.zeros(1).as_subclass(Gpu)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dispatch.Kind:
    monkeypatch.setattr(selfcheck, "_verdicts", {})
    monkeypatch.setattr(dispatch, "missing", lambda: "")
    return request.param


def kernels(kind: dispatch.Kind, monkeypatch: pytest.MonkeyPatch, off: float = 0.0) -> list[str]:
    """Stands in for the module of kernels: the plain form, with gradients that are `off`. What was called."""
    calls: list[str] = []
    name = "delta_rule" if kind == "gated_delta_rule" else kind

    def call(*inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        calls.append(name)
        scaled = [x if x is None else x + off * (x - x.detach()) for x in inputs]
        return getattr(recurrence, name)(*(x if x is None else x.float() for x in scaled))

    module = ModuleType("kernels")
    module.refusal = lambda key, value, dtype: "too large" if key > 256 else ""  # type: ignore[attr-defined]
    setattr(module, name, call)
    monkeypatch.setitem(sys.modules, dispatch._KERNELS[kind], module)
    return calls


def test_kernels_that_agree_are_used(kind: dispatch.Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = kernels(kind, monkeypatch)
    assert dispatch.training_path(kind, 16, 8, LIKE).name == "triton"
    inputs = dispatch._example(kind, 16, 8, torch.float32)
    getattr(dispatch, calls[0])(*inputs, like=LIKE)
    assert len(calls) == 2  # the check, then the call


def test_wrong_gradients_are_refused_loudly_and_once(
    kind: dispatch.Kind, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = kernels(kind, monkeypatch, off=0.01)
    inputs = dispatch._example(kind, 16, 8, torch.float32)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            path = dispatch.training_path(kind, 16, 8, LIKE)
            assert path.name == "torch"
            assert "e-02 off" in path.reason or "e-03 off" in path.reason
            getattr(dispatch, calls[0])(*inputs, like=LIKE)
    assert len(calls) == 1
    assert len(caplog.records) == 1
    assert f"{kind} (16 x 8, torch.float32)" in caplog.text
    with torch.no_grad():  # results are right: prefill may use them
        assert dispatch.training_path(kind, 16, 8, LIKE).name == "triton"


def test_sizes_and_dtypes_that_kernels_do_not_take(kind: dispatch.Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels(kind, monkeypatch)
    assert dispatch.training_path(kind, 512, 8, LIKE) == ("torch", "too large")
    assert dispatch.training_path(kind, 16, 8, LIKE.double()) == ("torch", "no kernels for torch.float64")
    assert dispatch.training_path(kind, 16, 8, torch.zeros(1)) == ("torch", "the tensors are on cpu, not CUDA")
