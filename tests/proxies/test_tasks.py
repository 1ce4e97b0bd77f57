"""Synthetic tasks: what they ask, that attention learns to answer and a model without memory does not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from nfsearch.proxies import Evaluation, Job
from nfsearch.proxies.copying import CompressionProxy, SelectiveCopyingProxy
from nfsearch.proxies.recall import InContextRecallProxy, MqarProxy, MqarSettings
from nfsearch.proxies.task_proxy import TaskProxy
from nfsearch.proxies.task_trainer import StandIn, share
from nfsearch.proxies.tasks import UNASKED
from nfsearch.proxies.trainer import Diverged
from nfsearch.proxies.zero_cost import ZeroCostProxy, ZeroCostSettings, flops_per_token
from nfsearch.space import Architecture, SpaceSettings
from nfsearch.support.notes import listening
from tests.proxies.small import architecture

EASY = {"pairs": 3, "sequence": 9, "symbols": 7, "examples": 64 * 240, "batch": 64, "test": 128}


def proxy_of(kind: type[TaskProxy], device: str = "cpu", **settings: Any) -> TaskProxy:
    made = kind.Settings(**settings)
    return kind(made, device)  # type: ignore[arg-type]


def drawn(proxy: TaskProxy, count: int = 50, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, places and answers."""
    rows = proxy.draw(count, torch.Generator().manual_seed(seed))
    length = proxy.settings.sequence
    assert rows.shape == (count, length + 2 * proxy.settings.asked)
    assert rows.dtype == torch.int64
    tokens, places, answers = rows.split((length, proxy.settings.asked, proxy.settings.asked), dim=1)
    assert set(tokens.unique().tolist()) <= set(range(proxy.vocab))
    return tokens, places, answers


def scored(proxy: TaskProxy, layers: str, seed: int = 0) -> Evaluation:
    return proxy.evaluate(Job(architecture(layers), proxy.fidelity, seed))


def test_mqar_asks_for_every_value_once_where_its_key_comes_again() -> None:
    tokens, places, answers = drawn(proxy_of(MqarProxy, pairs=5, sequence=24, symbols=21))
    for row, asked, wanted in zip(tokens.tolist(), places.tolist(), answers.tolist(), strict=True):
        told = dict(zip(row[0:10:2], row[1:10:2], strict=True))
        assert len(told) == len(set(asked)) == 5
        assert min(asked) >= 10
        assert [told[row[place]] for place in asked] == wanted
        assert {row[place] for place in asked} == set(told)
        assert all(row[place] == 0 for place in range(10, 24) if place not in asked)


def test_questions_of_mqar_come_rather_near() -> None:
    _, places, _ = drawn(proxy_of(MqarProxy, pairs=4, sequence=128, symbols=21), count=500)
    assert (places < 8 + 60).float().mean() > 0.6


def test_in_context_recall_asks_for_what_was_told() -> None:
    tokens, places, answers = drawn(proxy_of(InContextRecallProxy, sequence=21, symbols=8))
    counted = 0
    for row, asked, wanted in zip(tokens.tolist(), places.tolist(), answers.tolist(), strict=True):
        told: dict[int, int] = {}
        for place, answer in zip(asked, wanted, strict=True):
            assert answer == told.get(row[place], UNASKED)
            assert told.setdefault(row[place], row[place + 1]) == row[place + 1]
            counted += answer != UNASKED
    assert counted > 250


def test_selective_copying_asks_for_the_tokens_in_their_order() -> None:
    tokens, places, answers = drawn(proxy_of(SelectiveCopyingProxy, sequence=20, copied=4, symbols=7))
    for row, asked, wanted in zip(tokens.tolist(), places.tolist(), answers.tolist(), strict=True):
        assert asked == [16, 17, 18, 19]
        assert [row[place] for place in asked] == [1] * 4
        assert [token for token in row if token > 1] == wanted


def test_compression_asks_for_everything_at_one_place() -> None:
    proxy = proxy_of(CompressionProxy, sequence=9, symbols=5)
    tokens, places, answers = drawn(proxy)
    assert (places == 8).all()
    assert torch.equal(tokens[:, :8], answers)
    assert (tokens[:, 8] == 0).all()
    # Answers at different places are told apart, though all are read at the same one.
    logits, _ = StandIn(architecture("A[head_dim=16]", vocab=5), proxy).asked(torch.cat((tokens, places, answers), 1))
    assert logits.shape == (50 * 8, 5)
    assert not torch.equal(logits[0], logits[1])


@pytest.mark.slow
def test_attention_learns_mqar_and_layers_without_memory_stay_at_chance() -> None:
    proxy = proxy_of(MqarProxy, **EASY)
    with listening() as said:
        attention = scored(proxy, "A[head_dim=16,kv_heads=2]{2}")
    assert not said
    assert attention.metrics["mqar"].value < 0.02
    assert attention.curve[-1][1] < 0.3
    with listening() as said:
        no_memory = scored(proxy, "F[ratio=2]{2}")
    (note,) = said
    assert note.startswith("mqar: no better than guessing (0.667 wrong)")
    assert no_memory.metrics["mqar"].value == pytest.approx(2 / 3, abs=0.08)  # one of three values, whatever is told
    assert no_memory.curve[-1][1] == pytest.approx(math.log(3), abs=0.1)


