"""Layers of the real flash-linear-attention on a CUDA device."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from nfsearch.latency_lut.keys import Key
from nfsearch.latency_lut.profiler import Profiler
from nfsearch.ops.decoder import Decoder
from nfsearch.ops.model import HybridLM
from nfsearch.ops.what_runs import check
from nfsearch.proxies.data import prepare
from nfsearch.proxies.settings import TrainingSettings
from nfsearch.proxies.trainer import train_model
from nfsearch.space import Architecture, Layer
from nfsearch.testing.operators import HALF, OperatorSuite, agree


def _installed() -> bool:
    try:
        return bool(version("flash-linear-attention"))
    except PackageNotFoundError:
        return False


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(not _installed(), reason="needs flash-linear-attention"),
]


@pytest.fixture(autouse=True, scope="module")
def _one_configuration() -> Iterator[None]:
    """Each kernel in the first configuration that fits: what is tested is the adapter, and tuning takes minutes."""
    from triton.runtime.autotuner import Autotuner

    prune = Autotuner.prune_configs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Autotuner, "prune_configs", lambda tuner, arguments: prune(tuner, arguments)[:1])
        yield


KDA = Layer.of("fla:KimiDeltaAttention", num_heads=2, head_dim=32)


class Suite(OperatorSuite):
    widths = (64,)
    lengths = (1, 7, 64, 65, 130)
    splits = ((5, 12), (33, 34), (3, 70))
    gradient_lengths = (67,)
    devices = ("cuda",)
    tolerances: ClassVar = {torch.bfloat16: HALF, torch.float32: 1e-2}  # products in TF32


class TestKimiDeltaAttention(Suite):
    layers = (KDA,)


class TestHGRN2(Suite):
    layers = (Layer.of("fla:HGRN2Attention", expand_ratio=32),)


class TestRWKV7(Suite):
    layers = (Layer.of("fla:RWKV7Attention", head_dim=32),)


@torch.no_grad()
def test_the_captured_step_continues_the_prompt() -> None:
    architecture = Architecture.parse(f"{KDA} F", width=64, vocab=100, meta_tokens=3)
    check(architecture.layers, [64], "cuda", decode=True)
    torch.manual_seed(0)
    model = HybridLM(architecture).to("cuda", torch.bfloat16)
    model.embedding.weight.mul_(20)
    tokens = torch.randint(100, (2, 90), device="cuda")
    decoder = Decoder(model, batch=2, max_length=90)
    decoder.prefill(tokens[:, :70])
    got = torch.stack([decoder.step(token).clone() for token in tokens[:, 70:].unbind(1)], dim=1)
    agree(got, model(tokens)[:, 70:], 5e-2, "logits of 20 replayed steps")


def test_the_search_trains_it(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{i}: the quick brown fox jumps over {i % 9} lazy dogs.\n" for i in range(5000)))
    settings = TrainingSettings(
        data=str(text), tokens=2**14, sequence=128, batch=4, learning_rate=1e-2, validation_tokens=1000
    )
    corpus = prepare(settings, tmp_path / "cache")
    architecture = Architecture.parse(f"{KDA} F", width=64, vocab=257)
    scores = [train_model(architecture, corpus, settings, seed=0, device="cuda")[1] for _ in range(2)]
    assert scores[0].metrics["loss"].value < scores[0].curve[0][1] - 1.5
    assert scores[0].curve == scores[1].curve


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_the_latency_table_measures_it(phase: str) -> None:
    row = Profiler("cuda").measure(Key(phase, "bfloat16", 1, 64, str(KDA), 128 if phase == "prefill" else 0))
    assert row.latency_ms is not None
    assert 0 < row.latency_ms < 10


def test_a_layer_that_asks_for_its_position_is_not_captured() -> None:
    layer = Layer.of("fla:MultiScaleRetention", num_heads=2)
    with pytest.raises(ValueError, match="fla:MultiScaleRetention asks for its position on the host"):
        check([layer], [64], "cuda", decode=True)
    check([layer], [64], "cuda", decode=False)
    model = HybridLM(Architecture.parse(f"{layer} F", width=64, vocab=100)).to("cuda", torch.bfloat16)
    with pytest.raises(ValueError, match="cannot be captured in a CUDA graph"), torch.no_grad():
        Decoder(model, batch=1, max_length=4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ForgettingAttention", "keeps keys and values, which grow"),
        ("StickBreakingAttention", "keeps no state: NotImpl"),
    ],
)
def test_a_layer_that_cannot_decode_says_so(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"fla:{name} {message}"):
        check([Layer.of(f"fla:{name}", num_heads=2)], [64], "cuda", decode=True)
