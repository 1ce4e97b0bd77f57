"""What a training needs is known before it starts, and what there is no room or time for is refused."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nfsearch.ops.model import HybridLM
from nfsearch.proxies import Bounds, TooLarge, needs
from nfsearch.proxies.checkpoints import Checkpoints
from nfsearch.proxies.data import Corpus
from nfsearch.proxies.long_context import LongWindows
from nfsearch.proxies.settings import TrainingSettings
from nfsearch.proxies.trainer import train_model
from nfsearch.support.notes import listening
from tests.proxies.needs import compare
from tests.proxies.small import EVERY_MIXER, SMALL, architecture, evaluated

LARGE = SMALL.model_copy(update={"batch": 48, "sequence": 1024})
FIXED, EACH = 1e9, 5e4  # bytes of the faked GPU's memory: whatever is trained, and for each token
READING = 1e5  # bytes for each token that the trained model reads
OPTIMIZER, TOKEN = 0.5, 1e-5  # its seconds
GAPS, BESIDE, STATE = 2e8, 3.0, 7  # bytes held beyond those allocated; of validation, for each token; of the state


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A GPU as a CPU's tests can have it: it has so many bytes of memory, and takes memory and time by a formula."""
    has = {"memory": 10e9}

    def measured(model: HybridLM, settings: TrainingSettings, parts: int, steps: int) -> needs._Rehearsal:
        tokens = settings.batch // parts * settings.sequence
        if (memory := FIXED + EACH * tokens) > has["memory"]:
            raise torch.OutOfMemoryError
        with torch.no_grad():
            model.embedding.weight.add_(1)
        seconds, validation = OPTIMIZER + TOKEN * tokens * parts, TOKEN * tokens / 3
        beside = BESIDE * tokens
        return needs._Rehearsal(tokens, parts, memory - GAPS, memory, seconds, beside, validation, STATE)

    def read(model: HybridLM, after: needs.Afterwards, windows: int) -> float:
        if (memory := FIXED + READING * windows * after.length) > has["memory"]:
            raise torch.OutOfMemoryError
        return memory

    monkeypatch.setattr(needs, "_measured", measured)
    monkeypatch.setattr(needs, "_read", read)
    monkeypatch.setattr(needs, "_READ", READING)
    monkeypatch.setattr(needs, "_REHEARSED", {"cpu": 2**14})
    monkeypatch.setattr(needs, "memory_there", lambda device, share=1.0: share * has["memory"])
    monkeypatch.setattr(needs, "_least", lambda architecture, settings: FIXED)
    return has


def fitted(
    settings: TrainingSettings,
    bounds: Bounds | None = None,
    steps: int = 10,
    after: needs.Afterwards | None = None,
) -> TrainingSettings:
    model = HybridLM(architecture())
    return needs.fitted(model, settings, bounds or Bounds(), steps=steps, validations=1, began=math.inf, after=after)


def windows(length: int, count: int = 100) -> LongWindows:
    return LongWindows(np.zeros((count, length + 1), int), length)


@pytest.mark.parametrize(
    ("memory", "micro"),
    [(4e9, 48), (3.65e9, 48), (3.6e9, 24), (1.5e9, 6), (1.06e9, None)],  # 48 x 1024 tokens: 3.46 GB
)
def test_as_many_sequences_at_a_time_as_fit(gpu: dict[str, float], memory: float, micro: int | None) -> None:
    gpu["memory"] = memory
    model = HybridLM(architecture())
    weights = model.embedding.weight.detach().clone()
    found = needs.predict(model, LARGE, memory, steps=10, validations=1)
    assert torch.equal(weights, model.embedding.weight)
    assert found.micro_batch == (micro or 1)
    assert found.memory == pytest.approx(FIXED + EACH * 1024 * found.micro_batch)
    validation = LARGE.validation_tokens * TOKEN / 3
    assert found.seconds == pytest.approx(10 * (OPTIMIZER + TOKEN * 48 * 1024) + validation)
    with_rungs = needs.predict(model, LARGE, memory, steps=10, validations=3)
    at_once = min(1024 * found.micro_batch, LARGE.validation_tokens)
    assert with_rungs.memory == pytest.approx(found.memory + STATE + BESIDE * at_once)
    if micro is None:
        with pytest.raises(TooLarge, match=r"1 sequence of 1024 tokens at a time needs about 1.1 GB .* 1.1 GB are"):
            fitted(LARGE)


