"""A step on fused kernels: when it is taken, and what is bound for it; the kernels are tested in tests/ops/kernels."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nfsearch.ops import HybridLM, chooser, steps
from nfsearch.ops import model as model_module
from nfsearch.ops.deltanet import DeltaNet
from nfsearch.ops.forms import Choice, FusedStep, State, Step
from nfsearch.ops.kernels.decode.weights import held
from nfsearch.ops.model import Block
from nfsearch.ops.operator import Operator, linear
from nfsearch.space import Architecture, Layer
from nfsearch.support import notes
from nfsearch.support.notes import listening

WIDTH = 64
X = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(0))
ELSEWHERE = Choice("torch", "the tensors are on cpu, not CUDA")


def block() -> Block:
    torch.manual_seed(0)
    return Block(Layer.of("D", head_dim=32), WIDTH, 1e-6)


def stepped(made: Block) -> Tensor:
    with torch.no_grad():
        state = made.operator.init_state(2, 4, device="cpu", dtype=torch.float32)
        return made.step(X, state, torch.tensor(0))


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the tensors here were on one."""
    pretend(monkeypatch)


def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (chooser, steps):
        monkeypatch.setattr(module, "on_cuda", lambda x: True)
    monkeypatch.setattr(chooser, "missing", lambda: "")
    monkeypatch.setattr(chooser, "_verdicts", {})
    monkeypatch.setattr(notes, "_logged", set())


Kernel = Callable[[Any, Any, Tensor, State, Tensor], Tensor]


def right(operator: Any, norm: Any, x: Tensor, state: State, position: Tensor) -> Tensor:
    return x + operator.step(norm(x), state, position)


def fused(kernel: Kernel) -> tuple[FusedStep, list[int], list[int]]:
    """A fused step of one Python function. The batches that it is bound for, and called with."""
    bound: list[int] = []
    called: list[int] = []

    def bind(operator: Any, norm: Any, x: Tensor, state: State) -> Step:
        bound.append(len(x))

        def step(x: Tensor, state: State, position: Tensor) -> Tensor:
            called.append(len(x))
            return kernel(operator, norm, x, state, position)

        return step

    return FusedStep(bind), bound, called


# --- which runs ------------------------------------------------------------------------------------------------------


def test_a_cpu_takes_the_plain_step() -> None:
    with torch.no_grad():
        made = block()
        state = made.operator.init_state(2, 4, device="cpu", dtype=torch.float32)
        assert made.step_choice(X, state) == ELSEWHERE
        model = HybridLM(Architecture(WIDTH, (Layer.of("F"),), 16))
        found = model.step_choices(torch.zeros(2, dtype=torch.int64), model.init_state(2, 4))
        assert found == dict.fromkeys(("embedding", "FeedForward", "head"), ELSEWHERE)


def test_kernels_that_agree_are_used(on_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    record, _, called = fused(right)
    monkeypatch.setattr(DeltaNet, "fused_step", record)
    made = block()
    expected = stepped(made)
    assert len(called) == 2  # the check, then the step
    assert torch.equal(stepped(made), expected)
    assert len(called) == 3  # checked once


@pytest.mark.parametrize("wrong", ["output", "state", "nan", "raises"])
def test_kernels_that_do_not_are_refused_loudly_and_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, wrong: str
) -> None:
    def kernel(operator: Any, norm: Any, x: Tensor, state: State, position: Tensor) -> Tensor:
        if wrong == "raises":
            raise RuntimeError("no such instruction\nand more")
        y = right(operator, norm, x, state, position)
        if wrong == "state":
            state["state"].mul_(1.01)
        return y * {"output": 1.01, "nan": float("nan")}.get(wrong, 1.0)

    expected = stepped(block())
    pretend(monkeypatch)
    monkeypatch.setattr(DeltaNet, "fused_step", fused(kernel)[0])
    for made in (block(), block()):  # each of them hears it
        with listening() as said:
            assert torch.equal(stepped(made), expected)
            assert torch.equal(stepped(made), expected)
        (text,) = said
        assert text.startswith("the kernels of DeltaNet's step (torch.float32) are not used: ")
        assert text.endswith("; the plain step runs instead")
    assert caplog.messages == [text]


