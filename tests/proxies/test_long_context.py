"""What a long context is worth to a model."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nfsearch.ops import HybridLM
from nfsearch.proxies import Evaluation, Job
from nfsearch.proxies.long_context import LongContextProxy, LongContextSettings, LongWindows
from nfsearch.proxies.training import TrainingProxy
from nfsearch.space import Architecture
from tests.proxies.small import SMALL, architecture

LENGTH, LETTERS = 300, 6  # of a document, whose letters are its own few ones: the more of it was read, the better


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, rng = tmp_path_factory.mktemp("long") / "text.jsonl", random.Random(0)
    alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    documents = ["".join(rng.choices(rng.sample(alphabet, LETTERS), k=LENGTH)) for _ in range(600)]
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    return path


def proxy_of(text: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> LongContextProxy:
    monkeypatch.setenv("NFSEARCH_CACHE", str(text.parent / "cache"))
    fields = {**SMALL.model_dump(), "kind": "long-context", "data": str(text), "context": 128, **changes}
    return LongContextProxy(LongContextSettings(**fields), "cpu")


def scored(proxy: TrainingProxy, layers: str) -> Evaluation:
    return proxy.evaluate(Job(architecture(layers), proxy.fidelity), lambda *_: None)


def test_who_reads_all_gains_and_who_sees_a_window_does_not(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"tokens": 120 * 16 * 64, "batch": 16, "sequence": 64, "optimizer": "adamw", "validation_tokens": 8000}
    proxy = proxy_of(text, monkeypatch, **settings)
    reads = scored(proxy, "A[head_dim=16]").metrics["long_context"]
    sees = scored(proxy, "A[head_dim=16,window=2]").metrics["long_context"]
    assert reads.value + reads.error < -0.1
    assert abs(sees.value) < 0.04
    assert 0 < sees.error < 0.1


def test_windows_lie_within_documents(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = proxy_of(text, monkeypatch)  # 1000 tokens for validation: three documents, and a part of one
    windows = proxy.windows()
    assert windows.shape == (2 * 3, 129)
    assert 256 not in windows
    assert (windows[::2, -1] == windows[1::2, 0]).all()
    shard = proxy.corpus.tokens("validation")
    assert np.array_equal(windows[2], shard[LENGTH + 1 : LENGTH + 130])
    with pytest.raises(
        ValueError, match=r"proxy\.context: the longest document of .*text\.jsonl for validation has 301"
    ):
        proxy_of(text, monkeypatch, context=301)
    with pytest.raises(ValueError, match="context: expected more than `sequence`, 32, found 32"):
        LongContextSettings(sequence=32, context=32)


def test_no_more_tokens_are_read_at_a_time_than_in_a_step(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = HybridLM(architecture()), []
    monkeypatch.setattr(model, "hidden", lambda tokens: read.append(len(tokens)) or HybridLM.hidden(model, tokens))
    proxy = proxy_of(text, monkeypatch, batch=16)
    parted = proxy.settings.model_copy(update={"micro_batch": 8})
    whole, parts = (proxy.after.measure(model, settings)["long_context"] for settings in (proxy.settings, parted))
    assert read == [4, 2, 2, 2, 2]  # of six windows, each as long as four sequences
    assert (whole.value, whole.error) == pytest.approx((parts.value, parts.error), abs=1e-5)


def test_a_step_that_is_divided_for_want_of_memory_divides_the_windows(
    text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, read = proxy_of(text, monkeypatch, batch=16), []

    def fitted(model: HybridLM, settings: LongContextSettings, *_: Any, after: LongWindows, **__: Any) -> Any:
        assert after.at_once(settings) == 4
        return settings.model_copy(update={"micro_batch": 4})

    def noted(self: LongWindows, model: HybridLM, windows: np.ndarray) -> np.ndarray:
        read.append(len(windows))
        return honest(self, model, windows)

    honest = LongWindows.read
    monkeypatch.setattr("nfsearch.proxies.trainer.fitted", fitted)
    monkeypatch.setattr(LongWindows, "read", noted)
    scored(proxy, "F")
    assert read == [1] * 6


def test_all_else_is_as_the_training_proxy_has_it(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = proxy_of(text, monkeypatch)
    plain = TrainingProxy(SMALL.model_copy(update={"data": str(text)}), "cpu")
    found, known = scored(proxy, "A[head_dim=16] F"), scored(plain, "A[head_dim=16] F")
    assert {name: each for name, each in found.metrics.items() if name != "long_context"} == known.metrics
    assert found.curve == known.curve
    assert proxy.fidelity != plain.fidelity
    assert proxy.fidelity != proxy_of(text, monkeypatch, context=200).fidelity
    one = proxy_of(text, monkeypatch, context=250, validation_tokens=300)
    found = one.evaluate(Job(Architecture.parse("F", width=32, vocab=257), one.fidelity), lambda *_: None)
    assert found.metrics["long_context"].error == float("inf")  # of one window nothing is known
