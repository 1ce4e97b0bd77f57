"""A step of training is that of a plain loop, launched by the host or as one CUDA graph."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from nfsearch.ops import model as model_module
from nfsearch.ops.ffn import FeedForward
from nfsearch.ops.model import HybridLM
from nfsearch.proxies import Evaluation
from nfsearch.proxies import step as step_module
from nfsearch.proxies.data import Corpus, batch
from nfsearch.proxies.optimizers import Optimizers
from nfsearch.proxies.schedule import Schedule
from nfsearch.proxies.step import Step
from nfsearch.proxies.weight_norm import WeightNorm
from nfsearch.space import Architecture
from nfsearch.support.notes import listening
from tests.proxies.small import SMALL, architecture, evaluated, loss_of


class _Replay:
    """Stands in for a CUDA graph of a step: launches it."""

    def __init__(self, step: Step, loss: torch.Tensor) -> None:
        self.step, self.loss, self.replays = step, loss, 0

    def replay(self) -> None:
        self.loss.copy_(self.step._update())
        self.replays += 1


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("eager", [3, math.inf])
def test_steps_are_those_of_a_plain_loop(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, eager: float, optimizer: str
) -> None:
    settings = SMALL.model_copy(update={"weight_decay": 0.1, "optimizer": optimizer})
    windows = [batch(corpus.tokens("train"), 0, number, settings.batch, settings.sequence) for number in range(6)]
    rates = [Schedule.of(settings, 6 * 64).rate(number) for number in range(6)]
    torch.manual_seed(0)
    plain = HybridLM(architecture())
    optimizers = Optimizers(plain, settings)
    project = WeightNorm(plain)
    project()
    expected = []
    for tokens, rate in zip(map(torch.from_numpy, windows), rates, strict=True):
        optimizers.set_rate(rate)
        optimizers.zero_grad()
        loss = plain.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), settings.clip)
        optimizers.step()
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
ON_CUDA = SMALL.model_copy(update={"tokens": 24 * 4 * 512, "sequence": 512, "batch": 4, "learning_rate": 2e-2})


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
