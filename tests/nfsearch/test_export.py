from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from nfsearch.export import EXPORTERS, Winner, choose, load_architecture, require_free
from nfsearch.report.result import CandidateRecord, RunResult
from nfsearch.space import Architecture
from tests.nfsearch.fake_run import STOPPED, fake_candidates, make_result


def unneeded() -> Any:
    raise AssertionError("a YAML export needs neither data nor training")


def export_yaml(result: RunResult, record: CandidateRecord, out: Path) -> Path:
    return EXPORTERS.find("yaml")().export(Winner(result, record, unneeded, unneeded), out)


def test_yaml_gives_back_the_architecture(result: RunResult, tmp_path: Path) -> None:
    for record in result.candidates[:5]:
        path = export_yaml(result, record, tmp_path / "new" / f"{record.number}.yaml")
        loaded = load_architecture(path)
        assert loaded == Architecture.from_dict(record.architecture)
        assert loaded.digest == record.digest


def test_yaml_holds_the_recipe_and_where_it_comes_from(result: RunResult, tmp_path: Path) -> None:
    record = result.candidate(result.front[0])
    proxy = {"weight_norm": True, "data": "python-stdlib", "tokenizer": "bytes", "tokens": 1000}
    config = result.config.model_copy(update={"resolved": {"proxy": proxy}})
    path = export_yaml(result.model_copy(update={"config": config}), record, tmp_path / "a.yaml")
    fields = yaml.safe_load(path.read_text())
    assert fields["training"]["optimizer"] == "Adam"
    assert fields["training"]["weight_decay"] == 0
    assert fields["training"]["tokenizer"] == "bytes"
    assert fields["proxy"] == proxy
    measured = fields["measured"]
    assert measured["metrics"]["loss"] == {"value": record.value("loss"), "unit": "nats"}
    time = record.metrics["tpot"]
    assert measured["metrics"]["tpot"] == {"value": time.value * 1e3, "unit": "ms", "error": time.error * 1e3}
    assert measured["metrics"]["parameters"] == {"value": pytest.approx(fields["parameters"] / 1e6), "unit": "M"}
    assert measured["fidelity"] == record.fidelity.to_dict()
    assert (measured["tokens"], measured["seed"]) == (record.tokens, 0)
    assert fields["provenance"]["candidate"] == record.number
    assert fields["provenance"]["run"]["command"] == result.run.command


def test_without_weight_norm_the_recipe_decays_weights(result: RunResult, tmp_path: Path) -> None:
    resolved = {"proxy": {"weight_norm": False, "weight_decay": 0.1}}
    config = result.config.model_copy(update={"resolved": resolved})
    path = export_yaml(result.model_copy(update={"config": config}), result.candidates[0], tmp_path / "a.yaml")
    training = yaml.safe_load(path.read_text())["training"]
    assert (training["optimizer"], training["weight_decay"]) == ("AdamW", 0.1)


def test_nothing_is_written_over(result: RunResult, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    with pytest.raises(FileExistsError, match="taken"):
        export_yaml(result, result.candidates[0], taken)
    assert taken.read_text() == "mine"
    with pytest.raises(FileExistsError, match="a folder"):
        export_yaml(result, result.candidates[0], tmp_path)
    with pytest.raises(FileExistsError):
        require_free(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        require_free(tmp_path / "link")
    (tmp_path / "empty").mkdir()
    require_free(tmp_path / "empty")
    require_free(tmp_path / "absent")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "format: other",
        "format: nfsearch.architecture/1",
        "format: nfsearch.architecture/1\narchitecture: {width: 64, layers: D Q}",
        "format: nfsearch.architecture/1\narchitecture: {width: 64, layers: D F, colour: red}",
        "a: [",
        "\x00",
    ],
)
def test_another_file_is_refused_by_name(content: str, tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"other\.yaml is not an exported architecture"):
        load_architecture(path)


def test_choose(result: RunResult) -> None:
    done = [record for record in result.candidates if record.state == "done"]
    assert choose(result).value("loss") == min(record.metrics["loss"].value for record in done)
    assert choose(result, pick=17).number == 17
    limit = sorted(record.metrics["tpot"].value for record in done)[10] * 1e3
    chosen = choose(result, max_latency_ms=limit)
    admitted = [record for record in done if record.metrics["tpot"].value * 1e3 <= limit]
    assert chosen in admitted
    assert chosen.value("loss") == min(record.metrics["loss"].value for record in admitted)


def test_choose_keeps_to_the_first_objective_the_limits_and_one_fidelity() -> None:
    result = make_result(objectives=["parameters", "tpot"], limits={"loss": 2})
    chosen = choose(result)
    able = [record for record in result.in_state("done") if record.metrics["loss"].value <= 2]
    assert chosen.number == result.front[0]
    assert chosen.value("parameters") == min(record.metrics["parameters"].value for record in able)
    smallest = min(result.in_state("done"), key=lambda record: record.metrics["parameters"].value)
    assert smallest.number != chosen.number
    assert choose(result, pick=smallest.number) == smallest
    fast = choose(result, max_latency_ms=min(record.metrics["tpot"].value for record in able) * 1e3 * 1.0001)
    assert fast in able
    candidates = fake_candidates()
    best = choose(make_result()).number
    proposal = candidates[best].proposal
    short = replace(proposal.job, fidelity=replace(proposal.job.fidelity, tokens=1000))
    candidates[best] = replace(candidates[best], proposal=replace(proposal, job=short))
    assert choose(make_result(candidates)).number != best


def test_choose_says_why_it_cannot(result: RunResult) -> None:
    with pytest.raises(ValueError, match="no candidate 99"):
        choose(result, pick=99)
    with pytest.raises(ValueError, match="candidate 9 has failed"):
        choose(result, pick=9)
    with pytest.raises(ValueError, match=f"candidate {STOPPED} was stopped early, so there is nothing to export"):
        choose(result, pick=STOPPED)
    with pytest.raises(ValueError, match="no candidate of this run keeps its limits; --pick"):
        choose(make_result(limits={"loss": 0.01}))
    with pytest.raises(ValueError, match="the fastest takes"):
        choose(result, max_latency_ms=1e-9)
    with pytest.raises(ValueError, match="--max-latency-ms: expected more than 0, found nan"):
        choose(result, max_latency_ms=float("nan"))
    with pytest.raises(ValueError, match="no candidate of this run"):
        choose(make_result([]))
    with pytest.raises(ValueError, match="no latency"):
        choose(make_result(workloads=()), max_latency_ms=1)
