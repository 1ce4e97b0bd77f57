"""Short training: it learns, it repeats, it projects, and it says what went wrong."""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nfsearch.ops import model as model_module
from nfsearch.ops.ffn import FeedForward
from nfsearch.ops.model import HybridLM
from nfsearch.proxies import Evaluation, Fidelity, Job, trainer
from nfsearch.proxies import step as step_module
from nfsearch.proxies.data import Corpus, batch, prepare
from nfsearch.proxies.settings import TrainingSettings
from nfsearch.proxies.step import Step, optimizer
from nfsearch.proxies.trainer import Diverged, learning_rate, train_model
from nfsearch.proxies.training import TrainingProxy
from nfsearch.proxies.weight_norm import WeightNorm
from nfsearch.space import Architecture, SpaceSettings
from nfsearch.support.notes import listening

SMALL = TrainingSettings(tokens=64 * 64, sequence=32, batch=2, learning_rate=1e-2, validation_tokens=1000)
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


def evaluated(*arguments: Any, **named: Any) -> Evaluation:
    return train_model(*arguments, **named)[1]


def loss_of(found: Evaluation) -> float:
    return found.metrics["loss"].value


@pytest.mark.parametrize("weight_norm", [True, False])
def test_loss_falls_and_the_evaluation_is_complete(corpus: Corpus, weight_norm: bool) -> None:
    settings = SMALL.model_copy(update={"weight_norm": weight_norm})
    seen: list[tuple[int, float]] = []
    found = evaluated(architecture(), corpus, settings, seed=0, device="cpu", report=lambda *pair: seen.append(pair))
    loss = loss_of(found)
    assert found.curve[0][1] > 5
    assert loss < found.curve[0][1] - 1.5
    assert list(found.metrics) == [metric.name for metric in TrainingProxy.metrics]
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


def test_decay_touches_only_matrices() -> None:
    model = HybridLM(architecture(EVERY_MIXER, meta_tokens=3))
    decayed, free = optimizer(model, SMALL.model_copy(update={"weight_decay": 0.1}), torch.tensor(0.1)).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert all(parameter.ndim == 2 for parameter in decayed["params"])
    kept = {names[id(parameter)] for parameter in free["params"]}
    assert {"embedding.weight", "meta", "norm.weight", "blocks.0.norm.weight"} <= kept
    assert not any("qkv" in name for name in kept)
    assert len(decayed["params"]) + len(free["params"]) == len(names)


def test_learning_rate_rises_then_falls_to_a_tenth() -> None:
    settings = TrainingSettings(learning_rate=1.0, warmup=0.1)
    rates = [learning_rate(settings, step, 100) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert 0 < rates[0] < 0.2
    assert rates[10] == max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)
    assert learning_rate(settings, 0, 1) == 1.0


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
    assert found.metrics == evaluated(job.architecture, proxy.corpus, settings, seed=3, device="cpu").metrics
    half = Job(job.architecture, replace(proxy.fidelity, tokens=2 * 64), seed=3)  # another budget of the same settings
    assert proxy.train(half)[1].tokens == 2 * 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fidelity": {"batch": 3}}, "these settings cannot train at 4096 tokens, sequence 32, batch 3"),
        ({"fidelity": {"data": "other"}}, "these settings cannot train at"),
        ({"continues": "0123"}, "training starts anew"),
    ],
)
def test_a_job_that_the_proxy_cannot_do(corpus: Corpus, changes: dict[str, Any], message: str) -> None:
    proxy = object.__new__(TrainingProxy)  # with this corpus, which is tokenised already
    proxy.settings, proxy.device, proxy.corpus = SMALL, "cpu", corpus
    job = Job(architecture("F"), replace(proxy.fidelity, **changes.get("fidelity", {})), 0, changes.get("continues"))
    with pytest.raises(ValueError, match=message):
        proxy.train(job)


