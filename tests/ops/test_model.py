"""The hybrid model and its decoder."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from nfsearch.ops import model as model_module
from nfsearch.ops.decoder import Decoder
from nfsearch.ops.model import HybridLM
from nfsearch.space import Architecture

VOCAB = 50
LAYERS = (
    "D[head_dim=16] F M2[head_dim=32, state=8] A[head_dim=16] F "
    "GDN[head_dim=16] GLA C A[head_dim=16, window=6, kv_heads=1] F[act=relu2]"
)


def make(dtype: torch.dtype = torch.float64, **rest: object) -> HybridLM:
    torch.manual_seed(0)
    fields = {"layers": LAYERS, "width": 64, "vocab": VOCAB, "meta_tokens": 5, **rest}
    model = HybridLM(Architecture.from_dict(fields)).to(dtype)
    with torch.no_grad():  # logits far apart, so that a wrong one changes the choice
        model.embedding.weight.mul_(20)
    return model


def draw(batch: int, time: int) -> torch.Tensor:
    return torch.randint(VOCAB, (batch, time), generator=torch.Generator().manual_seed(time))


@pytest.mark.parametrize(("meta_tokens", "rest"), [(0, {}), (5, {"head_norm": True}), (0, {"tied_head": False})])
@torch.no_grad()
def test_prefill_and_steps_give_the_logits_of_forward(meta_tokens: int, rest: dict[str, object]) -> None:
    model = make(meta_tokens=meta_tokens, **rest)
    tokens = draw(2, 20)
    expected = model(tokens)
    assert expected.shape == (2, 20, VOCAB)
    for prompt in (1, 8, 19):
        state = model.init_state(2, 20)
        got = [model.prefill(tokens[:, :prompt], state)]
        for t in range(prompt, 20):
            got.append(model.step(tokens[:, t], state, torch.tensor(meta_tokens + t)))
        assert torch.allclose(torch.stack(got, dim=1), expected[:, prompt - 1 :], atol=1e-9)
    state = model.init_state(2, 20)
    model.prefill(tokens[:, :7], state)
    assert torch.allclose(model.prefill(tokens[:, 7:], state, meta_tokens + 7), expected[:, -1], atol=1e-9)


def test_state_is_what_the_architecture_says() -> None:
    model = make(torch.bfloat16)
    for length in (3, 40):
        held = sum(t.numel() * t.element_size() for state in model.init_state(2, length) for t in state.values())
        assert held == model.architecture.state_bytes(2, length, 2)


def test_a_head_of_its_own_is_drawn_after_all_else() -> None:
    torch.manual_seed(0)
    tied = HybridLM(Architecture.parse(LAYERS, width=64, vocab=VOCAB))
    torch.manual_seed(0)
    model = HybridLM(Architecture.parse(LAYERS, width=64, vocab=VOCAB, tied_head=False))
    weights, own = model.state_dict(), model.state_dict()["own_head.weight"]
    assert weights.keys() == {*tied.state_dict(), "own_head.weight"}
    assert all(torch.equal(weights[name], tensor) for name, tensor in tied.state_dict().items())
    assert 0.018 < own.std() < 0.022
    assert sum(p.numel() for p in model.parameters()) == model.architecture.parameters
    hidden = torch.randn(3, 64)
    assert torch.equal(model.head(hidden), hidden @ own.mT)


@pytest.mark.parametrize("rest", [{}, {"head_norm": True}, {"tied_head": False}])
def test_loss_is_the_mean_cross_entropy_whole_or_in_slices(
    rest: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(**rest)  # type: ignore[arg-type]
    tokens, targets = draw(3, 9), draw(3, 10)[:, 1:]
    expected = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(expected, parameters)
    for at_once in (1 << 25, 4 * VOCAB, 1):
        monkeypatch.setattr(model_module, "_LOGITS_AT_ONCE", at_once)
        loss = model.loss(tokens, targets)
        assert torch.allclose(loss, expected)
        for name, a, b in zip(names, torch.autograd.grad(loss, parameters), gradients, strict=True):
            assert torch.allclose(a, b, atol=1e-9), name


def test_gradient_reaches_every_parameter() -> None:
    model = make(torch.float32)
    model.loss(draw(2, 70), draw(2, 71)[:, 1:]).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_initialisation() -> None:
    torch.manual_seed(0)
    fields = {"layers": "D M2 GDN[head_dim=64] F", "width": 256, "vocab": 1000, "meta_tokens": 50}
    model = HybridLM(Architecture.from_dict(fields))
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    for name in ("embedding.weight", "blocks.1.operator.in_proj.weight", "blocks.3.operator.down.weight"):
        assert parameters[name].std() == pytest.approx(0.02, rel=0.05)
    assert parameters["meta"].std() == pytest.approx(1, rel=0.05)
    query = parameters["blocks.0.operator.in_proj.weight"][:256]
    assert query.abs().max() == pytest.approx(2**-2.5 * math.sqrt(6 / 512), rel=0.01)
    for i in (1, 2):
        dt = F.softplus(parameters[f"blocks.{i}.operator.dt_bias"])
        assert 1e-3 * 0.99 <= dt.min() <= dt.max() <= 1e-1 * 1.01
    assert 1 <= parameters["blocks.1.operator.A_log"].exp().min() <= 16.01


def test_it_learns() -> None:
    """A model of every mixer fits a repeated sentence within a few steps."""
    torch.manual_seed(0)
    fields = {"layers": LAYERS, "width": 64, "vocab": VOCAB, "meta_tokens": 3}
    model = HybridLM(Architecture.from_dict(fields))
    tokens = draw(1, 13).repeat(2, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(VOCAB), rel=0.1)
    assert losses[-1] < 1


@pytest.mark.parametrize(
    ("layers", "width", "millions"),
    [
        ("(D F M2 F A F M2 F){2} (D F M2 F){2}", 2048, 965.4),
        ("(D F M2 F A F M2 F){3} (D F M2 F){3}", 3072, 2750.0),
    ],
)
def test_the_published_models_have_their_published_size(layers: str, width: int, millions: float) -> None:
    architecture = Architecture.parse(layers, width=width, vocab=131072, meta_tokens=256, head_norm=True)
    with torch.device("meta"):
        model = HybridLM(architecture)
    count = sum(p.numel() for p in model.parameters())
    assert count == architecture.parameters
    assert round(count / 1e6, 1) == millions


@torch.no_grad()
def test_greedy_generation_is_the_argmax_of_forward() -> None:
    model = make()
    prompt = draw(3, 6)
    decoder = Decoder(model, batch=3, max_length=20)
    got = decoder.generate(prompt, 12)
    tokens = prompt
    for _ in range(12):
        tokens = torch.cat((tokens, model(tokens)[:, -1].argmax(-1, keepdim=True)), dim=1)
    assert torch.equal(got, tokens[:, 6:])
    assert len(got.unique()) > 2
    assert torch.equal(decoder.generate(prompt, 12), got)  # nothing of the first run is left


def test_sampling_follows_its_generator() -> None:
    decoder = Decoder(make(torch.float32), batch=2, max_length=30)
    prompt = draw(2, 4)
    first, again, other = (
        decoder.generate(prompt, 20, temperature=5.0, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_decoder_refuses_what_does_not_fit() -> None:
    decoder = Decoder(make(torch.float32), batch=1, max_length=5)
    with pytest.raises(ValueError, match="prefill first"):
        decoder.step(torch.tensor([1]))
    with pytest.raises(ValueError, match="a prompt of 6 tokens"):
        decoder.prefill(draw(1, 6))
    decoder.generate(draw(1, 4), 2)
    with pytest.raises(ValueError, match="5 of 5 tokens"):
        decoder.step(torch.tensor([1]))
