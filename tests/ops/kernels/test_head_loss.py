"""The loss of the head with its gradients at once is that of PyTorch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nfsearch.ops import head_loss as head_loss_module
from nfsearch.ops.forms import Form
from nfsearch.ops.head_loss import head_loss
from nfsearch.ops.kernels.training import cross_entropy as head_kernel
from nfsearch.ops.model import HybridLM
from tests.ops.kernels.cross_compile import launches
from tests.ops.kernels.interpreter import interprets
from tests.proxies.small import architecture

_INTERPRETED = """
import json, torch
from nfsearch.ops.checks import relative
from nfsearch.ops.kernels.training import cross_entropy as head_kernel
from nfsearch.ops.head_loss import cross_entropy
head_kernel._COLUMNS = 64
errors = []
for dtype, vocab in ((torch.float32, 150), (torch.bfloat16, 128), (torch.float32, 7)):
    torch.manual_seed(0)
    logits, targets = (5 * torch.randn(9, vocab)).to(dtype), torch.randint(vocab, (9,))
    logits[0] -= 1000
    expected = cross_entropy(logits, targets)
    found = head_kernel.cross_entropy(logits, targets)
    assert found[1] is logits
    errors.append([relative(a, b) for a, b in zip(found, expected)])
print(json.dumps(errors))
"""


def value_and_gradients(loss: Callable[[Tensor, Tensor], Tensor], *inputs: Tensor) -> list[Tensor]:
    leaves = [one.clone().requires_grad_() for one in inputs]
    value = 3 * loss(*leaves)
    value.backward()
    return [value.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def test_a_slice_has_the_memory_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or more slices would take more, and what a large step needs could not be told from a small one."""
    monkeypatch.setattr(head_loss_module, "_LOGITS_AT_ONCE", 5 * 50)
    left: list[weakref.ref[Tensor]] = []
    honest = head_loss_module.run

    def run(form: Form, like: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        assert not [tensor for tensor in left if tensor() is not None]
        _, gradient = found = honest(form, like, *inputs)
        left.extend((weakref.ref(inputs[0]), weakref.ref(gradient)))
        return found

    monkeypatch.setattr(head_loss_module, "run", run)
    head_loss(torch.randn(20, 8), torch.randn(50, 8), torch.randint(50, (20,)), torch.float32)
    assert len(left) == 8


@pytest.mark.parametrize("rows_at_once", [100, 7])
def test_loss_and_gradients_are_those_of_the_logits(monkeypatch: pytest.MonkeyPatch, rows_at_once: int) -> None:
    monkeypatch.setattr(head_loss_module, "_LOGITS_AT_ONCE", rows_at_once * 50)
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(20, 8), torch.randn(50, 8), torch.randint(50, (20,))
    found = value_and_gradients(lambda h, w: head_loss(h, w, targets, torch.float32), hidden, weight)
    expected = value_and_gradients(lambda h, w: F.cross_entropy(h @ w.mT, targets), hidden, weight)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_half_precision_costs_little_and_gradients_have_the_dtypes_of_what_they_are_of() -> None:
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(200, 64), torch.randn(90, 64) / 8, torch.randint(90, (200,))
    found = value_and_gradients(lambda h, w: head_loss(h, w, targets, torch.bfloat16), hidden, weight)
    expected = value_and_gradients(lambda h, w: F.cross_entropy(h @ w.mT, targets), hidden, weight)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 1e-2 * b.norm()


@interprets
def test_the_kernel_computes_what_the_plain_form_says() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _INTERPRETED],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    exact, half, narrow = json.loads(done.stdout)
    assert max(*exact, *narrow) < 1e-5
    assert max(half) < 5e-3


def test_a_model_has_the_same_gradients_with_it_as_with_its_own_loss() -> None:
    torch.manual_seed(0)
    model, windows = HybridLM(architecture("A[head_dim=16] F", meta_tokens=2)), torch.randint(257, (3, 20))
    found = []
    for own in (True, False):
        model.zero_grad()
        if own:
            loss = model.loss(windows[:, :-1], windows[:, 1:])
        else:
            hidden = model.hidden(windows[:, :-1]).flatten(0, 1)
            loss = head_loss(hidden, model.embedding.weight, windows[:, 1:].flatten(), torch.float32)
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("vocab", [16384, 50257])
def test_the_kernel_compiles_for_hopper_without_spilled_registers(monkeypatch: pytest.MonkeyPatch, vocab: int) -> None:
    logits = torch.empty(8, vocab, device="meta", dtype=torch.bfloat16)
    targets = torch.empty(8, device="meta", dtype=torch.int64)
    (used,) = launches(
        monkeypatch, {head_kernel: ("_cross_entropy",)}, lambda: head_kernel.cross_entropy(logits, targets)
    )
    assert used.grid == (8,)
    assert used.stack == 0
    assert used.registers <= 128