def test_the_head_is_checked_too(on_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        model = HybridLM(Architecture(WIDTH, (), 16))
        plain = model.head(model.norm(X))
        for scale, same in ((1.1, True), (1 + 1e-6, False)):
            kernel = lambda x, by=scale: model.head(model.norm(x)) * by  # noqa: E731
            monkeypatch.setattr(steps, "named", lambda what, kernel=kernel: lambda *_: kernel)
            model._bound.clear()
            chooser._verdicts.clear()
            assert torch.equal(model.next_logits(X), plain) == same


def test_a_check_is_of_few_sequences(on_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    record, _, called = fused(right)
    monkeypatch.setattr(DeltaNet, "fused_step", record)
    made = block()
    with torch.no_grad():
        for batch in (100, 200):
            state = made.operator.init_state(batch, 4, device="cpu", dtype=torch.float32)
            assert made.step_choice(torch.randn(batch, WIDTH), state).runs == "triton"
    assert called == [64]


def test_operators_that_differ_in_a_setting_are_checked_apart(on_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their parameters have the same shapes, but kernels are compiled for the setting."""
    record, _, called = fused(right)
    checked = []
    for text in (
        "A[head_dim=16,kv_heads=2] A[head_dim=32,kv_heads=1]",
        "A[head_dim=16] A[head_dim=16,rope=0.5] A[head_dim=16,rope=0]",
        "A[head_dim=16,rope_base=500] A[head_dim=16,window=8] A[head_dim=16,window=9]",
        "D[head_dim=32] D[head_dim=32,neg_eigval=true]",
        "M2[head_dim=16,state=8,groups=2] M2[head_dim=16,state=16]",
    ):
        for layer in Architecture.parse(text, width=WIDTH).layers * 2:
            made = Block(layer, WIDTH, 1e-6).eval()
            monkeypatch.setattr(type(made.operator), "fused_step", record)
            before = len(called)
            with torch.no_grad():
                made.step_choice(X, made.operator.init_state(2, 4, device="cpu", dtype=torch.float32))
            checked.append((str(layer), len(called) - before))
    assert [name for name, checks in checked if checks] == list(dict(checked))
    assert len(called) == 12


class Halver(Operator):
    """An operator of another package: y = W x / 2, with its last input as a state that nothing reads."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.weight = linear(width, width)

    def init_state(self, batch: int, max_length: int, *, device: Any, dtype: torch.dtype) -> State:
        return {"last": torch.zeros(batch, self.width, device=device, dtype=dtype)}

    def forward(self, x: Tensor, state: State | None = None, position: int = 0) -> Tensor:
        return self.weight(x) / 2

    def step(self, x: Tensor, state: State, position: Tensor) -> Tensor:
        state["last"].copy_(x)
        return self.weight(x) / 2

    def reference(self, x: Tensor) -> Tensor:
        return torch.stack([row @ self.weight.weight.T / 2 for row in x.unbind(1)], dim=1)


def halver(record: FusedStep | None) -> Block:
    made = block()
    made.operator = type("Halver", (Halver,), {"fused_step": record, "__module__": "elsewhere"})(WIDTH)
    return made


def test_an_operator_from_elsewhere_brings_a_step_of_its_own(on_a_gpu: None) -> None:
    def kernel(operator: Any, norm: Any, x: Tensor, state: State, position: Tensor) -> Tensor:
        state["last"].copy_(norm(x))
        return x + norm(x) @ (operator.weight.weight.T * 0.5)

    record, bound, called = fused(kernel)
    made = halver(record)
    with torch.no_grad():
        expected = made.plain_step(X, {"last": X.clone()}, torch.tensor(0))
    assert torch.allclose(stepped(made), expected, atol=1e-6)
    assert (bound, called) == ([2, 2], [2, 2])  # for the check and for use
    wrong, _, called = fused(lambda operator, norm, x, state, position: x)
    with listening() as said:
        stepped(halver(wrong))
    assert "the kernels of Halver's step (torch.float32) are not used: they are" in next(iter(said))
    assert called == [2]
    with listening() as said:
        stepped(halver(FusedStep(record.bind, lambda operator, dtype: "it is Monday")))
        stepped(halver(None))  # there are no kernels to decide against
    assert list(said) == [
        "the kernels of Halver's step (torch.float32) are not used: it is Monday; the plain step runs instead"
    ]


# --- what is bound ---------------------------------------------------------------------------------------------------


def test_a_step_is_bound_once_for_its_shapes(on_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    record, bound, _ = fused(right)
    monkeypatch.setattr(DeltaNet, "fused_step", record)
    monkeypatch.setattr(steps, "choose", lambda form, like: Choice("triton", "believed"))
    model = HybridLM(Architecture.parse("D[head_dim=32]{3}", width=WIDTH, vocab=16))
    for name in ("bind_embedding", "bind_head"):
        monkeypatch.setattr(model_module, name, lambda *_: None)
    for batch, times in ((2, 3), (5, 2), (2, 1)):
        state = model.init_state(batch, 9)
        for position in range(times):
            model.step(torch.zeros(batch, dtype=torch.int64), state, torch.tensor(position))
    assert bound == [2, 2, 2, 5, 5, 5]


def test_conditions_that_matter_are_told_apart() -> None:
    made = block()
    conditions = 0
    for given in (X, X.double(), X[:1]):
        state = made.operator.init_state(len(given), 4, device="cpu", dtype=given.dtype)
        for gradients in (False, True):
            conditions += 1
            with torch.set_grad_enabled(gradients):
                made.to(given.dtype).step(given, {k: v.clone() for k, v in state.items()}, torch.tensor(0))
            assert len(made._bound) == conditions


def test_nothing_is_kept_from_a_capture(on_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    record, bound, _ = fused(right)
    monkeypatch.setattr(DeltaNet, "fused_step", record)
    made = block()
    for module in (chooser, steps):
        monkeypatch.setattr(module, "capturing", lambda: True)
    with listening() as said:
        stepped(made)
    assert "not checked yet, and a graph is being captured" in next(iter(said))
    assert (bound, made._bound) == ([], {})
    for module in (chooser, steps):
        monkeypatch.setattr(module, "capturing", lambda: False)
    stepped(made)
    assert bound == [2, 2]


def test_a_copy_binds_its_own_weights_and_a_block_is_freed(on_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeltaNet, "fused_step", fused(right)[0])
    made = block()
    expected = stepped(made)
    assert made._bound
    for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert not twin._bound
        with torch.no_grad():
            twin.operator.out_proj.weight.zero_()
        assert not torch.equal(stepped(twin), expected)
    assert torch.equal(stepped(made), expected)
    gc.disable()  # memory on a GPU must not wait for it
    try:
        seen = weakref.ref(made)
        del made
        assert seen() is None
    finally:
        gc.enable()


def test_what_is_kept_is_bounded() -> None:
    bound = steps.Bound()
    for key in range(100):
        assert bound.keep(key, -key) == -key
    assert len(bound) <= 32


def test_a_weight_that_is_replaced_is_read() -> None:
    module = nn.Linear(3, 3)
    weight = held(module)
    module.weight = nn.Parameter(torch.ones(3, 3))
    assert weight() is module.weight
    module.to(torch.float64)
    assert weight().dtype == torch.float64
