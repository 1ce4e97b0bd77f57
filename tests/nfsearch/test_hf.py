"""Candidates as folders that transformers opens, and back; and whatever else needs transformers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nfsearch import hf
from nfsearch.bench.model import qwen3
from nfsearch.export import Winner
from nfsearch.export import folder as folder_module
from nfsearch.export.hub import CODE, HubExporter
from nfsearch.export.nemotron_h import NemotronHExporter
from nfsearch.ops.attention import Attention
from nfsearch.ops.model import HybridLM
from nfsearch.proxies.tokenizers import load_tokenizer
from nfsearch.report.result import RunResult
from nfsearch.run.config import load_config
from nfsearch.run.finished import export_candidate
from nfsearch.space import Architecture
from nfsearch.space.notation import parse_layers
from nfsearch.support.metrics import SECONDS
from tests.fla_stand_in import stand_in
from tests.nfsearch.runs import invented_table, tiny_config

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
EVERY_OPERATOR = (
    "A[head_dim=16] F D[head_dim=16] M2[head_dim=16,state=16] GDN[head_dim=16] GLA F[act=relu2] "
    "C A[head_dim=16,window=8]"
)
export_hf = HubExporter().write


def unneeded() -> Any:
    raise AssertionError("the weights are given")


@pytest.fixture(scope="module", autouse=True)
def transformers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Imported by these tests, not by their file, which every test process imports: it takes five seconds. So whatever
    is held against transformers is in this file and the next, each of which one process runs."""
    found = pytest.importorskip("transformers")
    with pytest.MonkeyPatch.context() as patch:
        modules = str(tmp_path_factory.mktemp("modules"))  # where transformers copies the code of folders to
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules)
        yield found
        sys.path[:] = [path for path in sys.path if path != modules]


@pytest.fixture(scope="module")
def model() -> HybridLM:
    torch.manual_seed(0)
    return HybridLM(Architecture.parse(EVERY_OPERATOR, width=64, vocab=257, meta_tokens=3)).eval()


@pytest.fixture(scope="module")
def folder(model: HybridLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_hf(model, tmp_path_factory.mktemp("hf") / "model", tokenizer="bytes")


@pytest.fixture(scope="module")
def loaded(transformers: Any, folder: Path) -> Any:
    return opened(transformers, folder)


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, 256, (3, 19), generator=torch.Generator().manual_seed(1))


def opened(transformers: Any, folder: Path | str, kind: str = "AutoModelForCausalLM") -> Any:
    return getattr(transformers, kind).from_pretrained(folder, trust_remote_code=True).eval()


