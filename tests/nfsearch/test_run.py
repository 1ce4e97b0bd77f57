"""A whole search through the command line: its files, its report made again, its exports."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from nfsearch.export.export import load_architecture
from nfsearch.latency_lut import load_table
from nfsearch.report.result import RunResult
from nfsearch.run.config import load_config
from nfsearch.run.search import _same_table
from nfsearch.search.study import load_store
from nfsearch.space import SpaceSettings
from tests.nfsearch.runs import FILES, SPACE

Command = Callable[..., tuple[str, str]]


def test_a_finished_run_has_every_file_and_a_true_front(finished_run: Path) -> None:
    for name in FILES[:-1]:
        assert (finished_run / name).stat().st_size > 0, name
    result = RunResult.load(finished_run / "result.json")
    assert result.run.status == "complete"
    assert len(result.candidates) == 8
    assert len({candidate.digest for candidate in result.candidates}) == 8
    space = SpaceSettings(**SPACE).build(vocab=257)
    for candidate in result.candidates:
        assert candidate.state == "done"
        assert space.locate_layers(load(candidate.architecture).layers) is not None
        better = [
            other.number
            for other in result.candidates
            if other.values["loss"] <= candidate.values["loss"]
            and other.values["tpot"] <= candidate.values["tpot"]
            and other.values != candidate.values
        ]
        assert (candidate.number in result.front) == (not better)
    frame = pd.read_csv(finished_run / "candidates.csv")
    assert list(frame.loc[frame.front, "number"].sort_values()) == sorted(result.front)
    assert list(pd.read_csv(finished_run / "front.csv").number) == result.front


def load(fields: dict):  # type: ignore[no-untyped-def]
    from nfsearch.space import Architecture

    return Architecture.from_dict(fields)


def test_a_report_is_rebuilt_from_the_study(finished_run: Path, tmp_path: Path, command: Command) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    before = json.loads((tmp_path / "run" / "result.json").read_text())
    for name in ("result.json", "candidates.csv", "front.csv", "front.png", "report.html"):
        (tmp_path / "run" / name).unlink()
    assert "report.html" in command("report", "run")[0]
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == before


def test_exports_load_again(finished_run: Path, tmp_path: Path, command: Command) -> None:
    result = RunResult.load(finished_run / "result.json")
    best = min(result.candidates, key=lambda candidate: candidate.loss)
    command("export", finished_run, "--to", "yaml", "-o", "best.yaml")
    assert load_architecture(tmp_path / "best.yaml").digest == best.digest
    assert yaml.safe_load((tmp_path / "best.yaml").read_text())["training"]["learning_rate"]["peak"] == 1e-3
    slow = max(candidate.latency["tpot"].seconds for candidate in result.candidates)
    fast = min(result.candidates, key=lambda candidate: candidate.latency["tpot"].seconds)
    limit = fast.latency["tpot"].seconds * 1e3 * 1.0001
    assert limit < slow * 1e3
    command("export", finished_run, "--to", "yaml", "-o", "fast.yaml", "--max-latency-ms", limit)
    assert load_architecture(tmp_path / "fast.yaml").digest == fast.digest


def test_a_table_measured_anew_does_not_go_on_with_candidates_of_another(finished_run: Path) -> None:
    config, _ = load_config(finished_run / "config.yaml")
    table = load_table(config.latency.table)
    with load_store(finished_run / "study.journal") as store:
        _same_table(store, table)
        table.provenance = dataclasses.replace(table.provenance, date="2001-01-01")
        with pytest.raises(ValueError, match=r"timed by another latency table .* 2001-01-01\): put that one back"):
            _same_table(store, table)
