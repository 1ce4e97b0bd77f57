"""The choice between a form's kernels and PyTorch; the kernels themselves are tested in tests/ops/kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nfsearch.ops import chooser
from nfsearch.ops.chooser import choose, run
from nfsearch.ops.forms import Choice, Form
from nfsearch.support import notes
from nfsearch.support.notes import listening

X = torch.randn(5, generator=torch.Generator().manual_seed(0))


def plain(x: Tensor) -> Tensor:
    return x.exp()


def form(kernel: Callable[..., Any] | str, **how: Any) -> Form:
    return Form("exp", X.dtype, plain, kernel, lambda device: [torch.linspace(-1, 1, 7)], **how)


def serve(kernel: Callable[..., Any] | str, **how: Any) -> bool:
    return choose(form(kernel, **how), X).runs == "triton"


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the tensors here were on one."""
    monkeypatch.setattr(chooser, "on_cuda", lambda x: True)
    monkeypatch.setattr(chooser, "missing", lambda: "")
    monkeypatch.setattr(chooser, "_verdicts", {})
    monkeypatch.setattr(notes, "_logged", set())


def test_a_cpu_takes_the_plain_form_and_nothing_is_said() -> None:
    with listening() as said:
        assert choose(form(plain), X) == Choice("torch", "the tensors are on cpu, not CUDA")
    assert not said


def test_a_kernel_that_agrees_serves(on_a_gpu: None) -> None:
    with listening() as said:
        assert serve(lambda x: x.exp() * (1 + 1e-6))
    assert not said


def test_a_kernel_is_imported_by_its_name(on_a_gpu: None) -> None:
    by_name = form("torch:exp")
    assert choose(by_name, X) == Choice("triton", "agrees with float64 here")
    assert torch.equal(run(by_name, X, X), X.exp())
    assert choose(form("nowhere.to.be:found", key=1), X).reason == "ModuleNotFoundError: No module named 'nowhere'"


def test_wrong_results_and_wrong_gradients_are_refused(on_a_gpu: None) -> None:
    assert not serve(lambda x: x.exp() * 1.01)
    chooser._verdicts.clear()
    assert not serve(lambda x: x.detach().exp() + (x - x.detach()))


def test_each_decision_against_kernels_is_said_and_logged_once(
    on_a_gpu: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []
    monkeypatch.setattr(chooser, "error_of", lambda form, device: asked.append(form) or 0.31)
    text = "the kernels of exp are not used: they are 3.1e-01 off; the plain form runs instead"
    for _ in range(2):  # the second time the verdict is known
        with listening() as said:
            assert run(form(lambda x: -x), X, X).equal(X.exp())
        assert list(said) == [text]
    assert len(asked) == 1
    assert caplog.messages == [text]


def test_what_kernels_do_not_support_is_said(on_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening() as said:
        assert not serve(plain, unsupported=lambda: "5 values are odd")
        assert not serve(plain, gradients=False)
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: True)
        with torch.no_grad():
            assert not serve(plain, gradients=False)
    assert [text.split(": ")[1] for text in said] == [
        f"{reason}; the plain form runs instead"
        for reason in ("5 values are odd", "they compute no gradients", "autocast chooses other dtypes")
    ]


def test_first_use_within_a_checkpoint(on_a_gpu: None) -> None:
    served = []

    def form(x: Tensor) -> Tensor:
        served.append(serve(plain))
        return plain(x).sin()

    x = X.clone().requires_grad_()
    (got,) = torch.autograd.grad(checkpoint(form, x, use_reentrant=False).sum(), x)
    assert torch.allclose(got, X.exp().cos() * X.exp())
    assert served == [True, True]
