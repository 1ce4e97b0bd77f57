"""Six extensions as another package would write them, a file each: installed, held to the suites, used in a search."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nfsearch.report.result import RunResult
from tests.nfsearch.runs import SPACE

HERE = Path(__file__).parent
OPERATOR = "EMA"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where the package is installed, away from its sources."""
    site = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-deps"]
    command = [*pip, "--no-index", "--no-build-isolation", "--target", str(site), str(HERE / "acme")]
    subprocess.run(command, check=True)
    return {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{HERE.parents[1]}"}


def run(environment: dict[str, str], *command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_each_is_one_short_file() -> None:
    files = sorted((HERE / "acme").glob("acme_*.py"))
    assert len(files) == 6
    assert all(len(path.read_text().splitlines()) <= 60 for path in files)


@pytest.mark.slow
def test_each_passes_its_suite(environment: dict[str, str], tmp_path: Path) -> None:
    cases = HERE / "acme_cases.py"
    out = run(environment, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, cases, cwd=tmp_path)
    assert "failed" not in out


@pytest.mark.slow
def test_a_search_uses_them_all(environment: dict[str, str], tmp_path: Path) -> None:
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
    run(environment, "-m", "nfsearch", "run", "config.yaml", "--out", "found", cwd=tmp_path)
    result = RunResult.load(tmp_path / "found" / "result.json")
    assert result.objectives == ["gradient", "tpot"]
    assert len(result.candidates) == 8
    assert {record.state for record in result.candidates} == {"done"}
    assert any(OPERATOR in record.mixers for record in result.candidates)
    assert any(record.origin.startswith("mutation") for record in result.candidates)
    run(environment, "-m", "nfsearch", "export", "found", "--to", "json", "-o", "best.json", cwd=tmp_path)
    best = json.loads((tmp_path / "best.json").read_text())
    assert best["metrics"]["gradient"] == min(record.value("gradient") for record in result.in_state("done"))
    few = ["--set", "rule.most=0.1", "--set", "search.evaluations=2", "--set", "search.population=2"]
    run(environment, "-m", "nfsearch", "run", "config.yaml", "--out", "stopped", *few, cwd=tmp_path)
    assert [record.state for record in RunResult.load(tmp_path / "stopped" / "result.json").candidates] == [
        "stopped"
    ] * 2