def test_what_a_loss_depends_on_is_its_fidelity(corpus: Corpus) -> None:
    fidelity = SMALL.fidelity(corpus.digest, "cpu")
    assert isinstance(fidelity, Fidelity)
    for name, field in TrainingSettings.model_fields.items():
        if name in ("kind", "data", "tokenizer"):
            continue  # their digest is the corpus's
        other = not field.default if isinstance(field.default, bool) else getattr(SMALL, name) * 2 + 1
        assert SMALL.model_copy(update={name: other}).fidelity(corpus.digest, "cpu").digest != fidelity.digest, name
    assert SMALL.fidelity("other", "cpu") != fidelity
    assert SMALL.fidelity(corpus.digest, "cuda") != fidelity


def test_every_linear_matrix_is_declared_for_weight_norm() -> None:
    model = HybridLM(architecture(EVERY_MIXER))
    for operator in model.operators():
        linear = {f"{name}.weight" for name, module in operator.named_modules() if isinstance(module, nn.Linear)}
        left = linear - set(operator.row_normalised) - set(operator.column_normalised)
        assert all(32 not in operator.get_parameter(name).shape for name in left), left


class _Replay:
    """Stands in for a CUDA graph of a step: launches it."""

    def __init__(self, step: Step, loss: torch.Tensor) -> None:
        self.step, self.loss, self.replays = step, loss, 0

    def replay(self) -> None:
        self.loss.copy_(self.step._update())
        self.replays += 1


@pytest.mark.parametrize("eager", [3, math.inf])
def test_steps_are_those_of_a_plain_loop(corpus: Corpus, monkeypatch: pytest.MonkeyPatch, eager: float) -> None:
    settings = SMALL.model_copy(update={"weight_decay": 0.1})
    windows = [batch(corpus.tokens("train"), 0, number, settings.batch, settings.sequence) for number in range(6)]
    rates = [learning_rate(settings, number, 6) for number in range(6)]
    torch.manual_seed(0)
    plain = HybridLM(architecture())
    adam = optimizer(plain, settings, torch.tensor(0.0))
    project = WeightNorm(plain)
    project()
    expected = []
    for tokens, rate in zip(map(torch.from_numpy, windows), rates, strict=True):
        for group in adam.param_groups:
            group["lr"] = rate
        adam.zero_grad()
        loss = plain.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), settings.clip)
        adam.step()
        project()
        expected.append(loss.item())

    def capture(step: Step) -> None:
        graphs.append(_Replay(step, torch.zeros(())))
        step._captured = graphs[-1], graphs[-1].loss  # type: ignore[assignment]

    graphs: list[_Replay] = []
    monkeypatch.setattr(Step, "_capture", capture)
    torch.manual_seed(0)
    model = HybridLM(architecture())
    step = Step(model, settings, eager)
    losses = [step(tokens, rate) for tokens, rate in zip(windows, rates, strict=True)]
    assert [loss.item() for loss in losses] == expected
    assert [graph.replays for graph in graphs] == ([3] if eager == 3 else [])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


# --- on CUDA ---------------------------------------------------------------------------------------------------------


