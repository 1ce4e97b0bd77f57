"""Short training: it learns, it repeats, it projects, and it says what went wrong."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nfsearch.ops.model import HybridLM
from nfsearch.proxies import Evaluation, Fidelity, Job, trainer
from nfsearch.proxies.data import Corpus
from nfsearch.proxies.settings import TrainingSettings
from nfsearch.proxies.trainer import Diverged, train_model
from nfsearch.proxies.training import TrainingProxy
from nfsearch.proxies.weight_norm import WeightNorm
from nfsearch.space import SpaceSettings
from tests.proxies.small import EVERY_MIXER, SMALL, architecture, evaluated, loss_of


@pytest.mark.parametrize("weight_norm", [True, False])
def test_loss_falls_and_the_evaluation_is_complete(corpus: Corpus, weight_norm: bool) -> None:
    settings = SMALL.model_copy(update={"weight_norm": weight_norm})
    seen: list[tuple[int, float]] = []
    found = evaluated(architecture(), corpus, settings, seed=0, device="cpu", report=lambda *pair: seen.append(pair))
    loss = loss_of(found)
    assert found.curve[0][1] > 5
    assert loss < found.curve[0][1] - 1.5
    assert list(found.metrics) == ["loss", "bits_per_byte", "perplexity"]
    assert found.metrics["perplexity"].value == pytest.approx(math.exp(loss))
    assert found.metrics["bits_per_byte"].value == pytest.approx(loss / math.log(2) / corpus.bytes_per_token)
    assert found.tokens == 64 * 64
    assert tuple(seen) == found.curve
    assert len(seen) <= 50
    assert seen[-1][0] == found.tokens
    assert found.seconds > 0
    assert Evaluation.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_same_seed_same_losses(corpus: Corpus) -> None:
    settings = SMALL.model_copy(update={"tokens": 12 * 64})
    wide = architecture(EVERY_MIXER, meta_tokens=3)
    torch.manual_seed(1)
    first = evaluated(wide, corpus, settings, seed=5, device="cpu")
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), drawn)  # the caller's generator was left alone
    again = evaluated(wide, corpus, settings, seed=5, device="cpu")
    other = evaluated(wide, corpus, settings, seed=6, device="cpu")
    assert (again.metrics, again.curve) == (first.metrics, first.curve)
    assert other.metrics != first.metrics


def test_same_start_and_order_whatever_was_trained_before(corpus: Corpus) -> None:
    settings = SMALL.model_copy(update={"tokens": 4 * 64})
    alone = evaluated(architecture("F"), corpus, settings, seed=2, device="cpu")
    evaluated(architecture("F F"), corpus, settings, seed=9, device="cpu")
    assert evaluated(architecture("F"), corpus, settings, seed=2, device="cpu").metrics == alone.metrics


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
    model, found = train_model(architecture(), corpus, SMALL, seed=0, device="cpu")
    one_by_one = trainer.evaluate(model, corpus, SMALL.model_copy(update={"batch": 1}), "cpu")
    assert one_by_one == pytest.approx(loss_of(found), rel=1e-5)


def test_at_least_one_step(corpus: Corpus) -> None:
    found = evaluated(architecture("F"), corpus, SMALL.model_copy(update={"tokens": 1}), seed=0, device="cpu")
    assert found.tokens == 64
    assert len(found.curve) == 1


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
        evaluated(architecture(), corpus, SMALL, seed=0, device="cpu")
    assert calls < 10  # it did not go on to the end


def test_divergence_in_validation(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "evaluate", lambda *_: math.inf)
    with pytest.raises(Diverged, match="validation loss is inf after 64 tokens"):
        evaluated(architecture("F"), corpus, SMALL.model_copy(update={"tokens": 64}), seed=0, device="cpu")


def test_report_may_stop_the_run(corpus: Corpus) -> None:
    def stop(tokens: int, loss: float) -> None:
        raise StopIteration(tokens)

    with pytest.raises(StopIteration, match="128"):
        evaluated(architecture("F"), corpus, SMALL, seed=0, device="cpu", report=stop)


def test_wrong_input(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match=r"vocabulary of 100 is too small .* 257"):
        evaluated(architecture(vocab=100), corpus, SMALL, seed=0, device="cpu")
    with pytest.raises(ValueError, match="tokens, a sequence of 10000000 needs"):
        evaluated(architecture(), corpus, SMALL.model_copy(update={"sequence": 10**7}), seed=0, device="cpu")


def test_the_proxy_trains_a_job_at_its_fidelity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NFSEARCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("".join(f"{i} lazy dogs\n" for i in range(5000)))
    settings = SMALL.model_copy(update={"data": str(tmp_path / "text.txt"), "tokens": 4 * 64})
    proxy = TrainingProxy(settings, "cpu")
    assert proxy.corpus.digest == proxy.fidelity.data
    proxy.check(SpaceSettings(width=32, layers="F").build(257))
    with pytest.raises(ValueError, match=r"space.vocab is 100; the tokenizer of .* has 257 entries"):
        proxy.check(SpaceSettings(width=32, layers="F", vocab=100).build(257))
    seen: list[int] = []
    job = Job(architecture("F"), proxy.fidelity, seed=3)
    found = proxy.evaluate(job, lambda tokens, loss: seen.append(tokens))
    assert seen == [64, 128, 192, 256]
    assert list(found.metrics) == [metric.name for metric in TrainingProxy.metrics]
    loss = loss_of(evaluated(job.architecture, proxy.corpus, settings, seed=3, device="cpu"))
    size = job.architecture.non_embedding_parameters
    assert loss_of(found) == loss
    assert found.metrics["sized_loss"].value == pytest.approx(loss - 0.19 * math.log(size / 10_000_000))
    half = Job(job.architecture, replace(proxy.fidelity, tokens=2 * 64), seed=3)  # another budget of the same settings
    assert proxy.train(half)[1].tokens == 2 * 64
    proxy.start()
    shutil.rmtree(tmp_path / "cache")
    for asked in (proxy.start, lambda: proxy.train(half)):  # as on another machine
        with pytest.raises(OSError, match=r"the tokens of .*text\.txt on .* is missing"):
            asked()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fidelity": {"batch": 3}}, "these settings cannot train at 4096 tokens, sequence 32, batch 3"),
        ({"fidelity": {"data": "other"}}, "these settings cannot train at"),
    ],
)
def test_a_job_that_the_proxy_cannot_do(corpus: Corpus, changes: dict[str, Any], message: str) -> None:
    proxy = object.__new__(TrainingProxy)  # with this corpus, which is tokenised already
    proxy.settings, proxy.device, proxy.corpus = SMALL, "cpu", corpus
    job = Job(architecture("F"), replace(proxy.fidelity, **changes.get("fidelity", {})), 0)
    with pytest.raises(ValueError, match=message):
        proxy.train(job)


@pytest.mark.parametrize("wrong", [{"twin": 0}, {"tokens": -1}, {"tokens": 10**400}, {"batch": 2**63}])
def test_a_fidelity_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name}: expected a whole number from [01] on, found"):
        Fidelity(**{"tokens": 10, "sequence": 1, "batch": 1, "recipe": "none", "data": "none", **wrong})


def test_what_a_loss_depends_on_is_its_fidelity(corpus: Corpus) -> None:
    fidelity = SMALL.fidelity(corpus.digest, "cpu")
    assert isinstance(fidelity, Fidelity)
    for name, field in TrainingSettings.model_fields.items():
        if name in ("kind", "data", "tokenizer", "rungs", "micro_batch", "recompute", "keep_gb", "size_weight"):
            continue  # the digest of the data is the corpus's; the others leave the loss as it is
        others = {"optimizer": "adamw", "schedule": "cosine", "output_scale": "depth"}
        other = (
            not field.default if isinstance(field.default, bool) else others.get(name) or getattr(SMALL, name) * 2 + 1
        )
        assert SMALL.model_copy(update={name: other}).fidelity(corpus.digest, "cpu").digest != fidelity.digest, name
    assert SMALL.fidelity("other", "cpu") != fidelity
    assert SMALL.fidelity(corpus.digest, "cuda") != fidelity


def test_every_linear_matrix_is_declared_for_weight_norm() -> None:
    model = HybridLM(architecture(EVERY_MIXER))
    for operator in model.operators():
        linear = {f"{name}.weight" for name, module in operator.named_modules() if isinstance(module, nn.Linear)}
        left = linear - set(operator.row_normalised) - set(operator.column_normalised)
        assert all(32 not in operator.get_parameter(name).shape for name in left), left