def timed(monkeypatch: pytest.MonkeyPatch, seconds: Iterator[float]) -> float:
    """What is found of runs that take so long, one after the other."""
    now = 0.0

    def run() -> None:
        nonlocal now
        now += next(seconds)

    monkeypatch.setattr(needs.time, "perf_counter", lambda: now)
    return needs._timed(run, torch.device("cpu"))


@pytest.mark.parametrize(
    ("seconds", "said"), [((2.0, 0.5, 9.0, 0.6), 0.6), ((1.0, 0.03, 0.03, 0.5), 0.03), ((0.01, *[0.01] * 5, 3.0), 0.01)]
)
def test_a_step_that_something_else_disturbs_counts_little(
    monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, ...], said: float
) -> None:
    assert timed(monkeypatch, chain(seconds, repeat(said))) == pytest.approx(said)


def test_short_steps_are_timed_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 1 + needs._ROWS * math.ceil(needs._MOMENT / 0.01)
    assert timed(monkeypatch, iter([0.01] * count)) == pytest.approx(0.01)


def test_it_is_told_when_a_step_is_divided(gpu: dict[str, float]) -> None:
    gpu["memory"] = 2e9
    with listening() as said:
        assert fitted(LARGE).micro_batch == 12
    assert list(said) == ["steps were computed 12 of 48 sequences at a time, for want of GPU memory"]
    assert fitted(LARGE, Bounds(share=0.75)).micro_batch == 6


def test_what_does_not_fit_is_refused_by_name(gpu: dict[str, float]) -> None:
    gpu["memory"] = 1.03e9
    with pytest.raises(TooLarge) as error:
        fitted(LARGE)
    name = str(architecture())
    assert str(error.value) == (
        f"{name}: training on 1 sequence of 1024 tokens at a time needs about 1.1 GB of GPU memory, and 1.0 GB are "
        "there: set proxy.recompute: true or a smaller proxy.sequence"
    )
    with pytest.raises(TooLarge, match=r"48 sequences .* needs about 3\.5 GB .* set proxy\.micro_batch: null or"):
        fitted(LARGE.model_copy(update={"micro_batch": 48}))
    with pytest.raises(
        TooLarge, match=r"weights, gradients and what muon keeps need 1\.0 GB of GPU memory, and 0\.5 GB"
    ):
        needs.require_room(architecture(), LARGE, torch.device("cpu"), Bounds(share=0.5))


def test_what_is_read_afterwards_counts_where_it_needs_more(gpu: dict[str, float]) -> None:
    model, asked = HybridLM(architecture()), {"steps": 10, "validations": 1}
    gpu["memory"] = 4e9  # of which the training takes 3.46, and reading 12 windows of 4096 tokens 5.9
    found = needs.predict(model, LARGE, 4e9, after=windows(4096), **asked)
    assert (found.micro_batch, found.memory) == (24, pytest.approx(FIXED + READING * 6 * 4096))
    assert found.afterwards == found.memory
    few = needs.predict(model, LARGE, 4e9, after=windows(4096, count=2), **asked)
    assert (few.micro_batch, few.memory) == (48, pytest.approx(FIXED + EACH * 48 * 1024))
    assert few.afterwards == pytest.approx(FIXED + READING * 2 * 4096)
    assert fitted(LARGE, after=windows(4096)).micro_batch == 24


def test_windows_that_do_not_fit_are_refused_by_name(gpu: dict[str, float]) -> None:
    gpu["memory"] = 4.3e9
    name = str(architecture())
    with pytest.raises(TooLarge) as error:
        fitted(LARGE, after=windows(2**15))
    assert str(error.value) == (
        f"{name}: reading 1 window of 32768 tokens at a time needs about 4.3 GB of GPU memory, and 4.3 GB are there: "
        "set a smaller proxy.context"
    )
    with pytest.raises(TooLarge, match=r"reading 12 windows of 4096 tokens .* set proxy\.micro_batch: null or a"):
        fitted(LARGE.model_copy(update={"micro_batch": 48}), after=windows(4096))
    with pytest.raises(TooLarge, match=r"no room to read a window of 65536 tokens: set a smaller proxy\.context"):
        fitted(LARGE, after=windows(2**16))


