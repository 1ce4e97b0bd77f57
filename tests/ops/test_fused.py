"""The choice between fused kernels and the plain step; the kernels themselves are tested in tests/ops/kernels."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from nfsearch.ops import HybridLM, fused, selfcheck
from nfsearch.ops.kernels.decode import blocks as decode
from nfsearch.ops.model import Block
from nfsearch.space import Architecture, Layer

WIDTH = 64
X = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(0))


def block() -> Block:
    torch.manual_seed(0)
    return Block(Layer.of("D", head_dim=32), WIDTH, 1e-6)


def stepped(made: Block) -> Tensor:
    state = made.operator.init_state(2, 4, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        return made.step(X, state, torch.tensor(0))


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the tensors here were on one."""
    monkeypatch.setattr(fused, "_unsuitable", lambda x: "")
    monkeypatch.setattr(selfcheck, "_verdicts", {})


def right_kernels(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Stands in for DeltaNet's kernels. The batches that they are called with."""
    batches = []

    def kernel(x, norm, eps, op, state, position):  # type: ignore[no-untyped-def]
        batches.append(len(x))
        return x + op.step(torch.nn.functional.rms_norm(x, (WIDTH,), norm, eps), state, position)

    monkeypatch.setitem(decode.BLOCKS, "DeltaNet", kernel)
    return batches


def test_a_cpu_takes_the_plain_step() -> None:
    with torch.no_grad():
        assert fused.block_refusal(block(), X) == "the tensors are on cpu, not CUDA"
        assert fused.head_refusal(HybridLM(Architecture(WIDTH, (), 16)), X) == "the tensors are on cpu, not CUDA"


def test_kernels_that_agree_are_used(on_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = right_kernels(monkeypatch)
    made = block()
    expected = stepped(made)
    assert len(calls) == 2  # the check, then the step
    assert torch.equal(stepped(made), expected)
    assert len(calls) == 3  # checked once


@pytest.mark.parametrize("wrong", ["output", "state", "nan", "raises"])
def test_kernels_that_do_not_are_refused_loudly_and_once(
    on_a_gpu: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, wrong: str
) -> None:
    def kernel(x, norm, eps, op, state, position):  # type: ignore[no-untyped-def]
        if wrong == "raises":
            raise RuntimeError("no such instruction\nand more")
        y = x + op.step(torch.nn.functional.rms_norm(x, (WIDTH,), norm, eps), state, position)
        if wrong == "state":
            state["state"].mul_(1.01)
        return y * {"output": 1.01, "nan": float("nan")}.get(wrong, 1.0)

    made = block()
    monkeypatch.setattr(fused, "_unsuitable", lambda x: "plain")
    expected = stepped(made)
    monkeypatch.setattr(fused, "_unsuitable", lambda x: "")
    monkeypatch.setitem(decode.BLOCKS, "DeltaNet", kernel)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(stepped(made), expected)
        assert torch.equal(stepped(made), expected)
    assert len(caplog.records) == 1
    assert "the kernels of DeltaNet's step (torch.float32) are not used: " in caplog.text


def test_the_head_is_checked_too(on_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = HybridLM(Architecture(WIDTH, (), 16))
    with torch.no_grad():
        plain = model.head(model.norm(X))
        monkeypatch.setattr(decode, "head", lambda x, norm, eps, w, unit: model.head(model.norm(x)) + 1)
        assert torch.equal(model.next_logits(X), plain)
        selfcheck._verdicts.clear()
        monkeypatch.setattr(decode, "head", lambda x, norm, eps, w, unit: model.head(model.norm(x)) * (1 + 1e-6))
        assert not torch.equal(model.next_logits(X), plain)


def test_a_check_is_of_few_sequences(on_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = right_kernels(monkeypatch)
    made = block()
    with torch.no_grad():
        for batch in (100, 200):
            assert fused.block_refusal(made, torch.randn(batch, WIDTH)) == ""
    assert batches == [64]