def on_a_gpu(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")(test))


LAYERS = "A[head_dim=32] D[head_dim=32] F GDN[head_dim=32] GLA A[head_dim=32, window=64] M2[head_dim=32]"
ON_CUDA = SMALL.model_copy(update={"tokens": 24 * 4 * 512, "sequence": 512, "batch": 4, "learning_rate": 3e-3})


def on_cuda(layers: str = LAYERS) -> Architecture:
    return Architecture.parse(layers, width=64, vocab=257, meta_tokens=4)


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[torch.cuda.CUDAGraph]:
    """The graph of every replay."""
    seen: list[torch.cuda.CUDAGraph] = []
    honest = torch.cuda.CUDAGraph.replay

    def replay(graph: torch.cuda.CUDAGraph) -> None:
        seen.append(graph)
        honest(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", replay)
    return seen


def launched(layers: str, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> Evaluation:
    """What a run without a graph gives."""
    with monkeypatch.context() as patch:
        patch.setattr(step_module, "_FEWEST", math.inf)
        return evaluated(on_cuda(layers), corpus, ON_CUDA, seed=5, device="cuda")


@on_a_gpu
@pytest.mark.parametrize("logits_at_once", [1 << 25, 257 * 1000])  # all together, and slices that are computed again
def test_a_graph_trains_as_launches_do(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, replays: list[torch.cuda.CUDAGraph], logits_at_once: int
) -> None:
    monkeypatch.setattr(model_module, "_LOGITS_AT_ONCE", logits_at_once)
    expected = launched(LAYERS, corpus, monkeypatch)
    assert not replays
    found = evaluated(on_cuda(), corpus, ON_CUDA, seed=5, device="cuda")
    assert len(replays) == 24 - 3
    assert len(set(map(id, replays))) == 1
    assert (found.metrics, found.curve) == (expected.metrics, expected.curve)
    assert loss_of(found) < found.curve[0][1] - 1


@on_a_gpu
def test_short_runs_have_no_graph(corpus: Corpus, replays: list[torch.cuda.CUDAGraph]) -> None:
    evaluated(on_cuda("F"), corpus, ON_CUDA.model_copy(update={"tokens": 9 * 4 * 512}), seed=0, device="cuda")
    assert not replays


@on_a_gpu
def test_memory_is_given_back(corpus: Corpus) -> None:
    held = []
    for _ in range(3):
        evaluated(on_cuda(), corpus, ON_CUDA, seed=0, device="cuda")
        gc.collect()
        torch.cuda.empty_cache()
        held.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    assert held[2] == held[1]  # the first run leaves the workspaces of libraries


@on_a_gpu
def test_memory_is_given_back_where_a_run_is_stopped(corpus: Corpus) -> None:
    def stop(tokens: int, loss: float) -> None:
        if tokens == 20 * 4 * 512:
            raise StopIteration

    evaluated(on_cuda(), corpus, ON_CUDA, seed=0, device="cuda")
    gc.collect()
    before = torch.cuda.memory_allocated()
    with pytest.raises(StopIteration) as stopped:
        evaluated(on_cuda(), corpus, ON_CUDA, seed=0, device="cuda", report=stop)
    del stopped
    gc.collect()
    assert torch.cuda.memory_allocated() == before


def _reads(x: torch.Tensor) -> None:
    x.sum().item()


def _waits(x: torch.Tensor) -> None:
    torch.cuda.synchronize()


def _refuses(x: torch.Tensor) -> None:
    if torch.cuda.is_current_stream_capturing():
        raise ValueError("not in a graph")


@on_a_gpu
@pytest.mark.parametrize(
    ("disturb", "reason"), [(_reads, "synchroniz"), (_waits, "captur"), (_refuses, "ValueError: not in a graph")]
)
def test_what_cannot_be_captured_is_launched(
    corpus: Corpus,
    monkeypatch: pytest.MonkeyPatch,
    replays: list[torch.cuda.CUDAGraph],
    disturb: Callable[[torch.Tensor], None],
    reason: str,
) -> None:
    layers = "D[head_dim=32] F A[head_dim=32]"
    expected = launched(layers, corpus, monkeypatch)
    honest = FeedForward.forward

    def forward(self: FeedForward, x: torch.Tensor, *rest: object) -> torch.Tensor:
        disturb(x)
        return honest(self, x)

    with monkeypatch.context() as patch, listening() as said:
        patch.setattr(FeedForward, "forward", forward)
        found = evaluated(on_cuda(layers), corpus, ON_CUDA, seed=5, device="cuda")
    assert (found.metrics, found.curve) == (expected.metrics, expected.curve)
    assert not replays
    (message,) = [text for text in said if "could not be one CUDA graph" in text]
    assert reason in message
    # The process is as good as before: memory goes back, numbers can be drawn, graphs can be captured.
    torch.cuda.empty_cache()
    assert torch.rand(8, device="cuda").isfinite().all()
    again = evaluated(on_cuda(layers), corpus, ON_CUDA, seed=5, device="cuda")
    assert len(replays) == 24 - 3
    assert (again.metrics, again.curve) == (expected.metrics, expected.curve)


@on_a_gpu
def test_same_seed_same_losses_on_cuda(corpus: Corpus) -> None:
    torch.rand(8, 8, device="cuda") @ torch.rand(8, 8, device="cuda")
    first, again = (evaluated(on_cuda(), corpus, ON_CUDA, seed=5, device="cuda") for _ in range(2))
    assert (again.metrics, again.curve) == (first.metrics, first.curve)
    assert not torch.are_deterministic_algorithms_enabled()
    assert "bf16" in ON_CUDA.fidelity(corpus.digest, "cuda").recipe
