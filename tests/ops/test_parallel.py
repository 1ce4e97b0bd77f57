"""The choice between the chunk kernels and plain PyTorch; the kernels themselves are tested in tests/ops/kernels."""

from __future__ import annotations

import logging
import sys
from functools import partial
from types import ModuleType

import pytest
import torch
from torch import Tensor

from nfsearch.ops import checks, chooser, chunked, parallel
from nfsearch.ops.forms import Inputs
from nfsearch.ops.parallel import Chunks
from nfsearch.support import notes

KINDS = (parallel.DELTA_RULE, parallel.GATED_DELTA_RULE, parallel.SHARED_LINEAR, parallel.GATED_LINEAR)


class Gpu(Tensor):
    """A tensor that says that it is on a GPU."""

    is_cuda = True  # type: ignore[assignment]


LIKE = torch.zeros(1).as_subclass(Gpu)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> parallel.Recurrence:
    monkeypatch.setattr(chooser, "_verdicts", {})
    monkeypatch.setattr(chooser, "missing", lambda: "")
    monkeypatch.setattr(notes, "_logged", set())
    return request.param


def name(kind: parallel.Recurrence) -> str:
    return kind.kernel.split(":")[1]


def kernels(kind: parallel.Recurrence, monkeypatch: pytest.MonkeyPatch, off: float = 0.0) -> list[Inputs]:
    """Stands in for the module of kernels: the plain form, with gradients that are `off`. What it was called with."""
    calls: list[Inputs] = []

    def refusal(key: int, value: int, dtype: torch.dtype) -> str:
        if key > 256:
            return "too large"
        return "" if key in (16, 32, 64, 128, 256) and value in (16, 32, 64, 128, 256, 512) else "not a size"

    def call(*inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        calls.append(list(inputs))
        q, _, v = (x.shape[-1] for x in inputs[:3] if x is not None)
        assert refusal(q, v, torch.float32) == ""
        scaled = [x if x is None else x + off * (x - x.detach()) for x in inputs]
        return getattr(chunked, name(kind))(*(x if x is None else x.float() for x in scaled))

    module = ModuleType("kernels")
    module.SMALLEST, module.refusal = 16, refusal  # type: ignore[attr-defined]
    setattr(module, name(kind), call)
    monkeypatch.setitem(sys.modules, kind.kernel.split(":")[0], module)
    return calls


def test_kernels_that_agree_are_used(kind: parallel.Recurrence, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = kernels(kind, monkeypatch)
    assert parallel.choice(Chunks(kind, 32, 16), LIKE) == ("triton", "agrees with float64 here")
    inputs = parallel._example(kind, 32, 16, torch.float32)
    getattr(parallel, name(kind))(*inputs, like=LIKE)
    _, _, seen = calls  # two checks, the second of what goes on from a state, and the call
    assert [held[-1] is None for held in calls] == [True, False, False]
    assert all(got is given for got, given in zip(seen, inputs, strict=True))  # nothing is padded or copied


@pytest.mark.parametrize(("key", "value"), [(5, 5), (24, 48), (48, 16), (64, 24), (160, 320)])
@pytest.mark.parametrize("state", [False, True])
def test_heads_of_other_sizes_are_padded(
    kind: parallel.Recurrence, monkeypatch: pytest.MonkeyPatch, key: int, value: int, state: bool
) -> None:
    calls = kernels(kind, monkeypatch)
    inputs = parallel._example(kind, key, value, torch.float32)
    inputs[-1] = inputs[-1] if state else None
    ours, form = partial(getattr(parallel, name(kind)), like=LIKE), getattr(chunked, name(kind))
    # Of the output, the last state and all gradients.
    assert checks.disagreement(ours, form, inputs, torch.device("cpu")) < 1e-4
    assert len(calls) == 2
    shapes = [[x.shape for x in form(*inputs)] for form in (ours, form)]
    assert shapes[0] == shapes[1]


def test_sizes_padded_to_the_same_share_a_check(kind: parallel.Recurrence, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = kernels(kind, monkeypatch)
    for key, value in ((160, 320), (130, 512)):
        found = parallel.choice(Chunks(kind, key, value), LIKE)
        assert found == ("triton", "agrees with float64 here (heads padded to 256 x 512)")
    assert parallel.choice(Chunks(kind, 256, 512), LIKE) == ("triton", "agrees with float64 here")
    assert len(calls) == 1


def test_wrong_gradients_are_refused_loudly_and_once(
    kind: parallel.Recurrence, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = kernels(kind, monkeypatch, off=0.01)
    inputs = [*parallel._example(kind, 32, 16, torch.float32)[:-1], None]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = parallel.choice(Chunks(kind, 32, 16), LIKE)
            assert found.runs == "torch"
            assert "e-02 off" in found.reason or "e-03 off" in found.reason
            getattr(parallel, name(kind))(*inputs, like=LIKE)
    assert len(calls) == 1
    assert len(caplog.records) == 1
    assert f"{kind.name} (32 x 16, torch.float32)" in caplog.text
    with torch.no_grad():  # results are right: prefill may use them
        assert parallel.choice(Chunks(kind, 32, 16), LIKE).runs == "triton"


def test_sizes_and_dtypes_that_kernels_do_not_take(kind: parallel.Recurrence, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels(kind, monkeypatch)
    assert parallel.choice(Chunks(kind, 512, 16), LIKE) == ("torch", "too large")
    assert parallel.choice(Chunks(kind, 257, 16), LIKE) == ("torch", "too large (heads padded to 512 x 16)")
    assert parallel.choice(Chunks(kind, 32, 16), LIKE.double()) == ("torch", "no kernels for torch.float64")
    assert parallel.choice(Chunks(kind, 32, 16), torch.zeros(1)) == ("torch", "the tensors are on cpu, not CUDA")
