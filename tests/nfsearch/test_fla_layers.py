"""A search over layers of flash-linear-attention, on a stand-in for the package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nfsearch.report.result import RunResult
from nfsearch.run.finished import export_candidate
from tests.fla_stand_in import stand_in
from tests.nfsearch.runs import invented_table, tiny_config


@pytest.mark.slow
def test_a_search_from_its_config_to_an_export(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Callable[..., tuple[str, str]]
) -> None:
    monkeypatch.setenv("NFSEARCH_CACHE", str(tmp_path / "cache"))
    space = {"width": 32, "where": {}, "layers": "(fla:GatedMemory[num_heads=2,expand_v=1|2] F[ratio=2]){1..2}"}
    with stand_in():
        table = str(invented_table(tmp_path / "layers.parquet", space))
        config = tiny_config(tmp_path, space=space, latency={"table": table}, search={"evaluations": 2, "population": 2})
        command("run", config, "--out", "run")
        result = RunResult.load(tmp_path / "run" / "result.json")
        assert [candidate.state for candidate in result.candidates] == ["done"] * 2
        best = min(result.candidates, key=lambda candidate: candidate.metrics["loss"].value)
        assert "fla:GatedMemory[" in best.notation
        export_candidate(tmp_path / "run", "hf", tmp_path / "best", pick=None, max_latency_ms=None)
        assert "pip install 'nfsearch[hf,fla-layers]'" in (tmp_path / "best" / "README.md").read_text()
        from transformers import AutoModelForCausalLM  # the export has imported it: it takes five seconds

        from nfsearch.hf import NFSearchForCausalLM

        model = AutoModelForCausalLM.from_pretrained(tmp_path / "best").eval()
        assert isinstance(model, NFSearchForCausalLM)
        assert model.config.layers == best.notation
        tokens = torch.tensor([[5, 6, 7]])
        got = model.generate(tokens, max_new_tokens=4, do_sample=False)
        for _ in range(4):
            logits = model(tokens, use_cache=False).logits
            tokens = torch.cat((tokens, logits[:, -1:].argmax(-1)), dim=1)
        assert torch.equal(got, tokens)
