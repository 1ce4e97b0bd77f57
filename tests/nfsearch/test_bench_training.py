"""`nfsearch bench candidate`, and `bench training` of whole models, as dry runs on a CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from nfsearch.bench import library_model
from nfsearch.bench.flops import bf16_peak, training_flops
from nfsearch.bench.library_model import LibraryLM
from nfsearch.bench.race import Setup
from nfsearch.bench.whole import BatchLoss, _Whole
from nfsearch.ops import HybridLM
from nfsearch.ops.ffn import FeedForward
from nfsearch.proxies.step import mean_loss
from nfsearch.space import Architecture
from nfsearch.support import phases
from nfsearch.support.notes import note
from nfsearch.support.phases import phase, watched
from tests.nfsearch.test_bench import Run, bench, entries, hold_together

__all__ = ["bench"]

LAYERS = "A[head_dim=16] A[head_dim=16, window=8, kv_heads=1, rope=0.5, gate=true] F F[act=relu2]"
MODEL = ("training", "--model", LAYERS, "--width", "32", "--vocab", "50",
         "--sequence", "24", "--batch", "6", "--compile", "none")  # fmt: skip


@pytest.fixture
def candidate(tmp_path: Path) -> tuple[str, ...]:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{i}: the quick brown fox jumps over {i % 9} lazy dogs.\n" for i in range(5000)))
    settings = (f"data={text}", "tokens=4096", "sequence=32", "batch=4", "validation_tokens=1000")
    return ("candidate", "A[head_dim=16] F", "--width", "32", *(a for each in settings for a in ("--set", each)))


def test_a_candidate_is_broken_down(bench: Run, candidate: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    found = bench(*candidate, "--profile").candidate
    assert found
    cold, warm = found.passes
    assert list(cold.phases) == ["start", "data", "model", "steps", "validation", "rest"]
    assert set(warm.phases) == set(cold.phases) - {"start"}
    for one in found.passes:
        assert one.seconds == pytest.approx(sum(one.phases.values()))
        assert one.tokens == 4096
        assert one.tokens_per_s == pytest.approx(4096 / one.phases["steps"])
    assert warm.loss == cold.loss
    assert sum(kernel.percent for kernel in found.kernels) == pytest.approx(100)
    assert [kernel.us for kernel in found.kernels[:-1]] == sorted((k.us for k in found.kernels[:-1]), reverse=True)
    assert any("mm" in kernel.name for kernel in found.kernels)
    printed = capsys.readouterr().out
    assert "validation s" in printed
    assert "one launched step" in printed


def test_of_a_narrowed_candidate_all_is_told_of_the_twin(bench: Run, candidate: tuple[str, ...]) -> None:
    found = bench(*candidate[:1], "A[head_dim=32] F", "--width", "64", *candidate[4:], "--set", "narrow=2").candidate
    assert found
    assert (found.notation, found.width) == ("A[head_dim=16] F", 32)
    assert found.parameters == Architecture.parse("A[head_dim=16] F", width=32, vocab=found.vocab).parameters


def test_whole_models_train_beside_library_parts(bench: Run) -> None:
    result = bench(*MODEL)
    (found,) = result.comparisons
    hold_together(found)
    assert entries(found)["library parts"].status == "measured"
    assert "--compile none" in entries(found)["library parts, compiled"].reason
    assert "need a GPU" in entries(found)["library parts, compiled, as one CUDA graph"].reason
    ours, parts = entries(found)["nfsearch"].median_us, entries(found)["library parts"].median_us
    ratio = next(r for r in result.ratios if r.reference == "library parts")
    assert ours
    assert parts
    assert ratio.spread is not None
    assert ratio.speedup == pytest.approx(parts / ours)


def test_the_step_of_the_search_trains_library_parts_alike() -> None:
    architecture = Architecture.parse(LAYERS, width=32, vocab=50)
    whole = _Whole(architecture, 6, 24, Setup("cpu", torch.float32, "none"))
    ours, parts = copy.deepcopy(whole.model), LibraryLM(copy.deepcopy(whole.model), "cpu")
    first = mean_loss(ours, whole.windows).item()
    of_ours = whole._stepping(ours, lambda *_: mean_loss(ours, whole.windows))
    of_parts = whole._stepping(parts.model, lambda *_: whole._loss(parts))
    losses = [[float(step()) for _ in range(3)] for step in (of_ours, of_parts)]  # type: ignore[arg-type]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[1][2] < losses[1][1] < losses[1][0] < first


def test_why_no_graph_was_captured_is_told_with_what_computes() -> None:
    whole = _Whole(Architecture.parse("F", width=32, vocab=50), 2, 8, Setup("cpu", torch.float32, "none"))

    def refused(model: HybridLM, loss: BatchLoss) -> Callable[[], object]:
        note("not one CUDA graph")
        return whole._launched(model, loss)

    racer = whole._library("library parts", lambda net: net, refused)
    racer.check()
    assert racer.path() == "cuBLAS, PyTorch; AdamW"
    racer.work()()
    assert racer.path() == "cuBLAS, PyTorch; AdamW; not one CUDA graph"


def test_a_model_of_library_parts_that_computes_something_else_is_not_timed(
    bench: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = library_model._feed_forward

    def other(op: FeedForward, x: Tensor) -> Tensor:
        return 1.5 * honest(op, x)

    monkeypatch.setitem(library_model._IN_TORCH, FeedForward, other)
    (found,) = bench(*MODEL).comparisons
    assert entries(found)["library parts"].status == "wrong"
    assert entries(found)["nfsearch"].status == "measured"


def test_flops_of_training_are_six_for_each_weight_and_those_of_attention() -> None:
    architecture = Architecture.parse("A[head_dim=16] F", width=32, vocab=64)
    matrices = sum(p.numel() for p in HybridLM(architecture).parameters() if p.ndim == 2)
    attention = 3 * 4 * 32 * (0 + 1 + 2 + 3) / 4  # q k and p v, of the four positions
    assert training_flops(architecture, 4) == 6 * matrices + attention
    assert bf16_peak("NVIDIA H200") == bf16_peak("NVIDIA H100 80GB HBM3") == 989e12
    assert bf16_peak("AMD EPYC") is None


def test_phases_are_timed_without_those_inside_and_only_where_somebody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(phases, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def work(seconds: float) -> None:
        now[0] += seconds

    with phase("unseen"):
        work(1)
    with watched(lambda: work(0.5)) as watch:  # the device has half a second left whenever it is waited for
        with phase("outer"):
            work(10)
            for _ in range(2):
                with phase("inner"):
                    work(100)
        work(3)
    assert watch.times == {"outer": 1, "inner": 2}
    assert watch.seconds == {"rest": 0.5 + 3.5, "outer": 10.5 + 0.5 + 0.5, "inner": 201.0}
