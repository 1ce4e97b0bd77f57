"""Layers of flash-linear-attention as operators, on a stand-in for the package."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch

from nfsearch.ops import fla_layers
from nfsearch.ops.decoder import Decoder
from nfsearch.ops.model import HybridLM
from nfsearch.ops.operator import build_operator
from nfsearch.ops.what_runs import check, what_runs
from nfsearch.space import Architecture, Layer
from nfsearch.testing.operators import EXACT, OperatorSuite, agree, empty, steps
from tests.fla_stand_in import forget, stand_in

MEMORY = Layer.of("fla:GatedMemory", num_heads=2)


@pytest.fixture(autouse=True, scope="module")
def _stand_in() -> Iterator[None]:
    with stand_in():
        yield


class TestGatedMemory(OperatorSuite):
    layers = (MEMORY, Layer.of("fla:GatedMemory", num_heads=4, expand_v=2, conv_size=1))
    widths = (32, 96)


def test_plain_projections_at_the_width_are_normalised() -> None:
    operator = build_operator(MEMORY, 32)
    assert operator.row_normalised == ("layer.q_proj.weight", "layer.k_proj.weight", "layer.v_proj.weight")
    assert operator.column_normalised == ("layer.o_proj.weight",)


def test_a_layer_keeps_the_weights_that_it_draws() -> None:
    torch.manual_seed(0)
    operator = build_operator(MEMORY, 32)
    torch.manual_seed(0)
    expected = fla_layers._layer_class("GatedMemory")(hidden_size=32, num_heads=2, layer_idx=0).state_dict()
    for name, tensor in operator.layer.named_parameters():  # type: ignore[union-attr]
        assert torch.equal(tensor, expected[name]), name


def test_every_buffer_is_saved() -> None:
    operator = build_operator(MEMORY, 32)
    assert {"layer.scale"} == {name for name, _ in operator.named_buffers()} <= operator.state_dict().keys()


@torch.no_grad()
def test_a_layer_that_asks_for_its_position() -> None:
    layer = Layer.of("fla:GatedMemory", num_heads=2, use_position=True)
    operator = build_operator(layer, 32).double()
    x = torch.randn(2, 20, 32, dtype=torch.float64)
    state = empty(operator, x)
    parts = operator(x[:, :9], state), operator(x[:, 9:13], state, 9), steps(operator, x[:, 13:], state, 13)
    agree(torch.cat(parts, dim=1), operator(x), EXACT, "20 steps in three parts")
    assert "it cannot be captured in a CUDA graph" in what_runs(layer, 32, "cpu").decode.reason
    check([layer], [32], "cpu", decode=True)  # where nothing is captured
    assert what_runs(MEMORY, 32, "cpu").decode == (
        "torch",
        "GatedMemory's own forward of one token, its new state copied in place",
    )


@torch.no_grad()
def test_a_model_generates_what_forward_does() -> None:
    torch.manual_seed(0)
    model = HybridLM(Architecture.parse(f"{MEMORY} F", width=32, vocab=50, meta_tokens=3)).double()
    model.embedding.weight.mul_(20)
    prompt = torch.randint(50, (2, 9))
    got = Decoder(model, batch=2, max_length=20).generate(prompt, 8)
    tokens = prompt
    for _ in range(8):
        tokens = torch.cat((tokens, model(tokens)[:, -1].argmax(-1, keepdim=True)), dim=1)
    assert torch.equal(got, tokens[:, 9:])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("KeysAndValues", "keeps keys and values, which grow with the sequence: it can be trained, but"),
        ("WholeSequences", "keeps nothing between calls: it reads whole sequences, and cannot decode"),
    ],
)
def test_a_layer_without_decode_trains_and_says_so(name: str, reason: str) -> None:
    layer = Layer.of(f"fla:{name}")
    model = HybridLM(Architecture.parse(f"{layer} F", width=32, vocab=50))
    tokens = torch.randint(50, (2, 9))
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    assert all(p.grad is not None for p in model.parameters())
    for refused in (
        lambda: check([layer], [32], "cpu", decode=True),
        lambda: Decoder(model, batch=1, max_length=4),
        lambda: model.architecture.state_bytes(1, 4),
    ):
        with pytest.raises(ValueError, match=f"fla:{name} {reason}"):
            refused()
    assert reason in what_runs(layer, 32, "cpu").decode.reason


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Layer.of("fla:GatedMemroy"), "flash-linear-attention has no layer 'GatedMemroy', did you mean GatedMemory?"),
        (
            Layer.of("fla:GatedMemory", num_head=2),
            r"fla:GatedMemory has no setting 'num_head', did you mean num_heads\?; it takes mode, num_heads, expand_v",
        ),
        (Layer.of("fla:GatedMemory", hidden_size=2), "has no setting 'hidden_size'"),
        (
            Layer.of("fla:GatedMemory", num_heads=5),
            "fla:GatedMemory cannot be built at width 32 with num_heads=5: ValueError: hidden_size=32 must be",
        ),
        (Layer.of("fla:GatedMemory", mode="fused"), "with mode=fused: AssertionError: Not supported mode `fused`"),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_one_message(layer: Layer, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer.cost(32)
    with pytest.raises(ValueError, match=message):
        build_operator(layer, 32)
    with pytest.raises(ValueError, match=message):
        check([layer], [32], "cpu", decode=True)


def test_kernels_that_do_not_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*inputs: object, **how: object) -> None:
        raise RuntimeError("0 active drivers")

    monkeypatch.setattr(fla_layers._layer_class("GatedMemory"), "forward", fails)
    forget()
    message = r"fla:GatedMemory does not run on cpu: .* need a CUDA device \(RuntimeError: 0 active drivers\)"
    with pytest.raises(ValueError, match=message):
        check([MEMORY], [32], "cpu", decode=True)
    with pytest.raises(ValueError, match=message):
        build_operator(MEMORY, 32)(torch.randn(1, 3, 32))


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fla.layers", None)
    forget()
    with pytest.raises(ValueError, match=r"GatedMemory needs flash-linear-attention.*pip install '\.\[fla-layers"):
        MEMORY.cost(32)
