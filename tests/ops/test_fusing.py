"""The choice between a fused kernel and the PyTorch form; the kernels themselves are tested in tests/ops/kernels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nfsearch.ops import fusing, selfcheck

X = torch.randn(5, generator=torch.Generator().manual_seed(0))


def plain(x: Tensor) -> Tensor:
    return x.exp()


def serve(kernel: fusing.Form) -> bool:
    return fusing.kernels_serve("exp", None, X.dtype, X, kernel, plain, lambda draw: [draw(7)])


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the tensors here were on one."""
    monkeypatch.setattr(fusing, "_suitable", lambda x: True)
    monkeypatch.setattr(selfcheck, "_verdicts", {})


def test_a_cpu_takes_the_plain_form() -> None:
    assert not serve(plain)


def test_a_kernel_that_agrees_serves(on_a_gpu: None) -> None:
    assert serve(lambda x: x.exp() * (1 + 1e-6))


def test_wrong_results_and_wrong_gradients_are_refused(on_a_gpu: None) -> None:
    assert not serve(lambda x: x.exp() * 1.01)
    selfcheck._verdicts.clear()
    assert not serve(lambda x: x.detach().exp() + (x - x.detach()))


def test_first_use_within_a_checkpoint(on_a_gpu: None) -> None:
    served = []

    def form(x: Tensor) -> Tensor:
        served.append(serve(plain))
        return plain(x).sin()

    x = X.clone().requires_grad_()
    (got,) = torch.autograd.grad(checkpoint(form, x, use_reentrant=False).sum(), x)
    assert torch.allclose(got, X.exp().cos() * X.exp())
    assert served == [True, True]
