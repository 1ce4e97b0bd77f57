"""Candidates as Hugging Face models, and whatever else needs transformers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nfsearch.bench.model import qwen3
from nfsearch.export import Winner
from nfsearch.export.hub import export_hf
from nfsearch.ops.attention import Attention
from nfsearch.ops.model import HybridLM
from nfsearch.proxies.tokenizers import load_tokenizer
from nfsearch.report.result import RunResult
from nfsearch.run.finished import export_candidate
from nfsearch.space import Architecture
from nfsearch.support.metrics import SECONDS
from tests.fla_stand_in import stand_in
from tests.nfsearch.runs import invented_table, tiny_config

if TYPE_CHECKING:
    from nfsearch.hf import NFSearchForCausalLM

EVERY_OPERATOR = (
    "A[head_dim=16] F D[head_dim=16] M2[head_dim=16,state=16] GDN[head_dim=16] GLA F[act=relu2] A[head_dim=16,window=8]"
)


def unneeded() -> Any:
    raise AssertionError("the weights are given")


@pytest.fixture(scope="module", autouse=True)
def transformers() -> Any:
    """Imported by these tests, not by their file, which every test process imports: it takes five seconds. So whatever
    is held against transformers is in this file, which one process runs."""
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model() -> HybridLM:
    torch.manual_seed(0)
    return HybridLM(Architecture.parse(EVERY_OPERATOR, width=64, vocab=257, meta_tokens=3)).eval()


@pytest.fixture(scope="module")
def folder(model: HybridLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_hf(model, tmp_path_factory.mktemp("hf") / "model", tokenizer="bytes")


@pytest.fixture(scope="module")
def loaded(transformers: Any, folder: Path) -> NFSearchForCausalLM:
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, 256, (3, 19), generator=torch.Generator().manual_seed(1))


def test_loaded_by_its_auto_class_it_is_the_same_model(
    model: HybridLM, loaded: NFSearchForCausalLM, tokens: Tensor
) -> None:
    from nfsearch.hf import NFSearchForCausalLM

    assert isinstance(loaded, NFSearchForCausalLM)
    assert loaded.config.architecture == model.architecture
    assert loaded.config.num_hidden_layers == len(model.architecture.layers)
    assert loaded.config.vocab_size == 257
    assert sum(p.numel() for p in loaded.parameters()) == model.architecture.parameters
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, model(tokens), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_new_process_gives_the_same_logits(model: HybridLM, folder: Path, tokens: Tensor, tmp_path: Path) -> None:
    np.save(tmp_path / "tokens.npy", tokens.numpy())
    code = (
        "import sys, numpy, torch, nfsearch.hf\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "tokens = torch.from_numpy(numpy.load('tokens.npy'))\n"
        "with torch.no_grad():\n"
        "    numpy.save('logits.npy', model(tokens).logits.numpy())\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=tmp_path, check=True)
    with torch.no_grad():
        np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), model(tokens).numpy(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("beams", [1, 3])
def test_generate_is_the_same_with_and_without_the_cache(
    loaded: NFSearchForCausalLM, tokens: Tensor, beams: int
) -> None:
    arguments = dict(max_new_tokens=24, do_sample=False, num_beams=beams, eos_token_id=None)
    with_cache = loaded.generate(tokens, use_cache=True, **arguments)
    assert with_cache.shape == (3, 43)
    assert torch.equal(with_cache, loaded.generate(tokens, use_cache=False, **arguments))


def test_generate_decodes_by_single_steps(
    loaded: NFSearchForCausalLM, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    step = loaded.model.step
    monkeypatch.setattr(loaded.model, "step", lambda *arguments: steps.append(1) or step(*arguments))
    loaded.generate(tokens, max_new_tokens=10, do_sample=False, eos_token_id=None)
    assert len(steps) == 9  # the first new token comes from the prompt


def test_a_cache_that_grew_gives_the_same_logits(loaded: NFSearchForCausalLM, tokens: Tensor) -> None:
    from nfsearch.hf import NFSearchCache

    cache = NFSearchCache(loaded.model, len(tokens), 2)
    with torch.no_grad():
        parts = [loaded(part, past_key_values=cache).logits for part in tokens.split((2, 1, 5, 1, 1, 9), dim=1)]
        expected = loaded.model(tokens)
    assert cache.get_seq_length() == tokens.shape[1]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=1e-4, rtol=0)


def test_loss_is_of_the_next_token_and_can_be_learned_from(loaded: NFSearchForCausalLM, tokens: Tensor) -> None:
    output = loaded(tokens, labels=tokens)
    torch.testing.assert_close(output.loss, loaded.model.loss(tokens[:, :-1], tokens[:, 1:]))
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loaded.parameters())
    loaded.zero_grad()
    some = torch.where(torch.arange(19) < 10, -100, tokens)
    assert loaded(tokens, labels=some).loss != output.loss


def test_padding_is_refused(transformers: Any, loaded: NFSearchForCausalLM, tokens: Tensor) -> None:
    mask = torch.ones_like(tokens)
    loaded(tokens, attention_mask=mask)
    mask[0, 0] = 0
    with pytest.raises(ValueError, match="padding"):
        loaded(tokens, attention_mask=mask)
    with pytest.raises(ValueError, match="padding"):
        loaded.generate(tokens, attention_mask=mask, max_new_tokens=2)
    with pytest.raises(ValueError, match="DynamicCache"):
        loaded(tokens, past_key_values=transformers.DynamicCache())
    with pytest.raises(ValueError, match="input_ids"):
        loaded(inputs_embeds=torch.zeros(1, 2, 64))


def test_the_byte_tokenizer_is_the_one_of_the_search(transformers: Any, folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = "def f():\n\treturn 'Grüße 😀'  # \x00\x7f\u00ad\n"
    ids = tokenizer(text).input_ids
    assert ids == load_tokenizer("bytes").encode([text])[0][:-1].tolist()
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id == 256


def test_saved_again_it_loads_again(
    transformers: Any, loaded: NFSearchForCausalLM, tokens: Tensor, tmp_path: Path
) -> None:
    loaded.save_pretrained(tmp_path / "again")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, loaded(tokens).logits)


def test_the_folder_is_whole_or_absent(
    model: HybridLM, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"config.json", "generation_config.json", "model.safetensors", "README.md"}
    assert {path.name for path in folder.iterdir()} == names | {"tokenizer.json", "tokenizer_config.json"}
    with pytest.raises(FileExistsError, match="model"):
        export_hf(model, folder)
    (tmp_path / "empty").mkdir()
    assert {path.name for path in export_hf(model, tmp_path / "empty").iterdir()} == names
    assert json.loads((tmp_path / "empty" / "config.json").read_text())["eos_token_id"] is None
    monkeypatch.setattr("nfsearch.export.hub._card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_hf(model, tmp_path / "failed")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_the_card_says_what_it_is_and_a_wrong_candidate_is_refused(result: RunResult, tmp_path: Path) -> None:
    record = min(result.in_state("done"), key=lambda record: record.metrics["parameters"].value)
    torch.manual_seed(0)
    other = HybridLM(Architecture.parse("F", width=32, vocab=257))
    winner = Winner(result, record, unneeded, unneeded)
    with pytest.raises(ValueError, match=f"candidate {record.number} is {record.digest}, but the model given is"):
        export_hf(other, tmp_path / "other", winner=winner)
    path = export_hf(HybridLM(winner.architecture), tmp_path / "a", winner=winner)
    card = (path / "README.md").read_text()
    assert f"| parameters | {winner.architecture.parameters:,} |" in card
    assert f"| loss | {record.value('loss'):.4f} nats |" in card
    time = record.metrics["tpot"]
    assert f"| tpot | {SECONDS.words(time.value)} ± {SECONDS.words(time.error, 2)} |" in card
    assert f"| training | {record.fidelity} |" in card
    assert result.run.command in card


def test_an_hf_export_is_the_model_that_the_search_trained(
    transformers: Any, finished_run: Path, tmp_path: Path, command: Callable[..., tuple[str, str]]
) -> None:
    err = command("export", finished_run, "--best", "--to", "hf", "-o", "model")[1]
    assert "are those that the search kept" in err
    shutil.copytree(finished_run, tmp_path / "run", ignore=shutil.ignore_patterns("weights"))
    err = command("export", "run", "--best", "--to", "hf", "-o", "again")[1]
    trained, searched = err.split("loss ")[1].split(", in the search ")
    assert trained == searched.split()[0]
    same, again = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("model", "again"))
    assert same == again
    model = transformers.AutoModelForCausalLM.from_pretrained("model").eval()
    ids = transformers.AutoTokenizer.from_pretrained("model")("import os", return_tensors="pt").input_ids
    assert ids.tolist() == [list(b"import os")]
    cached, plain = (model.generate(ids, max_new_tokens=12, do_sample=False, use_cache=use) for use in (True, False))
    assert torch.equal(cached, plain)
    assert cached.shape[1] == ids.shape[1] + 12


@pytest.mark.slow
def test_a_search_over_foreign_layers_from_its_config_to_an_export(
    transformers: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Callable[..., tuple[str, str]]
) -> None:
    """Over layers of flash-linear-attention, on a stand-in for the package."""
    monkeypatch.setenv("NFSEARCH_CACHE", str(tmp_path / "cache"))
    space = {"width": 32, "where": {}, "layers": "(fla:GatedMemory[num_heads=2,expand_v=1|2] F[ratio=2]){1..2}"}
    with stand_in():
        table = str(invented_table(tmp_path / "layers.parquet", space))
        config = tiny_config(
            tmp_path, space=space, latency={"table": table}, search={"evaluations": 2, "population": 2}
        )
        command("run", config, "--out", "run")
        result = RunResult.load(tmp_path / "run" / "result.json")
        assert [candidate.state for candidate in result.candidates] == ["done"] * 2
        best = min(result.candidates, key=lambda candidate: candidate.metrics["loss"].value)
        assert "fla:GatedMemory[" in best.notation
        export_candidate(tmp_path / "run", "hf", tmp_path / "best", pick=None, max_latency_ms=None)
        assert "pip install '.[hf,fla-layers]'" in (tmp_path / "best" / "README.md").read_text()
        from nfsearch.hf import NFSearchForCausalLM

        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "best").eval()
        assert isinstance(model, NFSearchForCausalLM)
        assert model.config.layers == best.notation
        tokens = torch.tensor([[5, 6, 7]])
        got = model.generate(tokens, max_new_tokens=4, do_sample=False)
        for _ in range(4):
            logits = model(tokens, use_cache=False).logits
            tokens = torch.cat((tokens, logits[:, -1:].argmax(-1)), dim=1)
        assert torch.equal(got, tokens)


@pytest.mark.parametrize(("width", "inner"), [(1024, 3072), (2048, 6144)])
def test_qwen3_of_the_benchmark_has_its_shape(transformers: Any, width: int, inner: int) -> None:
    config = transformers.Qwen3Config(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, vocab_size=151936, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        theirs = transformers.Qwen3ForCausalLM(config)
        ours = qwen3(width)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    attention = next(ours.operators())
    assert isinstance(attention, Attention)
    assert (attention.heads, attention.kv_heads, attention.head_dim) == (16, 8, 128)
