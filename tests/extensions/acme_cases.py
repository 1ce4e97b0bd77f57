"""The shipped suites on the extensions of `acme`, and a search that uses them all: run by test_extensions in an
environment in which it is installed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from nfsearch.report.result import RunResult
from nfsearch.space import Layer
from nfsearch.testing import ExecutorSuite, ExporterSuite, OperatorSuite, ProxySuite, RuleSuite, StrategySuite
from tests.latency_lut.helpers import measure_quickly
from tests.nfsearch.runs import SPACE

OPERATOR = "EMA"


class TestAverage(OperatorSuite):
    layers = (Layer.of(OPERATOR),)
    widths = (32, 96)


class TestClimb(StrategySuite):
    name = "climb"


class TestAtStart(ProxySuite):
    name = "at_start"
    settings = {"tokens": 32}  # noqa: RUF012


class TestCeiling(RuleSuite):
    name = "ceiling"


class TestJson(ExporterSuite):
    name = "json"


class TestThreads(ExecutorSuite):
    name = "threads"


def test_a_search_uses_them_all(
    tmp_path: Path, command: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure_quickly(monkeypatch)
    sections = {
        "space": {
            **SPACE,
            "width": 32,
            "where": {"mixer": OPERATOR},
            "layers": "(mixer F[ratio=2|3]{0..1}){1..3}",
            "vocab": 64,
        },
        "latency": {"device": "cpu", "workloads": {"tpot": {"context": 64}}, "verify": 0},
        "proxy": {"kind": "at_start", "tokens": 32},
        "search": {"strategy": "climb", "anew": 0.5, "evaluations": 8, "population": 4},
        "rule": {"kind": "ceiling"},
        "objectives": ["gradient", "tpot"],
        "limits": {"start_loss": 100},
        "workers": {"executor": "threads"},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(sections))
    command("run", "config.yaml", "--out", "found")
    result = RunResult.load(tmp_path / "found" / "result.json")
    assert result.objectives == ["gradient", "tpot"]
    assert len(result.candidates) == 8
    assert {record.state for record in result.candidates} == {"done"}
    assert any(OPERATOR in record.mixers for record in result.candidates)
    assert any(record.origin.startswith("mutation") for record in result.candidates)
    command("export", "found", "--to", "json", "-o", "best.json")
    best = json.loads((tmp_path / "best.json").read_text())
    assert best["metrics"]["gradient"] == min(record.value("gradient") for record in result.in_state("done"))
    few = ["--set", "rule.most=0.1", "--set", "search.evaluations=2", "--set", "search.population=2"]
    command("run", "config.yaml", "--out", "stopped", *few)
    stopped = RunResult.load(tmp_path / "stopped" / "result.json").candidates
    assert [record.state for record in stopped] == ["stopped"] * 2