def test_a_window_does_not_reach_what_is_further_away() -> None:
    proxy = proxy_of(SelectiveCopyingProxy, sequence=16, copied=2, symbols=6, examples=64 * 60, batch=64, test=128)
    found = scored(proxy, "A[head_dim=16,window=2]").metrics["selective_copying"]
    assert found.value == pytest.approx(3 / 4, abs=0.12)


def test_compression_is_learned() -> None:
    proxy = proxy_of(CompressionProxy, sequence=4, symbols=4, examples=64 * 160, batch=64, test=128)
    assert scored(proxy, "M2[head_dim=16,state=16]").metrics["compression"].value < 0.2  # chance: 2/3


def test_the_error_bar_is_that_of_so_many_answers() -> None:
    assert share(0, 100).value == 0
    assert share(0, 100).error == pytest.approx(0.0185, abs=1e-4)
    assert share(500, 1000).error == pytest.approx(1.96 * math.sqrt(0.25 / 1000), rel=0.01)
    assert share(100, 100).error > 0


def test_the_stand_in_is_narrow_and_has_the_vocabulary_of_the_task() -> None:
    proxy = proxy_of(MqarProxy, **{**EASY, "examples": 64, "narrow": 2})
    assert proxy.fidelity.twin == 2
    wide = Architecture.parse("A[head_dim=32]", width=64, vocab=50_000)
    assert 0 <= proxy.evaluate(Job(wide, proxy.fidelity)).metrics["mqar"].value <= 1
    space = SpaceSettings(width=[48], layers="A[head_dim=16]").build(300)
    with pytest.raises(ValueError, match=r"mqar.narrow: designs of width 48 cannot be narrowed 5 times"):
        proxy_of(MqarProxy, narrow=5).check(space)


def test_what_decides_a_score_decides_the_fidelity() -> None:
    known = proxy_of(MqarProxy).fidelity
    for change in (
        {"pairs": 32},
        {"symbols": 512},
        {"examples": 5},
        {"learning_rate": 1e-3},
        {"test": 9},
        {"batch": 4},
    ):
        assert proxy_of(MqarProxy, **change).fidelity != known
    assert proxy_of(MqarProxy, device="cuda").fidelity != known
    with pytest.raises(ValueError, match="these settings cannot train at"):
        proxy_of(MqarProxy).evaluate(Job(architecture(), proxy_of(MqarProxy, pairs=8).fidelity))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pairs": 100}, "sequence: 100 pairs and the questions for them take 300 tokens, found 256"),
        ({"symbols": 128}, "symbols: 64 pairs take at least 129 different tokens, found 128"),
    ],
)
def test_impossible_tasks_are_refused(settings: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MqarSettings(**settings)  # type: ignore[arg-type]


def test_a_loss_that_is_not_finite_gives_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    head = StandIn.head
    monkeypatch.setattr(StandIn, "head", lambda *given: head(*given) * math.nan)
    with pytest.raises(Diverged, match="the training loss is nan at step 5"):
        scored(proxy_of(MqarProxy, **EASY), "F[ratio=2]")


def test_zero_cost_figures() -> None:
    proxy = ZeroCostProxy(ZeroCostSettings(sequence=16, batch=2), "cpu")
    model = architecture("F[ratio=2] A[head_dim=16,window=4]")
    found = proxy.evaluate(Job(model, proxy.fidelity), lambda *_: None).metrics
    assert found["depth"].value == 2
    # Two for each weight of head, FFN and attention's projections, and four for each value of the four tokens seen.
    weights = model.parameters - 3 * 32
    assert found["flops_per_token"].value == pytest.approx(2 * weights + 4 * 32 * 4, rel=0.02)
    assert flops_per_token(model, 16) == flops_per_token(model, 1000)
    assert found["gradient_norm"].value > 0
    other = proxy.evaluate(Job(model, proxy.fidelity, seed=1), lambda *_: None).metrics
    assert other["gradient_norm"] != found["gradient_norm"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("kind", [MqarProxy, InContextRecallProxy, SelectiveCopyingProxy, CompressionProxy])
def test_on_cuda_a_step_is_one_graph_and_scores_repeat(kind: type[TaskProxy], caplog: pytest.LogCaptureFixture) -> None:
    proxy = proxy_of(
        kind,
        device="cuda",
        sequence=32,
        symbols=32,
        examples=32 * 40,
        batch=32,
        test=64,
        **({"pairs": 8} if kind is MqarProxy else {"copied": 8} if kind is SelectiveCopyingProxy else {}),
    )
    first = scored(proxy, "A[head_dim=16] F[ratio=2] M2[head_dim=16,state=16]")
    again = scored(proxy, "A[head_dim=16] F[ratio=2] M2[head_dim=16,state=16]")
    assert (again.metrics, again.curve) == (first.metrics, first.curve)
    assert "could not be one CUDA graph" not in caplog.text
