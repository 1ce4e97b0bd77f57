"""Short training: it learns, it repeats, it projects, and it says what went wrong."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from nfsearch.ops.model import HybridLM
from nfsearch.proxies import training
from nfsearch.proxies.data import Corpus, prepare
from nfsearch.proxies.score import Score
from nfsearch.proxies.settings import ProxySettings
from nfsearch.proxies.training import Diverged, learning_rate, train, train_model
from nfsearch.proxies.weight_norm import WeightNorm
from nfsearch.space import Architecture

SMALL = ProxySettings(tokens=64 * 64, sequence=32, batch=2, learning_rate=1e-2, validation_tokens=1000)
EVERY_MIXER = "A[head_dim=16] F[act=relu2] D[head_dim=16] F GDN[head_dim=16] GLA M2[head_dim=16, state=16]"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("data")
    text = folder / "text.txt"
    text.write_text("".join(f"{i}: the quick brown fox jumps over {i % 9} lazy dogs.\n" for i in range(5000)))
    return prepare(SMALL.model_copy(update={"data": str(text)}), folder / "cache")


def architecture(
    layers: str = "A[head_dim=16] F", width: int = 32, vocab: int = 257, meta_tokens: int = 0
) -> Architecture:
    return Architecture.parse(layers, width=width, vocab=vocab, meta_tokens=meta_tokens)


@pytest.mark.parametrize("weight_norm", [True, False])
def test_loss_falls_and_the_score_is_complete(corpus: Corpus, weight_norm: bool) -> None:
    settings = SMALL.model_copy(update={"weight_norm": weight_norm})
    seen: list[tuple[int, float]] = []
    score = train(architecture(), corpus, settings, seed=0, device="cpu", report=lambda *pair: seen.append(pair))
    assert score.curve[0][1] > 5
    assert score.loss < score.curve[0][1] - 1.5
    assert score.perplexity == pytest.approx(math.exp(score.loss))
    assert score.bits_per_byte == pytest.approx(score.loss / math.log(2) / corpus.bytes_per_token)
    assert score.tokens == 64 * 64
    assert tuple(seen) == score.curve
    assert len(seen) <= 50
    assert seen[-1][0] == score.tokens
    assert corpus.digest in score.data
    assert Score.from_dict(score.to_dict()) == score


def test_same_seed_same_losses(corpus: Corpus) -> None:
    settings = SMALL.model_copy(update={"tokens": 12 * 64})
    wide = architecture(EVERY_MIXER, meta_tokens=3)
    torch.manual_seed(1)
    first = train(wide, corpus, settings, seed=5, device="cpu")
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), drawn)  # the caller's generator was left alone
    again = train(wide, corpus, settings, seed=5, device="cpu")
    other = train(wide, corpus, settings, seed=6, device="cpu")
    assert (again.loss, again.curve) == (first.loss, first.curve)
    assert other.loss != first.loss


def test_same_start_and_order_whatever_was_trained_before(corpus: Corpus) -> None:
    settings = SMALL.model_copy(update={"tokens": 4 * 64})
    alone = train(architecture("F"), corpus, settings, seed=2, device="cpu")
    train(architecture("F F"), corpus, settings, seed=9, device="cpu")
    assert train(architecture("F"), corpus, settings, seed=2, device="cpu").loss == alone.loss


def test_weight_norm_projects_every_declared_matrix(corpus: Corpus) -> None:
    settings = SMALL.model_copy(update={"tokens": 3 * 64})
    model, _ = train_model(architecture(EVERY_MIXER), corpus, settings, seed=0, device="cpu")
    matrices = set()
    for operator in model.operators():
        assert operator.row_normalised
        assert operator.column_normalised
        for names, axis in ((operator.row_normalised, 1), (operator.column_normalised, 0)):
            for name in names:
                weight = operator.get_parameter(name)
                assert weight.shape[axis] == 32  # the axis of the model's width
                torch.testing.assert_close(weight.norm(dim=axis), torch.ones(weight.shape[1 - axis]), rtol=1e-6, atol=0)
                matrices.add(weight)
    free, _ = train_model(
        architecture(EVERY_MIXER), corpus, settings.model_copy(update={"weight_norm": False}), seed=0, device="cpu"
    )
    assert all((o.get_parameter(n).norm(dim=1) < 0.9).any() for o in free.operators() for n in o.row_normalised)
    assert len(matrices) > 10


def test_weight_norm_leaves_the_rest_alone() -> None:
    model = HybridLM(architecture(EVERY_MIXER, meta_tokens=3))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    project = WeightNorm(model)
    project()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    declared = {
        f"blocks.{i}.operator.{name}"
        for i, operator in enumerate(model.operators())
        for name in operator.row_normalised + operator.column_normalised
    }
    assert changed == declared
    with torch.no_grad():
        next(model.operators()).get_parameter("qkv.weight")[0] = 0
    project()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_validation_is_independent_of_batching(corpus: Corpus) -> None:
    model, score = train_model(architecture(), corpus, SMALL, seed=0, device="cpu")
    one_by_one = training.evaluate(model, corpus, SMALL.model_copy(update={"batch": 1}), "cpu")
    assert one_by_one == pytest.approx(score.loss, rel=1e-5)


def test_decay_touches_only_matrices() -> None:
    model = HybridLM(architecture(EVERY_MIXER, meta_tokens=3))
    decayed, free = training._optimizer(model, SMALL.model_copy(update={"weight_decay": 0.1})).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert all(parameter.ndim == 2 for parameter in decayed["params"])
    kept = {names[id(parameter)] for parameter in free["params"]}
    assert {"embedding.weight", "meta", "norm.weight", "blocks.0.norm.weight"} <= kept
    assert not any("qkv" in name for name in kept)
    assert len(decayed["params"]) + len(free["params"]) == len(names)


def test_learning_rate_rises_then_falls_to_a_tenth() -> None:
    settings = ProxySettings(learning_rate=1.0, warmup=0.1)
    rates = [learning_rate(settings, step, 100) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert 0 < rates[0] < 0.2
    assert rates[10] == max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)
    assert learning_rate(settings, 0, 1) == 1.0


def test_at_least_one_step(corpus: Corpus) -> None:
    score = train(architecture("F"), corpus, SMALL.model_copy(update={"tokens": 1}), seed=0, device="cpu")
    assert score.tokens == 64
    assert len(score.curve) == 1


@pytest.mark.parametrize("bad_step", [1, 5])
def test_divergence_names_the_step(corpus: Corpus, monkeypatch: pytest.MonkeyPatch, bad_step: int) -> None:
    calls = 0
    honest = HybridLM.loss

    def loss(self: HybridLM, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return honest(self, tokens, targets) * (math.nan if calls >= bad_step else 1.0)

    monkeypatch.setattr(HybridLM, "loss", loss)
    with pytest.raises(Diverged, match=rf"training loss is nan at step {bad_step}$"):
        train(architecture(), corpus, SMALL, seed=0, device="cpu")
    assert calls < 10  # it did not go on to the end


def test_divergence_in_validation(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "evaluate", lambda *_: math.inf)
    with pytest.raises(Diverged, match="validation loss is inf after 64 tokens"):
        train(architecture("F"), corpus, SMALL.model_copy(update={"tokens": 64}), seed=0, device="cpu")


def test_report_may_stop_the_run(corpus: Corpus) -> None:
    def stop(tokens: int, loss: float) -> None:
        raise StopIteration(tokens)

    with pytest.raises(StopIteration, match="128"):
        train(architecture("F"), corpus, SMALL, seed=0, device="cpu", report=stop)


def test_wrong_input(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match=r"vocabulary of 100 is too small .* 257"):
        train(architecture(vocab=100), corpus, SMALL, seed=0, device="cpu")
    with pytest.raises(ValueError, match="tokens, a sequence of 10000000 needs"):
        train(architecture(), corpus, SMALL.model_copy(update={"sequence": 10**7}), seed=0, device="cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_same_seed_same_losses_on_cuda(corpus: Corpus) -> None:
    settings = SMALL.model_copy(update={"tokens": 8 * 4 * 512, "sequence": 512, "batch": 4, "learning_rate": 3e-3})
    layers = "A[head_dim=32] D[head_dim=32] F GDN[head_dim=32] GLA A[head_dim=32, window=64] M2[head_dim=32]"
    model = Architecture.parse(layers, width=64, vocab=257, meta_tokens=4)
    torch.rand(8, 8, device="cuda") @ torch.rand(8, 8, device="cuda")
    first, again = (train(model, corpus, settings, seed=5, device="cuda") for _ in range(2))
    assert (again.loss, again.curve) == (first.loss, first.curve)
    assert not torch.are_deterministic_algorithms_enabled()
    assert "bf16" in first.fidelity


def test_every_linear_matrix_is_declared_for_weight_norm() -> None:
    model = HybridLM(architecture(EVERY_MIXER))
    for operator in model.operators():
        linear = {f"{name}.weight" for name, module in operator.named_modules() if isinstance(module, nn.Linear)}
        left = linear - set(operator.row_normalised) - set(operator.column_normalised)
        assert all(32 not in operator.get_parameter(name).shape for name in left), left
