"""Searches kept to a family that other software opens, from the config to the opened model."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nfsearch import hf
from nfsearch.export.nemotron_h import NemotronHExporter
from nfsearch.ops.model import HybridLM
from nfsearch.report.result import RunResult
from nfsearch.run.config import load_config
from nfsearch.run.records import fingerprint
from nfsearch.search.known import locate
from nfsearch.space import Architecture, SpaceSettings
from nfsearch.support.registry import Registry
from tests.nfsearch.runs import Run, complaint, invented_table, tiny_config
from tests.nfsearch.test_native import LlamaExporter

Command = Callable[..., tuple[str, str]]
SPACE: dict[str, Any] = {
    "width": [32, 64],
    "where": {
        "mamba": "M2[head_dim=16,state=8|16,groups=1|2,expand=1|2]",
        "heads": "A[head_dim=8|16,kv_heads=1|2,window=none|8,rope=0|1,qk_norm=false|true]",
        "mixer": "D[head_dim=16] | GDN[head_dim=16] | mamba | heads",
        "wide": "F[ratio=1|2,act=swiglu|relu2]",
    },
    "layers": "(mixer wide{0..2})*{1..5}",
    "serves": "nemotron_h",
}
NEMOTRON = NemotronHExporter()


@pytest.fixture
def llama(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a package with this exporter were installed."""
    find = Registry.find

    def found(registry: Registry[Any], name: str) -> Any:
        asked = registry.group, name
        return LlamaExporter if asked == ("nfsearch.exporters", "llama") else find(registry, name)

    monkeypatch.setattr(Registry, "find", found)


def test_a_space_is_described_without_what_the_family_has_not(command: Command, llama: None) -> None:
    expression = "(mixer F[act=swiglu|relu2])*{1..9}; mixer = A[window=none|512] | D"
    out, _ = command("space", expression, "--serves", "llama")
    assert out.splitlines() == [
        "(mixer F)*{1..9}",
        "mixer = A",
        "widths       1024",
        "operators    A, F",
        "serves       llama, without A[window=512], D, F[act=relu2]",
        "choices      9 combinations (a member that several lead to counts several times)",
    ]
    out, _ = command("space", expression, "--serves", "llama", "--sample", 3)
    assert out.count("@ 1024") == 3
    assert command("space", expression, "--serves", "llama", "--count")[0] == "9\n"
    out, _ = command("space", expression, "--serves", "llama", "--check", "A F A F")
    assert out.startswith("a member: A F A F @ 1024")
    out, _ = command("space", expression, "--serves", "llama", "--check", "A F D F", status=1)
    assert out == "not a member: layer 2 is D: llama has layers for A, F alone\n"


def test_names_that_nothing_serves_are_refused_by_name(fails: Run, tmp_path: Path, llama: None) -> None:
    assert "unknown exporter 'hff', did you mean hf?" in fails("space", "A F", "--serves", "hff")
    assert "yaml can write any design" in fails("space", "A F", "--serves", "yaml")
    assert "llama can express no member of the space: D: llama has" in fails("space", "D F", "--serves", "llama")
    text = "space:\n  width: 64\n  layers: F\n  serves: hff\n"
    said = complaint(tmp_path / "a.yaml", text)
    assert "a.yaml:4: space.serves: unknown exporter 'hff', did you mean hf?; known: hf, " in said


def test_a_known_design_that_is_not_expressed_is_refused_with_the_reason(tmp_path: Path) -> None:
    space = SpaceSettings.model_validate(SPACE).build(257)
    design = "A[head_dim=8,kv_heads=1,rope=0] F[act=relu2,ratio=1] A[head_dim=8,kv_heads=1,rope=0] F[act=relu2,ratio=2]"
    assert len(locate(space, [design.replace("ratio=2", "ratio=1")])[0]) == 2
    with pytest.raises(
        ValueError, match=r"is no member of the space, or breaks its limits \(layer 3 is F.*, with inner="
    ):
        locate(space, [design])


def test_a_config_that_serves_nothing_is_what_it_was(tmp_path: Path) -> None:
    text = "space: {width: 64, layers: 'F{1..3}'}\n"
    (tmp_path / "a.yaml").write_text(text)
    assert not {"serves", "tied_head"} & fingerprint(load_config(tmp_path / "a.yaml")[0])["space"].keys()
    (tmp_path / "a.yaml").write_text(text.replace("layers", "serves: hf, layers"))
    assert fingerprint(load_config(tmp_path / "a.yaml")[0])["space"]["serves"] == "hf"


def test_a_thousand_samples_are_exported_without_a_refusal(tmp_path: Path) -> None:
    space, rng = SpaceSettings.model_validate(SPACE).build(257), random.Random(0)
    designs = [space.sample(rng).architecture for _ in range(1000)]
    assert [said for design in designs if (said := NEMOTRON.refusal(design))] == []
    assert len(set(designs)) > 700
    for number in range(5):
        NEMOTRON.write(HybridLM(designs[number]), tmp_path / str(number))
    open_space = SpaceSettings.model_validate({**SPACE, "serves": None}).build(257)
    assert all(NEMOTRON.refusal(open_space.sample(rng).architecture) for _ in range(100)), "it would hold by itself"


def test_a_search_from_its_config_to_a_model_that_transformers_opens(
    command: Command, tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("NFSEARCH_CACHE", str(tmp_path / "cache"))
    table = str(invented_table(tmp_path / "served.parquet", SPACE))
    config = tiny_config(tmp_path, space=SPACE, latency={"table": table})
    command("run", config, "--out", "run")
    result = RunResult.load(tmp_path / "run" / "result.json")
    designs = [Architecture.from_dict(candidate.architecture) for candidate in result.candidates]
    assert len(set(designs)) == 8
    assert [said for design in designs if (said := NEMOTRON.refusal(design))] == []
    assert {candidate.origin.partition(":")[0] for candidate in result.candidates} >= {"random", "mutation"}
    assert result.space.serves == "nemotron_h"
    assert "nemotron_h, which can express every member" in Path("run", "report.html").read_text()
    err = command("run", "--resume", "run", "--set", "space.serves=hf", status=2)[1]
    assert 'space.serves was "nemotron_h" and is now "hf"' in err
    command("export", "run", "--best", "--to", "nemotron_h", "-o", "best")
    command("export", "run", "--best", "--to", "hf", "-o", "ours")
    model, ours = transformers.AutoModelForCausalLM.from_pretrained("best"), hf.load("ours")
    held = replace(ours.architecture, tied_head=False).parameters  # the family has a head of its own
    assert sum(weight.numel() for weight in model.parameters()) == held
    tokens = torch.arange(40).view(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, ours(tokens), atol=1e-5, rtol=0)