def logits(model: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(tokens).logits


def test_the_auto_classes_open_the_folder(model: HybridLM, loaded: Any, folder: Path, transformers: Any) -> None:
    assert type(loaded).__module__.startswith("transformers_modules."), "not the folder's code"
    assert loaded.config.num_hidden_layers == len(model.architecture.layers)
    assert loaded.config.notation == model.architecture.notation
    assert sum(p.numel() for p in loaded.parameters()) == model.architecture.parameters
    assert loaded.generation_config.eos_token_id == loaded.generation_config.pad_token_id == 256
    assert loaded.dtype == torch.float32
    tokens = torch.arange(12).view(2, 6)
    torch.testing.assert_close(logits(loaded, tokens), model(tokens), atol=1e-5, rtol=0)
    body = opened(transformers, folder, "AutoModel")
    with torch.no_grad():
        features = body(tokens).last_hidden_state
    torch.testing.assert_close(features, model.hidden(tokens), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_it_opens_where_nfsearch_is_not(model: HybridLM, folder: Path, tokens: Tensor, tmp_path: Path) -> None:
    np.save(tmp_path / "tokens.npy", tokens.numpy())
    code = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("nfsearch", "fla", "mamba_ssm", "triton"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import numpy, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({str(folder)!r}, trust_remote_code=True)
tokens = torch.from_numpy(numpy.load("tokens.npy"))
with torch.no_grad():
    numpy.save("logits.npy", model(tokens).logits.numpy())
tokenizer = AutoTokenizer.from_pretrained({str(folder)!r}, trust_remote_code=True)
batch = tokenizer(["import os", "x"], return_tensors="pt", padding=True)
print(batch.attention_mask[1].tolist(), model.generate(**batch, max_new_tokens=5, do_sample=False).shape)
assert not [name for name in sys.modules if name.partition(".")[0] == "nfsearch"]
"""
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    assert said.stdout == "[0, 0, 0, 0, 0, 0, 0, 0, 1] torch.Size([2, 14])\n"
    with torch.no_grad():
        np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), model(tokens).numpy(), atol=1e-5, rtol=0)


def test_the_byte_tokenizer_is_the_one_of_the_search(transformers: Any, folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    text = "def f():\n\treturn 'Grüße 😀'  # \x00\x7f\u00ad\n"
    ids = tokenizer(text).input_ids
    assert ids == load_tokenizer("bytes").encode([text])[0][:-1].tolist()
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id == 256
    assert tokenizer.padding_side == "left"


def test_a_file_s_tokenizer_encodes_as_in_training(transformers: Any, tmp_path: Path) -> None:
    """Without the tokens that the file would put around a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2, "b": 3}, unk_token="b"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    made.enable_truncation(2)
    made.save(str(tmp_path / "mine.json"))
    end = folder_module._write_tokenizer(str(tmp_path / "mine.json"), tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("a b a").input_ids == [2, 3, 2]
    assert end == tokenizer.eos_token_id == 1


def test_saved_again_it_opens_again_here_and_there(
    transformers: Any, folder: Path, tokens: Tensor, tmp_path: Path
) -> None:
    model = opened(transformers, folder)
    model.resize_token_embeddings(300, mean_resizing=False)
    expected = logits(model, tokens)
    assert expected.shape[-1] == 300
    model.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / CODE.name).read_text() == CODE.read_text()
    again = opened(transformers, tmp_path / "again")
    assert torch.equal(logits(again, tokens), expected)
    with torch.no_grad():
        torch.testing.assert_close(hf.load(tmp_path / "again")(tokens), expected, atol=1e-5, rtol=0)


def test_a_head_of_its_own_comes_along(transformers: Any, tokens: Tensor, tmp_path: Path) -> None:
    model = HybridLM(Architecture.parse("F M2[head_dim=16,groups=2]", width=32, vocab=257, tied_head=False)).eval()
    loaded = opened(transformers, export_hf(model, tmp_path / "model"))
    expected = logits(loaded, tokens)
    torch.testing.assert_close(expected, model(tokens), atol=1e-5, rtol=0)
    loaded.save_pretrained(tmp_path / "again")
    for folder in ("model", "again"):
        again = hf.load(tmp_path / folder)
        assert again.architecture == model.architecture
        assert torch.equal(again(tokens), model(tokens))


def test_a_folder_becomes_our_model_again(model: HybridLM, folder: Path, tokens: Tensor) -> None:
    again = hf.load(folder)
    assert again.architecture == model.architecture
    assert torch.equal(again(tokens), model(tokens))
    again.loss(tokens, tokens).backward()
    assert all(p.grad is not None for p in again.parameters())


def test_what_is_wrong_with_a_folder_is_said(folder: Path, tmp_path: Path) -> None:
    def changed(
        config: dict[str, Any] | None = None, weights: Callable[[dict[str, Tensor]], None] | None = None
    ) -> str:
        there = tmp_path / "there"
        shutil.rmtree(there, ignore_errors=True)
        shutil.copytree(folder, there)
        if config:
            kept = json.loads((there / "config.json").read_text())
            (there / "config.json").write_text(json.dumps({**kept, **config}))
        if weights:
            held = load_file(there / "model.safetensors")
            weights(held)
            save_file(held, there / "model.safetensors")
        with pytest.raises(ValueError) as said:  # noqa: PT011  (the text is compared)
            hf.load(there)
        return str(said.value).replace(str(there), "THERE")

    assert changed({"model_type": "llama"}) == (
        "THERE holds no model that this version of `nfsearch export --to hf` wrote"
    )
    assert "the layers are not those of its notation" in changed({"notation": "F"})
    assert changed(weights=lambda held: held.pop("model.meta_tokens")) == "THERE lacks model.meta_tokens"
    assert "has, but its config does not, extra" in changed(weights=lambda held: held.update(extra=torch.ones(1)))
    with pytest.raises(OSError, match=r"config\.json"):
        hf.load(tmp_path)


def test_the_folder_is_whole_or_absent(
    model: HybridLM, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"config.json", "generation_config.json", "model.safetensors", "README.md", "modeling_nfsearch.py"}
    assert {path.name for path in folder.iterdir()} == names | {"tokenizer.json", "tokenizer_config.json"}
    with pytest.raises(FileExistsError, match="model"):
        export_hf(model, folder)
    (tmp_path / "empty").mkdir()
    assert {path.name for path in export_hf(model, tmp_path / "empty").iterdir()} == names
    assert json.loads((tmp_path / "empty" / "config.json").read_text())["eos_token_id"] is None
    monkeypatch.setattr("nfsearch.export.folder._card", lambda *_: 1 / 0)
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
    assert 'from_pretrained("a", trust_remote_code=True)' in card


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
    model = opened(transformers, "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained("model", trust_remote_code=True)
    ids = tokenizer("import os", return_tensors="pt").input_ids
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
        assert "pip install flash-linear-attention" in (tmp_path / "best" / "README.md").read_text()
        model = opened(transformers, tmp_path / "best")
        tokens = torch.tensor([[5, 6, 7]])
        torch.testing.assert_close(logits(model, tokens), hf.load(tmp_path / "best")(tokens), atol=1e-5, rtol=0)
        got = model.generate(tokens, max_new_tokens=4, do_sample=False)
        for _ in range(4):
            tokens = torch.cat((tokens, logits(model, tokens)[:, -1:].argmax(-1)), dim=1)
        assert torch.equal(got, tokens)
        with pytest.raises(ValueError, match="GatedMemory of flash-linear-attention cannot be continued from a cache"):
            model(tokens, use_cache=True)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "fla", None)
        said = r"layer 0 is GatedMemory of flash-linear-attention .*: pip install flash-linear-attention"
        with pytest.raises(ImportError, match=said):
            opened(transformers, tmp_path / "best")


def test_an_operator_that_the_folder_has_no_code_for_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture = Architecture.parse("F GLA F", width=32)
    monkeypatch.setattr(hf, "OPERATORS", ("ffn",))
    said = "layer 1 is GLA, of nfsearch.ops.gla: a folder that needs nothing of nfsearch has no code for it"
    with pytest.raises(ValueError, match=re.escape(said)):
        export_hf(HybridLM(architecture), tmp_path / "folder")
    assert not list(tmp_path.iterdir())


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


def test_nemotron_3_nano_4b_is_a_member_of_its_space_and_as_large_as_the_class_says(transformers: Any) -> None:
    """By what NVIDIA's public config says, written down here once more."""
    public = dict(
        hybrid_override_pattern="M-M-M-MM-M-M*-M-M*-M-M-M*-M-M-MM*-MMM-M-M-", hidden_size=3136, vocab_size=131072,
        intermediate_size=12544, num_attention_heads=40, num_key_value_heads=8, head_dim=128, mamba_num_heads=96,
        mamba_head_dim=80, n_groups=8, ssm_state_size=128, conv_kernel=4, layer_norm_epsilon=1e-5,
        tie_word_embeddings=False, mlp_bias=False, use_conv_bias=True, mlp_hidden_act="relu2",
    )  # fmt: skip
    space = load_config(EXPERIMENTS / "nemotron_h" / "config.yaml")[0].space.build(131072)
    written = {
        "M": "M2[heads=96,head_dim=80,groups=8]",
        "*": "A[heads=40,kv_heads=8,head_dim=128,rope=0]",
        "-": "F[ratio=4,act=relu2]",
    }
    layers = parse_layers(" ".join(written[kind] for kind in str(public["hybrid_override_pattern"])))
    architecture = space.architecture(3136, layers, 0)
    assert space.locate(architecture) is not None
    said = NemotronHExporter().config(architecture)
    assert {name: said[name] for name in public} == public
    with torch.device("meta"):
        theirs = transformers.NemotronHForCausalLM(transformers.NemotronHConfig(**public))
    assert sum(p.numel() for p in theirs.parameters()) == architecture.parameters == 3_973_556_832
