"""On a CUDA device: the captured step, kernels in training, compiled training."""

from __future__ import annotations

import pytest
import torch

from nfsearch.ops.decoder import Decoder
from nfsearch.ops.model import HybridLM
from nfsearch.ops.operator import build_operator
from nfsearch.space import Architecture, Layer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LAYERS = "D[head_dim=64] F C M2 A[head_dim=64] F GDN[head_dim=64] GLA A[head_dim=64, window=40] F[act=relu2]"


def make(dtype: torch.dtype) -> HybridLM:
    torch.manual_seed(0)
    model = HybridLM(Architecture.parse(LAYERS, width=256, vocab=500, meta_tokens=5)).to("cuda", dtype)
    with torch.no_grad():
        model.embedding.weight.mul_(20)
    return model


@torch.no_grad()
def test_the_captured_step_generates_what_forward_does() -> None:
    model = make(torch.float64)
    prompt = torch.randint(500, (3, 70), device="cuda")
    decoder = Decoder(model, batch=3, max_length=100)
    got = decoder.generate(prompt, 25)
    tokens = prompt
    for _ in range(25):
        tokens = torch.cat((tokens, model(tokens)[:, -1].argmax(-1, keepdim=True)), dim=1)
    assert torch.equal(got, tokens[:, 70:])
    assert torch.equal(decoder.generate(prompt, 25), got)


@pytest.mark.parametrize(
    "layer",
    [
        Layer.of("D", head_dim=64),
        Layer.of("D", head_dim=32),
        Layer.of("D"),
        Layer.of("D", neg_eigval=True),
        Layer.of("C"),
        Layer.of("GDN", head_dim=64),
        Layer.of("GLA", heads=2),
        Layer.of("M2"),
    ],
    ids=str,
)
def test_training_kernels_agree_in_values_and_gradients(layer: Layer) -> None:
    torch.manual_seed(0)
    reference = build_operator(layer, 256).to("cuda", torch.float64)
    operator = build_operator(layer, 256).to("cuda")
    operator.load_state_dict(reference.state_dict())
    x = torch.randn(2, 200, 256, device="cuda")
    weight = torch.randn_like(x)
    names, parameters = zip(*operator.named_parameters(), strict=True)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert operator.chunks is None or operator.parallel_choice(x).runs == "triton"
        y = operator(x)
    expected = reference(x.double())
    assert (y - expected).abs().max() / expected.abs().max() < 0.02
    got = torch.autograd.grad((y * weight).sum(), parameters)
    wanted = torch.autograd.grad((expected * weight).sum(), tuple(reference.parameters()))
    for name, a, b in zip(names, got, wanted, strict=True):
        assert (a - b).norm() / b.norm() < 0.03, name


def test_training_under_autocast_follows_double_precision() -> None:
    torch.manual_seed(1)
    tokens = torch.randint(500, (2, 40), device="cuda")
    exact = make(torch.float64).loss(tokens[:, :-1], tokens[:, 1:])
    model = make(torch.float32)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    assert abs(loss.item() / exact.item() - 1) < 0.05
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