def test_what_takes_too_long_is_refused_with_both_figures(gpu: dict[str, float]) -> None:
    model = HybridLM(architecture())
    asked = {"steps": 7200, "validations": 1, "began": time.perf_counter()}
    with pytest.raises(TooLarge, match=r"about 7,\d\d\d s \(1 h 5\d min\) for 7,200 steps .*timeout_s is 600: raise"):
        needs.fitted(model, LARGE, Bounds(seconds=600), **asked)
    assert needs.fitted(model, LARGE, Bounds(seconds=8000), **asked) == LARGE.model_copy(update={"micro_batch": 48})


def test_a_training_that_takes_too_long_is_refused_before_it_starts(corpus: Corpus) -> None:
    reports: list[int] = []
    with pytest.raises(TooLarge, match=r"for 64 steps here, and workers\.timeout_s is 0\.001"):
        train_model(
            architecture(),
            corpus,
            SMALL,
            seed=0,
            device="cpu",
            bounds=Bounds(seconds=1e-3),
            report=lambda tokens, loss: reports.append(tokens),
        )
    assert not reports


def test_a_rehearsal_changes_nothing(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = architecture(EVERY_MIXER, meta_tokens=2)
    plain = evaluated(layers, corpus, SMALL, seed=3, device="cpu")
    rehearsed: list[needs.Needs] = []
    honest = needs.predict

    def predict(*arguments: Any, **named: Any) -> needs.Needs:
        rehearsed.append(honest(*arguments, **named))
        return rehearsed[-1]

    monkeypatch.setattr(needs, "predict", predict)
    monkeypatch.setattr(needs, "_SLOW", {"cpu": 1.0})
    found = evaluated(layers, corpus, SMALL, seed=3, device="cpu", bounds=Bounds(seconds=1000))
    assert len(rehearsed) == 1
    assert (found.metrics, found.curve) == (plain.metrics, plain.curve)
    assert rehearsed[0].seconds > 0


def test_what_is_left_of_a_training_counts(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[tuple[int, int]] = []

    def fitted(model: HybridLM, settings: TrainingSettings, bounds: Bounds, **rest: Any) -> TrainingSettings:
        left.append((rest["steps"], rest["validations"]))
        return settings

    monkeypatch.setattr("nfsearch.proxies.trainer.fitted", fitted)
    for tokens, rungs in ((1280, ()), (2560, (1280,)), (2560, (640, 1280))):  # steps of 64 tokens: 20, 40; 10
        settings = SMALL.model_copy(update={"rungs": rungs})
        evaluated(
            architecture(), corpus, settings, seed=0, device="cpu", tokens=tokens, checkpoints=Checkpoints(tmp_path)
        )
    assert left == [(20, 1), (40 - 16, 1), (40 + 2, 2)]


@pytest.mark.parametrize(
    ("near", "far", "whole"),  # GB allocated and needed on 8k and 16k tokens, GB needed on 64k; of width 128, 640, 1152
    [
        ((0.624, 1.084), (0.820, 1.317), 2.380),
        ((4.609, 5.199), (7.994, 9.141), 30.170),
        ((8.672, 10.106), (13.404, 14.839), 43.631),
    ],
)
def test_memory_is_carried_on_as_an_h200_needed_it(
    near: tuple[float, float], far: tuple[float, float], whole: float
) -> None:
    found = [
        needs._Rehearsal(tokens, 2, allocated, needed, seconds=1.0, beside=0.0, validation=0.0, state=0)
        for tokens, (allocated, needed) in ((2**14, far), (2**13, near))
    ]
    assert needs._memory(found, 2**16) == pytest.approx(whole, rel=0.06)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_predictions_hold_on_a_gpu(corpus: Corpus) -> None:
    settings = SMALL.model_copy(update={"batch": 128, "sequence": 512, "tokens": 12 * 128 * 512})
    found = architecture("(A F D F M2 F){2}", width=512)
    predicted, real = compare(found, corpus, settings)
    assert real.memory == pytest.approx(predicted.memory, rel=0.1)
    # `python -m tests.proxies.needs` compares the seconds: here other tests may share the GPU.


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_predictions_of_what_is_read_afterwards_hold_on_a_gpu(corpus: Corpus) -> None:
    settings = SMALL.model_copy(update={"batch": 128, "sequence": 512, "tokens": 12 * 128 * 512})
    found = architecture("A F D F", width=256, vocab=100_000)
    predicted, real = compare(found, corpus, settings, windows(4096, count=16))
    assert predicted.memory == predicted.afterwards
    assert real.memory == pytest.approx(predicted.memory, rel=0.1)
